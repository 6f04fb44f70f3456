"""RLHF and DPO in one class and in two: each solved again by SciPy, and claims that can fail."""

import dataclasses

import numpy as np
import pytest

from bandits.studies.s25.rlhf_dpo_equivalence import EXPERIMENT, SAME, judge

SETTINGS = dataclasses.replace(
    EXPERIMENT.quick, responses=5, features=2, problems=6, distances=(0.0, 0.1, 0.5, 1.0)
)


@pytest.fixture(scope="module")
def measured():
    return EXPERIMENT.run(SETTINGS)


@pytest.fixture
def dataset(measured):
    return measured.copy(deep=True)


def distances(dataset):
    gaps = np.abs(np.exp(dataset["dpo"]) - np.exp(dataset["rlhf"])).sum("response") / 2
    return gaps.transpose("distance", "problem").values


def test_a_small_run_holds_a_policy_of_either_method_in_every_problem(dataset):
    for name in ("dpo", "rlhf"):
        assert dataset[name].dims == ("distance", "problem", "response")
        assert dataset[name].shape == (4, 6, 5)
        assert dataset[name].dtype == np.float64
        np.testing.assert_allclose(np.exp(dataset[name]).sum("response"), 1, rtol=1e-12)
    laws = np.exp(dataset["dpo"].sel(distance=0.0)).values
    assert np.abs(np.diff(laws, axis=0)).max(axis=1).min() > 0.01  # six different problems


def test_dpo_does_not_depend_on_the_reward_class(dataset):
    first = dataset["dpo"].isel(distance=0, drop=True)
    for i in range(1, 4):
        np.testing.assert_allclose(dataset["dpo"].isel(distance=i, drop=True), first, rtol=1e-9)


def test_they_are_one_policy_in_one_class_and_part_with_it(dataset):
    gaps = distances(dataset)
    assert gaps[0].max() < SAME
    assert gaps[1:].min() > 1e-4
    assert (np.diff(gaps.mean(axis=1)) > 0).all()


def test_every_claim_holds_with_the_effects_computed_here(dataset):
    same, parting, growth = judge(dataset)
    assert [claim.holds for claim in (same, parting, growth)] == [True] * 3
    gaps = distances(dataset)
    assert same.effect == pytest.approx(gaps[0].max(), abs=1e-15)
    assert parting.effect == pytest.approx(gaps[1].mean() / 0.1)
    assert "at distance 0.1" in parting.statement
    slopes = np.polyfit([0.1, 0.5, 1.0], gaps[1:], 1)[0]
    assert growth.effect == pytest.approx(slopes.mean())
    assert growth.low < slopes.mean() < growth.high


def test_quick_settings_are_not_vouched_for(measured):
    for scale, asserted in (("quick", False), ("full", True)):
        claims = EXPERIMENT.claims(measured.assign_attrs(scale=scale))
        assert {claim.asserted for claim in claims} == {asserted}


def holds(dataset):
    return [claim.holds for claim in judge(dataset)]


def test_one_problem_that_differs_in_one_class_fails_the_claim_of_equality(dataset):
    dataset["rlhf"].loc[{"distance": 0.0, "problem": 4}] += [1e-6, 0, 0, 0, 0]
    assert holds(dataset) == [False, True, True]


def test_one_problem_that_is_the_same_in_two_classes_fails_the_claim_that_they_part(dataset):
    at = {"distance": 0.1, "problem": 4}
    dataset["rlhf"].loc[at] = dataset["dpo"].loc[at]
    assert holds(dataset) == [True, False, True]


def test_a_gap_that_shrinks_fails_the_claim_that_it_grows(dataset):
    for name in ("dpo", "rlhf"):
        dataset[name][1:] = dataset[name].values[:0:-1]
    assert holds(dataset) == [True, True, False]


def test_a_gap_without_a_trend_fails_the_claim_that_it_grows(dataset):
    for name in ("dpo", "rlhf"):
        dataset[name][:] = dataset[name].sel(distance=0.5).values
    assert holds(dataset) == [False, True, False]


def test_a_problem_without_a_solution_fails_the_claim_of_equality(dataset):
    dataset["rlhf"].loc[{"distance": 0.0, "problem": 4}] = np.nan
    assert not holds(dataset)[0]


def test_the_order_of_the_problems_does_not_matter(dataset):
    for claim, turned in zip(judge(dataset), judge(dataset.isel(problem=[5, 3, 1, 0, 2, 4])),
                             strict=True):  # fmt: skip
        assert turned.effect == pytest.approx(claim.effect)


def test_the_figure_has_the_responses_of_both_classes_and_the_growth_of_the_gap(dataset):
    figure = EXPERIMENT.draw(dataset)
    figure.draw_without_rendering()
    scatter, growth = figure.axes
    labels = {line.get_label(): line for line in scatter.lines}
    assert set(labels) == {"classes at distance 0.5", "one class"}
    x, y = labels["one class"].get_data()
    np.testing.assert_allclose(x, y, atol=SAME)
    assert len(x) == 30
    (median,) = growth.lines
    np.testing.assert_allclose(median.get_xdata(), [0, 0.1, 0.5, 1])
    np.testing.assert_allclose(median.get_ydata(), np.median(distances(dataset), axis=1))
    assert growth.get_xlabel() == "distance of the policy class and the reward class"
