"""RLHF and DPO in one class and in two: ends that must agree, and claims that can fail."""

import numpy as np
import pytest

from bandits.studies.s25.rlhf_dpo_equivalence import SAME, RlhfDpoEquivalence

judge = RlhfDpoEquivalence.judge


@pytest.fixture(scope="module")
def small():
    study = RlhfDpoEquivalence(responses=5, features=2, problems=6, distances=(0.0, 0.1, 0.5, 1.0))
    return study.run()


@pytest.fixture
def dataset(small):
    return small.copy(deep=True)


def distances(dataset):
    gaps = np.abs(np.exp(dataset["dpo"]) - np.exp(dataset["rlhf"])).sum("response") / 2
    return gaps.transpose("distance", "problem").values


def test_the_problems_of_a_small_run_differ_and_are_solved_in_float64(dataset):
    for name in ("dpo", "rlhf"):
        assert dataset[name].shape == (4, 6, 5)
        assert dataset[name].dtype == np.float64
        np.testing.assert_allclose(np.exp(dataset[name]).sum("response"), 1, rtol=1e-12)
    laws = np.exp(dataset["dpo"].sel(distance=0.0)).values
    assert np.abs(np.diff(laws, axis=0)).max(axis=1).min() > 0.01


def test_dpo_stands_and_rlhf_parts_from_it_as_the_classes_part(dataset):
    first = dataset["dpo"].isel(distance=0, drop=True)
    for i in range(1, 4):
        np.testing.assert_allclose(dataset["dpo"].isel(distance=i, drop=True), first, rtol=1e-9)
    gaps = distances(dataset)
    assert gaps[0].max() < SAME
    assert gaps[1:].min() > 1e-4
    assert (np.diff(gaps.mean(axis=1)) > 0).all()


def test_every_claim_holds_with_the_effects_computed_here(dataset):
    same, parting, growth = judge(dataset)
    assert [claim.holds for claim in (same, parting, growth)] == [True] * 3
    gaps = distances(dataset)
    assert same.effect == pytest.approx(gaps[0].max(), abs=1e-15)
    assert "over 6 random problems (holds if below 1e-8)" in same.statement
    assert parting.effect == pytest.approx(gaps[1].mean() / 0.1)
    assert "at distance 0.1" in parting.statement
    slopes = np.polyfit([0.1, 0.5, 1.0], gaps[1:], 1)[0]
    assert growth.effect == pytest.approx(slopes.mean())
    assert growth.low < slopes.mean() < growth.high


def differ_in_one_class(dataset):
    dataset["rlhf"].loc[{"distance": 0.0, "problem": 4}] += [1e-6, 0, 0, 0, 0]


def have_no_solution(dataset):
    dataset["rlhf"].loc[{"distance": 0.0, "problem": 4}] = np.nan


def agree_in_two_classes(dataset):
    at = {"distance": 0.1, "problem": 4}
    dataset["rlhf"].loc[at] = dataset["dpo"].loc[at]


def shrink_apart(dataset):
    for name in ("dpo", "rlhf"):
        dataset[name][1:] = dataset[name].values[:0:-1]


def have_no_trend(dataset):
    for name in ("dpo", "rlhf"):
        dataset[name][:] = dataset[name].sel(distance=0.5).values


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (differ_in_one_class, [0]),
        (have_no_solution, [0]),
        (agree_in_two_classes, [1]),
        (shrink_apart, [2]),
        (have_no_trend, [0, 2]),
    ],
)
def test_policies_that_do_otherwise_fail_the_claims_about_it(failing, dataset, change, expected):
    change(dataset)
    assert failing(RlhfDpoEquivalence, dataset) == expected


def test_the_figure_has_the_responses_of_both_classes_and_the_growth_of_the_gap(dataset):
    figure = RlhfDpoEquivalence.draw(dataset)
    scatter, growth = figure.axes
    labels = {line.get_label(): line for line in scatter.lines}
    assert set(labels) == {"classes at distance 0.5", "one class"}
    x, y = labels["one class"].get_data()
    np.testing.assert_allclose(x, y, atol=SAME)
    assert len(x) == 30
    (median,) = growth.lines
    np.testing.assert_allclose(median.get_xdata(), [0, 0.1, 0.5, 1])
    np.testing.assert_allclose(median.get_ydata(), np.median(distances(dataset), axis=1))
