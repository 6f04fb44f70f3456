"""The published bandit, tiny: where runs start, what is recorded, and what each setting changes."""

import jax
import numpy as np
import pytest

from bandits.problems.environments import bump_reward, tanh_cauchy_reference
from bandits.studies.t24 import published
from bandits.studies.t24.published import (
    NUM_ARMS,
    PEAKS,
    Bandit,
    judge_policy,
    make_learner,
    run_methods,
    temper,
)
from bandits.sweeps import choices
from theory.checks import InvalidInput

BANDIT = Bandit(context_size=4, seeds=2, most_contexts=6, fresh_contexts=4)
STEPS, CONTEXTS = 6, 4
NEAR = choices({"R2": PEAKS["R2"]})
judge = jax.jit(judge_policy, static_argnums=0)
LEARNERS = {
    "best_of_n": make_learner("best_of_n"),
    "ipo": make_learner("ipo"),
    "published pairs": make_learner("preference_likelihood"),
    "all pairs": make_learner("preference_likelihood", least_gap=0.0),
    "no pairs": make_learner("preference_likelihood", least_gap=9.0),
}


@pytest.fixture(scope="module")
def starts():
    return BANDIT.make_starts()


@pytest.fixture(scope="module")
def measured():
    axes = {"reward": choices(PEAKS), "passes": [1, STEPS], "temperature": [1.0, 4.0]}
    return run_methods(BANDIT, LEARNERS, axes, steps=STEPS, contexts=CONTEXTS, record=(0, 3, STEPS))


def one_start(starts, seed=0):
    return jax.tree.map(lambda leaf: leaf[seed], starts)


def test_every_seed_starts_at_the_reference_with_contexts_of_its_own(starts):
    rows = np.concatenate([starts.contexts, starts.fresh], axis=1).reshape(-1, 4)
    assert (starts.contexts.shape, starts.fresh.shape) == ((2, 6, 4), (2, 4, 4))
    assert len(np.unique(rows, axis=0)) == 20
    assert ((rows >= 0) & (rows <= 1)).all()
    first, second = (jax.tree.leaves(one_start(starts.params, seed)) for seed in (0, 1))
    assert all((a != b).any() for a, b in zip(first, second, strict=True))
    reference = tanh_cauchy_reference(NUM_ARMS)
    start = one_start(starts)
    judged = judge(BANDIT.policy(), start.params, start.contexts, reference, reference)
    assert 0 < judged["reference_kl"] < 0.05


def test_a_policy_is_judged_by_its_means_over_contexts(starts):
    start, policy = one_start(starts), BANDIT.policy()
    reward = bump_reward(NUM_ARMS, 20, 10.0)
    reference = tanh_cauchy_reference(NUM_ARMS)
    log_p = np.array(jax.vmap(policy.log_probs, (None, 0))(start.params, start.fresh), float)
    found = judge(policy, start.params, start.fresh, reward, reference)
    kl = (np.exp(log_p) * (log_p - np.array(reference, float))).sum(axis=1)
    expected = (np.exp(log_p) @ np.array(reward, float)).mean()
    assert found["expected_reward"] == pytest.approx(expected, rel=1e-5)
    assert found["reference_kl"] == pytest.approx(kl.mean(), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_tempering_divides_the_log_probabilities(starts, temperature):
    start, policy = one_start(starts), BANDIT.policy()
    found = policy.log_probs(temper(start.params, temperature), start.fresh[0])
    expected = jax.nn.log_softmax(policy.log_probs(start.params, start.fresh[0]) / temperature)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_policy_is_the_same_object_for_equal_bandits():
    assert BANDIT.policy() is Bandit(context_size=4, seeds=9).policy()


def test_results_are_labelled_and_in_range(measured):
    dims = ("loss", "reward", "passes", "temperature", "seed", "step")
    assert measured["expected_reward"].dims == measured["reference_kl"].dims == dims
    labels = {"loss": list(LEARNERS), "reward": ["R1", "R2"], "passes": [1, STEPS],
              "step": [0, 3, STEPS]}  # fmt: skip
    assert {name: measured[name].values.tolist() for name in labels} == labels
    assert ((measured["expected_reward"] >= 0) & (measured["expected_reward"] <= 1)).all()
    assert (measured["reference_kl"] >= 0).all()
    assert measured["reference_kl"].attrs["units"] == "nats"


def test_all_runs_of_a_seed_start_at_one_policy_and_the_seeds_differ(measured):
    start = measured.isel(step=0)
    for name in ("expected_reward", "reference_kl"):
        seeds = start[name].transpose("seed", "reward", ...).values.reshape(2, 2, -1)
        np.testing.assert_allclose(seeds - seeds[..., :1], 0, atol=1e-6)
    kl = start["reference_kl"].isel(loss=0, reward=0, passes=0, temperature=0)
    assert kl[0] != kl[1]
    assert (kl < 0.05).all()


def test_the_rewards_are_far_and_near(measured):
    start = measured["expected_reward"].isel(step=0)
    assert (start.sel(reward="R1") < 0.15).all()
    assert (start.sel(reward="R2") > 0.3).all()


def test_a_run_alone_equals_the_same_run_beside_others_and_is_offline_by_default(measured):
    everything = CONTEXTS * BANDIT.responses
    alone = run_methods(
        BANDIT, ["ipo"], {"reward": NEAR, "batch": [everything]}, steps=STEPS, contexts=CONTEXTS,
        record=(0, 3, STEPS), most_batch=everything,
    )  # fmt: skip
    among = measured.sel(loss="ipo", reward="R2", passes=STEPS, temperature=1.0)
    assert alone["expected_reward"].dims == ("loss", "reward", "batch", "seed", "step")
    for name in ("expected_reward", "reference_kl"):
        np.testing.assert_allclose(alone[name].squeeze(), among[name], rtol=1e-3, atol=1e-4)


PUBLISHED = {"reward": "R1", "passes": STEPS, "temperature": 1.0}
OFFLINE = {**PUBLISHED, "reward": "R2", "loss": "ipo"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({**OFFLINE, "loss": "best_of_n"}, {**OFFLINE, "loss": "best_of_n", "passes": 1}),
        (OFFLINE, {**OFFLINE, "passes": 1}),
        (OFFLINE, {**OFFLINE, "temperature": 4.0}),
        ({**PUBLISHED, "loss": "published pairs"}, {**PUBLISHED, "loss": "all pairs"}),
    ],
    ids=["passes of best-of-N", "passes of IPO", "temperature of the data", "least gap"],
)
def test_what_a_run_learns_from_matters(measured, one, other):
    first, second = (measured["expected_reward"].isel(step=-1).sel(run) for run in (one, other))
    assert (np.abs(first.values - second.values) > 1e-4).all()


def test_a_run_without_pairs_stays_at_its_start(measured):
    run = measured["expected_reward"].sel(loss="no pairs", reward="R1", passes=STEPS)
    np.testing.assert_allclose(run.isel(step=-1), run.isel(step=0), rtol=1e-5)


def test_a_divergence_is_refused(monkeypatch):
    monkeypatch.setitem(published.LEARNING_RATES, "contrastive", 3e38)
    with (
        pytest.warns(UserWarning, match="NaN"),
        pytest.raises(InvalidInput, match=r"2 of 2 runs diverged, the first after \d+ steps at"),
    ):
        run_methods(BANDIT, ["ipo"], {"reward": NEAR}, steps=3, contexts=CONTEXTS)
