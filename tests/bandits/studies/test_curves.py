"""Means over seeds: the numbers that are drawn, and the runs that must not be averaged in."""

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from bandits.plotting import METHOD_COLORS, METHOD_LABELS, METHOD_LINES
from bandits.studies.curves import (
    draw_bar_row,
    draw_bars,
    draw_mean_line,
    draw_means,
    draw_points,
    over_seeds,
    require_no_nan,
    require_not_diverged,
)
from bandits.studies.intervals import mean_interval
from theory.checks import InvalidInput

BATCHES = [10, 50, 200]
RESULTS = xr.DataArray(
    np.random.default_rng(0).uniform(size=(4, 2, 3)),
    dims=["seed", "loss", "batch"],
    coords={"seed": range(4), "loss": ["ipo", "ppo"], "batch": BATCHES},
)


def intervals(loss):
    """Effect, low and high at each batch."""
    return np.transpose([mean_interval(row) for row in RESULTS.sel(loss=loss).values.T])


@pytest.fixture
def axes():
    return Figure().subplots()


def test_over_seeds_is_the_interval_of_the_means_of_each_seed():
    expected = mean_interval(RESULTS.values.reshape(4, -1).mean(axis=1))
    assert over_seeds(RESULTS) == pytest.approx(expected, rel=1e-12)
    alone = RESULTS.sel(loss="ppo", batch=50)
    assert over_seeds(alone) == mean_interval(alone.values)


OWN = {"color": "#123456", "linestyle": "--", "label": "mine"}
OF_IPO = {
    "color": METHOD_COLORS["ipo"], "linestyle": METHOD_LINES["ipo"], "label": METHOD_LABELS["ipo"],
}  # fmt: skip


@pytest.mark.parametrize("order", [("batch", "seed"), ("seed", "batch")])
@pytest.mark.parametrize(
    ("draw", "method", "options", "style"),
    [
        (draw_means, ["ipo"], {}, {**OF_IPO, "marker": "o"}),
        (draw_means, ["ipo"], {"marker": "s"}, {**OF_IPO, "marker": "s"}),
        (draw_mean_line, [], OWN, {**OWN, "marker": "o"}),
        (draw_mean_line, [], {**OWN, "marker": "s"}, {**OWN, "marker": "s"}),
    ],
)
def test_a_mean_line_has_the_interval_at_every_coordinate_as_a_band_of_its_color(
    axes, order, draw, method, options, style
):
    draw(axes, RESULTS.sel(loss="ipo").transpose(*order), "batch", *method, **options)
    effect, low, high = intervals("ipo")
    (line,), (band,) = axes.lines, axes.collections
    np.testing.assert_array_equal(line.get_xdata(), BATCHES)
    np.testing.assert_allclose(line.get_ydata(), effect)
    assert {name: getattr(line, f"get_{name}")() for name in style} == style
    corners = band.get_paths()[0].vertices
    for x, bottom, top in zip(BATCHES, low, high, strict=True):
        here = corners[corners[:, 0] == x, 1]
        assert (here.min(), here.max()) == pytest.approx((bottom, top))
    *color, opacity = band.get_facecolor()[0]
    assert color == pytest.approx(mpl.colors.to_rgb(style["color"]))
    assert 0 < opacity < 1


def test_draw_points_draws_the_mean_and_its_interval_beside_every_coordinate(axes):
    draw_points(axes, RESULTS.sel(loss="ipo"), "batch", "ipo", 1.1, label="here")
    effect, low, high = intervals("ipo")
    (container,) = axes.containers
    line, _, (bars,) = container.lines
    assert container.get_label() == "here"
    np.testing.assert_allclose(line.get_xdata(), np.array(BATCHES) * 1.1)
    np.testing.assert_allclose(line.get_ydata(), effect)
    ends = np.array(bars.get_segments())[..., 1]
    np.testing.assert_allclose(ends, np.transpose([low, high]))


