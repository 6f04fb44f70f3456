"""Partial coverage: the table by hand, the paths against theory, and claims that can fail."""

import dataclasses

import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit, log_expit

from bandits.plotting import METHOD_COLORS, METHOD_LINES
from bandits.studies.s25.partial_coverage import (
    LEARNERS,
    PAIR,
    REMEDIES,
    SAME_CLASS,
    SHARED,
    TABLE_REWARD,
    TITLES,
    UNLIKELY,
    PartialCoverage,
    dpo_losses,
)

STUDY = PartialCoverage(steps=1500, instances=40)
judge = PartialCoverage.judge


@pytest.fixture(scope="module")
def small():
    return STUDY.run()


@pytest.fixture
def dataset(small):
    return small.copy(deep=True)


def test_the_table_is_the_lectures(dataset):
    assert dataset["policy"].values.tolist() == ["reference", "RLHF", "DPO"]
    expected = [[0.5, 0.5, 0], [1, 0, 0], [0.1, 0, 0.9]]
    np.testing.assert_allclose(dataset["table"], expected, atol=1e-9)
    np.testing.assert_array_equal(dataset["table"][:, 2] == 0, [True, True, False])


def test_rlhf_is_the_gibbs_policy_of_the_reward_fitted_by_hand():
    """The ridge makes the reward (w, −w, 0), with σ(−2w) = ridge · w: one equation."""
    for ridge, beta in ((1e-3, 0.1), (0.2, 0.7)):
        w = optimize.brentq(lambda w, ridge=ridge: expit(-2 * w) - ridge * w, 0, 100)
        study = dataclasses.replace(
            STUDY, ridge=ridge, beta=beta, steps=1, instances=2, reference=(0.3, 0.6, 0.1)
        )
        weights = np.array([0.3, 0.6, 0.1]) * np.exp(np.array([w, -w, 0]) / beta)
        found = study.run()["table"].sel(policy="RLHF")
        np.testing.assert_allclose(found, weights / weights.sum(), rtol=1e-7)


def test_the_uncovered_mass_of_the_dpo_row_is_chosen_and_not_found():
    study = dataclasses.replace(STUDY, uncovered_mass=0.25, steps=1, instances=2)
    found = study.run()
    np.testing.assert_allclose(found["table"].sel(policy="DPO"), [0.75, 0, 0.25], atol=1e-12)
    assert found["dpo_optima"].values.tolist() == [True] * 3
    assert (found["dpo_losses"] >= 0).all()
    assert (found["dpo_losses"] < 1e-9).all()


def test_rlhf_of_one_class_ends_at_the_gibbs_policy_of_the_reward_of_that_class():
    """The reward is (w, 0, 2w), with σ(−w) = ridge · w."""
    ridge, beta = 0.2, 0.7
    w = optimize.brentq(lambda w: expit(-w) - ridge * w, 0, 100)
    study = dataclasses.replace(
        STUDY, ridge=ridge, beta=beta, instances=2, reference=(0.3, 0.6, 0.1)
    )
    weights = np.array([0.3, 0.6, 0.101]) * np.exp(np.array([w, 0, 2 * w]) / beta)
    paths = study.run()["probability"].isel(step=-1)
    found = paths.sel(setting="shared features", learner=SAME_CLASS)
    np.testing.assert_allclose(found, weights / weights.sum(), atol=1e-4)


def test_policies_without_the_loser_are_drawn_from_all_of_them(dataset):
    row = np.log([0.1, 1e-300, 0.9])
    drawn = np.exp(STUDY._draw_without_loser(row))
    assert drawn.shape == (41, 3)
    np.testing.assert_allclose(drawn[0], np.exp(row))
    np.testing.assert_allclose(drawn.sum(axis=1), 1, rtol=1e-12)
    assert (drawn[1:, 1] == 0).all()
    assert drawn[1:, 0].min() < 0.1 < 0.9 < drawn[1:, 0].max()
    assert dataset["dpo_optima"].dims == dataset["dpo_losses"].dims
    assert dataset["dpo_optima"].shape == (41,)
    assert dataset["dpo_optima"].all()


