import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandits.losses import make_group
from bandits.losses.policy_gradient import ppo, reinforce, soft_optimize
from theory import gibbs, mode_seeking
from theory.distributions import kl_divergence

pytestmark = pytest.mark.usefixtures("float64")

seeds = st.integers(0, 2**32 - 1)
log2 = np.log(2)

PROBS = np.array([0.5, 0.25, 0.125])
SHARES = np.array([0.5, 0.25, 0.25])
GROUP = {
    "rewards": np.array([1.0, 0.0, 0.5]),
    "reference_log_probs": np.log([0.25, 0.5, 0.125]),
    "shares": SHARES,
    "baseline": 0.25,
}


def textbook_advantages(g, log_probs, beta, m):
    penalized = [g.rewards[i] - beta * (log_probs[i] - g.reference_log_probs[i]) for i in range(4)]
    baseline = (1 - m) * g.baseline + m * np.dot(g.shares, penalized)
    return np.array(penalized) - baseline


def textbook_reinforce(x, g, beta, m):
    """A is held at g's policy while x moves."""
    return -sum(g.shares * textbook_advantages(g, g.log_probs, beta, m) * x)


def textbook_ppo(x, g, beta, m, clip):
    total = 0
    for i, a in enumerate(textbook_advantages(g, g.behaviour_log_probs, beta, m)):
        ratio = np.exp(x[i]) / np.exp(g.behaviour_log_probs[i])
        total += g.shares[i] * min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
    return -total


