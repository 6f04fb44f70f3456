"""Make the page: plots by Bokeh, Bokeh's library, and the results of the sweep, packed."""

import base64
import gzip
import json
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import xarray as xr
from bokeh.embed import components
from bokeh.models import (
    Axis,
    BoxAnnotation,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    LinearAxis,
    Range1d,
    Span,
)
from bokeh.plotting import figure
from bokeh.resources import Resources

from bandits import plotting
from bandits.losses import METHODS
from bandits.problems.metrics import DIVERGED_AT

PLOTS = {
    "policy": ("Policy, reference and reward", 320),
    "pushes": ("Who is raised, who is pushed down", 320),
    "reward": ("Expected reward", 220),
    "divergence": ("Distance from the reference", 220),
}
"""Title of each plot, and its height in pixels; plots are as wide as there is room."""

STILL = 1e-3
"""Largest part of the run's largest push that counts as none: rounding, or the noise of samples."""

WITH_DATA = ("learned rewards", "preferences and samples")
"""Needs of on-policy methods that learn from offline pairs too."""

CONTROLS = {
    "centre": "Reward centre (C1)",
    "coverage": "Coverage (C2)",
    "step_size": "Step size",
    "step": "Training step",
}
"""Label of each slider, by the axis that it moves along."""


def make_page(dataset: xr.Dataset) -> str:
    """Return the page of a dataset of `run`: HTML that is complete and needs no network."""
    plots = [_policy_plot(dataset), _pushes_plot(dataset), *_curve_plots(dataset)]
    script, divisions = components(plots)
    files = resources.files(__package__)
    page, css, js = ((files / f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    return jinja2.Template(page).render(
        bokeh=Resources(mode="inline", components=["bokeh"]).render_js(),
        css=css,
        controls=CONTROLS.items(),
        plots=[(title, d) for (title, _), d in zip(PLOTS.values(), divisions, strict=True)],
        plot_script=script,
        arms=dataset.sizes["arm"],
        settings=dataset.attrs,
        data=json.dumps(pack(dataset), separators=(",", ":")),
        js=js,
    )


def pack(dataset: xr.Dataset) -> dict[str, Any]:
    """Return what the page is told: axes, methods, and the results as compressed bytes.

    Policies are 255 √π, so they are finest where there is little mass. Pushes are 127 times their
    part of the moment's largest, which stands beside them; they are 0 where the largest is below a
    thousandth of the run's. Rewards and KLs are multiples of 1/65,535 of their largest. A run that
    diverged has zeros from there on.
    """
    dataset = dataset.transpose("loss", "centre", "coverage", "step_size", "step", "arm")
    pushes = np.nan_to_num(dataset["push"].values)
    largest = np.abs(pushes).max(axis=-1, keepdims=True)
    moves = largest > STILL * largest.max(axis=-2, keepdims=True)
    shares = np.where(moves, pushes, 0.0) / np.where(moves, largest, 1.0)
    kl_scale = float(np.nanmax(dataset["reference_kl"].values))
    return {
        "axes": {name: _plain(dataset[name].values) for name in CONTROLS},
        "arms": dataset.sizes["arm"],
        "methods": [_describe(str(name)) for name in dataset["loss"].values],
        "reference": _plain(dataset["reference"].values),
        "bump": _plain(dataset["bump"].values),
        "optimum": _plain(dataset["optimum"].values),
        "klScale": kl_scale,
        "divergedAt": dataset[DIVERGED_AT].values.ravel().tolist(),
        "policy": _packed(255 * np.sqrt(dataset["policy"].values), np.uint8),
        "push": _packed(127 * shares, np.int8),
        "pushedMost": _packed(largest, np.float32),
        "reward": _packed(65_535 * np.clip(dataset["reward"].values, 0, 1), np.uint16),
        "kl": _packed(65_535 * np.clip(dataset["reference_kl"].values / kl_scale, 0, 1), np.uint16),
        "raised": plotting.RAISED,
        "pushed": plotting.PUSHED,
    }


def _describe(name: str) -> dict[str, Any]:
    method = METHODS[name]
    return {
        "name": name,
        "label": plotting.METHOD_LABELS[name],
        "family": method.family,
        "formula": method.formula,
        "color": plotting.METHOD_COLORS[name],
        "usesData": method.needs in WITH_DATA or not (method.on_policy or method.whole_space),
    }


def _packed(values: np.ndarray, dtype: type[np.number]) -> str:
    known = np.nan_to_num(values)
    whole = np.round(known) if np.issubdtype(dtype, np.integer) else known
    whole = whole.astype(np.dtype(dtype).newbyteorder("<"))
    # Without a time in the header the same sweep is the same page.
    return base64.b64encode(gzip.compress(whole.tobytes(), mtime=0)).decode("ascii")


def _plain(values: np.ndarray) -> Any:
    return np.vectorize(lambda x: float(f"{x:.5g}"))(values).tolist()


def _plot(name: str, **options: Any) -> figure:
    """Return an empty plot in which the page shows through: its colours are the page's."""
    plot = figure(
        name=name, height=PLOTS[name][1], sizing_mode="stretch_width", toolbar_location=None,
        tools="", **options,
    )  # fmt: skip
    plot.background_fill_alpha = plot.border_fill_alpha = 0
    plot.outline_line_color = None
    plot.xgrid.visible = False
    for axis in plot.axis:
        _style(axis)
    return plot


def _style(axis: Axis) -> None:
    axis.axis_label_text_font_size = axis.major_label_text_font_size = "13px"
    axis.axis_label_text_font_style = "normal"
    axis.minor_tick_line_color = None


def _arms_plot(name: str, num_arms: int, low: float, high: float, label: str) -> figure:
    return _plot(
        name,
        x_range=Range1d(start=-0.7, end=num_arms - 0.3), y_range=Range1d(start=low, end=high),
        x_axis_label="arm", y_axis_label=label,
    )  # fmt: skip


def _policy_plot(dataset: xr.Dataset) -> figure:
    arms = np.arange(dataset.sizes["arm"])
    plot = _arms_plot("policy", len(arms), 0, 0.2, "probability")
    uncovered = BoxAnnotation(
        name="uncovered", left=len(arms), right=len(arms) - 0.3,
        fill_color="#888888", fill_alpha=0.15, hatch_pattern="right_diagonal_line",
        hatch_color="#888888", hatch_alpha=0.25,
    )  # fmt: skip
    plot.add_layout(uncovered)
    zeros = np.zeros(len(arms))
    bars = ColumnDataSource({"arm": arms, "top": zeros}, name="policy_bars")
    plot.vbar(
        x="arm", top="top", width=0.86, source=bars, line_color=None, fill_alpha=0.75,
        name="policy_glyph",
    )  # fmt: skip
    for name, dash in (("reference", "solid"), ("optimum", "dotted")):
        source = ColumnDataSource({"arm": arms, "mass": zeros}, name=f"{name}_source")
        plot.step(
            x="arm", y="mass", mode="center", source=source, line_width=2, line_dash=dash,
            name=f"{name}_glyph",
        )  # fmt: skip
    plot.extra_y_ranges = {"reward": Range1d(start=0, end=1.08)}
    right = LinearAxis(
        y_range_name="reward", axis_label="reward, of its peak", ticker=FixedTicker(ticks=[0, 1])
    )
    _style(right)
    plot.add_layout(right, "right")
    source = ColumnDataSource({"arm": arms, "reward": zeros}, name="bump_source")
    plot.line(
        x="arm", y="reward", source=source, y_range_name="reward", line_width=2.5,
        line_dash="dashed", name="bump_glyph",
    )  # fmt: skip
    return plot


def _pushes_plot(dataset: xr.Dataset) -> figure:
    arms = np.arange(dataset.sizes["arm"])
    label = "change of the logit, of the largest"
    plot = _arms_plot("pushes", len(arms), -1.08, 1.08, label)
    source = ColumnDataSource(
        {"arm": arms, "top": np.zeros(len(arms)), "color": [plotting.RAISED] * len(arms)},
        name="push_bars",
    )
    plot.vbar(x="arm", top="top", width=0.86, color="color", source=source)
    plot.add_layout(Span(location=0, dimension="width", line_width=1, line_color="#888888"))
    return plot


def _curve_plots(dataset: xr.Dataset) -> list[figure]:
    steps = dataset["step"].values
    shown = [i for i, step in enumerate(steps) if step == 0 or np.log10(step) % 1 == 0]
    plots = []
    for name, label in (("reward", "share of the peak"), ("divergence", "KL(π‖π_ref), nats")):
        plot = _plot(
            name,
            x_range=Range1d(start=-0.3, end=len(steps) - 0.7),
            y_range=Range1d(start=0, end=1.04),
            x_axis_label="gradient steps",
            y_axis_label=label,
        )
        plot.xaxis.ticker = FixedTicker(ticks=shown)
        plot.xaxis.major_label_overrides = {i: f"{steps[i]:,}" for i in shown}
        others = ColumnDataSource({"xs": [], "ys": [], "name": []}, name=f"{name}_others")
        lines = plot.multi_line("xs", "ys", source=others, line_color="#8A8A8A", line_width=1.5)
        plot.add_tools(HoverTool(renderers=[lines], tooltips="@name", line_policy="none"))
        one = ColumnDataSource({"x": [], "y": []}, name=f"{name}_curve")
        plot.line("x", "y", source=one, line_width=3.5, name=f"{name}_glyph")
        now = Span(name=f"{name}_now", location=0, dimension="height", line_width=2)
        plot.add_layout(now)
        plots.append(plot)
    return plots