@pytest.mark.usefixtures("float64")
def test_the_loss_of_policies_is_that_of_the_lecture():
    policies = np.random.default_rng(0).dirichlet(np.ones(3), 5)
    with np.errstate(divide="ignore"):
        log_reference = np.log([0.4, 0.6, 0.0])
    margins = np.log(policies[:, 0] / 0.4) - np.log(policies[:, 1] / 0.6)
    found = dpo_losses(np.log(policies), log_reference, 0.7)
    np.testing.assert_allclose(found, -log_expit(0.7 * margins), rtol=1e-12)
    assert PAIR.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_the_paths_start_at_the_reference_and_are_distributions(dataset):
    paths = dataset["probability"]
    np.testing.assert_allclose(paths.sum("response"), 1, rtol=1e-5)
    starts = {UNLIKELY: [0.001, 0.499, 0.5], SHARED: np.array([0.5, 0.5, 0.001]) / 1.001}
    for setting, start in starts.items():
        found = paths.sel(setting=setting, learner=list(LEARNERS), step=0)
        np.testing.assert_allclose(found, np.broadcast_to(start, found.shape), rtol=1e-5)


def test_the_uncovered_mass_peaks_and_ipo_parks_where_theory_says(dataset):
    """u/(u + 2√(p_w p_l)), at a margin of log p_l/p_w, which is also IPO's target."""
    expected = 0.5 / (0.5 + 2 * np.sqrt(0.001 * 0.499))
    assert float(dataset["peak"]) == pytest.approx(expected, rel=1e-6)
    assert float(dataset["parked"]) == pytest.approx(expected, rel=1e-6)
    uncovered = dataset["probability"].sel(setting="unlikely winner", response="ξ3")
    assert float(uncovered.sel(learner="DPO").max()) == pytest.approx(expected, abs=1e-3)
    assert float(uncovered.sel(learner="IPO")[-1]) == pytest.approx(expected, abs=1e-3)
    assert float(uncovered.sel(learner="DPO")[-1]) < 0.5  # DPO only passes through


def test_shared_features_carry_the_uncovered_response_along(dataset):
    """φ = (1, 0, 2): every policy of the class keeps π1²/(π2 π3) as it was."""
    path = dataset["probability"].sel(setting="shared features").astype(float)
    one, two, three = (path.sel(response=r) for r in ("ξ1", "ξ2", "ξ3"))
    # θ from the first two gives the third, as far as float32 holds the second.
    theta = np.log(one / two)
    expected = 1e-3 / 0.5 * np.exp(2 * theta) * two
    clear = (two > 1e-6).values
    assert clear.mean() > 0.5
    np.testing.assert_allclose(three.values[clear], expected.values[clear], rtol=1e-3)
    last = three.isel(step=-1)
    for name in ("DPO", SAME_CLASS):
        assert float(last.sel(learner=name)) > 0.9
    for name in REMEDIES:
        assert float(three.sel(learner=name).max()) < 0.2


def test_the_classes_of_rewards_differ_only_where_features_are_shared(dataset):
    assert list(LEARNERS.values()).count("rlhf") == 2
    of_table, of_class = (
        dataset["probability"].sel(learner=name) for name in (TABLE_REWARD, SAME_CLASS)
    )
    apart = abs(of_table - of_class).max(("step", "response"))
    assert float(apart.sel(setting="unlikely winner")) < 1e-5
    assert float(apart.sel(setting="shared features")) > 0.5


def test_hypo_ends_at_the_reference_without_the_loser(dataset):
    kept = dataset["probability"].sel(setting="unlikely winner", learner="HyPO")[-1]
    np.testing.assert_allclose(kept, [0.001 / 0.501, 0, 0.5 / 0.501], atol=0.01)


def test_every_claim_holds_and_the_first_carries_the_table(dataset):
    claims = judge(dataset)
    assert [claim.holds for claim in claims] == [True] * 8
    assert list(claims[0].table) == ["reference", "RLHF", "DPO"]
    for name, row in claims[0].table.items():
        np.testing.assert_array_equal(row, dataset["table"].sel(policy=name))
    note = claims[0].note
    assert note == "The table: reference (0.5, 0.5, 0); RLHF (1, 0, 0); DPO (0.1, 0, 0.9)."
    assert "of DPO 1.00 (holds" in claims[4].statement
    for claim in (claims[1], claims[7]):
        assert (claim.effect, claim.high) == (1.0, 1.0)
        assert 0.9 < claim.low < 1  # all of 41 and of 40
    path = dataset["probability"].sel(setting="shared features", learner=SAME_CLASS, response="ξ3")
    assert claims[3].effect == float(path[-1])


