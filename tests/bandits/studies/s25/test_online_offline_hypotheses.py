"""Four hypotheses: pairs counted, optima solved again by scipy, and claims that can fail."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy import optimize, stats
from scipy.special import log_expit, log_softmax

from bandits.policies import all_sequences
from bandits.problems.environments import CategoricalBandit
from bandits.problems.preferences import preference_probabilities
from bandits.studies.s25 import generation_verification_gap as gap
from bandits.studies.s25.generation_verification_gap import GenerationVerificationGap
from bandits.studies.s25.online_offline_hypotheses import (
    HELD,
    LABELS,
    WIDE,
    WIDER,
    OnlineOfflineHypotheses,
    _count_pairs,
)
from theory.checks import InvalidInput
from theory.generation_verification import token_features

SEEDS = 3
STUDY = OnlineOfflineHypotheses(
    values=2, seeds=SEEDS, steps=400,
    verification=GenerationVerificationGap(values=2, pairs=(50,), seeds=4),
)  # fmt: skip
BETA = STUDY.beta
FEATURES = np.asarray(token_features(all_sequences(2, 3), 2), np.float64)
OFFLINE, LEARNED, TRUE = LABELS


def of_gap(seeds):
    """What the other study measures: 0.95 by the small search, 0.4 by the large one.

    A random reward is learned by the large one alone, at 0.4 too; one token by all.
    """
    random = np.random.default_rng(0)
    share = np.empty((3, 1, seeds, 4))
    share[:, 0] = np.array([[0.95, 0.95, 0.4, 0.4], [0.1, 0.1, 0.4, 0.4], [0.9] * 4])[:, None]
    share += random.normal(0, 0.01, (3, 1, seeds, 1))
    # A little for every learner of its own, so that no interval is a point.
    share += random.normal(0, 1e-3, share.shape)
    accuracy = np.empty((3, 1, seeds, 2, 4))
    accuracy[:] = [[0.9, 0.9, 0.6, 0.6], [0.8, 0.8, 0.5, 0.5]]
    accuracy += random.normal(0, 0.01, accuracy.shape)
    return xr.Dataset(
        {
            "share": (("problem", "pairs", "seed", "learner"), share),
            "accuracy": (("problem", "pairs", "seed", "judged_on", "learner"), accuracy),
        },
        {
            "problem": list(gap.PANELS),
            "pairs": [50],
            "seed": range(seeds),
            "judged_on": ["data's law", "best of many"],
            "learner": list(gap.LEARNERS),
        },
    )


@pytest.fixture(scope="module")
def measured():
    """The two that are run here; the gap has tests of its own."""
    asked = []

    def instead(study):
        asked.append(study)
        return of_gap(study.seeds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GenerationVerificationGap, "run", instead)
        dataset = STUDY.run()
    assert asked == [STUDY.verification]
    return dataset


count_pairs = jax.jit(_count_pairs, static_argnames=("number", "labels"))
problem = jax.jit(lambda seed: STUDY._problem(seed, jnp.asarray(FEATURES, jnp.float32)))


@functools.cache
def problem_of(seed):
    """Reward, log π_ref, noisy and clean counts, in numpy."""
    keys, bandit = problem(seed)
    noisy_wins, clean_wins = (preference_probabilities(bandit.reward, t) for t in (1.0, 0.0))
    noisy = count_pairs(keys.noisy_pairs, noisy_wins, bandit, STUDY.noisy_pairs, STUDY.labels)
    clean = count_pairs(keys.clean_pairs, clean_wins, bandit, STUDY.clean_pairs, 1)
    found = bandit.reward, bandit.reference_log_probs, noisy, clean
    return tuple(np.asarray(x, np.float64) for x in found)


def fit(counts, ridge):
    """Additive reward by maximum likelihood, which is DPO's implicit one on product policies."""

    def loss(w):
        margins = (FEATURES @ w)[:, None] - FEATURES @ w
        return -(counts * log_expit(margins)).sum() / counts.sum() + ridge / 2 * w @ w

    return FEATURES @ optimize.minimize(loss, np.zeros(FEATURES.shape[1]), tol=1e-12).x


