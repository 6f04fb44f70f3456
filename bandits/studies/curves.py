"""Draw means over seeds with their 95% intervals, and refuse runs that cannot be averaged."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.problems.metrics import DIVERGED_AT
from bandits.studies.intervals import Interval, mean_interval
from theory.checks import InvalidInput


def new_reward_panels(bottom: float = 0.13, height: float = 5.6) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with a panel for each reward, R1 and R2, to draw expected rewards in."""
    figure, grid = plotting.new_grid(1, 2, 13, height, (0.065, bottom, 0.985, 0.92), 0.06)
    panels = dict(zip(("R1", "R2"), grid[0], strict=True))
    panels["R1"].set(title="R1: the peak is far from the reference", ylabel="expected reward")
    panels["R2"].set(title="R2: the peak is near", ylim=(0, 1.04))
    return figure, panels


def _style_of(method: str) -> dict[str, object]:
    return {
        "color": plotting.METHOD_COLORS[method],
        "linestyle": plotting.METHOD_LINES[method],
        "label": plotting.METHOD_LABELS[method],
    }


def draw_means(axes: Axes, results: xr.DataArray, along: str, method: str, **line: object) -> None:
    """Draw `draw_mean_line` in the style of a method."""
    draw_mean_line(axes, results, along, **(_style_of(method) | line))


def draw_mean_line(axes: Axes, results: xr.DataArray, along: str, **line: object) -> None:
    """Draw the mean over seeds against a coordinate, with its 95% interval as a band.

    ``line`` are options of Matplotlib's ``plot``; its ``color`` is needed, and is also the band's.
    """
    effect, low, high = _intervals(results, along)
    x = results[along].values
    axes.plot(x, effect, **({"marker": "o"} | line))  # type: ignore[arg-type]
    axes.fill_between(x, low, high, color=line["color"], alpha=0.15, linewidth=0)


def draw_points(
    axes: Axes, results: xr.DataArray, along: str, method: str, shift: float, **line: object
) -> None:
    """Draw means with error bars, for few values and many methods; x is multiplied by ``shift``."""
    effect, low, high = _intervals(results, along)
    style = _style_of(method) | {"capsize": 4} | line
    x = results[along].values * shift
    axes.errorbar(x, effect, [effect - low, high - effect], **style)  # type: ignore[arg-type]


def draw_bars(
    axes: Axes, results: xr.DataArray, groups: str, methods: Sequence[str], **bars: object
) -> None:
    """Draw the bars of `draw_bar_row` for several methods side by side, and label the groups."""
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        one, shift = results.sel(loss=method), (i - (len(methods) - 1) / 2) * width
        named = {
            "color": plotting.METHOD_COLORS[method],
            "label": plotting.METHOD_LABELS[method],
        }
        draw_bar_row(axes, one, groups, shift, width=width * 0.92, **named, **bars)
    axes.set_xticks(range(results.sizes[groups]), [str(v) for v in results[groups].values])


def draw_bar_row(
    axes: Axes, results: xr.DataArray, along: str, shift: float = 0.0, **bars: object
) -> None:
    """Draw the mean over seeds as a bar at each value of a coordinate, with its 95% interval."""
    effect, low, high = _intervals(results, along)
    style = {"error_kw": {"ecolor": plotting.INK, "elinewidth": 1.2}}
    at = np.arange(len(effect)) + shift
    axes.bar(at, effect, yerr=[effect - low, high - effect], **(style | bars))  # type: ignore[arg-type]


def with_legend(figure: Figure, axes: Axes, ncols: int) -> Figure:
    """Return the figure with the legend of a panel below all of them."""
    figure.legend(*axes.get_legend_handles_labels(), loc="lower center", ncols=ncols)
    return figure


def draw_start(axes: Axes, results: xr.DataArray) -> None:
    """Draw the mean at the first step as a dotted line."""
    start = float(results.isel(step=0).mean())
    axes.axhline(start, color=plotting.INK, linestyle=":", linewidth=1.4, label="start")


def draw_half_and_end(
    axes: Axes, results: xr.DataArray, along: str, methods: Sequence[str]
) -> None:
    """Draw means against a coordinate, on a log scale: half-way (thin) and at the end (bold)."""
    half, last = (int(step) for step in results["step"].values[1:])
    for method in methods:
        one, name = results.sel(loss=method), plotting.METHOD_LABELS[method]
        for step, width in ((half, 1.2), (last, 3.0)):
            line = {"linewidth": width, "label": f"{name}, {step} steps"}
            draw_means(axes, one.sel(step=step), along, method, **line)
    log_axis(axes, results[along].values)


def log_axis(axes: Axes, values: np.ndarray) -> None:
    """Make the horizontal axis logarithmic, with ticks at the values alone."""
    axes.set_xscale("log")
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()


def slope_per_decade(results: xr.DataArray, along: str) -> xr.DataArray:
    """Return the slope of the regression on log10 of a coordinate."""
    decades = np.log10(results[along]) - np.log10(results[along]).mean()
    return (results * decades).sum(along) / (decades**2).sum()


def over_seeds(results: xr.DataArray) -> Interval:
    """Return the mean over seeds with its 95% interval; other dimensions are averaged first."""
    others = [d for d in results.dims if d != "seed"]
    return mean_interval(results.mean(others).values)


def require_not_diverged(dataset: xr.Dataset) -> xr.Dataset:
    """Return results of which no run diverged or gave NaN.

    Raises InvalidInput that names the first run that diverged, and its step.
    """
    at = dataset[DIVERGED_AT]
    if (at >= 0).any():
        first = np.argwhere(at.values >= 0)[0]
        where = ", ".join(
            f"{name}={dataset[name].values[i]}" for name, i in zip(at.dims, first, strict=True)
        )
        raise InvalidInput(
            f"{int((at >= 0).sum())} of {at.size} runs diverged, the first after "
            f"{int(at.values[tuple(first)])} steps at {where}; choose a smaller learning rate"
        )
    return require_no_nan(dataset)


def require_no_nan(dataset: xr.Dataset) -> xr.Dataset:
    """Return results without NaN; raises InvalidInput that names the first result with one."""
    for name, values in dataset.data_vars.items():
        if values.isnull().any():
            raise InvalidInput(f"{name} is NaN in some runs; these settings leave it undefined")
    return dataset


def _intervals(results: xr.DataArray, along: str) -> np.ndarray:
    """Return effect, low and high at every value of a coordinate, ``[3, n]``."""
    return np.array([mean_interval(row) for row in results.transpose(along, "seed").values]).T
