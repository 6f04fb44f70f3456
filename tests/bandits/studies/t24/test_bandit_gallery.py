"""Trained studies: claims hold or fail as the numbers say, and small runs are sane."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import xarray as xr

from bandits.studies import STUDIES, Study
from bandits.studies.t24 import ablations, preference_log_probs
from bandits.studies.t24.combinatorial import Combinatorial
from bandits.studies.t24.geometry_map import OFFLINE, ON_POLICY, SAMPLED, GeometryMap

REWARDS = ["R1", "R2"]


def tabulate(value, **axes):
    """Return a function's values over a grid, with a little noise for each of three seeds."""
    table = np.array([value(*point) for point in itertools.product(*axes.values())], float)
    shape = tuple(map(len, axes.values()))
    noise = np.random.default_rng(0).normal(0, 0.002, (*shape, 3))
    coords = {name: list(labels) for name, labels in axes.items()} | {"seed": range(3)}
    return xr.DataArray(table.reshape(*shape, 1) + noise, coords, list(coords))


def rewards(value, *, step=(0, 60), **axes):
    """Return expected rewards over both problems, other axes, and steps, in this order."""
    return xr.Dataset({"expected_reward": tabulate(value, reward=REWARDS, **axes, step=step)})


def from_data(far, near):
    """Return final rewards by source of data."""
    finals = {"R1": far, "R2": near}
    study = ablations.DataDistribution
    sources = [study.OFFLINE, study.WIDE, study.ON_POLICY]
    return rewards(
        lambda reward, data, loss, step: finals[reward][sources.index(data)] if step else 0.2,
        data=sources,
        loss=study.METHODS,
    )


def from_batches(far, near):
    """Return rewards that fall by a slope per tenfold batch."""
    slopes = {"R1": far, "R2": near}
    return rewards(
        lambda reward, loss, batch, step: 0.6 - slopes[reward] * np.log10(batch / 50) * (step > 0),
        loss=ablations.OnPolicyBatchSize.METHODS,
        batch=[50, 500, 5000],
        step=[0, 20, 40],
    )