def soft_optimum(reward, reference):
    return log_softmax(reference + reward / BETA)


def kl(one, other):
    return np.exp(one) @ (one - other)


# Pairs


def counted(number, key=0, reference=(0.5, 0.3, 0.2), wins=None, labels=1):
    size = len(reference)
    wins = jnp.full((size, size), 0.5) if wins is None else jnp.asarray(wins)
    bandit = CategoricalBandit(jnp.zeros(size), jnp.log(jnp.asarray(reference)))
    key = jax.random.key(key)
    return np.asarray(count_pairs(key, wins, bandit, number, labels))


@pytest.mark.parametrize("number", [1, 20, 150])
@pytest.mark.parametrize("labels", [1, 2, 3])
def test_as_many_pairs_are_counted_as_asked_and_a_sure_labeller_is_obeyed(number, labels):
    sure = np.triu(np.ones((3, 3)), 1) + np.eye(3) / 2
    for key in range(3):
        counts = counted(number, key, labels=labels)
        of_pairs = counts + counts.T
        assert counts.sum() == number * labels
        np.testing.assert_array_equal(of_pairs % labels, 0)
        np.testing.assert_array_equal(np.diag(counts), 0)
        np.testing.assert_array_equal(counts, np.round(counts))
        assert (counts >= 0).all()
        np.testing.assert_array_equal(
            counted(number, key, wins=sure, labels=labels), np.triu(of_pairs)
        )
    assert number == 1 or (counts != counted(number, 0, labels=labels)).any()


def test_pairs_follow_the_reference_without_replacement_and_the_labeller():
    """The last response is excluded, and never drawn."""
    probs, number = np.array([0.5, 0.3, 0.2]), 40_000
    wins = np.array([[0.5, 0.9, 0.3, 1], [0.1, 0.5, 0.6, 1], [0.7, 0.4, 0.5, 1], [0, 0, 0, 0.5]])
    counts = counted(number, reference=(*probs, 0.0), wins=wins)
    assert not counts[3].any()
    assert not counts[:, 3].any()
    # First i and then j of the rest, or the other way round.
    drawn = np.outer(probs, probs) * (1 / (1 - probs)[:, None] + 1 / (1 - probs))
    apart = ~np.eye(3, dtype=bool)
    expected = (number * drawn * wins[:3, :3])[apart]
    assert expected.sum() == pytest.approx(number)
    assert stats.chisquare(counts[:3, :3][apart], expected).pvalue > 1e-3


def test_every_label_of_a_pair_is_drawn_of_its_own():
    """All pairs are of the same two responses: of two labels 0, 1 or 2 are the first's."""
    wins = np.array([[0.5, 0.7], [0.3, 0.5]])
    keys = jax.random.split(jax.random.key(0), 3000)
    bandit = CategoricalBandit(jnp.zeros(2), jnp.log(jnp.array([0.6, 0.4])))
    count = jax.vmap(lambda key: _count_pairs(key, jnp.asarray(wins), bandit, 1, 2))
    first = np.asarray(jax.jit(count)(keys))[:, 0, 1]
    found = np.bincount(first.astype(int), minlength=3)
    expected = 3000 * stats.binom(2, 0.7).pmf([0, 1, 2])
    assert stats.chisquare(found, expected).pvalue > 1e-3


def test_a_problem_is_additive_and_of_its_seed():
    for seed in range(2):
        reward, reference, *_ = problem_of(seed)
        for values in (reward, reference):
            columns = np.column_stack([FEATURES, np.ones(8)])
            fitted = columns @ np.linalg.lstsq(columns, values, rcond=None)[0]
            np.testing.assert_allclose(fitted, values, atol=1e-5)
        assert np.exp(reference).sum() == pytest.approx(1, abs=1e-6)
        assert np.ptp(reward - reference) > 0.1
    assert np.abs(problem_of(0)[0] - problem_of(1)[0]).max() > 0.1


# H1 and H2


