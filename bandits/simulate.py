"""A bandit of the user's own: descend each KL from a reference and label the trajectory."""

import warnings
from collections.abc import Sequence

import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.descent import descend, log_spaced_steps
from bandits.environments import CategoricalBandit, reference_from_probabilities
from bandits.files import Vector, align
from bandits.losses import METHODS
from bandits.metrics import ATTRIBUTES, measure
from bandits.sweeps import DivergenceWarning, sweep
from theory import checks

OPTIMIZERS = {
    name: getattr(optax, name)
    for name in ("sgd", "adam", "adamw", "amsgrad", "adagrad", "lion", "nadam", "rmsprop", "yogi")
}
"""Optimisers by name; from Python, `bandits.descend` takes any optax factory."""

CLIMB = 1e-3
"""A descent that ends this many nats above its start has diverged."""

MOST_STEPS = 2**31 - 1
"""Steps are counted in 32 bits."""

MOST_LABELS = 40
"""Arms are named on the picture's axis up to this many."""


def to_distribution(name: str, weights: Vector, normalize: bool, pseudocount: float) -> Vector:
    """The weights as probabilities: as given, or divided by their sum; zeros can be smoothed.

    Raises InvalidInput if they are no distribution, with the remedy where there is one.
    """
    checks.require_finite("pseudocount", pseudocount)
    checks.require_nonnegative("pseudocount", pseudocount)
    checks.require_finite(name, weights.values)
    checks.require_nonnegative(name, weights.values)
    checks.require_arms(name, weights.values)
    values = weights.values + pseudocount
    total = values.sum()
    if total <= 0:
        raise checks.InvalidInput(f"{name} is zero on every arm; at least one must be positive")
    if not (normalize or pseudocount) and abs(total - 1) > checks.SUM_TOLERANCE:
        raise checks.InvalidInput(
            f"{name} sums to {total:.8g}; probabilities must sum to 1 (for counts, add --normalize)"
        )
    return Vector(values / total, weights.labels)


def simulate(
    reference: Vector,
    *,
    reward: Vector | None = None,
    target: Vector | None = None,
    beta: float = 0.1,
    methods: Sequence[str] = ("forward_kl", "reverse_kl"),
    learning_rate: float = 1.0,
    steps: int = 1000,
    optimizer: str = "sgd",
    natural_gradient: bool = False,
) -> xr.Dataset:
    """Descend each method from the reference to the Gibbs policy of a reward, or to a target.

    Args:
      reference: probabilities that the policy starts from.
      reward: one finite number an arm; the target is then π_ref exp(r/β) / Z. Or:
      target: probabilities to move to. Exactly one of the two.
      beta: β > 0, the coefficient of the KL penalty; used with a reward.
      methods: names from `bandits.losses.METHODS`.
      learning_rate: > 0.
      steps: gradient steps, >= 1, recorded on a log scale.
      optimizer: a name from `OPTIMIZERS`.
      natural_gradient: precondition with the inverse Fisher matrix.

    Returns:
      A dataset over ``loss``, ``step`` and ``arm``: the metrics, ``log_probs``, the target and the
      reference; concentrability and, with a reward, the peak's distance in its attributes.

    Raises:
      InvalidInput: any of the above violated, arms that do not match, a target that the method
        cannot reach from the reference, or a descent that diverged.
    """
    if (reward is None) == (target is None):
        raise checks.InvalidInput("give either a reward or a target, one of the two")
    if not methods:
        raise checks.InvalidInput("method is empty; name at least one")
    for method in methods:
        checks.require_known("method", method, METHODS)
    checks.require_known("optimizer", optimizer, OPTIMIZERS)
    checks.require_positive("learning_rate", learning_rate)
    if not 1 <= steps <= MOST_STEPS:
        raise checks.InvalidInput(f"steps is {steps}; it must be from 1 to {MOST_STEPS}")
    recorded = log_spaced_steps(steps)
    attributes = {}
    if reward is not None:
        other = align(reward, "reward", reference)
        bandit = CategoricalBandit.from_arrays(other.values, reference.values)
        start, goal = bandit.reference_log_probs, bandit.target_log_probs(beta)
        if np.isnan(np.asarray(goal)).any():
            raise checks.InvalidInput(
                f"beta is {beta:g}, so reward / beta is beyond range; choose a larger "
                "beta or smaller rewards"
            )
        attributes = {"beta": beta, "peak_distance": int(bandit.peak_distance())}
        gain = {"reward": bandit.reward}
    else:
        assert target is not None
        other = align(target, "target", reference)
        checks.require_distribution("reference", reference.values)
        checks.require_distribution("target", other.values)
        start = reference_from_probabilities(reference.values)
        goal = reference_from_probabilities(other.values)
        _require_reachable(reference, other, methods)
        gain = {}

    def descend_once(
        loss: str,
        learning_rate: Float[Array, ""],
        start: Float[Array, " K"],
        goal: Float[Array, " K"],
        reward: Float[Array, " K"] | None = None,
    ) -> dict[str, Array]:
        log_probs = descend(
            METHODS[loss].loss,
            start,
            goal,
            learning_rate,
            recorded,
            OPTIMIZERS[optimizer],
            natural_gradient,
        )
        return {**measure(log_probs, goal, reward), "log_probs": log_probs}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)  # refused below, with the remedy
        dataset = sweep(
            descend_once,
            {"loss": list(dict.fromkeys(methods)), "learning_rate": [learning_rate]},
            fixed={"start": start, "goal": goal, **gain},
            dims=["step", "arm"],
            coords={"step": list(recorded), "arm": list(other.labels or range(start.size))},
            attributes=ATTRIBUTES,
        ).squeeze("learning_rate")
    dataset["target_log_probs"] = ("arm", np.asarray(goal))
    dataset["reference_log_probs"] = ("arm", np.asarray(start))
    _require_convergence(dataset)
    log_ratio = np.asarray(goal - start, np.float64)[np.isfinite(goal)].max()
    return dataset.assign_attrs(
        **attributes,
        concentrability=float(np.exp(log_ratio)),
        optimizer=optimizer,
        natural_gradient=int(natural_gradient),
    )


