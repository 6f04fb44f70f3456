"""Theorem 6.5 on few instances: what is drawn, and that its claims can fail."""

import numpy as np
import pytest

from bandits.studies.t24.mass_relocation import MassRelocation
from theory import mass_relocation

SMALL = MassRelocation(instances=600, most_arms=20)


@pytest.fixture(scope="module")
def run():
    return SMALL.run()


@pytest.fixture
def dataset(run):
    return run.copy(deep=True)


def pair_of(instances, name):
    """Return both categories' probabilities in float64."""
    return instances[name].transpose("category", ...).values.astype(float)


def test_the_pair_is_equal_where_its_case_demands_and_ordered_elsewhere(dataset):
    for case, equal, ordered in (("equal policy", "p", "q"), ("equal target", "q", "p")):
        one = dataset.sel(pair=case)
        np.testing.assert_array_equal(*pair_of(one, equal))
        larger, smaller = pair_of(one, ordered)
        assert (larger > smaller).all()
        assert (smaller > 0).all()
        assert (pair_of(one, equal) > 0).all()


def test_no_instance_is_drawn_twice(dataset):
    # Setting the pair equal or in order keeps its sum, by which a draw is known again.
    sums = np.stack([dataset[name].sum("category").values.ravel() for name in "pq"], axis=-1)
    assert len(np.unique(sums.round(5), axis=0)) == 1200


def assert_moves_more_above(instances, value, threshold, tolerance):
    """Reverse KL moves more where the value is above the threshold, but for those too close."""
    clear = np.abs(value / threshold - 1) > tolerance
    assert clear.mean() > 0.98
    expected = value > threshold
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(instances["reverse_moved_more"].values[clear], expected[clear])


def test_case_1_agrees_with_the_threshold_computed_here(dataset):
    one = dataset.sel(pair="equal policy")
    q1, q2 = pair_of(one, "q")
    threshold = (q1 - q2) / (np.log(q1) - np.log(q2))
    assert_moves_more_above(one, pair_of(one, "p")[0], threshold, 1e-4)


def test_cases_2_and_3_agree_with_the_threshold_computed_here(dataset):
    one = dataset.sel(pair="equal target")
    p1, p2 = pair_of(one, "p")
    mean = np.exp((p1 * np.log(p1) - p2 * np.log(p2)) / (p1 - p2) - 1)
    np.testing.assert_allclose(one["p_mean"], mean, rtol=1e-3)
    threshold = mean * np.exp(-one["kl"].values)
    assert_moves_more_above(one, pair_of(one, "q")[0], threshold, 1e-3)


def test_every_case_holds_with_its_count_of_agreeing_instances(dataset):
    claims = MassRelocation.judge(dataset)
    assert [claim.statement[:6] for claim in claims[:3]] == ["Case 1", "Case 2", "Case 3"]
    for claim in claims[:3]:
        assert claim.statement.endswith(": 600 of 600 instances agree")
    assert claims[3].statement.endswith(": 1,200 of 1,200 instances agree")
    assert all(claim.holds and claim.asserted for claim in claims)
    share = dataset["reverse_moved_more"].sel(pair="equal policy").values.mean()
    assert claims[4].effect == pytest.approx(share)


@pytest.mark.parametrize(
    ("variable", "pair", "failing"),
    [
        ("reverse_moved_more", "equal policy", [0]),
        ("closed_form", "equal policy", [0]),
        ("reverse_moved_more", "equal target", [1, 2]),
        ("any_pair_moved_more", "equal target", [3]),
    ],
)
def test_one_disagreeing_instance_fails_the_claims_about_it(dataset, variable, pair, failing):
    one = {"pair": pair, "instance": 17}
    dataset[variable].loc[one] = not dataset[variable].loc[one]
    claims = MassRelocation.judge(dataset)
    assert [i for i, claim in enumerate(claims) if not claim.holds] == failing
    for i in failing:
        total = 1200 if i == 3 else 600
        assert f"{total - 1:,} of {total:,} instances agree" in claims[i].statement
        assert claims[i].effect == (total - 1) / total


def test_a_reverse_kl_that_always_moves_more_fails_the_claim_that_the_threshold_matters(dataset):
    dataset["reverse_moved_more"][:] = True
    assert not MassRelocation.judge(dataset)[4].holds


def test_a_wrong_threshold_in_the_theory_is_noticed(monkeypatch):
    def arithmetic(q, first, second):
        return 0.5 * (q[..., first] + q[..., second])

    monkeypatch.setattr(mass_relocation, "equal_policy_threshold", arithmetic)
    claims = MassRelocation.judge(SMALL.run())
    assert [claim.holds for claim in claims] == [False, True, True, True, True]
    assert claims[0].effect < 0.99


def test_each_case_has_a_map_with_its_threshold_and_its_count(dataset):
    maps = MassRelocation.draw(dataset).axes[:3]
    for axes in maps:
        assert "600 of 600 instances agree" in axes.get_xlabel()
        (cells,) = axes.collections
        assert cells.get_array().size > 50
        assert "threshold" in [line.get_label() for line in axes.lines]
    # On the line of case 1, L(q1, q2) = p: in units of p, L(y, x) = 1.
    line = next(line for line in maps[0].lines if line.get_label() == "threshold")
    x, y = 10.0 ** line.get_xydata()[100:300].T
    np.testing.assert_allclose((y - x) / np.log(y / x), 1, rtol=1e-3)
