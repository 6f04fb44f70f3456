"""Lemmas 6.1 and 6.2 on random instances: gradients of the losses against the closed forms.

The left side is always computed by automatic differentiation of a method's loss through a softmax,
in float64; the right side is a gradient of `theory.mode_seeking`, or the condition of Lemma 6.2.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure

from bandits import plotting
from bandits.losses import METHODS, make_group
from bandits.studies.base import Claim, Experiment
from bandits.studies.intervals import proportion_interval
from theory import gibbs, mode_seeking

ROUNDING = 1e-12
"""Relative to the largest entry: what a few dozen operations in float64 leave of an identity."""


@dataclass(frozen=True)
class Settings:
    """The random instances.

    Attributes:
      instances: how many.
      arms: K.
      beta: coefficient of the KL penalty, and temperature of RWR.
      step: η of Lemma 6.2, small enough for first order to decide the sign.
      seed: of the instances.
    """

    instances: int = 20_000
    arms: int = 10
    beta: float = 0.5
    step: float = 1e-6
    seed: int = 0


def run(settings: Settings) -> xr.Dataset:
    """Relative errors of the identities, and both sides of the condition of Lemma 6.2."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(settings.seed), settings.instances)
        values = jax.jit(jax.vmap(lambda key: _instance(key, settings)))(keys)
        arrays = {name: ("instance", np.asarray(value)) for name, value in values.items()}
    return xr.Dataset(arrays)


def _instance(key: PRNGKeyArray, settings: Settings) -> dict[str, Array]:
    keys = jax.random.split(key, 5)
    concentration = jnp.exp(jax.random.uniform(keys[0], minval=-2.0, maxval=1.0))
    logits = jnp.log(jax.random.dirichlet(keys[1], jnp.full(settings.arms, concentration)))
    logits = jax.nn.log_softmax(jnp.maximum(logits, -30.0))
    reference = jax.nn.log_softmax(jax.random.normal(keys[2], (settings.arms,)))
    reward = jax.random.normal(keys[3], (settings.arms,))
    winner, loser = jax.random.choice(keys[4], settings.arms, (2,), replace=False)

    def gradient(method: str, **hyperparameters: float) -> Float[Array, " K"]:
        """Minus the gradient of a method's exact loss in the logits."""
        loss = METHODS[method].bind(**hyperparameters)
        held = jnp.exp(logits)

        def of_logits(logits: Float[Array, " K"]) -> Float[Array, ""]:
            log_probs = jax.nn.log_softmax(logits)
            group = make_group(log_probs, reward, reference_log_probs=reference, shares=held)
            return loss(group)

        return -jax.grad(of_logits)(logits)

    reinforce = gradient("reinforce", beta=settings.beta, prompt_baseline=1.0)
    target = gibbs.gibbs_log_probs(reward, reference, settings.beta)
    to_target = -settings.beta * mode_seeking.reverse_kl_gradient(logits, target)
    weighted = gradient("reward_weighted", temperature=settings.beta)
    closed = mode_seeking.weighted_likelihood_gradient(logits, jnp.exp(reward / settings.beta))

    def winner_after(coefficient: float) -> Float[Array, ""]:
        """Log π(w) after one step on log π(w) − c log π(l), its gradient taken from a loss."""
        loss = METHODS["best_of_n_minus_worst"].bind(coefficient=coefficient)
        pair = jnp.array([winner, loser])

        def of_logits(logits: Float[Array, " K"]) -> Float[Array, ""]:
            return loss(make_group(jax.nn.log_softmax(logits)[pair], jnp.array([1.0, 0.0])))

        stepped = logits - settings.step * jax.grad(of_logits)(logits)
        return jax.nn.log_softmax(stepped)[winner]

    probs = jnp.exp(logits)
    return {
        "reverse_kl_error": _relative_error(reinforce, to_target),
        "weighted_error": _relative_error(weighted, closed),
        "collision": jnp.sum(probs**2),
        "pair_mass": probs[winner] + probs[loser],
        "help": (winner_after(1.0) - winner_after(0.0)) / settings.step,
    }


def _relative_error(a: Float[Array, " K"], b: Float[Array, " K"]) -> Float[Array, ""]:
    return jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))


def plot(dataset: xr.Dataset) -> Figure:
    """Left, the errors of Lemma 6.1; right, where the negative gradient of 6.2 helps the winner."""
    figure = plotting.new_figure(14, 6)
    errors, condition = figure.subplots(1, 2)
    figure.subplots_adjust(0.06, 0.12, 0.985, 0.92, wspace=0.2)
    bins = np.geomspace(1e-17, 1e-11, 40)
    for name, label, color in (
        ("reverse_kl_error", "policy gradient = reverse KL", plotting.METHOD_COLORS["reverse_kl"]),
        ("weighted_error", "RWR = policy gradient", plotting.METHOD_COLORS["reward_weighted"]),
    ):
        errors.hist(np.maximum(dataset[name], bins[0]), bins, color=color, label=label, alpha=0.65)
    errors.set(xscale="log", xlabel="relative error, float64", ylabel="instances")
    errors.set_title("Lemma 6.1: the two sides agree to rounding")
    errors.legend(loc="upper right")
    helps = dataset["help"].values > 0
    shown = slice(0, 4000)
    for mask, color, label in (
        (helps, plotting.RAISED, "helps the winner"),
        (~helps, plotting.PUSHED, "hurts the winner"),
    ):
        kept = np.flatnonzero(mask)[shown]
        condition.scatter(
            dataset["pair_mass"][kept], dataset["collision"][kept], s=9, color=color, label=label,
            rasterized=True,
        )  # fmt: skip
    condition.plot([0, 1], [0, 1], color=plotting.INK, linewidth=1.6)
    condition.set(xlabel="p_w + p_l", ylabel="Σp²", xlim=(0, 1), ylim=(0, 1))
    condition.set_title("Lemma 6.2: the negative gradient in one step")
    condition.legend(loc="lower right", markerscale=3)
    return figure


def judge(dataset: xr.Dataset) -> list[Claim]:
    """The share of instances in which each identity holds, and the condition tells the sign."""
    claims = []
    for name, statement in _IDENTITIES.items():
        errors = dataset[name].values
        within = errors < ROUNDING
        claims.append(
            EXPERIMENT.claim(
                f"{statement}: share of instances in which the gradients agree to {ROUNDING:g}",
                proportion_interval(int(within.sum()), within.size),
                within.all(),
                note=f"The largest relative difference is {float(errors.max()):.1e}.",
            )
        )
    helps = dataset["help"].values > 0
    condition = dataset["collision"].values < dataset["pair_mass"].values
    agree = helps == condition
    share = proportion_interval(int(helps.sum()), helps.size)
    claims.append(
        EXPERIMENT.claim(
            "The negative gradient helps the winner itself if and only if Σp² < p_w + p_l: share "
            "of instances in which the condition tells the sign",
            proportion_interval(int(agree.sum()), agree.size),
            agree.all(),
            note=f"It helps in {share.effect:.0%} of these instances.",
        )
    )
    return claims


_IDENTITIES = {
    "reverse_kl_error": "REINFORCE on the KL-regularised reward follows reverse KL to the Gibbs "
    "policy",
    "weighted_error": "RWR on its own samples is a policy gradient on exp(r/τ)",
}

EXPERIMENT = Experiment(
    name="lemmas",
    source="T24, Lemmas 6.1 and 6.2",
    question="Is policy gradient reverse KL, and when does a negative gradient help the winner?",
    full=Settings(),
    quick=Settings(instances=2000),
    run=run,
    plot=plot,
    judge=judge,
)
