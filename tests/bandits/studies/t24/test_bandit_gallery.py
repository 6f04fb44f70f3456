"""Trained studies: claims hold or fail as the numbers say, and small runs are sane."""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np
import pytest
import xarray as xr

from bandits.studies import AnyStudy
from bandits.studies.t24 import ablations, combinatorial, geometry_map, preference_log_probs
from bandits.studies.t24.published import Bandit

REWARDS = ["R1", "R2"]


def tabulate(value, **coords):
    """The function's values over a grid, with a little noise for each of three seeds."""
    table = np.array([value(*point) for point in itertools.product(*coords.values())], float)
    shape = tuple(map(len, coords.values()))
    noise = np.random.default_rng(0).normal(0, 0.002, (*shape, 3))
    coords = {**coords, "seed": range(3)}
    return xr.DataArray(table.reshape(*shape, 1) + noise, coords, list(coords))


def expected_reward(value, **coords):
    return xr.Dataset({"expected_reward": tabulate(value, **coords)})


def from_data(far, near):
    """Final rewards by source of data."""
    finals = {"R1": far, "R2": near}
    sources = ["reference", "flat reference", "on-policy"]
    return expected_reward(
        lambda data, loss, reward, step: finals[reward][sources.index(data)] if step else 0.2,
        data=sources,
        loss=list(ablations.DataDistribution.METHODS),
        reward=REWARDS,
        step=[0, 60],
    )


def from_batches(far, near):
    """Reward lost per tenfold batch."""
    slopes = {"R1": far, "R2": near}
    return expected_reward(
        lambda loss, reward, batch, step: 0.6 - slopes[reward] * np.log10(batch / 50) * (step > 0),
        loss=list(ablations.OnPolicyBatchSize.METHODS),
        reward=REWARDS,
        batch=[50, 500, 5000],
        step=[0, 20, 40],
    )


