"""Count how many preferences a reward needs, and how many a policy.

Responses are sequences of tokens, under a uniform reference. A Bradley–Terry labeller of the true
reward labels pairs of them. The true reward adds up over tokens (simple), or it is a random table;
in a third problem the horizon is a single token, so that policies are as simple as rewards. Four
learners see the same pairs: RLHF with an additive reward or a table of rewards, both soft-optimised
exactly, and DPO on product policies or on all policies. Every fitted parameter, of a reward or an
implicit reward, has the same Gaussian prior, that of the true token rewards. RLHF and DPO are
equivalent, so the four learners are two: additive rewards and product policies are one class, and
so are the two tables.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from bandits import plotting
from bandits.fitting import minimize
from bandits.losses import METHODS, make_pair
from bandits.policies import Policy, all_sequences, log_linear, tabular_softmax
from bandits.studies.curves import draw_mean_line, log_axis, require_no_nan, with_legend
from bandits.studies.study import Claim, Criterion, Study, below, claim, surely_within
from bandits.sweeps import choices, sweep
from theory import convex, gibbs
from theory.generation_verification import class_sizes, token_features

RLHF_ADDITIVE, DPO_PRODUCT = "RLHF, additive reward", "DPO, product policies"
"""The small searches: one class, seen as rewards and as policies."""

RLHF_TABLE, DPO_ALL = "RLHF, table of rewards", "DPO, all policies"
"""The large searches. The gap is that of RLHF with an additive reward over DPO on all policies."""

STYLES = {
    RLHF_ADDITIVE: (plotting.METHOD_COLORS["rlhf"], "-"),
    DPO_PRODUCT: (plotting.METHOD_COLORS["dpo"], "--"),
    RLHF_TABLE: ("#66C2A5", "-"),
    DPO_ALL: (plotting.METHOD_COLORS["online_ipo"], "--"),
}
LEARNERS = tuple(STYLES)
PANELS = {
    "simple": "Simple reward: adds up over tokens",
    "random": "Complicated reward: a random table",
    "one token": "Simple policy: a single token",
}


class GenerationVerificationGap(Study):
    """Compare four learners on the same pairs: two search a small class, two a large one."""

    source = "S25; arXiv:2503.01067, section 5"
    question = "Why can two stages need fewer preferences than one?"
    quick = {"pairs": (50, 200), "other_scales": (1.0,), "seeds": 4}

    values: int = 4  # V
    length: int = 5  # L, of the sequences
    token_values: int = 20  # V where the horizon is one
    reward_scale: float = 4.0  # standard deviation of token rewards, in nats of log-odds
    other_scales: tuple[float, ...] = (1.0, 2.0)  # of noisier labellers, at one number of pairs
    beta: float = 0.5  # of the KL penalty and of DPO
    pairs: tuple[int, ...] = (25, 50, 100, 200, 400, 800)  # numbers of labelled pairs
    learning_rate: float = 0.3  # of Adam, for the tables; Newton's method solves the others
    steps: int = 150  # of Adam
    judged: int = 1000  # fresh pairs on which each learner's order is judged
    best_of: int = 16  # out of distribution, each response of a pair is the best of so many
    seeds: int = 20  # independent problems

    def run(self) -> xr.Dataset:
        tokens = all_sequences(self.values, self.length)
        sequences = jnp.asarray(token_features(tokens, self.values))
        one_token = jnp.eye(self.token_values)
        scale, middle = (self.reward_scale,), (_nearest_to_200(self.pairs),)
        parts = [
            self._learn_all(sequences, choices("simple", "random"), scale, self.pairs),
            self._learn_all(one_token, choices("one token"), scale, self.pairs),
        ]
        noisier = self._learn_all(sequences, choices("simple"), self.other_scales, middle)
        noisier = noisier.squeeze(("problem", "pairs"), drop=True)
        sizes = class_sizes(self.values, self.length)
        dataset = xr.concat(parts, "problem").squeeze("scale", drop=True)
        return dataset.assign(
            noisier_share=noisier["share"], noisier_label_accuracy=noisier["label_accuracy"]
        ).assign_attrs(policy_parameters=sizes.policies, reward_parameters=sizes.additive_rewards)

    def _learn_all(
        self,
        features: Float[Array, "K F"],
        problems: choices,
        scales: Sequence[float],
        numbers: Sequence[int],
    ) -> xr.Dataset:
        """Run every learner on every problem, reward scale and number of pairs."""
        most = max(numbers)

        def run_one(
            problem: Int[Array, ""],
            scale: Float[Array, ""],
            pairs: Int[Array, ""],
            seed: Int[Array, ""],
            features: Float[Array, "K F"],
        ) -> dict[str, Array]:
            reward_key, pair_key, label_key, in_key, out_key = jax.random.split(
                jax.random.key(seed), 5
            )
            reward = scale * self._true_reward(reward_key, problem, features)
            size = len(reward)
            drawn = jax.random.randint(pair_key, (most, 2), 0, size)
            gaps = reward[drawn[:, 0]] - reward[drawn[:, 1]]
            right = jax.random.uniform(label_key, (most,)) < jax.nn.sigmoid(gaps)
            ordered = jnp.where(right[:, None], drawn, drawn[:, ::-1])
            # The first pairs count; the others are masked, so that one program serves all numbers.
            weights = (jnp.arange(most) < pairs) / pairs
            learned = self._learn(ordered, weights, 1.0 / (pairs * scale**2), features)
            policies = jax.nn.log_softmax(learned / self.beta, axis=-1)
            reference = jnp.full(size, -jnp.log(size))
            best = jnp.exp(gibbs.gibbs_log_probs(reward, reference, self.beta)) @ reward
            start = reward.mean()
            fresh = jax.random.randint(in_key, (self.judged, 2), 0, size)
            many = jax.random.randint(out_key, (self.judged, 2, self.best_of), 0, size)
            chosen = jnp.argmax(reward[many], axis=-1, keepdims=True)
            better = jnp.take_along_axis(many, chosen, axis=-1)[..., 0]
            return {
                "share": (jnp.exp(policies) @ reward - start) / (best - start),
                "accuracy": jnp.stack([_accuracy(learned, reward, d) for d in (fresh, better)]),
                "label_accuracy": jnp.mean(right == (gaps > 0)),
            }

        axes = {"problem": problems, "scale": list(scales), "pairs": list(numbers)}
        return require_no_nan(
            sweep(
                run_one,
                axes | {"seed": np.arange(self.seeds)},
                fixed={"features": features},
                dims={"share": ["learner"], "accuracy": ["judged_on", "learner"]},
                coords={"learner": list(LEARNERS), "judged_on": ["data's law", "best of many"]},
                attributes={"share": {"long_name": "share of the optimum's reward", "units": "1"}},
                block_runs=10,
            )
        )

    def _true_reward(
        self, key: Array, problem: Int[Array, ""], features: Float[Array, "K F"]
    ) -> Float[Array, " K"]:
        """Return rewards that add up over tokens, or a random table of the same variance."""
        token_key, table_key = jax.random.split(key)
        size, columns = features.shape
        additive = features @ jax.random.normal(token_key, (columns,))
        table = self.length**0.5 * jax.random.normal(table_key, (size,))
        return jnp.where(problem == 0, additive, table)

    def _learn(
        self,
        pairs: Int[Array, "n 2"],
        weights: Float[Array, " n"],
        ridge: Float[Array, ""],
        features: Float[Array, "K F"],
    ) -> Float[Array, "4 K"]:
        """Return the reward, learned or implicit, of each of `LEARNERS`."""
        size, columns = features.shape

        def rlhf_loss(rewards: Float[Array, " K"]) -> Float[Array, ""]:
            margins = rewards[pairs[:, 0]] - rewards[pairs[:, 1]]
            return -weights @ jax.nn.log_sigmoid(margins)

        def dpo_loss(policy: Policy, params: Array) -> Float[Array, ""]:
            return weights @ _dpo_of_pairs(policy.log_probs(params), pairs, self.beta)

        def prior(params: Array) -> Float[Array, ""]:
            return ridge / 2 * jnp.sum(params**2)

        def descend(loss: convex.Objective) -> Float[Array, " K"]:
            return minimize(loss, jnp.zeros(size), optax.adam(self.learning_rate), self.steps)

        product, table = log_linear(features), tabular_softmax()
        start = jnp.zeros(columns)
        # DPO's parameters are multiplied by β to be rewards, so that the priors are the same.
        additive = convex.minimize(lambda w: rlhf_loss(features @ w) + prior(w), start)
        of_product = convex.minimize(lambda w: dpo_loss(product, w / self.beta) + prior(w), start)
        rewards = descend(lambda r: rlhf_loss(r) + prior(r))
        of_table = descend(lambda r: dpo_loss(table, r / self.beta) + prior(r))
        return jnp.stack([features @ additive, features @ of_product, rewards, of_table])

    @classmethod
    def plot(cls, dataset: xr.Dataset) -> Figure:
        """Draw a panel for each problem: the share of the optimum's reward by number of pairs."""
        edges = (0.06, 0.24, 0.99, 0.91)
        figure, grid = plotting.new_grid(1, 3, 15.5, 5.8, edges, wspace=0.06)
        for (problem, title), axes in zip(PANELS.items(), grid[0], strict=True):
            for learner, (color, line) in STYLES.items():
                one = dataset["share"].sel(problem=problem, learner=learner)
                draw_mean_line(axes, one, "pairs", color=color, linestyle=line, label=learner)
            axes.axhline(1, color=plotting.INK, linewidth=1)
            log_axis(axes, dataset["pairs"].values)
            axes.set(title=title, xlabel="labelled pairs", ylim=(-0.03, 1.08))
        grid[0, 0].set_ylabel("share of the optimum's reward")
        return with_legend(figure, grid[0, 0], ncols=4)

    @classmethod
    def judge(cls, dataset: xr.Dataset) -> list[Claim]:
        at = _nearest_to_200(dataset["pairs"].values.tolist())
        share = dataset["share"].sel(pairs=at)
        additive, product, table, every = (share.sel(learner=n, drop=True) for n in LEARNERS)
        gap = additive - every
        within_classes = np.abs(np.stack([additive - product, table - every]))
        labels = dataset["label_accuracy"].sel(problem="simple", pairs=at)
        return [
            claim(
                f"With {at} pairs RLHF with the additive reward reaches this share of the "
                "optimum's reward",
                additive.sel(problem="simple"),
                Criterion(lambda share: share.effect > 0.98, "the mean is above 0.98"),
                note=f"The labeller is right on {float(labels.mean()):.0%} of pairs. "
                f"With {_noisier(dataset)}.",
            ),
            claim(
                f"With the same {at} pairs DPO on all policies reaches",
                every.sel(problem="simple"),
                Criterion(lambda share: share.effect < 0.3, "the mean is below 0.3"),
                note=f"It searches {dataset.attrs['policy_parameters']:,} free parameters, the "
                f"reward has {dataset.attrs['reward_parameters']}.",
            ),
            claim(
                "Where the reward is a random table the gap reverses: RLHF with an additive reward "
                "minus DPO on all policies, in shares",
                gap.sel(problem="random"),
                Criterion(lambda gap: gap.high < 0, ""),
            ),
            claim(
                "Where the horizon is one token it closes, for both search one class: the same "
                "difference",
                gap.sel(problem="one token"),
                surely_within(0.01),
            ),
            claim(
                "It closes too where DPO searches only the policies that are optimal for additive "
                "rewards, or RLHF all rewards: largest difference between learners of one class",
                within_classes.max(),
                below(0.01),
            ),
        ]