def test_the_gap_is_that_of_the_other_study(measured):
    expected = of_gap(STUDY.verification.seeds).isel(pairs=0)
    for name, found in (("share", "gap_share"), ("accuracy", "accuracy")):
        np.testing.assert_array_equal(measured[found], expected[name])


def test_offline_dpo_and_learned_labels_end_at_the_optimum_of_the_fitted_reward(measured):
    """One convex problem, solved by scipy; with true labels the end is the true optimum.

    Of each pair in the data there is half a label more for either order.
    """
    for seed in range(SEEDS):
        reward, reference, noisy, _ = problem_of(seed)

        def value(log_probs, reward=reward, reference=reference):
            return np.exp(log_probs) @ reward - BETA * kl(log_probs, reference)

        start, best = value(reference), value(soft_optimum(reward, reference))
        smoothed = noisy + 0.5 * (noisy + noisy.T > 0)
        assert smoothed.sum() > noisy.sum()
        learned = value(soft_optimum(fit(smoothed, 0.0), reference))
        expected = (learned - start) / (best - start)
        assert expected < 1
        found = measured["label_share"].sel(seed=seed)
        for name in (OFFLINE, LEARNED):
            assert float(found.sel(learner=name)) == pytest.approx(expected, abs=3e-3)
        assert float(found.sel(learner=TRUE)) == pytest.approx(1, abs=1e-3)


def test_rlhf_ends_at_its_soft_optimum_and_all_start_at_the_reference(measured):
    """By the KL, and by the true reward with the penalty, with the narrow and the wide prior."""
    np.testing.assert_allclose(measured["reference_kl"].sel(step=0), 0, atol=1e-6)
    for seed in range(SEEDS):
        reward, reference, _, clean = problem_of(seed)
        start = measured["held_value"].sel(seed=seed, step=0)
        np.testing.assert_allclose(start, np.exp(reference) @ reward, atol=1e-5)
        for name, width in {"rlhf": 1.0, WIDE: WIDER}.items():
            ridge = 1 / (STUDY.clean_pairs * (STUDY.reward_scale * width) ** 2)
            end = soft_optimum(fit(clean, ridge), reference)
            distance, found = kl(end, reference), measured.sel(loss=name, seed=seed, step=400)
            assert float(found["reference_kl"]) == pytest.approx(distance, rel=0.01)
            value = np.exp(end) @ reward - BETA * distance
            assert float(found["held_value"]) == pytest.approx(value, abs=0.02)


def test_hypo_stays_near_and_rlhf_with_a_wide_prior_goes_most_of_the_way_to_dpo(measured):
    """RLHF's class is that of DPO's policies: only the prior of its reward tells them apart."""
    last = measured["reference_kl"].isel(step=-1)
    dpo, hypo, narrow, wide = (last.sel(loss=name) for name in HELD)
    assert (last > 0.1).all()
    assert (hypo < dpo).all()
    assert (dpo - narrow > 0.1).all()
    assert (abs(dpo - wide) < 0.5 * (dpo - narrow)).all()


# Claims


def made(seeds=6):
    random = np.random.default_rng(1)
    gaps = of_gap(seeds).isel(pairs=0)
    gaps = gaps.rename(seed="gap_seed", learner="gap_learner")
    share = np.array([0.9, 0.9, 0.99])[:, None] + random.normal(0, 0.02, seeds)
    share[1] += random.normal(0, 1e-3, seeds)
    distance, value = np.zeros((2, 4, seeds, 3))
    distance[..., 1] = np.array([1.5, 1.5, 1.0, 1.5])[:, None] + random.normal(0, 0.1, (4, seeds))
    distance[..., 2] = distance[..., 1] + np.array([2.5, 0.1, -0.2, 2.0])[:, None]
    distance[0, :, 2] += random.normal(0, 0.1, seeds)
    value[..., 2] = np.array([0.2, 0.6, 0.75, 0.3])[:, None]
    return xr.Dataset(
        {
            "label_share": (("learner", "seed"), share),
            "reference_kl": (("loss", "seed", "step"), distance),
            "held_value": (("loss", "seed", "step"), value),
            "accuracy": gaps["accuracy"],
            "gap_share": gaps["share"],
        },
        {"learner": list(LABELS), "seed": range(seeds), "loss": list(HELD), "step": [0, 5, 9]},
    )


