"""Check gradients of the losses against T24's Lemmas 6.1 and 6.2 and the marks of its table 1."""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bandits import plotting
from bandits.losses import METHODS, Responses, make_group, response_weights
from bandits.studies.intervals import share_interval
from bandits.studies.study import ALWAYS, Claim, Criterion, Study, claim
from theory import gibbs, mode_seeking


class Lemmas(Study):
    """Compare gradients of the losses with the closed forms, on random instances.

    The left side is the automatic derivative of a method's loss through a softmax, in float64. The
    right side is a gradient of `theory.mode_seeking`, or the condition of Lemma 6.2.
    """

    source = "T24, Lemmas 6.1 and 6.2"
    question = "Is policy gradient reverse KL, and when does a negative gradient help the winner?"
    quick = {"instances": 2000}

    instances: int = 20_000
    arms: int = 10  # K
    beta: float = 0.5  # coefficient of the KL penalty, and temperature of RWR
    step: float = 1e-6  # η of Lemma 6.2, small enough for first order to decide the sign
    seed: int = 0  # of the instances

    # Relative to the largest entry: what a few dozen operations in float64 leave of an identity.
    ROUNDING = 1e-12
    IDENTITIES = {
        "reverse_kl_error": "REINFORCE on the KL-regularised reward follows reverse KL to the "
        "Gibbs policy",
        "weighted_error": "RWR on its own samples is a policy gradient on exp(r/τ)",
    }

    def run(self) -> xr.Dataset:
        """Return errors of the identities of Lemma 6.1, and both sides of Lemma 6.2's condition."""
        with jax.enable_x64(True):
            keys = jax.random.split(jax.random.key(self.seed), self.instances)
            values = jax.jit(jax.vmap(self._instance))(keys)
            arrays = {name: ("instance", np.asarray(value)) for name, value in values.items()}
        return xr.Dataset(arrays)

    def _instance(self, key: PRNGKeyArray) -> dict[str, Array]:
        keys = jax.random.split(key, 5)
        concentration = jnp.exp(jax.random.uniform(keys[0], minval=-2.0, maxval=1.0))
        logits = jnp.log(jax.random.dirichlet(keys[1], jnp.full(self.arms, concentration)))
        logits = jax.nn.log_softmax(jnp.maximum(logits, -30.0))
        reference = jax.nn.log_softmax(jax.random.normal(keys[2], (self.arms,)))
        reward = jax.random.normal(keys[3], (self.arms,))
        pair = jax.random.choice(keys[4], self.arms, (2,), replace=False)

        def step_of(method: str, **hyperparameters: float) -> Float[Array, " K"]:
            """Return minus the gradient of a method's exact loss in the logits."""
            loss = METHODS[method].bind(**hyperparameters)
            shares = jnp.exp(logits)

            def of_logits(logits: Float[Array, " K"]) -> Float[Array, ""]:
                log_probs = jax.nn.log_softmax(logits)
                return loss(
                    make_group(log_probs, reward, reference_log_probs=reference, shares=shares)
                )

            return -jax.grad(of_logits)(logits)

        def winner_after(coefficient: float) -> Float[Array, ""]:
            """Return log π(w) after one step on log π(w) − c log π(l), as a loss takes it."""
            loss = METHODS["best_of_n_minus_worst"].bind(coefficient=coefficient)

            def of_logits(logits: Float[Array, " K"]) -> Float[Array, ""]:
                return loss(make_group(jax.nn.log_softmax(logits)[pair], jnp.array([1.0, 0.0])))

            stepped = logits - self.step * jax.grad(of_logits)(logits)
            return jax.nn.log_softmax(stepped)[pair[0]]

        target = gibbs.gibbs_log_probs(reward, reference, self.beta)
        probs = jnp.exp(logits)
        return {
            "reverse_kl_error": _relative_error(
                step_of("reinforce", beta=self.beta, prompt_baseline=1.0),
                -self.beta * mode_seeking.reverse_kl_gradient(logits, target),
            ),
            "weighted_error": _relative_error(
                step_of("reward_weighted", temperature=self.beta),
                mode_seeking.weighted_likelihood_gradient(logits, jnp.exp(reward / self.beta)),
            ),
            "collision": jnp.sum(probs**2),
            "pair_mass": probs[pair[0]] + probs[pair[1]],
            "help": (winner_after(1.0) - winner_after(0.0)) / self.step,
        }

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw the errors of Lemma 6.1, and where 6.2's negative gradient helps the winner."""
        edges = (0.06, 0.12, 0.985, 0.92)
        figure, panels = plotting.new_grid(1, 2, 14, 6, edges, 0.2, sharey=False)
        errors, condition = panels[0]
        bins = np.geomspace(1e-17, 1e-11, 40)
        for name, label, method in (
            ("reverse_kl_error", "policy gradient = reverse KL", "reverse_kl"),
            ("weighted_error", "RWR = policy gradient", "reward_weighted"),
        ):
            style = {"color": plotting.METHOD_COLORS[method], "label": label, "alpha": 0.65}
            errors.hist(np.maximum(dataset[name], bins[0]), bins, **style)
        errors.set(xscale="log", xlabel="relative error, float64", ylabel="instances")
        errors.set_title("Lemma 6.1: the two sides agree to rounding")
        errors.legend(loc="upper right")
        helps = dataset["help"] > 0
        for kept, color, label in (
            (helps, plotting.RAISED, "helps the winner"),
            (~helps, plotting.PUSHED, "hurts the winner"),
        ):
            shown = dataset.isel(instance=np.flatnonzero(kept)[:4000])
            style = {"s": 9, "color": color, "label": label, "rasterized": True}
            condition.scatter(shown["pair_mass"], shown["collision"], **style)
        condition.plot([0, 1], [0, 1], color=plotting.INK, linewidth=1.6)
        condition.set(xlabel="p_w + p_l", ylabel="Σp²", xlim=(0, 1), ylim=(0, 1))
        condition.set_title("Lemma 6.2: the negative gradient in one step")
        condition.legend(loc="lower right", markerscale=3)
        return figure

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        helps = dataset["help"] > 0
        condition = dataset["collision"] < dataset["pair_mass"]
        return [
            *(
                claim(
                    f"{statement}: share of instances in which the gradients agree to "
                    f"{cls.ROUNDING:g}",
                    share_interval(dataset[name] < cls.ROUNDING),
                    ALWAYS,
                    note="The largest relative difference is "
                    f"{float(dataset[name].max(skipna=False)):.1e}.",
                )
                for name, statement in cls.IDENTITIES.items()
            ),
            claim(
                "The negative gradient helps the winner itself if and only if Σp² < p_w + p_l: "
                "share of instances in which the condition tells the sign",
                share_interval(helps == condition),
                ALWAYS,
                note=f"It helps in {float(helps.mean()):.0%} of these instances.",
            ),
        ]