def _nearest_to_200(pairs: Sequence[int]) -> int:
    """Return the number of pairs, nearest to 200, at which the gap is judged."""
    return min(pairs, key=lambda number: abs(number - 200))


def _dpo_of_pairs(
    log_probs: Float[Array, " K"], pairs: Int[Array, "n 2"], beta: float
) -> Float[Array, " n"]:
    """Return DPO's loss of each pair, the winner first, from a uniform reference."""
    loss = METHODS["dpo"].bind(beta=beta)
    uniform = jnp.full(2, -jnp.log(log_probs.size))
    return jax.vmap(lambda pair: loss(make_pair(pair, reference_log_probs=uniform)))(
        log_probs[pairs]
    )


def _accuracy(
    learned: Float[Array, "4 K"], reward: Float[Array, " K"], pairs: Int[Array, "n 2"]
) -> Float[Array, " 4"]:
    """Return the share of pairs of different rewards that are ordered right; a tie counts half."""
    truth = jnp.sign(reward[pairs[:, 0]] - reward[pairs[:, 1]])
    said = jnp.sign(learned[:, pairs[:, 0]] - learned[:, pairs[:, 1]])
    told_apart = truth != 0
    right = jnp.where(told_apart, 0.5 * (1.0 + said * truth), 0.0)
    return right.sum(axis=-1) / jnp.maximum(told_apart.sum(), 1)


def _noisier(dataset: xr.Dataset) -> str:
    """Say what RLHF and DPO reach with noisier labellers."""
    means = dataset[["noisier_share", "noisier_label_accuracy"]].mean("seed")
    shares = means["noisier_share"].sel(learner=[RLHF_ADDITIVE, DPO_ALL]).transpose("scale", ...)
    return "; ".join(
        f"one right on {right:.0%}, RLHF {rlhf:.2f} and DPO {dpo:.2f}"
        for right, (rlhf, dpo) in zip(
            means["noisier_label_accuracy"].values, shares.values, strict=True
        )
    )
