"""The weights of responses: they bear out the marks of T24's table, and each claim can fail."""

import numpy as np
import pytest
import xarray as xr

from bandits.losses import METHODS
from bandits.plotting import METHOD_LABELS
from bandits.studies.t24.weights import EXPERIMENT, judge


@pytest.fixture(scope="module")
def measured():
    return EXPERIMENT.run(EXPERIMENT.quick)


@pytest.fixture
def by_hand():
    """Two methods with a negative gradient and one without, on two groups of three responses."""
    weight = [
        [[-1.0, 0.0, 1.0], [0.0, 0.1, 0.2]],  # content with its second group
        [[-1.0, 0.5, 0.5], [-0.1, 0.0, 0.1]],
        [[0.0, 0.0, 1.0], [0.2, 0.3, 0.5]],
    ]
    return xr.Dataset(
        {
            "weight": (("loss", "group", "response"), np.array(weight)),
            "reward": (("group", "response"), np.array([[0.1, 0.5, 0.9]] * 2)),
        },
        coords={
            "loss": ["reinforce", "dpo", "best_of_n"],
            "negative_gradient": ("loss", [True, True, False]),
        },
        attrs={"drawn_group": 0},
    )


def test_every_method_has_weights_and_the_claims_hold(measured):
    assert dict(measured.sizes) == {"loss": len(METHODS), "group": 200, "response": 8}
    assert np.isfinite(measured["weight"]).all()
    assert (np.diff(measured["reward"]) >= 0).all()
    assert [claim.holds for claim in judge(measured)] == [True, True]


def test_weights_are_those_of_the_methods(measured):
    best = measured["weight"].sel(loss="best_of_n")
    np.testing.assert_allclose(best, np.eye(8)[[7] * 200], atol=1e-6)
    np.testing.assert_allclose(measured["weight"].sel(loss="supervised"), 1 / 8, rtol=1e-5)
    for name in ("dpo", "ipo", "hinge"):  # of margins: what one response gains another loses
        total = measured["weight"].sel(loss=name).sum("response")
        np.testing.assert_allclose(total, 0, atol=1e-4)
    worst = measured["weight"].sel(loss="best_of_n_minus_worst")
    assert (worst[:, 0] < 0).all()
    np.testing.assert_allclose(worst[:, 1:-1], 0, atol=1e-6)


def test_the_effects_are_shares_of_groups_for_the_rarest_and_for_all_others(by_hand):
    pushes, raises = judge(by_hand)
    assert (pushes.holds, raises.holds) == (True, True)
    assert (pushes.effect, raises.effect) == (0.5, 1.0)


def test_a_marked_method_that_pushes_nothing_down_fails_the_first_claim(by_hand):
    by_hand["weight"][0] = 0.5
    assert [claim.holds for claim in judge(by_hand)] == [False, True]


def test_one_negative_weight_of_an_unmarked_method_fails_the_second_claim(by_hand):
    by_hand["weight"][2, 1, 0] = -1e-6
    assert [claim.holds for claim in judge(by_hand)] == [True, False]


def test_the_figure_has_a_panel_a_method_in_shares_of_its_largest_weight(measured):
    figure = EXPERIMENT.draw(measured)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [METHOD_LABELS[name] for name in METHODS]
    assert figure.get_supylabel() == "weight, as a share of the largest"
    assert [t.get_text() for t in panels[-1].get_xticklabels()] == ["worst", "best"]
    for axes, weights in zip(panels, measured["weight"].isel(group=0).values, strict=True):
        heights = [bar.get_height() for bar in axes.patches]
        np.testing.assert_allclose(heights, weights / np.abs(weights).max())
        assert len({bar.get_facecolor() for bar in axes.patches if bar.get_height() > 0}) <= 1
