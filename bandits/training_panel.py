"""Draw the six small panels that a preference trainer logs, and say what moved."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bandits import plotting

CAPTION = (
    "reward = β log π/π_ref (of IPO: τ), mean over the pairs; margin = chosen − rejected; "
    "accuracy = share of pairs with a margin > 0, ties half"
)


Style = Literal["-", "--", ":"]


class Curve(NamedTuple):
    """A line of the panel.

    Attributes:
      steps, values: ``[n]``; values that are not finite are left out.
      label: for the legend.
      color: of the line.
      style: of the line.
      counts: whether the scale of the axis must hold it.
    """

    steps: np.ndarray
    values: np.ndarray
    label: str
    color: str | tuple[float, float, float]
    style: Style = "-"
    counts: bool = True


def draw_panel(
    curves: Mapping[str, Sequence[Curve]], log_steps: bool, caption: str = CAPTION
) -> Figure:
    """Draw up to six small panels in two rows, with one legend.

    Args:
      curves: lines by the title of their panel.
      log_steps: whether the axis of steps is logarithmic; step 0 is drawn in either case.
      caption: explains the symbols below the panels.
    """
    with plotting.style():
        figure = plotting.new_figure(15.5, 8.5, layout="constrained")
        panels = dict(zip(curves, figure.subplots(2, 3).flat, strict=False))
        for title, axes in panels.items():
            for curve in curves[title]:
                finite = np.isfinite(curve.values)
                marker = "o" if finite.sum() < 3 else ""  # few points make no line
                points = curve.steps[finite], curve.values[finite]
                axes.plot(*points, curve.style, marker=marker, color=curve.color)
            axes.set_title(title)
            if log_steps:
                axes.set_xscale("symlog", linthresh=1)
            _set_limits(axes, curves[title])
        for spare in figure.axes[len(panels) :]:
            spare.axis("off")
        dotted = {"color": plotting.INK, "linewidth": 1, "linestyle": ":"}
        rewards = [panels[t] for t in ("rewards/chosen", "rewards/rejected") if t in panels]
        limits = [limit for axes in rewards for limit in axes.get_ylim()]
        for axes in rewards:  # on one scale, for their difference is what counts
            axes.set_ylim(min(limits), max(limits))
            axes.axhline(0, **dotted)
        if "rewards/accuracies" in panels:
            panels["rewards/accuracies"].set_ylim(0, 1.03)
            panels["rewards/accuracies"].axhline(0.5, **dotted)
        _add_legend(figure, [curve for several in curves.values() for curve in several])
        figure.supxlabel(f"gradient steps\n{caption}", fontsize="medium")
    return figure


def _set_limits(axes: Axes, curves: Sequence[Curve]) -> None:
    """Show all results; what diverged may leave the panel."""
    counted = [curve.values[np.isfinite(curve.values)] for curve in curves if curve.counts]
    counted = [values for values in counted if values.size]
    if not counted:
        return
    low, high = (extreme(map(extreme, counted)) for extreme in (min, max))
    sizes = [abs(values[0]) for values in counted if values[0]]
    if axes.get_title() == "loss" and sizes and max(sizes) > 20 * min(sizes):
        # Losses of different kinds share the axis.
        axes.set_yscale("log" if low > 0 else "symlog")
        return
    room = 0.06 * (high - low) or 0.1
    axes.set_ylim(low - room, high + room)


def _add_legend(figure: Figure, curves: Sequence[Curve]) -> None:
    handles: dict[str, Line2D] = {}
    for curve in curves:
        line = Line2D([], [], color=curve.color, linestyle=curve.style)
        handles.setdefault(curve.label, line)
    if handles:
        columns = min(5, len(handles))
        figure.legend(
            list(handles.values()), list(handles), loc="outside upper center", ncols=columns
        )


def say_changes(chosen: float, rejected: float, margin: float, unit: str, still: float) -> str:
    """Return what chosen, rejected and the margin did, from their changes.

    Args:
      chosen, rejected, margin: changes.
      unit: of all three, with the space before it.
      still: changes below this count as none.
    """

    def size(change: float) -> str:
        return f"{abs(change):.1f}" if abs(change) >= 0.995 else f"{abs(change):.2g}"

    def moved(change: float, up: str, down: str) -> str:
        return (
            "stayed" if abs(change) < still else f"{up if change > 0 else down} by {size(change)}"
        )

    if max(abs(chosen), abs(rejected)) < still:
        return "neither chosen nor rejected moved"
    unit_of_rejected = unit if abs(chosen) < still else ""
    said = f"chosen {moved(chosen, 'rose', 'fell')}{'' if unit_of_rejected else unit}"
    grew = f"the margin {moved(margin, 'grew', 'shrank')}"
    if chosen * rejected > 0 and min(abs(chosen), abs(rejected)) >= still:
        return f"{said} and rejected by {size(rejected)} while {grew}"
    return f"{said}, rejected {moved(rejected, 'rose', 'fell')}{unit_of_rejected} and {grew}"
