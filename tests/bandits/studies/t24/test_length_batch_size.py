"""The batch ablation of the length problems: a small run, and claims that can fail."""

import numpy as np
import pytest
import xarray as xr

from bandits.studies.t24.length_ablations import LengthBatchSize
from bandits.studies.t24.lengths import PROBLEMS, TITLES, Lengths
from theory.checks import InvalidInput

METHODS, judge = LengthBatchSize.METHODS, LengthBatchSize.judge
TINY = Lengths(max_length=6, mode=3.0, cut=3, pairs=40, bumps=4, seeds=2)
BATCHES = [40, 200, 1000, 4000]


@pytest.fixture(scope="module")
def measured():
    return LengthBatchSize(lengths=TINY, batches=(8, 24), minibatch=8, steps=6).run()


def test_a_small_run_starts_at_the_reference_and_takes_the_same_first_step(measured):
    assert measured["gold"].dims == ("loss", "problem", "batch", "seed", "step")
    assert measured["gold"].shape == (4, 3, 2, 2, 3)
    assert measured["step"].values.tolist() == [0, 3, 6]
    for problem in PROBLEMS:
        bandit = TINY.bandit(problem)
        start = measured["gold"].sel(problem=problem, step=0)
        np.testing.assert_allclose(start, np.exp(bandit.reference_log_probs) @ bandit.reward, 1e-5)
    assert (measured["reference_kl"].sel(step=6) > 0).all()
    # Renewed after every step, or after three.
    small, large = (measured["gold"].sel(batch=b, step=6) for b in (8, 24))
    assert (small != large).all()


def results(slopes=(0.05, 0.0, 0.03), late=(0.05, 0.0, 0.03), seeds=4):
    """True reward lost per tenfold batch on each problem, half-way and at the end."""
    decades = np.log10(BATCHES)
    gold = np.full((len(METHODS), 3, 4, seeds, 3), -0.3)
    for step, lost in ((1, slopes), (2, late)):
        gold[..., step] -= (np.array(lost)[:, None] * decades)[None, :, :, None]
    gold += np.random.default_rng(0).normal(0, 1e-4, gold.shape)
    coords = {
        "loss": list(METHODS), "problem": list(PROBLEMS), "batch": BATCHES, "seed": range(seeds),
        "step": [0, 100, 200],
    }  # fmt: skip
    return xr.Dataset({"gold": xr.DataArray(gold, coords, list(coords))})


def test_every_claim_holds_where_the_finding_does():
    claims = judge(results(late=(0.02, 0.0, 0.01)))
    assert [claim.holds for claim in claims] == [True] * 3
    assert [claim.effect for claim in claims] == pytest.approx([0.05, 0.03, 0.05], abs=1e-3)
    assert claims[0].note.startswith("After 200 steps 0.020 [")
    assert "after 100 steps" in claims[0].statement


@pytest.mark.parametrize(
    ("slopes", "failing"),
    [
        ((-0.05, -0.1, 0.03), [0]),
        ((0.05, 0.0, -0.03), [1]),
        ((0.05, 0.06, 0.03), [2]),
        ((0.0, 0.0, 0.0), [0, 1, 2]),
        ((-0.05, 0.0, -0.03), [0, 1, 2]),
    ],
)
def test_each_finding_that_fails_fails_its_claim_and_no_other(slopes, failing):
    dataset = results(slopes)
    if not any(slopes):
        dataset["gold"][:] = -0.3
    claims = judge(dataset)
    assert [i for i, claim in enumerate(claims) if not claim.holds] == failing


def test_the_end_does_not_count_but_is_noted():
    claims = judge(results(late=(-0.05, 0.1, -0.05)))
    assert [claim.holds for claim in claims] == [True] * 3
    assert "-0.050" in claims[1].note


def test_a_loss_that_is_not_sure_does_not_hold():
    dataset = results()
    dataset["gold"].loc[{"problem": "min", "batch": 4000}] += np.array([2, -2, 2, -2])[:, None]
    assert [claim.holds for claim in judge(dataset)] == [False, True, False]


@pytest.mark.parametrize("losses", [["ppo"], list(METHODS)], ids=["one method", "all"])
@pytest.mark.parametrize("batch", BATCHES)
def test_nan_does_not_hold(losses, batch):
    dataset = results()
    dataset["gold"].loc[{"loss": losses, "problem": "min", "batch": batch, "step": 100}] = np.nan
    try:
        claims = judge(dataset)
    except InvalidInput:
        return
    assert [claim.holds for claim in claims] == [False, True, False]


def test_quick_settings_are_not_vouched_for():
    for scale, asserted in (("quick", False), ("full", True)):
        claims = LengthBatchSize.claims(results().assign_attrs(scale=scale))
        assert {claim.asserted for claim in claims} == {asserted}


def test_the_figure_has_a_panel_a_problem():
    figure = LengthBatchSize.draw(results())
    figure.draw_without_rendering()
    assert [axes.get_title() for axes in figure.axes] == list(TITLES.values())
    for axes in figure.axes:
        assert len(axes.lines) == 2 * len(METHODS)
        assert [label.get_text() for label in axes.get_xticklabels()] == [str(b) for b in BATCHES]
