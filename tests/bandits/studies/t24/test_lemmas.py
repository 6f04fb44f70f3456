"""Gradients of the losses: identities and marks hold on random instances; each claim can fail."""

import numpy as np
import pytest
import xarray as xr

from bandits.losses import METHODS
from bandits.plotting import METHOD_LABELS
from bandits.studies.t24.lemmas import Lemmas, Weights


@pytest.mark.parametrize("study", [Lemmas, Weights])
def test_every_claim_holds_on_random_instances(measured, study):
    assert all(claim.holds and claim.asserted for claim in study.judge(measured(study.name)))


def test_the_instances_are_in_range_and_lie_on_both_sides_of_the_condition(measured):
    dataset = measured("lemmas")
    assert dict(dataset.sizes) == {"instance": 2000}
    collision, pair_mass = dataset["collision"], dataset["pair_mass"]
    assert dataset["help"].dtype == np.float64
    assert ((collision >= 1 / 10 - 1e-12) & (collision <= 1)).all()
    assert ((pair_mass > 0) & (pair_mass <= 1)).all()
    assert 0.05 < float((dataset["help"] > 0).mean()) < 0.95
    for name in ("reverse_kl_error", "weighted_error"):
        assert (dataset[name] > 0).any()  # two computations, not one compared with itself


@pytest.fixture
def four():
    """Four instances in which everything holds; the negative gradient helps in the first two."""
    values = {
        "reverse_kl_error": [1e-15, 2e-15, 3e-15, 0],
        "weighted_error": [3e-15, 1e-15, 0, 2e-15],
        "collision": [0.2, 0.3, 0.8, 0.5],
        "pair_mass": [0.5, 0.31, 0.7, 0.1],
        "help": [1e-3, 1e-9, -1e-9, -1.0],
    }
    return xr.Dataset({name: ("instance", np.array(v)) for name, v in values.items()})


def test_the_effects_are_the_shares_of_instances_that_agree(four):
    claims = Lemmas.judge(four)
    assert [claim.effect for claim in claims] == [1.0, 1.0, 1.0]
    assert "is 3.0e-15" in claims[0].note
    assert "helps in 50%" in claims[2].note


@pytest.mark.parametrize(
    ("name", "value", "failing"),
    [
        ("reverse_kl_error", 1e-9, 0),
        ("reverse_kl_error", np.nan, 0),
        ("weighted_error", 1e-9, 1),
        ("weighted_error", np.nan, 1),
        ("help", 1e-9, 2),
        ("help", np.nan, None),  # not > 0, as the condition says
        ("pair_mass", 0.81, 2),
        ("collision", 0.69, 2),
    ],
)
def test_one_wrong_instance_fails_the_claim_about_it_and_no_other(four, name, value, failing):
    four[name][2] = value
    assert [claim.holds for claim in Lemmas.judge(four)] == [i != failing for i in range(3)]


def test_the_figure_names_both_quantities_and_draws_every_instance(four):
    errors, condition = Lemmas.draw(four).axes
    assert (errors.get_xlabel(), errors.get_ylabel()) == ("relative error, float64", "instances")
    assert (condition.get_xlabel(), condition.get_ylabel()) == ("p_w + p_l", "Σp²")
    drawn = [points.get_offsets().tolist() for points in condition.collections]
    assert drawn == [[[0.5, 0.2], [0.31, 0.3]], [[0.7, 0.8], [0.1, 0.5]]]
    assert sum(bar.get_height() for bar in errors.patches) == 8


def test_weights_are_those_of_the_methods(measured):
    dataset = measured("weights")
    assert dict(dataset.sizes) == {"loss": len(METHODS), "group": 200, "response": 8}
    assert np.isfinite(dataset["weight"]).all()
    assert (np.diff(dataset["reward"]) >= 0).all()
    best = dataset["weight"].sel(loss="best_of_n")
    np.testing.assert_allclose(best, np.eye(8)[[7] * 200], atol=1e-6)
    np.testing.assert_allclose(dataset["weight"].sel(loss="supervised"), 1 / 8, rtol=1e-5)
    for name in ("dpo", "ipo", "hinge"):  # of margins: what one response gains another loses
        total = dataset["weight"].sel(loss=name).sum("response")
        np.testing.assert_allclose(total, 0, atol=1e-4)
    worst = dataset["weight"].sel(loss="best_of_n_minus_worst")
    assert (worst[:, 0] < 0).all()
    np.testing.assert_allclose(worst[:, 1:-1], 0, atol=1e-6)


@pytest.fixture
def two():
    """Two methods with a negative gradient and one without, on two groups of three responses."""
    weight = [
        [[-1.0, 0.0, 1.0], [0.0, 0.1, 0.2]],  # content with its second group
        [[-1.0, 0.5, 0.5], [-0.1, 0.0, 0.1]],
        [[0.0, 0.0, 1.0], [0.2, 0.3, 0.5]],
    ]
    coords = {
        "loss": ["reinforce", "dpo", "best_of_n"],
        "negative_gradient": ("loss", [True, True, False]),
    }
    return xr.Dataset({"weight": (("loss", "group", "response"), np.array(weight))}, coords)


@pytest.mark.parametrize(
    ("changed", "weight", "effects", "holds"),
    [
        (0, [[-1.0, 0.0, 1.0], [0.0, 0.1, 0.2]], [0.5, 1.0], [True, True]),
        (0, [[0.5, 0.5, 0.5]] * 2, [0.0, 1.0], [False, True]),  # marked, and pushes nothing down
        (2, [[0.0, 0.0, 1.0], [-1e-6, 0.3, 0.5]], [0.5, 0.5], [True, False]),  # unmarked, but does
    ],
)
def test_a_claim_holds_with_the_rarest_marked_method_or_all_others(
    two, changed, weight, effects, holds
):
    two["weight"][changed] = weight
    claims = Weights.judge(two)
    assert [claim.effect for claim in claims] == effects
    assert [claim.holds for claim in claims] == holds


def test_the_figure_has_a_panel_a_method_in_shares_of_its_largest_weight(measured):
    dataset = measured("weights")
    figure = Weights.draw(dataset)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [METHOD_LABELS[name] for name in METHODS]
    assert figure.get_supylabel() == "weight, as a share of the largest"
    assert [t.get_text() for t in panels[-1].get_xticklabels()] == ["worst", "best"]
    for axes, weights in zip(panels, dataset["weight"].isel(group=0).values, strict=True):
        heights = [bar.get_height() for bar in axes.patches]
        np.testing.assert_allclose(heights, weights / np.abs(weights).max())
        assert len({bar.get_facecolor() for bar in axes.patches if bar.get_height() > 0}) <= 1
