"""Show the trajectory as a picture and as tables."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.simulation.lines import Line, split, swept

MOST_LABELS, MOST_SLANTED = 40, 20
"""Arms are named below the picture up to this many: upright, and slanted."""

MOST_RANKED = 16
"""Of more named arms than those, this many are drawn: those whose probability changes most."""

MOST_LETTERS, FEW_LETTERS = 60, 24
"""Most letters of an arm's name in a sentence or a table, and of all names where one is a longer
text. The files have them whole."""

LETTER = 0.62
"""Mean width of a letter, as a share of the font's size."""

NAMES_WIDTH = 11.5
"""Inches for the names below the distributions."""

SLANT = 0.71
"""Height of a slanted name, as a share of its width."""

WIDTH = 0.85
"""Width of a bar, as a share of an arm."""


def plot(dataset: xr.Dataset) -> Figure:
    """Draw the policies at the end, and the way there: KLs and the mass on the best arms.

    Names of arms that do not fit side by side are slanted. Of more names than can be read so, only
    those of the arms that gain or lose most are drawn, ranked; more unnamed arms are a curve.

    Args:
      dataset: of `simulate`; dimensions beside loss, step and arm are swept hyperparameters, and
        get a line a value. What ``diverged`` marks is dotted, without an end.
    """
    lines = split(dataset)
    with plotting.style():
        names = _names(dataset)
        slanted = bool(names) and _width(names) > NAMES_WIDTH / len(names)
        ranked = len(names) > (MOST_SLANTED if slanted else MOST_LABELS)
        lean = _width(names) * SLANT if slanted and not ranked else 0.0
        figure = plotting.new_figure(15.5, 8.5 + lean)
        # Titles would stand too close to slanted names.
        figure.set_layout_engine("constrained", h_pad=0.1 if lean else 0.05)
        if ranked:
            grid = figure.add_gridspec(3, 2, width_ratios=[1.5, 1])
            top, below = figure.add_subplot(grid[:, 0]), [grid[i, 1] for i in range(3)]
            _rank_distributions(top, dataset, lines, names)
        else:
            grid = figure.add_gridspec(2, 3, height_ratios=[1.15 + lean / 4, 1])
            top, below = figure.add_subplot(grid[0, :]), [grid[1, i] for i in range(3)]
            _plot_distributions(top, dataset, lines, names)
            if slanted:
                top.tick_params(axis="x", rotation=45)
                for label in top.get_xticklabels():
                    label.set(horizontalalignment="right", rotation_mode="anchor")
        _add_legend(figure, top, above=ranked)
        last = "expected_reward" if "expected_reward" in dataset else "optimal_mass"
        for place, metric in zip(below, ("forward_kl", "reverse_kl", last), strict=True):
            _plot_metric(figure.add_subplot(place), dataset, metric, lines)
        if ranked:
            for axes in figure.axes[1:-1]:
                axes.set_xlabel("")
    return figure


def summarise(dataset: xr.Dataset) -> list[tuple[str, ...]]:
    """Return the metrics at the last step: a row of names, then a row a method and swept value.

    If any run diverged, a last column says which did.
    """
    metrics = [
        name for name in ("expected_reward", "forward_kl", "reverse_kl", "entropy", "optimal_mass")
        if name in dataset
    ]  # fmt: skip
    names = swept(dataset)
    lines = split(dataset)
    rows = [("method", *names, *(dataset[m].attrs["long_name"].partition("(")[0] for m in metrics))]
    for line in lines:
        values = [f"{line.values[name]:g}" if name in line.values else "" for name in names]
        final = line.data.isel(step=-1)
        rows.append((line.method, *values, *(f"{float(final[m]):.4g}" for m in metrics)))
    if any(line.diverged for line in lines):
        marks = ["result", *("diverged" if line.diverged else "ok" for line in lines)]
        rows = [(*row, mark) for row, mark in zip(rows, marks, strict=True)]
    return rows


