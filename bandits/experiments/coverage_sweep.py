"""What each method does as the preference data cover less of the reference.

A small bandit with the far reward. The data hold a random part of the responses; the labeller is a
Bradley–Terry model of the true reward, asked without end, so that coverage is all that is missing.
Policies are tables, or share features, so that responses out of the data move with those in it.
RLHF's reward is of the same class, fitted to the same data. On-policy methods ask the true reward
about any response, and divergences know the optimum: they are what coverage could buy.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.environments import bump_reward, tanh_cauchy_reference
from bandits.experiments.base import Claim, Experiment
from bandits.experiments.curves import over_seeds, require_converged
from bandits.experiments.expected import (
    IN_EXPECTATION,
    IN_GROUPS,
    Descent,
    Problem,
    train_in_expectation,
)
from bandits.experiments.intervals import exact
from bandits.losses import METHODS
from bandits.policies import log_linear
from bandits.preferences import covering_fraction, preference_probabilities
from bandits.reward_models import fit_linear
from bandits.sweeps import sweep
from bandits.training import own_pairs
from theory import gibbs

CLASSES = ("table", "shared features")
FROM_DATA = ("dpo", "ipo", "rlhf", "hypo", "hinge")
"""Methods that learn margins or rewards from the data alone."""

WITH_REWARD = ("reverse_kl", "reinforce", "ppo", "online_dpo", "online_ipo")
"""Methods that ask about the responses of the policy itself."""


@dataclass(frozen=True)
class Settings:
    """The bandit, the data and the descents.

    Attributes:
      num_arms: K.
      peak: the arm of the reward's peak.
      width: of its bump, in arms.
      height: of it, in nats of log-odds.
      features: bumps that the sharing policy adds up, evenly spread.
      fractions: of the responses that the data hold.
      seeds: random parts of that size.
      beta: of every method that has one.
      kl_coefficient: λ of HyPO.
      ridge: of RLHF's reward.
      step, steps: of normalised gradient descent.
      group: N, where groups are sampled.
      batch: responses in a sampled minibatch.
    """

    num_arms: int = 20
    peak: float = 13.0
    width: float = 3.0
    height: float = 5.0
    features: int = 6
    fractions: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    seeds: int = 5
    beta: float = 0.5
    kl_coefficient: float = 0.01
    ridge: float = 1e-6
    step: float = 0.1
    steps: int = 500
    group: int = 4
    batch: int = 200


def run(settings: Settings) -> xr.Dataset:
    """Final mass out of the data, and final reward, of every method, class, fraction and part."""
    reference = tanh_cauchy_reference(settings.num_arms)
    reward = bump_reward(settings.num_arms, settings.peak, settings.width, settings.height)
    wins = preference_probabilities(reward, temperature=1.0)
    features = _features(settings)

    def law(fraction: Float[Array, ""], seed: Int[Array, ""]) -> Float[Array, " K"]:
        return covering_fraction(jax.random.key(seed), reference, fraction)

    def fit(table: Float[Array, "K F"], data: Float[Array, " K"]) -> Float[Array, " K"]:
        return table @ fit_linear(table, own_pairs(wins)(data), settings.ridge)

    over_seeds_of = jax.vmap(law, in_axes=(None, 0))
    laws = jax.vmap(over_seeds_of, in_axes=(0, None))(
        jnp.array(settings.fractions), jnp.arange(settings.seeds)
    )
    of_laws = jax.vmap(jax.vmap(fit, in_axes=(None, 0)), in_axes=(None, 0))
    arrays = {
        "features": features,
        "laws": laws,
        "fitted": jax.jit(jax.vmap(of_laws, in_axes=(0, None)))(features, laws),
        "reference": reference,
        "reward": reward,
        "wins": wins,
    }
    parts = [_train_all(settings, names, arrays) for names in (IN_EXPECTATION, IN_GROUPS)]
    optimum = jnp.exp(gibbs.gibbs_log_probs(reward, reference, settings.beta))
    out = jnp.isneginf(laws)
    dims = ("fraction", "seed")
    dataset = xr.concat(parts, "loss").sel(loss=list(METHODS))
    return dataset.assign(
        reward_share=dataset["expected_reward"] / float(optimum @ reward),
        reference_mass=(dims, np.asarray((jnp.exp(reference) * out).sum(-1))),
        optimum_mass=(dims, np.asarray((optimum * out).sum(-1))),
    )


def _features(settings: Settings) -> Float[Array, "2 K K"]:
    """Those of both classes; the columns that bumps do not need are zero."""
    arms = jnp.arange(settings.num_arms)[:, None]
    centres = jnp.linspace(0, settings.num_arms - 1, settings.features)
    width = settings.num_arms / (settings.features - 1)
    bumps = jnp.exp(-(((arms - centres) / width) ** 2))
    table = jnp.eye(settings.num_arms)
    return jnp.stack([table, jnp.zeros_like(table).at[:, : settings.features].set(bumps)])


def _train_all(settings: Settings, names: tuple[str, ...], arrays: dict[str, Array]) -> xr.Dataset:
    """Methods that share a way of collecting: one program."""
    descent = Descent(
        beta=settings.beta,
        kl_coefficient=settings.kl_coefficient,
        step=settings.step,
        steps=settings.steps,
        record=(settings.steps,),
        group=settings.group,
        batch=settings.batch,
    )

    def run_one(
        loss: Int[Array, ""],
        shared: Int[Array, ""],
        fraction: Int[Array, ""],
        seed: Int[Array, ""],
        features: Float[Array, "2 K K"],
        laws: Float[Array, "fractions seeds K"],
        fitted: Float[Array, "2 fractions seeds K"],
        reference: Float[Array, " K"],
        reward: Float[Array, " K"],
        wins: Float[Array, "K K"],
    ) -> dict[str, Array]:
        policy = log_linear(features[shared], reference)
        data = laws[fraction, seed]

        def evaluate(theta: Float[Array, " K"]) -> dict[str, Array]:
            probs = jnp.exp(policy.log_probs(theta))
            return {
                "uncovered_mass": jnp.sum(jnp.where(jnp.isneginf(data), probs, 0.0)),
                "expected_reward": probs @ reward,
            }

        return train_in_expectation(
            names,
            loss,
            jax.random.key(seed),
            policy,
            jnp.zeros_like(reference),
            Problem(reward, reference, data, fitted[shared, fraction, seed], wins),
            descent,
            evaluate,
        )

    dataset = sweep(
        run_one,
        {
            "loss": np.arange(len(names)),
            "shared": np.arange(len(CLASSES)),
            "fraction": np.arange(len(settings.fractions)),
            "seed": np.arange(settings.seeds),
        },
        fixed=arrays,
        dims=["step"],
        block_runs=64,
    )
    require_converged(dataset)
    return (
        dataset.squeeze("step")
        .rename(shared="policy")
        .assign_coords(loss=list(names), policy=list(CLASSES), fraction=list(settings.fractions))
    )


def plot(dataset: xr.Dataset) -> Figure:
    """For both classes: mass out of the data, and reward; a row a method, a column a fraction."""
    figure = plotting.new_figure(16, 9.5)
    panels = figure.subplots(1, 4, sharey=True)
    figure.subplots_adjust(0.115, 0.085, 0.99, 0.925, wspace=0.06)
    quantities = {
        "uncovered_mass": "Mass out of the data",
        "reward_share": "Share of the optimum's reward",
    }
    names = [str(name) for name in dataset["loss"].values]
    for i, policy in enumerate(CLASSES):
        for j, (quantity, title) in enumerate(quantities.items()):
            axes = panels[2 * i + j]
            mean = dataset[quantity].sel(policy=policy).mean("seed").transpose("loss", "fraction")
            _draw_table(axes, mean.values)
            axes.set_title(f"{policy.capitalize()}\n{title}")
            fractions = dataset["fraction"].values
            axes.set_xticks(range(len(fractions)), [f"{f:.0%}" for f in fractions])
    panels[0].set_yticks(range(len(names)), [plotting.METHOD_LABELS[name] for name in names])
    figure.supxlabel("share of the responses that the data hold", fontsize=14, y=0.01)
    return figure


def _draw_table(axes: Axes, values: np.ndarray) -> None:
    """Numbers on their colours."""
    axes.imshow(values, aspect="auto", vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if value < 0.5 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=11)
    axes.tick_params(length=0)


def judge(dataset: xr.Dataset) -> list[Claim]:
    """What coverage costs whom, where features leak, and whether DPO and RLHF part; by seed."""
    reward, mass = dataset["reward_share"], dataset["uncovered_mass"]
    least, full = float(dataset["fraction"][0]), float(dataset["fraction"][-1])
    lost = reward.sel(fraction=full) - reward.sel(fraction=least)
    from_data = over_seeds(lost.sel(loss=list(FROM_DATA)))
    asking = reward.sel(loss=list(WITH_REWARD)).min()
    partial = mass.isel(fraction=slice(0, -1))
    tables, shared = (partial.sel(policy=policy) for policy in CLASSES)
    leak = over_seeds(shared.sel(loss="dpo") - tables.sel(loss="dpo"))
    apart = abs(reward.sel(loss="dpo") - reward.sel(loss="rlhf")).sel(policy="table")
    held = over_seeds(tables.sel(loss="dpo") - tables.sel(loss="hypo"))
    imitated = tables.sel(loss=["supervised", "preference_likelihood"])
    best = over_seeds(reward.sel(loss="preference_likelihood"))
    return [
        EXPERIMENT.claim(
            "Methods that learn from the data alone lose by partial coverage: share of the "
            f"optimum's reward lost between {full:.0%} and {least:.0%} of the responses",
            from_data,
            from_data.low > 0,
            note="They are " + ", ".join(plotting.METHOD_LABELS[n] for n in FROM_DATA) + ".",
        ),
        EXPERIMENT.claim(
            "Methods that ask about the policy's own responses need no data: least share of the "
            "optimum's reward (holds if above 0.98)",
            exact(asking),
            float(asking) > 0.98,
            note="They are " + ", ".join(plotting.METHOD_LABELS[n] for n in WITH_REWARD) + ".",
        ),
        EXPERIMENT.claim(
            "Shared features carry DPO out of the data: mass there, minus that of a table",
            leak,
            leak.low > 0,
        ),
        EXPERIMENT.claim(
            "Coverage alone does not part DPO from RLHF: largest difference of their rewards in a "
            "table, where labels never end and the classes are one (holds if below 0.01)",
            exact(apart.max()),
            float(apart.max()) < 0.01,
            note="What parts them is data without a finite optimum, or a different class.",
        ),
        EXPERIMENT.claim(
            "Likelihood of the data keeps to the data in a table: largest mass of SFT and Pref-FT "
            "out of it (holds if below 0.01)",
            exact(imitated.max()),
            float(imitated.max()) < 0.01,
            note=f"At a price: Pref-FT has {best.effect:.2f} of the optimum's reward.",
        ),
        EXPERIMENT.claim(
            "HyPO has less mass out of the data than DPO in a table: difference",
            held,
            held.low > 0,
            asserted=False,
            note="The KL holds the policy to the reference, and that has most of its mass there.",
        ),
    ]


EXPERIMENT = Experiment(
    name="coverage_sweep",
    source="S25: coverage; arXiv:2406.01462",
    question="What does each method do as the data cover less of the reference?",
    full=Settings(),
    quick=Settings(fractions=(0.4, 1.0), seeds=2, steps=150, step=0.2),
    run=run,
    plot=plot,
    judge=judge,
)