def from_passes(moderate, best_of_n, ppo):
    """Return rewards less what is lost with 5 passes, and with 60 by PPO and by other methods."""
    lost = {"best_of_n": best_of_n, "reward_weighted": best_of_n, "ppo": ppo}
    dataset = rewards(
        lambda reward, loss, passes, step: (
            0.6 - {1: 0, 5: moderate, 60: lost[loss]}[passes] * (step == 60)
        ),
        loss=ablations.SampleReuse.METHODS,
        passes=[1, 5, 60],
        step=[0, 30, 60],
    )
    return dataset.assign(samples=100 * -(-dataset["step"] // dataset["passes"]))


def offline(far, near):
    """Return final rewards of DPO and IPO, where the other methods reach 0.3 and 0.9."""
    contrastive, others = {"R1": far, "R2": near}, {"R1": 0.3, "R2": 0.9}
    study = ablations.NegativeGradient
    return rewards(
        lambda reward, loss, contexts, step: (
            contrastive if loss.startswith(("dpo", "ipo")) else others
        )[reward],
        loss=[*study.METHODS, *(name + ablations.ALL_PAIRS for name in study.ON_ALL_PAIRS)],
        contexts=[5, 20],
    )


def log_ratios(few, many, gain):
    """Return (winner, loser) of DPO and IPO at the end, and what all other responses gain.

    The winner and loser of Pref-FT are (1, 0.5).
    """

    def tabulate_one(i):
        contrastive = {5: few[i], 20: many[i]}
        return tabulate(
            lambda loss, contexts, step: (
                step / 60 * ((1, 0.5)[i] if "likelihood" in loss else contrastive[contexts])
            ),
            loss=preference_log_probs.NAMES,
            contexts=[5, 20],
            step=[0, 30, 60],
        )

    winner, loser = map(tabulate_one, range(2))
    outside = 0.5 + gain * winner["step"] / 60 + 0.01 * (winner - winner.mean("seed"))
    return xr.Dataset({"winner": winner, "loser": loser, "outside": outside})


def with_both(far, near):
    """Return final rewards by number of collections, of DPO and IPO as given."""
    best_of_n = {"R1": {1: 0.3, 3: 0.5, 12: 0.6}, "R2": dict.fromkeys([1, 3, 12], 0.9)}
    contrastive = {"R1": dict(zip([1, 3, 12], far, strict=True)),
                   "R2": dict.fromkeys([1, 3, 12], near)}  # fmt: skip
    return rewards(
        lambda reward, loss, collections, step: (
            best_of_n if loss == "best_of_n" else contrastive
        )[reward][collections],
        loss=["best_of_n", "dpo", "ipo"],
        collections=[1, 3, 12],
    )  # fmt: skip


def sequences(best_of_n, ipo):
    """Return final rewards on R1, offline and on-policy."""
    finals = {"best_of_n": best_of_n, "ipo": ipo}
    return rewards(
        lambda reward, loss, data, step: (
            0.2 if not step else 0.8 if reward == "R2" else finals[loss][data == "on-policy"]
        ),
        loss=Combinatorial.METHODS,
        data=["offline", "on-policy"],
        step=[0, 15, 30],
    )


def maps(suffering):
    """Return rewards of which these methods lose where the peak is far and the coverage poor."""
    reward = tabulate(
        lambda loss, peak, coverage: (
            0.9 - (loss in suffering) * (0.4 * (peak - 20) / 60 + 0.3 * (1 - coverage))
        ),
        loss=SAMPLED,
        peak=[20, 50, 80],
        coverage=[0.5, 1.0],
    )
    places = {"distance": ("peak", [4, 34, 64]), "mass": ("coverage", [0.9, 1.0])}
    return xr.Dataset({"expected_reward": reward}).assign_coords(places)


class Case(NamedTuple):
    """Results that bear a study's claims out, others that do not, and what the study says of them.

    Attributes:
      effects: those that were put in, where the claims hold.
      labels: texts of the figure.
    """

    study: type[Study]
    true: xr.Dataset
    false: xr.Dataset
    asserted: list[bool]
    effects: list[float]
    labels: set[str]


CASES = {
    case.study.name: case
    for case in (
        Case(
            ablations.DataDistribution,
            from_data([0.3, 0.6, 0.9], [0.85, 0.85, 0.9]),
            from_data([0.9, 0.6, 0.3], [0.85, 0.85, 0.9]),
            [True] * 3,
            [0.6, 0.55, 0.3],
            {"expected reward", "reference", "flat reference", "on-policy"},
        ),
        Case(
            ablations.OnPolicyBatchSize,
            from_batches(0.1, 0.01),
            from_batches(-0.1, 0.01),
            [True] * 4,
            [0.1, 0.09] * 2,
            {"expected reward", "batch size B, responses", "R2: the peak is near", "5000"},
        ),
        Case(
            ablations.SampleReuse,
            from_passes(0.02, 0.3, 0.1),
            from_passes(0.2, -0.1, -0.05),
            [True] * 3,
            [0.02, 0.7 / 3, 0.2],
            {"expected reward", "passes T over each batch", "responses drawn"},
        ),
        Case(
            ablations.NegativeGradient,
            offline(0.7, 0.92),
            offline(0.2, 0.95),
            [True, True, False, True],
            [0.4, 0.4, 0.4, 0.02],
            {"expected reward", "training prompts"},
        ),
        Case(
            STUDIES["preference_log_probs"],
            log_ratios((3, -4), (-2, -6), 0.1),
            log_ratios((-1, 1), (1, 2), -0.1),
            [False, False, False, False, False, False, True, True],
            [0.5 * (7 + 4) - 0.5, 3, -2, 0.1] * 2,
            {"gradient steps", "nats over its start", "probability", "Winner, 5 prompts"},
        ),
        Case(
            ablations.Complementarity,
            with_both([0.4, 0.8, 0.95], 0.88),
            with_both([0.4, 0.3, 0.3], 0.6),
            [True, True, False, False, False],
            [0.3, 0.4, 0.35, 0.55, 0.02],
            {"expected reward", "collections of samples", "1 (offline)", "12"},
        ),
        Case(
            Combinatorial,
            sequences((0.3, 0.5), (0.4, 0.7)),
            sequences((0.7, 0.5), (0.6, 0.4)),
            [True, True, False, False],
            [0.25, 0.5 * (1 / 3 + 2 / 5) - 1, 0.1, 0.2],
            {"expected reward", "gradient steps"},
        ),
        Case(
            GeometryMap,
            maps(OFFLINE),
            maps(ON_POLICY),
            [True] * 2,
            [0.4, 0.15],
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


def test_claims_hold_where_the_finding_does_and_fail_where_it_is_reversed(case):
    claims = case.study.claims(case.true)
    assert [claim.holds for claim in claims] == [True] * len(case.asserted)
    assert [claim.asserted for claim in claims] == case.asserted
    assert [claim.effect for claim in claims] == pytest.approx(case.effects, abs=0.01)
    assert not any(claim.holds for claim in case.study.claims(case.false))


def test_noise_alone_bears_no_claim_of_a_difference_out():
    dataset = sequences((0.5, 0.5), (0.5, 0.5))
    noise = np.random.default_rng(1).normal(0, 0.1, dataset["expected_reward"].shape)
    far, _, offline_gain, both = Combinatorial.judge(dataset + noise)
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


@pytest.mark.parametrize(
    ("name", "bears_out", "place", "parts"),
    [
        ("on_policy_batch_size", True, 0, ["The smallest batch is the best."]),
        ("on_policy_batch_size", False, 0,
         ["The smallest batch is not the best: B = 50 gives 0.6", "B = 5000 0.8"]),
        ("negative_gradient", True, 0, ["By the number of prompts: +0.40 with 5, +0.40 with 20."]),
        ("geometry_map", True, 1, ["Best over the whole grid: ", ", 0.90 on average."]),
        ("combinatorial", True, 2, ["best-of-N gains +0.101", ", IPO gains +0.199"]),
    ],
)  # fmt: skip
def test_notes_say_where_a_finding_ceases(name, bears_out, place, parts):
    case = CASES[name]
    note = case.study.claims(case.true if bears_out else case.false)[place].note
    assert all(part in note for part in parts)


def test_the_note_of_log_probabilities_says_when_the_margin_never_widens():
    case = CASES["preference_log_probs"]
    never = case.study.claims(case.false)[4].note
    assert "The loser moves by" not in never
    assert "60" not in never  # the margin of Pref-FT is wider at the end


@pytest.mark.parametrize("name", ["complementarity", "data_distribution"])
def test_the_order_of_the_runs_does_not_matter(name):
    case = CASES[name]
    turned = case.true.isel(loss=slice(None, None, -1), reward=[1, 0], seed=[2, 0, 1])
    found, expected = (case.study.claims(results) for results in (turned, case.true))
    assert [c.effect for c in found] == pytest.approx([c.effect for c in expected])


def test_a_small_run_of_sequences_starts_all_methods_of_a_seed_at_one_reward():
    dataset = Combinatorial(
        num_values=30, length=2, layers=1, heads=2, model_width=4, steps=4, passes=2, prompts=2,
        responses=4, judged=40, seeds=2,
    ).run()  # fmt: skip
    reward = dataset["expected_reward"]
    assert dict(reward.sizes) == {"loss": 2, "reward": 2, "data": 2, "seed": 2, "step": 3}
    assert dataset["data"].values.tolist() == ["offline", "on-policy"]
    assert dataset["reward"].values.tolist() == REWARDS
    assert ((reward >= 0) & (reward <= 1)).all()
    start = reward.isel(step=0)
    np.testing.assert_allclose(start, start.isel(loss=[0, 0], data=[0, 0]), rtol=1e-5)
    assert (start.sel(reward="R2") > start.sel(reward="R1")).all()
    later = reward.isel(step=-1).sel(reward="R2")
    assert (np.abs(later.sel(data="on-policy") - later.sel(data="offline")) > 0).any()


def test_a_small_map_holds_every_sampled_method_and_the_distance_of_every_peak():
    dataset = GeometryMap(
        num_arms=40, width=6.0, peaks=(8, 30), coverages=(0.5, 1.0), seeds=2, steps=40, batch=20,
        passes=2,
    ).run()  # fmt: skip
    reward = dataset["expected_reward"]
    assert dict(reward.sizes) == {"loss": 17, "peak": 2, "coverage": 2, "seed": 2}
    assert not {"forward_kl", "reverse_kl"} & set(dataset["loss"].values)
    assert dataset["distance"].sel(peak=30) - dataset["distance"].sel(peak=8) == 22
    assert ((reward >= 0) & (reward <= 1)).all()
    learned, supervised = (
        reward.sel(loss=name, peak=8).mean("seed") for name in ("best_of_n", "supervised")
    )
    assert (learned > supervised).all()
    first, second = reward.sel(loss="ppo", peak=8, coverage=1.0)
    assert first != second