def plot(dataset: xr.Dataset) -> Figure:
    """The distributions at the end, and the way there: KLs and the mass on the best arms."""
    with plotting.style():
        figure = plotting.new_figure(15.5, 8.5, layout="constrained")
        grid = figure.add_gridspec(2, 3, height_ratios=[1.15, 1])
        _plot_distributions(figure.add_subplot(grid[0, :]), dataset)
        last = "expected_reward" if "expected_reward" in dataset else "optimal_mass"
        for i, metric in enumerate(("forward_kl", "reverse_kl", last)):
            axes = figure.add_subplot(grid[1, i])
            for name in dataset["loss"].values:
                one = dataset.sel(loss=name).isel(step=slice(1, None))
                axes.plot(one["step"], one[metric], color=plotting.METHOD_COLORS[name])
            title = dataset[metric].attrs["long_name"]
            units = dataset[metric].attrs["units"]
            axes.set(title=title, xscale="log", xlabel="gradient steps")
            axes.set_ylabel(units if units != "1" else "")
            axes.set_ylim(bottom=min(0.0, float(dataset[metric].min())))
    return figure


def summarise(dataset: xr.Dataset) -> list[tuple[str, ...]]:
    """One row a method: name and metrics at the last step, under the names of the first row."""
    metrics = [
        name for name in ("expected_reward", "forward_kl", "reverse_kl", "entropy", "optimal_mass")
        if name in dataset
    ]  # fmt: skip
    rows = [("method", *(dataset[m].attrs["long_name"] for m in metrics))]
    for name in dataset["loss"].values:
        final = dataset.sel(loss=name).isel(step=-1)
        rows.append((str(name), *(f"{float(final[m]):.4g}" for m in metrics)))
    return rows


def _require_reachable(reference: Vector, target: Vector, methods: Sequence[str]) -> None:
    """Refuse a KL that is infinite at the start and stays so."""
    names = reference.labels or [str(i) for i in range(len(reference.values))]
    missing = {
        "reverse_kl": ("target", (target.values == 0) & (reference.values > 0), "the reference"),
        "forward_kl": ("reference", (reference.values == 0) & (target.values > 0), "the target"),
    }
    for method in methods:
        excluded, where, other = missing[method]
        if where.any():
            arm = names[int(np.argmax(where))]
            raise checks.InvalidInput(
                f"{excluded} is zero on arm {arm!r} where {other} is not, so {method} is infinite; "
                "smooth the zeros (--pseudocount 0.5 for counts) or choose another --method"
            )


def _require_convergence(dataset: xr.Dataset) -> None:
    """Refuse a descent that ended above its start, or in NaN."""
    for name in dataset["loss"].values:
        start, *_, end = dataset[name].sel(loss=name).values
        if not end <= start + CLIMB:
            raise checks.InvalidInput(
                f"learning_rate is {float(dataset['learning_rate']):g}: {name} diverged, from "
                f"{start:.4g} to {end:.4g} nats; choose a smaller one"
            )


def _plot_distributions(axes: Axes, dataset: xr.Dataset) -> None:
    labels = [str(label) for label in dataset["arm"].values]
    arms = np.arange(len(labels))
    few = len(labels) <= MOST_LABELS
    target = np.exp(dataset["target_log_probs"].values)
    reference = np.exp(dataset["reference_log_probs"].values)
    if few:
        axes.bar(arms, target, width=0.85, color=plotting.TARGET_COLOR, label="target")
    else:
        axes.fill_between(arms, target, color=plotting.TARGET_COLOR, linewidth=0, label="target")
    axes.plot(
        arms, reference, "_" if few else ":", color=plotting.INK, markersize=13, label="reference"
    )
    for i, name in enumerate(dataset["loss"].values):
        probs = np.exp(dataset["log_probs"].sel(loss=name).isel(step=-1).values)
        shift = 0.3 * (i - (dataset.sizes["loss"] - 1) / 2) if few else 0.0
        axes.plot(
            arms + shift,
            probs,
            "o" if few else "-",
            color=plotting.METHOD_COLORS[name],
            label=plotting.METHOD_LABELS[name],
        )
    if few:
        axes.set_xticks(arms, labels, parse_math=False)  # a label may hold a dollar sign
    axes.margins(x=0.01)
    axes.set_ylim(bottom=0)
    axes.set(title=f"Policies after {int(dataset['step'][-1]):,} steps", ylabel="probability")
    axes.legend()