def uncovered(value, setting, learner, steps=slice(None)):
    """Put that much on the uncovered response; the winner gets the rest."""

    def change(dataset):
        where = {"setting": setting, "learner": learner, "step": dataset["step"][steps]}
        for response, mass in zip(("ξ1", "ξ2", "ξ3"), (1 - value, 0, value), strict=True):
            dataset["probability"].loc[{**where, "response": response}] = mass

    return change


def entry(name, at, value):
    return lambda dataset: dataset[name].__setitem__(at, value)


ONE, LAST, BEFORE, FROM = slice(7, 8), slice(-1, None), slice(-2, -1), slice(5, None)
NAN = float("nan")
CHANGES = {
    "the table leaks": (entry("table", (1, 2), 1e-12), [0]),
    "a loss is not zero": (entry("dpo_losses", 3, 1e-8), [1]),
    "a loss is undefined": (entry("dpo_losses", 3, NAN), [1]),
    "a policy is no optimum": (entry("dpo_optima", 0, False), [1]),
    "DPO goes elsewhere": (uncovered(0.5, SHARED, "DPO"), [2]),
    "DPO goes nowhere": (uncovered(0.01, SHARED, "DPO"), [2, 4]),
    "DPO is undefined": (uncovered(NAN, SHARED, "DPO", FROM), [2, 4]),
    "one class ends elsewhere": (uncovered(0.9, SHARED, SAME_CLASS, LAST), [3]),
    "one class was elsewhere": (uncovered(0.9, SHARED, SAME_CLASS, BEFORE), []),
    "one class is undefined": (uncovered(NAN, SHARED, SAME_CLASS, FROM), [3]),
    "one class of tables": (uncovered(0.9, UNLIKELY, SAME_CLASS), []),
    **{f"{name} leaks": (uncovered(0.5, SHARED, name, ONE), [4]) for name in REMEDIES},
    **{f"{name} is undefined": (uncovered(NAN, SHARED, name, FROM), [4]) for name in REMEDIES},
    "the peak is low": (uncovered(0.3, UNLIKELY, "DPO"), [5]),
    "the peak is high": (uncovered(1.0, UNLIKELY, "DPO"), [5]),
    "the peak is undefined": (uncovered(NAN, UNLIKELY, "DPO", FROM), [5]),
    "IPO parks elsewhere": (uncovered(0.5, UNLIKELY, "IPO"), [6]),
    "IPO is undefined": (uncovered(NAN, UNLIKELY, "IPO", FROM), [6]),
    "a bound is broken": (entry("share_of_bound", 17, 1 + 1e-6), [7]),
    "a bound is undefined": (entry("share_of_bound", 17, NAN), [7]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_result_that_is_otherwise_fails_the_claim_about_it(failing, dataset, what):
    change, expected = CHANGES[what]
    change(dataset)
    assert failing(PartialCoverage, dataset) == expected
    claims = judge(dataset)
    # One case of 41 and of 40 fails, and is counted.
    assert claims[1].effect == (40 / 41 if 1 in expected else 1)
    assert claims[7].effect == (39 / 40 if 7 in expected else 1)


def test_the_bound_is_tight_for_no_instance_by_much_but_tried_on_all(dataset):
    share = dataset["share_of_bound"]
    assert share.shape == (40,)
    assert ((share > 0) & (share <= 1)).all()
    assert float(share.max()) > 0.1


def test_the_figure_has_the_table_and_a_panel_a_setting(dataset):
    figure = PartialCoverage.draw(dataset)
    table, *panels = figure.axes
    assert len(table.patches) == 9
    assert [text.get_text() for text in table.texts] == [
        "0.5", "0.5", "0", "1", "0", "0", "0.1", "0", "0.9",
    ]  # fmt: skip
    for axes, title in zip(panels, TITLES.values(), strict=True):
        assert axes.get_title() == title
        assert [line.get_label() for line in axes.lines] == list(LEARNERS)
        assert axes.get_xscale() == "log"
        for line, (learner, method) in zip(axes.lines, LEARNERS.items(), strict=True):
            assert line.get_color() == METHOD_COLORS[method]
            expected = "-" if learner == SAME_CLASS else METHOD_LINES[method]
            assert line.get_linestyle() == expected
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == set(LEARNERS)