def require_row(bars, loss, centres, width, colors, label):
    """Hold a row of bars to the means and intervals of a method."""
    effect, low, high = intervals(loss)
    np.testing.assert_allclose([bar.get_height() for bar in bars], effect)
    found = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    np.testing.assert_allclose(found, centres, atol=1e-12)
    assert [bar.get_width() for bar in bars] == pytest.approx([width] * 3)
    assert [bar.get_facecolor() for bar in bars] == [mpl.colors.to_rgba(color) for color in colors]
    assert bars.get_label() == label
    (whiskers,) = bars.errorbar.lines[2]
    ends = np.array([segment[:, 1] for segment in whiskers.get_segments()])
    np.testing.assert_allclose(ends, np.transpose([low, high]))


@pytest.mark.parametrize("order", [("batch", "seed"), ("seed", "batch")])
@pytest.mark.parametrize(
    ("shift", "color", "colors"),
    [
        ([], ["#000000", "#FF0000", "#0000FF"], ["#000000", "#FF0000", "#0000FF"]),
        ([0.25], "#336699", ["#336699"] * 3),
    ],
)
def test_draw_bar_row_draws_a_bar_beside_every_whole_number(axes, order, shift, color, colors):
    results = RESULTS.sel(loss="ipo").transpose(*order)
    draw_bar_row(axes, results, "batch", *shift, width=0.4, color=color, label="mine")
    require_row(axes.containers[1], "ipo", np.arange(3) + sum(shift), 0.4, colors, "mine")


def test_draw_bars_draws_a_row_a_method_side_by_side_and_names_the_groups(axes):
    draw_bars(axes, RESULTS, "batch", ["ppo", "ipo"])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "50", "200"]
    for bars, method, shift in zip(axes.containers[1::2], ["ppo", "ipo"], [-0.2, 0.2], strict=True):
        colors, label = [METHOD_COLORS[method]] * 3, METHOD_LABELS[method]
        require_row(bars, method, np.arange(3) + shift, 0.368, colors, label)


def with_share(at=None, value=np.nan, diverged_at=-1):
    """Results of which one may be another, and its run may have diverged."""
    share, diverged = RESULTS.copy(deep=True), xr.full_like(RESULTS, -1, int)
    if at is not None:
        share[at], diverged[at] = value, diverged_at
    return xr.Dataset({"diverged_at": diverged, "share": share})


@pytest.mark.parametrize("step", [17, 0])
def test_diverged_runs_are_refused_with_count_step_and_coordinates(step):
    dataset = with_share((1, 1, 2), 0.5, step)
    dataset["diverged_at"][3, 0, 0] = 3
    with pytest.raises(InvalidInput) as refused:
        require_not_diverged(dataset)
    assert str(refused.value) == (
        f"2 of 24 runs diverged, the first after {step} steps at seed=1, loss=ppo, batch=200; "
        "choose a smaller learning rate"
    )


@pytest.mark.parametrize("require", [require_no_nan, require_not_diverged])
def test_results_without_nan_are_returned(require):
    infinite = with_share((0, 1, 1), np.inf)  # undefined it is not
    for dataset in (with_share(), infinite, with_share().assign(name=("loss", ["a", "b"]))):
        assert require(dataset) is dataset


@pytest.mark.parametrize("require", [require_no_nan, require_not_diverged])
@pytest.mark.parametrize("at", [(0, 0, 0), (3, 1, 2)])
def test_one_nan_is_refused_with_the_name_of_what_is_undefined(require, at):
    with pytest.raises(InvalidInput) as refused:
        require(with_share(at))
    assert str(refused.value) == "share is NaN in some runs; these settings leave it undefined"


def test_a_divergence_is_named_before_the_nan_that_follows_from_it():
    with pytest.raises(InvalidInput, match="1 of 24 runs diverged, the first after 5 steps"):
        require_not_diverged(with_share((2, 0, 1), np.nan, 5))