def _relative_error(a: Float[Array, " K"], b: Float[Array, " K"]) -> Float[Array, ""]:
    return jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))


class Weights(Study):
    """Compute every method's weights of a group: which responses it raises, which it pushes down.

    The weight of a response is minus the derivative of the loss in its log-probability; by the
    chain rule a policy follows Σ weight · ∇log π. The group is a space of N responses with random
    rewards, seen by a policy that has moved a little from its reference.
    """

    source = "T24, table 1 and Lemma 6.2"
    question = "Which responses does each method raise, and which does it push down?"
    quick = {"groups": 200}

    responses: int = 8  # N
    groups: int = 2000  # drawn at random, of which the first is shown
    moved: float = 0.5  # standard deviation of log π/π_ref in nats
    seed: int = 0  # of the groups

    def run(self) -> xr.Dataset:
        """Return the weights of every method on every group, responses ordered by reward."""
        keys = jax.random.split(jax.random.key(self.seed), self.groups)
        groups = jax.vmap(self._random_group)(keys)

        def weigh(group: Responses) -> dict[str, Float[Array, " N"]]:
            return {name: response_weights(m.bind(), group) for name, m in METHODS.items()}

        weights = jax.jit(jax.vmap(weigh))(groups)
        dims = ("loss", "group", "response")
        return xr.Dataset(
            {
                "weight": (dims, np.array([weights[name] for name in METHODS])),
                "reward": (dims[1:], np.asarray(groups.rewards)),
            },
            coords={
                "loss": list(METHODS),
                "negative_gradient": ("loss", [m.negative_gradient for m in METHODS.values()]),
            },
            attrs={"drawn_group": 0},
        )

    def _random_group(self, key: PRNGKeyArray) -> Responses:
        """Return a whole space of responses, so that divergences stand beside sampled methods."""
        reward_key, reference_key, move_key = jax.random.split(key, 3)
        rewards = jnp.sort(jax.random.uniform(reward_key, (self.responses,)))
        reference = jax.nn.log_softmax(jax.random.normal(reference_key, rewards.shape))
        move = self.moved * jax.random.normal(move_key, rewards.shape)
        return make_group(
            jax.nn.log_softmax(reference + move),
            rewards,
            reference_log_probs=reference,
            baseline=rewards.mean(),
        )

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a panel for each method: the weights of one group, as shares of the largest."""
        names = dataset["loss"].values
        figure, panels = plotting.new_panels(
            len(names), 16, 2.45, margins=(0.75, 0.85, 0.15, 0.4), wspace=0.07
        )
        one = dataset["weight"].isel(group=int(dataset.attrs["drawn_group"]))
        for axes, name in zip(panels, names, strict=True):
            weights = one.sel(loss=name).values
            weights = weights / np.abs(weights).max()
            colors = [plotting.RAISED if w > 0 else plotting.PUSHED for w in weights]
            axes.bar(np.arange(weights.size), weights, color=colors, width=0.8)
            axes.axhline(0, color=plotting.INK, linewidth=1)
            axes.set_title(plotting.METHOD_LABELS[str(name)], fontsize=13)
            axes.set(ylim=(-1.08, 1.08), yticks=[-1, 0, 1])
            axes.set_xticks([0, weights.size - 1], ["worst", "best"])
        figure.supylabel("weight, as a share of the largest", fontsize=14, x=0.004)
        legend = {"raised": plotting.RAISED, "pushed down": plotting.PUSHED}
        handles = [Patch(color=color, label=label) for label, color in legend.items()]
        figure.legend(handles=handles, loc="lower center", ncols=2, fontsize=14)
        return figure

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        pushes = (dataset["weight"] < 0).any("response")
        marked = pushes.sel(loss=dataset["negative_gradient"])
        others = pushes.sel(loss=~dataset["negative_gradient"])
        rarest = str(marked.sum("group").idxmin("loss").item())
        return [
            claim(
                f"The {marked.sizes['loss']} methods marked with a negative gradient push some "
                "response down: share of groups, for the method that does it least often "
                f"({plotting.METHOD_LABELS[rarest]})",
                share_interval(marked.sel(loss=rarest)),
                Criterion(lambda share: share.effect > 0, ""),
                note="A method may have no negative weight on a group that it is content with.",
            ),
            claim(
                f"The {others.sizes['loss']} other methods push no response down: share of groups "
                "in which none of them does",
                share_interval(~others.any("loss")),
                ALWAYS,
            ),
        ]
