"""Draw the panel that a preference trainer logs, and read it in a sentence."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.losses import METHODS
from bandits.simulation.lines import Line, split
from bandits.training_panel import Curve, draw_panel, say_changes
from theory import checks, partial_coverage

TITLES = {
    "training_loss": "loss",
    "rewards_chosen": "rewards/chosen",
    "rewards_rejected": "rewards/rejected",
    "reward_margin": "rewards/margins",
    "reward_accuracy": "rewards/accuracies",
    "reference_kl": "KL(policy‖reference), nats",
}
"""The quantities of the panel by their names in trainers."""

STILL = 0.005
"""Smaller changes, in nats or of a probability, count as none: they round to 0.00."""

AGREES = 2e-3
"""How near a probability must be to its closed form for the sentence to use that."""

MOST_NAMED = 3
"""Number of responses that a sentence names."""


def panel(dataset: xr.Dataset) -> Figure:
    """Draw loss, rewards, margin, accuracy and KL to the reference over the gradient steps.

    Args:
      dataset: of `simulate` with preferences. Each method is a line, and each swept value.

    Raises InvalidInput for a dataset without preferences.
    """
    if "rewards_chosen" not in dataset:
        raise checks.InvalidInput("no preferences were given; the training panel is about pairs")
    curves = {
        title: [
            Curve(
                line.data["step"].values,
                np.asarray(line.data[name].values, np.float64),
                line.label,
                line.color,
                line.style,
                not line.diverged,
            )
            for line in split(dataset)
        ]
        for name, title in TITLES.items()
    }
    return draw_panel(curves, log_steps=True)


def describe(dataset: xr.Dataset) -> list[str]:
    """Return one sentence for each method and swept value: what moved, and where the mass went.

    Args:
      dataset: of `simulate`. Its rewards are log-ratios times ``reward_scale``, or, without that,
        times the τ of methods that have one and the β of others, swept or in the attributes.

    Returns:
      The sentences; none for a dataset without preferences. Chosen and rejected are means over the
      pairs of log π, from the reference to the last step: in nats, or, where the scale is not
      known, in reward.
    """
    if "rewards_chosen" not in dataset:
        return []
    names = plotting.short_names(dataset["arm"].values)
    return [f"{line.label}: {_read(line, names)}." for line in split(dataset)]


def _read(line: Line, names: Sequence[str]) -> str:
    """Return the sentence after the name of the method, without its full stop."""
    if line.diverged:
        return _read_diverged(line)
    scale, final = _reward_scale(line), line.data.isel(step=-1)
    chosen, rejected, margin = (
        float(final[name]) / (scale or 1.0)
        for name in ("rewards_chosen", "rewards_rejected", "reward_margin")
    )
    unit = " nats" if scale else " in reward"
    return f"{say_changes(chosen, rejected, margin, unit, STILL)}{_say_mass(line, names)}"


def _reward_scale(line: Line) -> float | None:
    """Return the factor of log π/π_ref in the rewards, or None where it is 0 or not known."""
    name = "tau" if "tau" in METHODS[line.method].hyperparameters else "beta"
    for known in ("reward_scale", name):
        if known in line.data:
            return float(line.data[known]) or None
    return float(line.data.attrs.get(name, 0.0)) or None


def _read_diverged(line: Line) -> str:
    what = "diverged"
    loss = line.data["training_loss"].values
    if not np.isfinite(line.data["log_probs"].values).any(axis=-1).all():
        what = "became NaN"
    elif np.isfinite(loss).all() and loss[-1] > loss[0]:
        what += f", its loss rose from {loss[0]:.3g} to {loss[-1]:.3g}"
    return f"{what}, so where it ended is no result"


def _say_mass(line: Line, names: Sequence[str]) -> str:
    """Return where the mass went, from the probabilities; empty if nowhere."""
    # Every run starts at the reference.
    ends = (line.data["reference_log_probs"], line.data["log_probs"].isel(step=-1))
    before, after = (np.exp(log_probs.values.astype(np.float64)) for log_probs in ends)
    outside = ~line.data["in_pairs"].values
    change = after - before
    prompts = max(1.0, round(before.sum()))  # the arms of all prompts, each of which sums to 1
    moved = 0.5 * np.abs(change).sum() / prompts
    if moved < STILL:
        return ""

    def from_to(arms: np.ndarray | int, over: float = 1.0) -> str:
        return " to ".join(_probability(probs[arms].sum() / over) for probs in (before, after))

    def risers(among: np.ndarray) -> str:
        order = np.argsort(-np.where(among, change, 0.0), kind="stable")[:MOST_NAMED]
        return ", ".join(names[arm] for arm in order if among[arm] and change[arm] > 0)

    start, end = before[outside].sum() / prompts, after[outside].sum() / prompts
    winner, told = int(change.argmax()), from_to(outside, over=prompts)
    if end - start >= moved / 2:
        same = _say_common_rise(before[outside], after[outside])
        said = f": the mass went to responses in no pair: {risers(outside)} ({told}{same})"
    elif start - end >= moved / 2:
        said = f": the mass came from responses in no pair ({told}), most of it went to "
        said += f"{names[winner]} ({from_to(winner)})"
    else:
        risen = (change > 0) & ~outside
        if not outside[winner] and change[winner] < change[change > 0].sum() / 2:
            said = f": the mass went to {risen.sum():,} responses in pairs, first {risers(risen)} "
            said += f"({from_to(risen, over=prompts)})"
        else:
            kind = "in a pair" if not outside[winner] else "in no pair"
            said = f": the mass went to {names[winner]}, {kind} ({from_to(winner)})"
        if outside.any():
            said += f"; responses in no pair hold {told}"
    return said + _say_single_pair(line, before, after)


def _say_common_rise(before: np.ndarray, after: np.ndarray) -> str:
    """Return by how much responses in no pair rise, where it is one factor, as often in a table."""
    held = (before > 0) & (after > 0)
    rises = np.log(after[held] / before[held])
    if len(rises) < 2 or np.ptp(rises) > STILL:
        return ""
    return f", each by {rises.mean():.2g} nats"


def _say_single_pair(line: Line, before: np.ndarray, after: np.ndarray) -> str:
    """Add what `theory.partial_coverage` proves of a single pair, where the run obeys it."""
    arms = np.flatnonzero(line.data["in_pairs"].values)
    if len(arms) != 2 or min(before[arms].min(), after[arms].min()) <= 0:
        return ""
    if before[arms].sum() > 1 - STILL:
        return ""
    growth = np.log(after[arms] / before[arms])
    final = line.data.isel(step=-1)
    chosen, rejected = float(final["rewards_chosen"]), float(final["rewards_rejected"])
    one_way = np.isclose(chosen * growth.min(), rejected * growth.max(), rtol=AGREES)
    if not one_way or chosen <= rejected:
        return ""  # it is labelled both ways, or its winner did not win
    winner, loser = before[arms][np.argsort(-growth)]
    margin = float(np.ptp(growth))
    pair = partial_coverage.displaced(winner, loser, margin)
    if not np.allclose(float(pair.uncovered), 1 - after[arms].sum(), atol=AGREES):
        return ""
    if loser <= winner:
        return "; the winner of a single pair cannot fall in a table"
    most = float(partial_coverage.displacement_peak(winner, loser))
    where = float(partial_coverage.peak_margin(winner, loser))
    state = "passed" if margin > where else "not reached"
    return (
        f"; a single pair sends at most {most:.2f} there, at a margin of {where:.1f} nats, which "
        f"is {state}"
    )


def _probability(value: float) -> str:
    return f"{value:.2f}" if value >= STILL or value == 0 else f"{value:.0e}"
