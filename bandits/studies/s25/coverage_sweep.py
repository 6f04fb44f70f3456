"""What each method does as the preference data cover less of the reference.

A small bandit with the far reward. The data hold a random part of the responses; the labeller is a
Bradley–Terry model of the true reward, asked without end, so that coverage is all that is missing.
Policies are tables, or share features, so that responses out of the data move with those in it.
DPO, and RLHF with a reward of the same class, are solved exactly, with the parameters of least norm
where the data leave them open; all others descend. On-policy methods ask the true reward about
their own responses and divergences know the optimum: the data make no difference to them, and the
figure shows one for all.
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
from bandits.keys import split_seed
from bandits.losses import METHODS
from bandits.metrics import DIVERGED_AT
from bandits.policies import log_linear
from bandits.preferences import covering_fraction, preference_probabilities
from bandits.studies.base import Claim, Experiment
from bandits.studies.curves import over_seeds, require_no_nan, require_not_diverged
from bandits.studies.expected import (
    IN_EXPECTATION,
    IN_GROUPS,
    Descent,
    Problem,
    even_steps,
    train_in_expectation,
)
from bandits.studies.intervals import Interval, exact
from bandits.sweeps import sweep
from bandits.training import own_pairs
from theory import equivalence, gibbs

CLASSES = ("table", "shared features")
SOLVED = ("dpo", "rlhf")
USE_DATA = tuple(n for n, m in METHODS.items() if not (m.on_policy or m.whole_space))
"""Offline methods. RLHF and HyPO use the data too, beside responses of the policy."""

SHOWN = (*USE_DATA[:3], "rlhf", *USE_DATA[3:4], "hypo", *USE_DATA[4:], "online_dpo")
NEAR = 0.85
"""Share of the optimum's reward from which on a method counts as near it."""


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
        return covering_fraction(split_seed(seed).data, reference, fraction)

    over_seeds_of = jax.vmap(law, in_axes=(None, 0))
    laws = jax.vmap(over_seeds_of, in_axes=(0, None))(
        jnp.array(settings.fractions), jnp.arange(settings.seeds)
    )
    arrays = {
        "features": features,
        "laws": laws,
        "reference": reference,
        "reward": reward,
        "wins": wins,
    }
    descended = tuple(name for name in IN_EXPECTATION if name not in SOLVED)
    parts = [_train_all(settings, names, arrays) for names in (descended, IN_GROUPS)]
    parts.append(_solve(settings, arrays))
    optimum = jnp.exp(gibbs.gibbs_log_probs(reward, reference, settings.beta))
    out = jnp.isneginf(laws)
    dims = ("fraction", "seed")
    dataset = xr.concat(parts, "loss").sel(loss=list(METHODS))
    return dataset.assign(
        reward_share=dataset["expected_reward"] / float(optimum @ reward),
        reference_mass=(dims, np.asarray((jnp.exp(reference) * out).sum(-1))),
        optimum_mass=(dims, np.asarray((optimum * out).sum(-1))),
        reference_share=float(jnp.exp(reference) @ reward) / float(optimum @ reward),
    )


