"""Means over seeds: the numbers that are drawn, and the runs that must not be averaged in."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from bandits.plotting import METHOD_COLORS, METHOD_LABELS
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

RESULTS = xr.DataArray(
    np.random.default_rng(0).uniform(size=(4, 2, 3)),
    dims=["seed", "loss", "batch"],
    coords={"seed": range(4), "loss": ["ipo", "ppo"], "batch": [10, 50, 200]},
)


def intervals(loss):
    rows = RESULTS.sel(loss=loss).values.T
    return np.array([mean_interval(row) for row in rows]).T


@pytest.fixture
def axes():
    return Figure().subplots()


def test_over_seeds_is_the_interval_of_the_means_of_each_seed():
    expected = mean_interval(RESULTS.values.reshape(4, -1).mean(axis=1))
    assert over_seeds(RESULTS) == pytest.approx(expected, rel=1e-12)
    alone = RESULTS.sel(loss="ppo", batch=50)
    assert over_seeds(alone) == mean_interval(alone.values)


@pytest.mark.parametrize("order", [("batch", "seed"), ("seed", "batch")])
def test_draw_means_draws_the_mean_and_its_interval_at_every_coordinate(axes, order):
    draw_means(axes, RESULTS.sel(loss="ipo").transpose(*order), "batch", "ipo", marker="s")
    effect, low, high = intervals("ipo")
    (line,), (band,) = axes.lines, axes.collections
    np.testing.assert_array_equal(line.get_xdata(), [10, 50, 200])
    np.testing.assert_allclose(line.get_ydata(), effect)
    assert (line.get_color(), line.get_label()) == (METHOD_COLORS["ipo"], METHOD_LABELS["ipo"])
    assert line.get_marker() == "s"
    corners = band.get_paths()[0].vertices
    for x, bottom, top in zip([10, 50, 200], low, high, strict=True):
        here = corners[corners[:, 0] == x, 1]
        assert (here.min(), here.max()) == pytest.approx((bottom, top))


def test_draw_mean_line_draws_in_the_style_given_and_the_band_in_its_color(axes):
    results = RESULTS.sel(loss="ipo").transpose("batch", "seed")
    draw_mean_line(axes, results, "batch", color="#123456", linestyle="--", label="mine")
    effect, low, high = intervals("ipo")
    (line,), (band,) = axes.lines, axes.collections
    np.testing.assert_array_equal(line.get_xdata(), [10, 50, 200])
    np.testing.assert_allclose(line.get_ydata(), effect)
    assert (line.get_color(), line.get_linestyle(), line.get_label()) == ("#123456", "--", "mine")
    assert line.get_marker() == "o"
    corners = band.get_paths()[0].vertices
    for x, bottom, top in zip([10, 50, 200], low, high, strict=True):
        here = corners[corners[:, 0] == x, 1]
        assert (here.min(), here.max()) == pytest.approx((bottom, top))
    color = [int(pair, 16) / 255 for pair in ("12", "34", "56")]
    assert band.get_facecolor()[0, :3] == pytest.approx(color)
    assert 0 < band.get_facecolor()[0, 3] < 1


def test_the_marker_of_a_mean_line_may_be_chosen(axes):
    draw_mean_line(axes, RESULTS.sel(loss="ipo"), "batch", color="k", marker="s")
    assert axes.lines[0].get_marker() == "s"


def test_draw_points_draws_the_mean_and_its_interval_beside_every_coordinate(axes):
    draw_points(axes, RESULTS.sel(loss="ipo"), "batch", "ipo", 1.1, label="here")
    effect, low, high = intervals("ipo")
    (container,) = axes.containers
    line, _, (bars,) = container.lines
    assert container.get_label() == "here"
    np.testing.assert_allclose(line.get_xdata(), np.array([10, 50, 200]) * 1.1)
    np.testing.assert_allclose(line.get_ydata(), effect)
    ends = np.array(bars.get_segments())[..., 1]
    np.testing.assert_allclose(ends, np.array([low, high]).T)


def test_draw_bars_draws_a_bar_a_method_with_its_interval_in_every_group(axes):
    draw_bars(axes, RESULTS, "batch", ["ppo", "ipo"])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "50", "200"]
    centres = []
    for bars, method in zip(axes.containers[1::2], ["ppo", "ipo"], strict=True):
        effect, low, high = intervals(method)
        np.testing.assert_allclose([bar.get_height() for bar in bars], effect)
        assert bars.get_label() == METHOD_LABELS[method]
        assert bars[0].get_facecolor()[:3] == pytest.approx(
            [int(METHOD_COLORS[method][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        )
        (whiskers,) = bars.errorbar.lines[2]
        ends = np.array([segment[:, 1] for segment in whiskers.get_segments()])
        np.testing.assert_allclose(ends, np.transpose([low, high]))
        centres.append([bar.get_x() + bar.get_width() / 2 for bar in bars])
    np.testing.assert_allclose(np.mean(centres, axis=0), range(3), atol=1e-12)
    assert (np.diff(centres, axis=0) > bars[0].get_width()).all()  # no overlap


@pytest.mark.parametrize("order", [("batch", "seed"), ("seed", "batch")])
def test_draw_bar_row_draws_a_bar_with_its_interval_at_every_coordinate(axes, order):
    results = RESULTS.sel(loss="ipo").transpose(*order)
    draw_bar_row(axes, results, "batch", shift=0.25, width=0.4, color="#336699", label="mine")
    effect, low, high = intervals("ipo")
    whiskers, bars = axes.containers
    np.testing.assert_allclose([bar.get_height() for bar in bars], effect)
    np.testing.assert_allclose(
        [bar.get_x() + bar.get_width() / 2 for bar in bars], [0.25, 1.25, 2.25]
    )
    assert [bar.get_width() for bar in bars] == pytest.approx([0.4] * 3)
    assert bars[1].get_facecolor() == pytest.approx((0.2, 0.4, 0.6, 1))
    assert bars.get_label() == "mine"
    ends = np.array([segment[:, 1] for segment in whiskers.lines[2][0].get_segments()])
    np.testing.assert_allclose(ends, np.transpose([low, high]))


def test_bars_of_a_row_stand_at_whole_numbers_and_may_have_a_color_each(axes):
    draw_bar_row(axes, RESULTS.sel(loss="ppo"), "batch", color=["#000000", "#FF0000", "#0000FF"])
    bars = axes.containers[1]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    np.testing.assert_allclose(centres, range(3), atol=1e-12)
    assert [bar.get_facecolor()[:3] for bar in bars] == [(0, 0, 0), (1, 0, 0), (0, 0, 1)]


def diverged(at):
    return xr.Dataset({"diverged_at": RESULTS.copy(data=at).astype(int)})


def test_runs_that_converged_pass():
    require_not_diverged(diverged(np.full(RESULTS.shape, -1)))


def test_a_diverged_run_is_refused_with_count_step_and_coordinates():
    at = np.full(RESULTS.shape, -1)
    at[1, 1, 2], at[3, 0, 0] = 17, 0
    with pytest.raises(InvalidInput) as refused:
        require_not_diverged(diverged(at))
    assert str(refused.value) == (
        "2 of 24 runs diverged, the first after 17 steps at seed=1, loss=ppo, batch=200; choose a "
        "smaller learning rate"
    )


def test_a_divergence_at_the_first_step_is_refused():
    at = np.full(RESULTS.shape, -1)
    at[0, 0, 0] = 0
    with pytest.raises(InvalidInput, match=r"1 of 24 .* after 0 steps at seed=0, loss=ipo"):
        require_not_diverged(diverged(at))


def with_share(at=None, value=np.nan):
    values = RESULTS.values.copy()
    if at is not None:
        values[at] = value
    return diverged(np.full(RESULTS.shape, -1)).assign(share=RESULTS.copy(data=values))


@pytest.mark.parametrize("require", [require_no_nan, require_not_diverged])
def test_results_without_nan_pass(require):
    require(with_share())
    require(with_share((0, 1, 1), np.inf))  # undefined it is not
    require(with_share().assign(name=("loss", ["a", "b"])))


@pytest.mark.parametrize("require", [require_no_nan, require_not_diverged])
@pytest.mark.parametrize("at", [(0, 0, 0), (3, 1, 2)])
def test_one_nan_is_refused_with_the_name_of_what_is_undefined(require, at):
    with pytest.raises(InvalidInput) as refused:
        require(with_share(at))
    assert str(refused.value) == ("share is NaN in some runs; these settings leave it undefined")


def test_a_divergence_is_named_before_the_nan_that_follows_from_it():
    dataset = with_share((2, 0, 1))
    dataset["diverged_at"][2, 0, 1] = 5
    with pytest.raises(InvalidInput, match="1 of 24 runs diverged, the first after 5 steps"):
        require_not_diverged(dataset)
