"""Sample reuse on the length problems: a small run, and claims that can fail."""

import numpy as np
import pytest
import xarray as xr

from bandits.studies.t24.length_ablations import LengthSampleReuse
from bandits.studies.t24.lengths import PROBLEMS, TITLES, Lengths
from theory.checks import InvalidInput

METHODS, judge = LengthSampleReuse.METHODS, LengthSampleReuse.judge
TINY = Lengths(max_length=6, mode=3.0, cut=3, pairs=40, bumps=4, seeds=2)
PASSES = [1, 5, 20, 100]
LOST = {"best_of_n": 0.2, "reward_weighted": 0.1, "ppo": 0.1, "online_dpo": 0.1}


@pytest.fixture(scope="module")
def measured():
    return LengthSampleReuse(lengths=TINY, passes=(1, 2), batch=8, steps=4).run()


def test_a_small_run_starts_at_the_reference_and_reuses_its_samples(measured):
    assert measured["gold"].dims == ("loss", "problem", "passes", "seed", "step")
    assert measured["gold"].shape == (4, 3, 2, 2, 3)
    assert measured["step"].values.tolist() == [0, 2, 4]
    for problem in PROBLEMS:
        bandit = TINY.bandit(problem)
        start = measured["gold"].sel(problem=problem, step=0)
        np.testing.assert_allclose(start, np.exp(bandit.reference_log_probs) @ bandit.reward, 1e-5)
    once, twice = (measured["gold"].sel(passes=t, step=4) for t in (1, 2))
    assert (once != twice).any(("problem", "seed")).all()


def results(moderate=0.0, largest=LOST, seeds=4):
    """True reward lost on Min against T = 1, with T = 5 and with T = 100, at the end."""
    gold = np.full((len(METHODS), 3, 4, seeds, 3), -0.3)
    gold[:, 0, 1, :, -1] -= moderate
    for i, name in enumerate(METHODS):
        gold[i, 0, -1, :, -1] -= largest[name]
    gold += np.random.default_rng(0).normal(0, 1e-3, gold.shape)
    coords = {
        "loss": list(METHODS), "problem": list(PROBLEMS), "passes": PASSES, "seed": range(seeds),
        "step": [0, 100, 200],
    }  # fmt: skip
    return xr.Dataset({"gold": xr.DataArray(gold, coords, list(coords))})


def test_every_claim_holds_where_the_finding_does():
    claims = judge(results())
    assert [claim.holds for claim in claims] == [True] * 3
    assert [claim.effect for claim in claims] == pytest.approx([0, 0.125, 0.1], abs=0.003)
    assert "T = 5" in claims[0].statement
    assert all("T = 100" in claim.statement for claim in claims[1:])


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"moderate": 0.05}, [0]),
        ({"moderate": 0.0245}, [0]),  # its interval reaches above
        ({"largest": {**LOST, "ppo": 0.3}}, [2]),
        ({"largest": dict.fromkeys(METHODS, -0.1) | {"best_of_n": 0.1}}, [1]),
        ({"largest": dict.fromkeys(METHODS, -0.1)}, [1, 2]),
    ],
)
def test_each_finding_that_fails_fails_its_claim_and_no_other(changes, failing):
    dataset = results(**changes)
    if changes.get("moderate") == 0.0245:
        where = {"problem": "min", "passes": 5, "step": 200}
        dataset["gold"].loc[where] += np.array([0.01, -0.01, 0.01, -0.01])
    if failing == [1, 2]:
        where = {"problem": "min", "passes": 100, "step": 200}
        dataset["gold"].loc[{**where, "loss": "ppo"}] -= 0.01
    claims = judge(dataset)
    assert [i for i, claim in enumerate(claims) if not claim.holds] == failing


def test_other_problems_steps_and_passes_do_not_count():
    dataset = results()
    dataset["gold"].loc[{"problem": ["mode", "skew"]}] = -9
    dataset["gold"].loc[{"step": [0, 100]}] = -9
    dataset["gold"].loc[{"passes": 20}] = -9
    assert [claim.holds for claim in judge(dataset)] == [True] * 3


@pytest.mark.parametrize("loss", METHODS)
@pytest.mark.parametrize(("passes", "affected"), [(1, [0, 1]), (5, [0]), (100, [1])])
def test_nan_does_not_hold(loss, passes, affected):
    dataset = results()
    dataset["gold"].loc[{"loss": loss, "problem": "min", "passes": passes, "step": 200}] = np.nan
    try:
        claims = judge(dataset)
    except InvalidInput:
        return
    assert not any(claims[i].holds for i in affected)


def test_quick_settings_are_not_vouched_for():
    quick = LengthSampleReuse.claims(results().assign_attrs(scale="quick"))
    assert [claim.asserted for claim in quick] == [False] * 3
    full = LengthSampleReuse.claims(results().assign_attrs(scale="full"))
    assert [claim.asserted for claim in full] == [True, True, False]


def test_the_figure_has_a_panel_a_problem():
    figure = LengthSampleReuse.draw(results())
    figure.draw_without_rendering()
    assert [axes.get_title() for axes in figure.axes] == list(TITLES.values())
    for axes in figure.axes:
        assert len(axes.lines) == 2 * len(METHODS)
        assert [label.get_text() for label in axes.get_xticklabels()] == [str(t) for t in PASSES]
