"""Lemmas 6.1 and 6.2: the identities hold on random instances, and each claim can fail."""

import numpy as np
import pytest
import xarray as xr

from bandits.studies.t24.lemmas import EXPERIMENT, judge


@pytest.fixture(scope="module")
def measured():
    return EXPERIMENT.run(EXPERIMENT.quick)


@pytest.fixture
def by_hand():
    """Four instances in which everything holds; the negative gradient helps in the first two."""
    values = {
        "reverse_kl_error": [1e-15, 2e-15, 3e-15, 0],
        "weighted_error": [3e-15, 1e-15, 0, 2e-15],
        "collision": [0.2, 0.3, 0.8, 0.5],
        "pair_mass": [0.5, 0.31, 0.7, 0.1],
        "help": [1e-3, 1e-9, -1e-9, -1.0],
    }
    return xr.Dataset({name: ("instance", np.array(v)) for name, v in values.items()})


def test_every_claim_holds_on_random_instances(measured):
    assert dict(measured.sizes) == {"instance": 2000}
    assert [claim.holds for claim in judge(measured)] == [True] * 3
    assert all(claim.asserted for claim in judge(measured))


def test_the_instances_are_in_range_and_lie_on_both_sides_of_the_condition(measured):
    collision, pair_mass = measured["collision"], measured["pair_mass"]
    assert measured["help"].dtype == np.float64
    assert ((collision >= 1 / 10 - 1e-12) & (collision <= 1)).all()
    assert ((pair_mass > 0) & (pair_mass <= 1)).all()
    helped = float((measured["help"] > 0).mean())
    assert 0.05 < helped < 0.95
    for name in ("reverse_kl_error", "weighted_error"):
        assert (measured[name] > 0).any()  # two computations, not one compared with itself


def test_the_effects_are_the_shares_of_instances_that_agree(by_hand):
    claims = judge(by_hand)
    assert [claim.holds for claim in claims] == [True] * 3
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
def test_one_wrong_instance_fails_the_claim_about_it_and_no_other(by_hand, name, value, failing):
    by_hand[name][2] = value
    assert [claim.holds for claim in judge(by_hand)] == [i != failing for i in range(3)]


def test_the_figure_names_both_quantities_and_draws_every_instance(by_hand):
    figure = EXPERIMENT.draw(by_hand)
    errors, condition = figure.axes
    assert (errors.get_xlabel(), errors.get_ylabel()) == ("relative error, float64", "instances")
    assert (condition.get_xlabel(), condition.get_ylabel()) == ("p_w + p_l", "Σp²")
    drawn = [points.get_offsets().tolist() for points in condition.collections]
    assert drawn == [[[0.5, 0.2], [0.31, 0.3]], [[0.7, 0.8], [0.1, 0.5]]]
    assert sum(bar.get_height() for bar in errors.patches) == 8