def test_every_claim_holds_where_the_finding_does_and_is_vouched_for():
    claims = OnlineOfflineHypotheses.judge(made())
    assert [claim.holds and claim.asserted for claim in claims] == [True] * 5
    assert [claim.statement[:2] for claim in claims] == ["H1", "H2", "Wh", "H5", "H6"]
    assert [claim.effect for claim in claims] == pytest.approx([0, 2.4, 2.7, 0.3, 0.85], abs=0.15)
    assert all(claim.low < claim.effect < claim.high for claim in claims)
    beginning = "The exact preference of every pair of its own samples, far more than the data hold"
    assert claims[0].note.startswith(f"{beginning}, adds 0.09 [")


def test_notes_say_where_each_ends_and_how_large_the_gaps_are():
    dataset = made()
    dataset["reference_kl"][..., 1] = np.array([1.5, 1.5, 1.2, 1.5])[:, None]
    dataset["reference_kl"][..., 2] = np.array([4.0, 1.501, 1.0, 3.5])[:, None]
    share = np.array([[0.95, 0, 0, 0.4], [0, 0, 0.4, 0.41], [0.9, 0, 0, 0.9]])
    dataset["gap_share"].values[:] = share[:, None]
    claims = OnlineOfflineHypotheses.judge(dataset)
    assert claims[1].note == (
        "In the second half of the steps DPO moves by 2.5 [2.5, 2.5], HyPO by +0.001. They end at "
        "DPO 4.00, HyPO 1.50 nats. The true reward less β KL at the end: DPO 0.20, HyPO 0.60, "
        "RLHF 0.75, RLHF, wide prior 0.30."
    )
    assert claims[2].note == (
        "RLHF ends at 1.00 nats with the narrow prior and at 3.50 with the wide one; DPO, which "
        "has none, at 4.00."
    )
    assert claims[4].note == (
        "The gaps: additive 0.55 [0.55, 0.55], random -0.41 [-0.41, -0.41], one token 0 [0, 0]."
    )
    dataset["gap_share"].loc[{"problem": "one token", "gap_learner": gap.DPO_ALL}] += 1e-6
    assert OnlineOfflineHypotheses.judge(dataset)[4].note.endswith("one token 0 [0, 0].")  # no −0


SPREAD = xr.DataArray([1.0, -1.0] * 3, dims="seed")
GAP_SPREAD = SPREAD.rename(seed="gap_seed")
BY_DPO, BY_RLHF = {"gap_learner": gap.DPO_ALL}, {"gap_learner": gap.RLHF_ADDITIVE}
FAR = {"judged_on": "best of many"} | BY_DPO