def from_passes(moderate, best_of_n, ppo):
    """Rewards lost on R1 with 5 passes, and with 60 by two methods."""
    lost = {(loss, 5): moderate for loss in ablations.SampleReuse.METHODS}
    lost |= {("best_of_n", 60): best_of_n, ("reward_weighted", 60): best_of_n, ("ppo", 60): ppo}
    dataset = expected_reward(
        lambda loss, reward, passes, step: 0.6 - lost.get((loss, passes), 0.0) * (step == 60),
        loss=list(ablations.SampleReuse.METHODS),
        reward=REWARDS,
        passes=[1, 5, 60],
        step=[0, 30, 60],
    )
    return dataset.assign(samples=100 * -(-dataset["step"] // dataset["passes"]))


def offline(contrastive_far, contrastive_near):
    """Final rewards of DPO and IPO, where the other methods reach 0.3 and 0.9."""
    contrastive = {"R1": contrastive_far, "R2": contrastive_near}
    others = {"R1": 0.3, "R2": 0.9}
    return expected_reward(
        lambda loss, reward, contexts, step: (
            contrastive if loss.startswith(("dpo", "ipo")) else others
        )[reward],
        loss=list(ablations.NegativeGradient.VARIANTS),
        reward=REWARDS,
        contexts=[5, 20],
        step=[0, 60],
    )


def log_ratios(few, many, gain):
    """(winner, loser) of DPO and IPO at the end, and the gain of all others.

    The winner and loser of Pref-FT are (1, 0.5).
    """

    def tabulate_one(i):
        return tabulate(
            lambda loss, contexts, step: (
                step
                / 60
                * ((1, 0.5) if loss == "preference_likelihood" else {5: few, 20: many}[contexts])[i]
            ),
            loss=list(preference_log_probs.NAMES),
            contexts=[5, 20],
            step=[0, 30, 60],
        )

    winner, loser = map(tabulate_one, range(2))
    outside = 0.5 + gain * winner["step"] / 60 + 0.01 * (winner - winner.mean("seed"))
    return xr.Dataset({"winner": winner, "loser": loser, "outside": outside})


def with_both(contrastive_far, contrastive_near):
    """Final rewards of DPO and IPO by the number of collections."""
    finals = {
        "R1": dict(zip([1, 3, 12], contrastive_far, strict=True)),
        "R2": dict.fromkeys([1, 3, 12], contrastive_near),
    }
    best_of_n = {"R1": {1: 0.3, 3: 0.5, 12: 0.6}, "R2": dict.fromkeys([1, 3, 12], 0.9)}
    return expected_reward(
        lambda loss, reward, collections, step: (best_of_n if loss == "best_of_n" else finals)[
            reward
        ][collections],
        loss=["best_of_n", "dpo", "ipo"],
        reward=REWARDS,
        collections=[1, 3, 12],
        step=[0, 60],
    )


def sequences(best_of_n, ipo):
    """Final rewards on R1, offline and on-policy."""
    far = {"best_of_n": best_of_n, "ipo": ipo}

    def value(loss, reward, data, step):
        if not step:
            return 0.2
        return far[loss][data == "on-policy"] if reward == "R1" else 0.8

    return expected_reward(
        value,
        loss=list(combinatorial.NAMES),
        reward=REWARDS,
        data=["offline", "on-policy"],
        step=[0, 15, 30],
    )


def maps(suffering):
    """These methods lose where the peak is far and where the coverage is poor."""
    return expected_reward(
        lambda loss, peak, coverage: (
            0.9 - (loss in suffering) * (0.4 * (peak - 20) / 60 + 0.3 * (1 - coverage))
        ),
        loss=list(geometry_map.NAMES),
        peak=[20, 50, 80],
        coverage=[0.5, 1.0],
    ).assign_coords(distance=("peak", [4, 34, 64]), mass=("coverage", [0.9, 1.0]))


class Case(NamedTuple):
    """An study with results that bear its claims out, others that do not, and its labels."""

    study: AnyStudy
    true: xr.Dataset
    false: xr.Dataset
    asserted: list[bool]
    labels: set[str]


CASES = {
    case.study.name: case
    for case in (
        Case(
            ablations.DataDistribution,
            from_data([0.3, 0.6, 0.9], [0.85, 0.85, 0.9]),
            from_data([0.9, 0.6, 0.3], [0.85, 0.85, 0.9]),
            [True] * 3,
            {"expected reward", "reference", "flat reference", "on-policy"},
        ),
        Case(
            ablations.OnPolicyBatchSize,
            from_batches(0.1, 0.01),
            from_batches(-0.1, 0.01),
            [True] * 4,
            {"expected reward", "batch size B, responses", "R2: the peak is near", "5000"},
        ),
        Case(
            ablations.SampleReuse,
            from_passes(0.02, 0.3, 0.1),
            from_passes(0.2, -0.1, -0.05),
            [True] * 3,
            {"expected reward", "passes T over each batch", "responses drawn"},
        ),
        Case(
            ablations.NegativeGradient,
            offline(0.7, 0.92),
            offline(0.2, 0.95),
            [True, True, False, True],
            {"expected reward", "training prompts"},
        ),
        Case(
            preference_log_probs.EXPERIMENT,
            log_ratios((3, -4), (-2, -6), 0.1),
            log_ratios((-1, 1), (1, 2), -0.1),
            [False, False, False, False, False, False, True, True],
            {"gradient steps", "nats over its start", "probability", "Winner, 5 prompts"},
        ),
        Case(
            ablations.Complementarity,
            with_both([0.4, 0.8, 0.95], 0.88),
            with_both([0.4, 0.3, 0.3], 0.6),
            [True, True, False, False, False],
            {"expected reward", "collections of samples", "1 (offline)", "12"},
        ),
        Case(
            combinatorial.EXPERIMENT,
            sequences((0.3, 0.5), (0.4, 0.7)),
            sequences((0.7, 0.5), (0.6, 0.4)),
            [True, True, False, False],
            {"expected reward", "gradient steps"},
        ),
        Case(
            geometry_map.EXPERIMENT,
            maps(geometry_map.OFFLINE),
            maps(geometry_map.ON_POLICY),
            [True] * 2,
            {
                "C1: arms from the reference's median to the reward's peak",
                "C2: mass of the reference on the arms covered",
                "final expected reward",
                "PPO (on-policy)",
                "90.0%",
                "64",
            },
        ),
    )
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_every_claim_holds_where_the_finding_does(case):
    claims = case.study.claims(case.true)
    assert [claim.holds for claim in claims] == [True] * len(case.asserted)
    assert [claim.asserted for claim in claims] == case.asserted
    assert all(claim.low <= claim.effect <= claim.high for claim in claims)
    assert {claim.study for claim in claims} == {case.study.name}


def test_every_claim_fails_where_the_finding_is_reversed(case):
    assert not any(claim.holds for claim in case.study.claims(case.false))


def test_noise_alone_bears_no_claim_of_a_difference_out():
    dataset = sequences((0.5, 0.5), (0.5, 0.5))
    noise = np.random.default_rng(1).normal(0, 0.1, dataset["expected_reward"].shape)
    far, _, offline_gain, both = combinatorial.judge(dataset + noise)
    assert [claim.holds for claim in (far, offline_gain, both)] == [False] * 3


def test_the_figure_is_labelled(case):
    figure = case.study.draw(case.true)
    figure.draw_without_rendering()
    texts = {figure.get_supxlabel(), figure.get_supylabel()}
    for axes in figure.axes:
        ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
        texts |= {axes.get_xlabel(), axes.get_ylabel(), axes.get_title()}
        texts |= {tick.get_text() for tick in ticks}
    assert case.labels <= texts


def judge(name, false=False):
    case = CASES[name]
    return case.study.claims(case.false if false else case.true)


def test_the_effects_are_the_differences_that_were_put_in():
    expected = {
        "data_distribution": [0.6, 0.55, 0.3],
        "on_policy_batch_size": [0.1, 0.09] * 2,
        "sample_reuse": [0.02, 0.7 / 3, 0.2],
        "negative_gradient": [0.4, 0.4, 0.4, 0.02],
        "preference_log_probs": [0.5 * (7 + 4) - 0.5, 3, -2, 0.1] * 2,
        "complementarity": [0.3, 0.4, 0.35, 0.55, 0.02],
        "combinatorial": [0.25, 0.5 * (1 / 3 + 2 / 5) - 1, 0.1, 0.2],
        "geometry_map": [0.4, 0.15],
    }
    for name, values in expected.items():
        found = [claim.effect for claim in judge(name)]
        assert found == pytest.approx(values, abs=0.01), name


def test_notes_say_where_a_finding_ceases():
    best = judge("on_policy_batch_size", false=True)[0].note
    assert best.startswith("The smallest batch is not the best: B = 50 gives 0.6")
    assert "B = 5000 0.8" in best
    assert judge("on_policy_batch_size")[0].note == "The smallest batch is the best."
    assert judge("negative_gradient")[0].note == (
        "By the number of prompts: +0.40 with 5, +0.40 with 20."
    )
    never = judge("preference_log_probs", false=True)[4].note
    assert "The loser moves by" not in never
    assert "60" not in never  # the margin of Pref-FT is wider at the end


@pytest.mark.parametrize("name", ["complementarity", "data_distribution"])
def test_the_order_of_the_runs_does_not_matter(name):
    case = CASES[name]
    turned = case.true.isel(loss=slice(None, None, -1), reward=[1, 0], seed=[2, 0, 1])
    for claim, expected in zip(case.study.claims(turned), judge(name), strict=True):
        assert claim.effect == pytest.approx(expected.effect)


TINY = Bandit(context_size=4, seeds=2, most_contexts=6, fresh_contexts=4)


@pytest.fixture(scope="module")
def followed():
    return preference_log_probs.run(
        preference_log_probs.Settings(TINY, reward="R2", contexts=(4,), steps=4, records=2)
    )


def test_a_small_run_of_preference_log_probs_is_labelled_and_widens_the_margin(followed):
    assert dict(followed.sizes) == {"loss": 3, "contexts": 1, "seed": 2, "step": 3}
    for name in ("winner", "loser", "outside"):
        assert followed[name].dims == ("loss", "contexts", "seed", "step")
        assert followed[name].attrs["units"]
    assert followed["loss"].values.tolist() == list(preference_log_probs.NAMES)
    assert followed["step"].values.tolist() == [0, 2, 4]
    start = followed.isel(step=0)
    for name in ("winner", "loser", "outside"):  # all methods of a seed learn from the same pairs
        np.testing.assert_allclose(start[name], start[name].isel(loss=[0] * 3), rtol=1e-5)
    assert ((followed["outside"] >= 0) & (followed["outside"] <= 1)).all()
    margin = followed["winner"] - followed["loser"]
    grown = (margin.isel(step=-1) - margin.isel(step=0)).sel(loss=["dpo", "ipo"])
    assert (grown > 0).all()


def test_log_probabilities_over_the_start_are_0_at_the_start(followed):
    start = followed[["winner", "loser"]].isel(step=0).to_array()
    np.testing.assert_allclose(start, 0, atol=1e-5)


def test_a_small_run_of_sequences_starts_all_methods_of_a_seed_at_one_reward():
    settings = dataclasses.replace(
        combinatorial.EXPERIMENT.quick,
        num_values=30,
        length=2,
        model_width=4,
        steps=4,
        passes=2,
        prompts=2,
        responses=4,
        judged=40,
    )
    dataset = combinatorial.run(settings)
    reward = dataset["expected_reward"]
    assert reward.dims == ("loss", "reward", "data", "seed", "step")
    assert reward.shape == (2, 2, 2, 2, 3)
    assert dataset["data"].values.tolist() == ["offline", "on-policy"]
    assert dataset["reward"].values.tolist() == REWARDS
    assert ((reward >= 0) & (reward <= 1)).all()
    start = reward.isel(step=0)
    np.testing.assert_allclose(start, start.isel(loss=[0, 0], data=[0, 0]), rtol=1e-5)
    assert (start.sel(reward="R2") > start.sel(reward="R1")).all()
    later = reward.isel(step=-1).sel(reward="R2")
    assert (np.abs(later.sel(data="on-policy") - later.sel(data="offline")) > 0).any()


def test_a_small_map_holds_every_sampled_method_and_the_distance_of_every_peak():
    settings = dataclasses.replace(
        geometry_map.EXPERIMENT.quick, num_arms=40, width=6.0, peaks=(8, 30), steps=40, batch=20,
        passes=2,
    )  # fmt: skip
    dataset = geometry_map.run(settings)
    reward = dataset["expected_reward"]
    assert reward.dims == ("loss", "peak", "coverage", "seed")
    assert reward.shape == (17, 2, 2, 2)
    assert not {"forward_kl", "reverse_kl"} & set(dataset["loss"].values)
    assert (dataset["distance"].sel(peak=30) - dataset["distance"].sel(peak=8)) == 22
    assert ((reward >= 0) & (reward <= 1)).all()
    learned = reward.sel(loss="best_of_n", peak=8).mean("seed")
    supervised = reward.sel(loss="supervised", peak=8).mean("seed")
    assert (learned > supervised).all()
    seeds = reward.sel(loss="ppo", peak=8, coverage=1.0)
    assert seeds[0] != seeds[1]