@pytest.mark.parametrize("m", [0, 0.5, 1])
def test_reinforce_is_that_computed_by_hand(m, evaluate):
    penalized = np.array([1 - 0.1 * log2, 0.1 * log2, 0.5])
    prompt_mean = 0.5 * (1 - 0.1 * log2) + 0.25 * 0.1 * log2 + 0.25 * 0.5
    weights = SHARES * (penalized - (1 - m) * 0.25 - m * prompt_mean)

    loss, found = evaluate(
        reinforce, make_group(np.log(PROBS), **GROUP), beta=0.1, prompt_baseline=m
    )
    np.testing.assert_allclose(found, weights, rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(loss, weights @ [log2, 2 * log2, 3 * log2], rtol=1e-13)


@pytest.mark.parametrize("loss", [reinforce, ppo])
def test_a_known_prompt_baseline_of_0_is_a_traced_one(loss):
    group = dataclasses.replace(make_group(np.log(PROBS), **GROUP), baseline=0.3)

    @jax.jit
    def slope(log_probs, m):
        return jax.grad(lambda x: loss(dataclasses.replace(group, log_probs=x), prompt_baseline=m))(
            log_probs
        )

    known = jax.jit(lambda x: slope.__wrapped__(x, 0.0))(group.log_probs)
    np.testing.assert_allclose(known, slope(group.log_probs, 0.0), rtol=1e-6)
    assert np.abs(known - slope(group.log_probs, 1.0)).max() > 1e-3


def test_ppo_clips_on_the_side_of_the_advantage_only(evaluate):
    behaviour = np.array([0.2, 0.4, 0.1, 0.3])
    ratios = np.array([1.5, 0.5, 1.5, 0.5])
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    group = make_group(
        np.log(behaviour * ratios),
        [1.0, 1.0, -1.0, -1.0],
        behaviour_log_probs=np.log(behaviour),
        shares=shares,
    )
    loss, weights = evaluate(ppo, group, beta=0.0, clip=0.2)

    np.testing.assert_allclose(loss, -shares @ [1.2, 0.5, -1.5, -0.8], rtol=1e-13)
    np.testing.assert_allclose(weights, shares * [0, 0.5, -1.5, 0], rtol=1e-13)
    assert (weights[[0, 3]] == 0).all()


@given(seeds, st.floats(0, 2), st.floats(0, 1), st.floats(0.05, 0.5))
def test_random_groups_follow_the_textbook(
    evaluate, random_group, numerical_weights, seed, beta, m, clip
):
    group = random_group(seed)
    cases = (
        (reinforce, {}, lambda x: textbook_reinforce(x, group, beta, m)),
        (ppo, {"clip": clip}, lambda x: textbook_ppo(x, group, beta, m, clip)),
    )
    for method, extra, textbook in cases:
        loss, weights = evaluate(method, group, beta=beta, prompt_baseline=m, **extra)
        np.testing.assert_allclose(loss, textbook(group.log_probs), rtol=1e-11, atol=1e-13)
        slopes = numerical_weights(textbook, group.log_probs)
        np.testing.assert_allclose(weights, slopes, rtol=1e-6, atol=1e-7)


@given(seeds, st.floats(0, 2), st.floats(0, 1))
def test_ppo_weighs_fresh_samples_as_reinforce_does(evaluate, random_group, seed, beta, m):
    group = random_group(seed)
    group = dataclasses.replace(group, behaviour_log_probs=group.log_probs)
    weights = [evaluate(loss, group, beta=beta, prompt_baseline=m)[1] for loss in (ppo, reinforce)]
    np.testing.assert_allclose(*weights, rtol=1e-12, atol=1e-15)


@given(seeds, st.floats(0.01, 2), st.floats(0, 1))
def test_exact_reinforce_is_the_policy_gradient_of_theory(evaluate, random_group, seed, beta, m):
    group = random_group(seed, whole_space=True)
    weights = evaluate(reinforce, group, beta=beta, prompt_baseline=m)[1]
    expected = mode_seeking.policy_gradient(
        group.log_probs, group.rewards, group.reference_log_probs, beta
    )
    in_logits = weights @ (np.eye(4) - group.shares)
    np.testing.assert_allclose(in_logits, expected, rtol=1e-10, atol=1e-13)
    if m == 1:  # the mean as baseline: the weights are centred already
        np.testing.assert_allclose(weights, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("loss", [reinforce, ppo])
def test_equal_rewards_teach_nothing_against_their_own_mean(loss, evaluate):
    group = make_group(np.log(PROBS), np.full(3, 0.7), shares=SHARES, baseline=-3)
    np.testing.assert_allclose(evaluate(loss, group, prompt_baseline=1.0)[1], 0, atol=1e-15)


@pytest.mark.parametrize("loss", [reinforce, ppo])
def test_copies_of_a_response_share_its_weight(loss, evaluate):
    once = evaluate(loss, make_group(np.log(PROBS), **GROUP))
    copied = {k: np.append(v, v[0]) if np.ndim(v) else v for k, v in GROUP.items()}
    copied["shares"] = [0.25, 0.25, 0.25, 0.25]
    twice = evaluate(loss, make_group(np.log(np.append(PROBS, PROBS[0])), **copied))
    np.testing.assert_allclose(twice[0], once[0], rtol=1e-13)
    np.testing.assert_allclose(twice[1], [*once[1] / [2, 1, 1], once[1][0] / 2], rtol=1e-13)


def test_ppo_gives_no_weight_to_a_response_that_is_far_outside_the_trust_region(evaluate):
    with jax.enable_x64(False):
        group = make_group(
            np.array([-1.0, -200.0]), [1.0, -1.0], behaviour_log_probs=np.array([-200.0, -1.0])
        )
        loss, weights = evaluate(ppo, group, beta=0.0)
    assert np.isfinite(loss)
    np.testing.assert_array_equal(weights, [0, 0])


@given(seeds, st.floats(0, 2))
def test_soft_optimization_is_minus_the_regularised_objective(evaluate, random_group, seed, beta):
    group = random_group(seed, whole_space=True)
    loss, weights = evaluate(soft_optimize, group, beta=beta)
    probs, ratios = np.exp(group.log_probs), group.log_probs - group.reference_log_probs
    np.testing.assert_allclose(
        loss, beta * probs @ ratios - probs @ group.rewards, rtol=1e-11, atol=1e-13
    )
    if beta > 0:
        value = gibbs.regularised_objective(
            group.log_probs, group.rewards, group.reference_log_probs, beta
        )
        np.testing.assert_allclose(loss, -value, rtol=1e-11, atol=1e-13)
    slopes = probs * (group.rewards - beta * ratios - beta)
    np.testing.assert_allclose(weights, slopes, rtol=1e-10, atol=1e-13)


@given(seeds, st.floats(0.05, 2))
def test_soft_optimization_is_the_reverse_kl_to_the_gibbs_policy(
    evaluate, random_group, seed, beta
):
    group = random_group(seed, whole_space=True)
    target = gibbs.gibbs_log_probs(group.rewards, group.reference_log_probs, beta)
    best = gibbs.optimal_value(group.rewards, group.reference_log_probs, beta)
    loss, weights = evaluate(soft_optimize, group, beta=beta)
    np.testing.assert_allclose(
        loss, beta * kl_divergence(group.log_probs, target) - best, rtol=1e-10, atol=1e-12
    )
    at_optimum = dataclasses.replace(group, log_probs=np.asarray(target))
    loss, weights = evaluate(soft_optimize, at_optimum, beta=beta)
    np.testing.assert_allclose(loss, -best, rtol=1e-11, atol=1e-13)
    in_logits = weights @ (np.eye(4) - np.exp(target))
    np.testing.assert_allclose(in_logits, 0, atol=1e-12)


@given(seeds, st.floats(0, 2))
def test_soft_optimization_is_reinforce_without_samples(evaluate, random_group, seed, beta):
    group = random_group(seed, whole_space=True)
    in_logits = [
        evaluate(loss, group, beta=beta)[1] @ (np.eye(4) - group.shares)
        for loss in (soft_optimize, reinforce)
    ]
    np.testing.assert_allclose(*in_logits, rtol=1e-9, atol=1e-13)


def test_soft_optimization_leaves_excluded_responses_out(evaluate):
    with np.errstate(divide="ignore"):
        log_probs, reference = np.log([[0.6, 0.4, 0.0], [0.5, 0.5, 0.0]])
    rewards = np.array([1.0, 0.0, 9.0])
    whole = evaluate(
        soft_optimize, make_group(log_probs, rewards, reference_log_probs=reference), beta=0.3
    )
    part = evaluate(
        soft_optimize,
        make_group(log_probs[:2], rewards[:2], reference_log_probs=reference[:2]),
        beta=0.3,
    )
    np.testing.assert_allclose(whole[0], part[0], rtol=1e-13)
    np.testing.assert_allclose(whole[1], [*part[1], 0], rtol=1e-13)


def test_soft_optimization_refuses_a_negative_beta():
    with pytest.raises(ValueError, match=r"beta is -0\.1"):
        soft_optimize(make_group(np.log(PROBS), **GROUP), beta=-0.1)