def rank(dataset: xr.Dataset, top: int = 10) -> list[tuple[str, ...]]:
    """Return the arms that won and lost: a row of names, then a row an arm.

    Args:
      dataset: of `simulate`.
      top: how many arms, >= 1. Half are those whose probability rises most under any method,
        the others those that fall most; the most probable at the end comes first.

    Returns:
      Rows of label, reference probability, learned reward if there is one, and, for each method
      and swept value, the probability at the end and its rise in log-probability, in nats.
    """
    lines = split(dataset)
    learned = "learned_reward" in dataset and dataset["learned_reward"].dims == ("arm",)
    header = ["arm", "reference", *(["learned reward"] if learned else [])]
    for line in lines:
        header += [line.label, f"{line.label}: rise in nats"]
    rows = [tuple(header)]
    for arm in _movers(dataset, lines, top):
        start = float(dataset["reference_log_probs"][arm])
        row = [str(dataset["arm"].values[arm]), f"{np.exp(start):.4g}"]
        if learned:
            row.append(f"{float(dataset['learned_reward'][arm]):.4g}")
        for line in lines:
            end = float(line.data["log_probs"].isel(step=-1, arm=arm))
            # An arm that the reference excludes keeps no mass: there is no rise to speak of.
            rise = "" if start == -np.inf else f"{end - start:+.3g}"
            row += [f"{np.exp(end):.4g}", rise]
        rows.append(tuple(row))
    return rows


def shorten(labels: Sequence[str]) -> list[str]:
    """Return the labels, or, where some are texts, the first words of all that are long."""
    most = MOST_LETTERS if all(len(label) <= MOST_LETTERS for label in labels) else FEW_LETTERS
    return [label if len(label) <= most else f"{label[: most - 1].rstrip()}…" for label in labels]