@pytest.mark.parametrize(
    ("name", "where", "change", "expected"),
    [
        ("label_share", {"learner": LEARNED}, 0.03, [0]),
        ("label_share", {"learner": LEARNED}, -0.03, [0]),
        ("label_share", {"learner": LEARNED}, 0.05 * SPREAD, [0]),
        ("label_share", {"learner": TRUE}, 0.3, []),
        ("reference_kl", {"loss": "dpo", "step": 9}, -3.0, [1]),
        ("reference_kl", {"loss": "dpo", "step": 5}, 3.0, [1]),  # it no longer moves
        ("reference_kl", {"loss": "dpo", "step": 0}, 1.0, []),
        ("reference_kl", {"loss": "dpo", "step": 9}, 9 * SPREAD, [1]),
        ("reference_kl", {"loss": "hypo", "step": 9}, 2.4, [1]),  # as far as DPO
        ("reference_kl", {"loss": "hypo", "step": 9}, 9.0, [1]),
        ("reference_kl", {"loss": "hypo"}, -0.5, []),
        ("reference_kl", {"loss": "rlhf", "step": 9}, 8.0, [2]),
        ("reference_kl", {"loss": WIDE, "step": 9}, -3.0, [2]),
        ("reference_kl", {"loss": WIDE, "step": 9}, 9 * SPREAD, [2]),
        ("reference_kl", {"loss": WIDE, "step": 5}, 7.0, []),
        ("accuracy", FAR, 0.4, [3]),
        ("accuracy", FAR, 2 * GAP_SPREAD, [3]),
        ("accuracy", {"judged_on": "data's law"} | BY_DPO, 0.4, []),
        ("accuracy", {"problem": "random"} | BY_DPO, 0.4, []),
        ("gap_share", {"problem": "simple"} | BY_RLHF, -0.9, [4]),
        ("gap_share", {"problem": "simple"} | BY_RLHF, 9 * GAP_SPREAD, [4]),
        ("gap_share", {"problem": "random"} | BY_RLHF, 0.9, [4]),
        ("gap_share", {"problem": "random", "gap_learner": gap.RLHF_TABLE}, 0.9, []),
        ("gap_share", {"problem": "one token"} | BY_RLHF, -0.8, []),
    ],
)
def test_each_finding_that_fails_fails_its_claim_and_no_other(
    failing, name, where, change, expected
):
    dataset = made()
    dataset[name].loc[where] += change
    assert failing(OnlineOfflineHypotheses, dataset) == expected


@pytest.mark.parametrize("name", ["label_share", "reference_kl", "accuracy", "gap_share"])
@pytest.mark.parametrize("where", [{}, 0], ids=["all", "one"])
def test_results_that_are_undefined_are_not_judged(name, where):
    dataset = made()
    seed = "seed" if "seed" in dataset[name].dims else "gap_seed"
    dataset[name].loc[where if where == {} else {seed: where}] = np.nan
    with pytest.raises(InvalidInput, match="finite"):
        OnlineOfflineHypotheses.judge(dataset)


def test_the_middle_is_the_record_nearest_to_half_of_the_steps():
    """Records are spaced by logarithms: of 0, 1, 4, 6 and 9 it is 4."""
    dataset = made().isel(step=[0, 0, 1, 2, 2]).assign_coords(step=[0, 1, 4, 6, 9])
    path = dataset["reference_kl"].sel(loss="dpo")
    moved = float((path[:, 4] - path[:, 2]).mean())
    assert f"DPO moves by {moved:.3f} [" in OnlineOfflineHypotheses.judge(dataset)[1].note


def test_the_figure_has_a_panel_a_hypothesis(measured):
    figure = OnlineOfflineHypotheses.draw(measured)
    assert [axes.get_title()[:2] for axes in figure.axes] == ["H1", "H2", "H5", "H6"]
    labels, held, generalise, gaps = figure.axes

    def heights(axes):
        return [bar.get_height() for bar in axes.patches]

    np.testing.assert_allclose(heights(labels), measured["label_share"].mean("seed"), rtol=1e-5)
    names = [text.get_text() for text in held.get_legend().get_texts()]
    assert names == ["DPO", "HyPO", "RLHF", "RLHF, wide prior"]
    assert len({(line.get_color(), line.get_linestyle()) for line in held.lines}) == 4
    for line, name in zip(held.lines, HELD, strict=True):
        path = measured["reference_kl"].sel(loss=name).mean("seed")[1:]
        np.testing.assert_allclose(line.get_ydata(), path, rtol=1e-5)
    accuracy = measured["accuracy"].sel(problem="simple").mean("gap_seed")
    both = [accuracy.sel(gap_learner=name).values for name in (gap.RLHF_ADDITIVE, gap.DPO_ALL)]
    np.testing.assert_allclose(heights(generalise), np.concatenate(both))
    share = measured["gap_share"].mean("gap_seed")
    apart = share.sel(gap_learner=gap.RLHF_ADDITIVE) - share.sel(gap_learner=gap.DPO_ALL)
    np.testing.assert_allclose(heights(gaps), apart, atol=1e-12)
