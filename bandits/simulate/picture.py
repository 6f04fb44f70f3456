"""The trajectory as a picture and as a table."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting

MOST_LABELS = 40
"""Arms are named on the picture's axis up to this many."""


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