def _movers(dataset: xr.Dataset, lines: Sequence[Line], top: int) -> list[int]:
    """Return the arms that rise and fall most, the most probable at the end first."""
    reference = np.exp(dataset["reference_log_probs"].values.astype(np.float64))
    ends = [line.data["log_probs"].isel(step=-1) for line in lines if not line.diverged]
    finals = np.array([np.exp(end.values.astype(np.float64)) for end in ends] or [reference])
    # Of equal changes the most probable arm's comes first.
    risen, fallen = (
        np.lexsort((-finals.max(axis=0), -change.max(axis=0)))
        for change in (finals - reference, reference - finals)
    )
    half = -(-top // 2)
    most = np.array(list(dict.fromkeys([*risen[:half], *fallen]))[:top])
    return [int(arm) for arm in most[np.argsort(-finals.mean(axis=0)[most], kind="stable")]]


def _targets(lines: Sequence[Line]) -> np.ndarray:
    """Return the probabilities of the targets, ``[n, K]``: one for each value that changes it."""
    targets = [np.exp(line.data["target_log_probs"].values) for line in lines]
    return np.unique(targets, axis=0)


def _names(dataset: xr.Dataset) -> list[str]:
    """Return the arms' names, where they have some, or few numbers; else none."""
    arms = dataset["arm"]
    if np.issubdtype(arms.dtype, np.number) and arms.size > MOST_LABELS:
        return []
    return plotting.short_names(arms.values)


def _width(names: Sequence[str]) -> float:
    """Return about how wide the longest name is, in inches, with some room."""
    return max(map(len, names)) * LETTER * mpl.rcParams["font.size"] / 72 + 0.1


def _plot_distributions(
    axes: Axes, dataset: xr.Dataset, lines: Sequence[Line], names: Sequence[str]
) -> None:
    """Draw every arm in its order: as bars, or, where they have no names, as curves."""
    arms = np.arange(dataset.sizes["arm"])
    if names:
        _draw_arms(axes, dataset, lines, arms, lying=False)
        axes.set_xticks(arms, names, parse_math=False)  # a name may hold a dollar sign
    else:
        for i, target in enumerate(_targets(lines)):
            label = None if i else "target"
            axes.fill_between(arms, target, color=plotting.TARGET_COLOR, linewidth=0, label=label)
        reference = np.exp(dataset["reference_log_probs"].values)
        axes.plot(arms, reference, ":", color=plotting.INK, label="reference")
        for line in lines:
            axes.plot(arms, _result(line, arms), line.style, **_look(line, lines))
    axes.margins(x=0.01)
    axes.set_ylim(bottom=0)
    axes.set(title=f"Policies after {int(dataset['step'][-1]):,} steps", ylabel="probability")


def _rank_distributions(
    axes: Axes, dataset: xr.Dataset, lines: Sequence[Line], names: Sequence[str]
) -> None:
    """Draw the arms that move most, from the top, with their names on the left."""
    arms = _movers(dataset, lines, MOST_RANKED)
    _draw_arms(axes, dataset, lines, arms, lying=True)
    axes.set_yticks(range(len(arms)), [names[arm] for arm in arms], parse_math=False)
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.set_xlim(left=0)
    step = int(dataset["step"][-1])
    axes.set(
        title=f"After {step:,} steps: the {len(arms)} of {len(names):,} arms that move most",
        xlabel="probability",
    )


def _draw_arms(
    axes: Axes,
    dataset: xr.Dataset,
    lines: Sequence[Line],
    arms: Sequence[int] | np.ndarray,
    lying: bool,
) -> None:
    """Draw some arms side by side: targets as bars, the reference as a mark, results as dots."""
    draw_bars, draw_marks = (axes.barh, axes.vlines) if lying else (axes.bar, axes.hlines)
    places = np.arange(len(arms))
    ends = places - WIDTH / 2, places + WIDTH / 2
    first, *others = _targets(lines)[:, arms]
    draw_bars(places, first, WIDTH, color=plotting.TARGET_COLOR, label="target")
    for other in others:
        draw_marks(other, *ends, plotting.TARGET_COLOR)
    reference = np.exp(dataset["reference_log_probs"].values[arms])
    draw_marks(reference, *ends, plotting.INK, linewidth=1.5, label="reference")
    apart = min(0.3, 0.8 / len(lines))  # the dots of an arm, in shares of its width
    for i, line in enumerate(lines):
        beside = places + apart * (i - (len(lines) - 1) / 2)
        points = (_result(line, arms), beside) if lying else (beside, _result(line, arms))
        axes.plot(*points, line.style if line.diverged else "o", **_look(line, lines))


def _add_legend(figure: Figure, axes: Axes, above: bool) -> None:
    """Put the legend where it hides nothing: above the panels, or beside the first."""
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    first = {name: entries[name] for name in ("target", "reference")}
    entries = first | entries
    handles, labels = list(entries.values()), list(entries)
    if above:
        figure.legend(handles, labels, loc="outside upper center", ncols=min(5, len(labels)))
    else:
        columns = 1 + len(labels) // 15
        axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.02), ncols=columns)


def _look(line: Line, lines: Sequence[Line]) -> dict[str, Any]:
    return {"color": line.color, "label": line.label, "markersize": 7 if len(lines) <= 10 else 5}


def _result(line: Line, arms: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the probabilities at the end; NaN, which is not drawn, where it diverged."""
    final = line.data["log_probs"].isel(step=-1).values[arms]
    return np.exp(final) * (np.nan if line.diverged else 1.0)


def _plot_metric(axes: Axes, dataset: xr.Dataset, metric: str, lines: Sequence[Line]) -> None:
    drawn = []
    for line in lines:
        one = line.data[metric].sel(step=line.data["step"] > 0)  # the axis is logarithmic
        marker = "o" if one.size == 1 else ""  # a single point makes no line
        axes.plot(one["step"], one, line.style, marker=marker, color=line.color)
        drawn += [] if line.diverged else [one.values]
    title, units = dataset[metric].attrs["long_name"], dataset[metric].attrs["units"]
    axes.set(title=title, xscale="log", xlabel="gradient steps")
    axes.set_ylabel(units if units != "1" else "")
    # What diverged may leave the picture; results may not.
    values = np.concatenate([np.ravel(one) for one in drawn]) if drawn else np.array([])
    values = values[np.isfinite(values)]
    if not values.size:
        return
    low, high = min(0.0, values.min()), values.max()
    axes.set_ylim(low, high + 0.05 * (high - low) if high > low else None)
