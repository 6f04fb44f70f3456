"""Theorem 6.5 on few instances: what is drawn, and that its claims can fail."""

import dataclasses

import numpy as np
import pytest

from bandits.studies.t24.mass_relocation import EXPERIMENT, judge
from theory import mass_relocation

SETTINGS = dataclasses.replace(EXPERIMENT.quick, instances=600, most_arms=20)


@pytest.fixture(scope="module")
def measured():
    return EXPERIMENT.run(SETTINGS)


@pytest.fixture
def dataset(measured):
    return measured.copy(deep=True)


def test_the_pair_is_equal_where_its_case_demands_and_ordered_elsewhere(dataset):
    equal_policy, equal_target = dataset.sel(pair="equal policy"), dataset.sel(pair="equal target")
    for equal, ordered in (
        (equal_policy["p"], equal_policy["q"]),
        (equal_target["q"], equal_target["p"]),
    ):
        np.testing.assert_array_equal(equal.sel(category="x1"), equal.sel(category="x2"))
        assert (ordered.sel(category="x1") > ordered.sel(category="x2")).all()
    assert (dataset["p"] > 0).all()
    assert (dataset["q"] > 0).all()


def test_no_instance_is_drawn_twice(dataset):
    # Setting the pair equal or in order keeps its sum, by which a draw is known again.
    sums = np.stack([dataset[name].sum("category").values.ravel() for name in "pq"], axis=-1)
    assert len(np.unique(sums.round(5), axis=0)) == 1200


def test_case_1_agrees_with_the_threshold_computed_here(dataset):
    one = dataset.sel(pair="equal policy")
    q1, q2 = (one["q"].sel(category=x).values.astype(float) for x in ("x1", "x2"))
    p = one["p"].sel(category="x1").values
    threshold = (q1 - q2) / (np.log(q1) - np.log(q2))
    clear = np.abs(p / threshold - 1) > 1e-4
    assert clear.mean() > 0.98
    expected = p > threshold
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(one["reverse_moved_more"].values[clear], expected[clear])


def test_cases_2_and_3_agree_with_the_threshold_computed_here(dataset):
    one = dataset.sel(pair="equal target")
    p1, p2 = (one["p"].sel(category=x).values.astype(float) for x in ("x1", "x2"))
    mean = np.exp((p1 * np.log(p1) - p2 * np.log(p2)) / (p1 - p2) - 1)
    np.testing.assert_allclose(one["p_mean"], mean, rtol=1e-3)
    threshold = mean * np.exp(-one["kl"].values)
    q = one["q"].sel(category="x1").values
    clear = np.abs(q / threshold - 1) > 1e-3
    assert clear.mean() > 0.98
    expected = q > threshold
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(one["reverse_moved_more"].values[clear], expected[clear])


def test_every_case_holds_with_its_count_of_agreeing_instances(dataset):
    claims = judge(dataset)
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
    claims = judge(dataset)
    assert [i for i, claim in enumerate(claims) if not claim.holds] == failing
    for i in failing:
        total = 1200 if i == 3 else 600
        assert f"{total - 1:,} of {total:,} instances agree" in claims[i].statement
        assert claims[i].effect == (total - 1) / total


def test_a_reverse_kl_that_always_moves_more_fails_the_claim_that_the_threshold_matters(dataset):
    dataset["reverse_moved_more"][:] = True
    assert not judge(dataset)[4].holds


def test_a_wrong_threshold_in_the_theory_is_noticed(monkeypatch):
    def arithmetic(q, first, second):
        return 0.5 * (q[..., first] + q[..., second])

    monkeypatch.setattr(mass_relocation, "equal_policy_threshold", arithmetic)
    claims = judge(EXPERIMENT.run(SETTINGS))
    assert [claim.holds for claim in claims] == [False, True, True, True, True]
    assert claims[0].effect < 0.99


def test_each_case_has_a_map_with_its_threshold_and_its_count(dataset):
    figure = EXPERIMENT.draw(dataset)
    figure.canvas.draw()
    maps = figure.axes[:3]
    for axes in maps:
        assert "600 of 600 instances agree" in axes.get_xlabel()
        (cells,) = axes.collections
        assert cells.get_array().size > 50
        assert "threshold" in [line.get_label() for line in axes.lines]
    # On the line of case 1, L(q1, q2) = p: in units of p, L(y, x) = 1.
    line = next(line for line in maps[0].lines if line.get_label() == "threshold")
    x, y = 10.0 ** line.get_xydata()[100:300].T
    np.testing.assert_allclose((y - x) / np.log(y / x), 1, rtol=1e-3)