def _solve(settings: Settings, arrays: dict[str, Array]) -> xr.Dataset:
    """DPO and RLHF to the precision of the numbers, in float64."""

    def solve(
        features: Float[Array, "K K"], data: Float[Array, " K"]
    ) -> dict[str, Float[Array, " 2"]]:
        counts = own_pairs(arrays["wins"].astype(float))(data)
        reference = arrays["reference"].astype(float)
        dpo = equivalence.fit_dpo(features, counts, reference, settings.beta)
        rlhf = equivalence.fit_rlhf(features, features, counts, reference, settings.beta)
        probs = jnp.exp(jnp.stack([dpo.log_probs, rlhf.log_probs]))
        return {
            "uncovered_mass": jnp.sum(jnp.where(jnp.isneginf(data), probs, 0.0), axis=-1),
            "expected_reward": probs @ arrays["reward"],
        }

    over_laws = jax.vmap(jax.vmap(solve, in_axes=(None, 0)), in_axes=(None, 0))
    with jax.enable_x64(True):
        features, laws = (arrays[name].astype(float) for name in ("features", "laws"))
        solved = jax.jit(jax.vmap(over_laws, in_axes=(0, None)))(features, laws)
    dims = ("policy", "fraction", "seed", "loss")
    return xr.Dataset(
        {name: (dims, np.asarray(values)) for name, values in solved.items()},
        coords={
            "policy": list(CLASSES),
            "fraction": list(settings.fractions),
            "seed": np.arange(settings.seeds),
            "loss": list(SOLVED),
        },
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
        optimizer=even_steps(settings.step, settings.steps),
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
            split_seed(seed).training,
            policy,
            jnp.zeros_like(reference),
            Problem(reward, reference, data, reward, wins),
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
    require_not_diverged(dataset)
    return (
        dataset.squeeze("step")
        .drop_vars(DIVERGED_AT)
        .rename(shared="policy")
        .assign_coords(loss=list(names), policy=list(CLASSES), fraction=list(settings.fractions))
    )


def plot(dataset: xr.Dataset) -> Figure:
    """For both classes: mass out of the data, and reward; a row a method, a column a fraction."""
    figure = plotting.new_figure(16, 8.6)
    panels = figure.subplots(1, 4, sharey=True)
    figure.subplots_adjust(0.125, 0.085, 0.99, 0.915, wspace=0.06)
    quantities = {
        "uncovered_mass": ("Mass out of the data", "reference_mass", "optimum_mass"),
        "reward_share": ("Share of the optimum's reward", "reference_share", None),
    }
    for i, policy in enumerate(CLASSES):
        for j, (quantity, (title, of_reference, of_optimum)) in enumerate(quantities.items()):
            axes = panels[2 * i + j]
            one = dataset[quantity].sel(policy=policy, loss=list(SHOWN))
            means = one.mean("seed").transpose("loss", "fraction")
            start = xr.broadcast(dataset[of_reference], one.isel(loss=0, drop=True))[0].mean("seed")
            best = dataset[of_optimum].mean("seed").values if of_optimum else np.ones(start.size)
            _draw_table(axes, np.vstack([start.values, best, means.values]))
            axes.axhline(1.5, color="white", linewidth=4)
            axes.set_title(f"{policy.capitalize()}\n{title}")
            fractions = dataset["fraction"].values
            axes.set_xticks(range(len(fractions)), [f"{f:.0%}" for f in fractions])
    labels = [plotting.METHOD_LABELS[name] for name in SHOWN]
    panels[0].set_yticks(range(len(SHOWN) + 2), ["reference", "optimum", *labels])
    figure.supxlabel("share of the responses that the data hold", fontsize=14, y=0.01)
    return figure


def _draw_table(axes: Axes, values: np.ndarray) -> None:
    """Numbers on their colours."""
    axes.imshow(values, aspect="auto", vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if value < 0.55 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=13)
    axes.tick_params(length=0)


def judge(dataset: xr.Dataset) -> list[Claim]:
    """What coverage costs whom, what sharing features does, and whether DPO and RLHF part."""
    require_no_nan(dataset)
    reward, mass = dataset["reward_share"], dataset["uncovered_mass"]
    least, full = float(dataset["fraction"][0]), float(dataset["fraction"][-1])
    lost = (reward.sel(fraction=full) - reward.sel(fraction=least)).mean("policy")
    at_full = reward.sel(fraction=full).mean(("policy", "seed"))
    offline = [*USE_DATA, "rlhf"]
    near = [name for name in offline if float(at_full.sel(loss=name)) > NEAR]
    far = [name for name in offline if name not in near]
    costs = over_seeds(lost.sel(loss=near)) if near else Interval(np.nan, np.nan, np.nan)
    changes = ", ".join(
        f"{plotting.METHOD_LABELS[n]} {-float(lost.sel(loss=n).mean()):+.2f}" for n in far
    )
    partial = mass.isel(fraction=slice(0, -1))
    tables, shared = (partial.sel(policy=policy) for policy in CLASSES)
    moved = over_seeds(shared.sel(loss="dpo") - tables.sel(loss="dpo"))
    apart = abs(reward.sel(loss="dpo") - reward.sel(loss="rlhf"))
    imitated = tables.sel(loss=["supervised", "preference_likelihood"])
    price = reward.sel(loss="preference_likelihood", policy=CLASSES[0]).mean()
    held = over_seeds(tables.sel(loss="dpo") - tables.sel(loss="hypo"))
    optimum = float(dataset["optimum_mass"].isel(fraction=slice(0, -1)).mean())
    return [
        EXPERIMENT.claim(
            "Partial coverage costs the offline methods that full coverage brings near the "
            f"optimum ({', '.join(plotting.METHOD_LABELS[n] for n in near)}): share of its reward "
            f"lost between {full:.0%} and {least:.0%} of the responses",
            costs,
            costs.low > 0,
            note=f"The others are never near it; {least:.0%} instead of {full:.0%} changes their "
            f"share by: {changes}.",
        ),
        EXPERIMENT.claim(
            "Coverage alone does not part DPO from RLHF of the same class, where both are solved "
            "exactly from labels without end: largest difference of their rewards (holds if below "
            "1e-6)",
            exact(apart.max()),
            float(apart.max()) < 1e-6,
        ),
        EXPERIMENT.claim(
            "Shared features move DPO out of the data: its mass there, minus that of a table",
            moved,
            moved.low > 0,
            note=f"Whether that is good depends on what is there: the optimum has {optimum:.2f} of "
            f"its mass there on average, DPO {float(shared.sel(loss='dpo').mean()):.2f} with "
            f"shared features and {float(tables.sel(loss='dpo').mean()):.2f} in a table.",
        ),
        EXPERIMENT.claim(
            "Likelihood of the data keeps to the data in a table: largest mass of SFT and Pref-FT "
            "out of it (holds if below 0.01)",
            exact(imitated.max()),
            float(imitated.max()) < 0.01,
            note=f"At a price: there Pref-FT has {float(price):.2f} of the optimum's reward.",
        ),
        EXPERIMENT.claim(
            "HyPO has less mass out of the data than DPO in a table: difference",
            held,
            held.low > 0,
            asserted=False,
            note="The KL weighs the covered part as a whole: what DPO tilts is far from the "
            "reference, so the KL moves mass out of it.",
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
