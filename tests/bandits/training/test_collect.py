"""What is collected: its law, its layout, and the expectations that take the place of samples."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bandits.losses import METHODS, make_group
from bandits.policies import context_network, log_linear, tabular_softmax
from bandits.problems.environments import CategoricalBandit
from bandits.problems.preferences import preference_probabilities
from bandits.training import (
    Minibatch,
    Schedule,
    against_own,
    from_dataset,
    on_bandit,
    on_policy,
    on_whole_space,
    own_pairs,
    with_own_samples,
)
from theory.checks import InvalidInput

pytestmark = pytest.mark.usefixtures("float64")

KEY = jax.random.key(20240414)
POLICY = tabular_softmax(5)
START = np.log([0.3, 0.3, 0.2, 0.1, 0.1])
ELSEWHERE = np.log([0.1, 0.1, 0.1, 0.2, 0.5])
REWARDS = np.array([0.0, 0.2, 1.0, 0.5, 0.7])
SCHEDULE = Schedule(steps=10, group=2, minibatch=4, batch=8, passes=2)
PAIRS = Schedule(steps=1, group=2, minibatch=2, batch=2)

seeds = st.integers(0, 2**32 - 1)


def bandit(rewards=REWARDS, reference=START):
    return CategoricalBandit(jnp.asarray(rewards), jnp.asarray(reference))


def update(policy, loss, params, minibatch):
    """The gradient of the loss, as `train` takes it."""

    def value(params):
        log_probs = jax.vmap(policy.log_prob, (None, 0, 0))(
            params, minibatch.contexts, minibatch.responses
        )
        return jax.vmap(loss)(dataclasses.replace(minibatch.groups, log_probs=log_probs)).mean()

    return jax.grad(value)(params)


def assert_is_the_mean(samples, expected):
    """Within 4.5 standard errors everywhere; these are small beside what is expected."""
    samples = np.asarray(samples)
    errors = samples.std(axis=0) / np.sqrt(len(samples))
    assert errors.max() < 0.03 * np.abs(expected).max()
    np.testing.assert_array_less(np.abs(samples.mean(axis=0) - expected), 4.5 * errors + 1e-12)


# Samples of a policy


@jax.jit
def collect_often(behaviour):
    collect = on_bandit(POLICY, bandit(), SCHEDULE)
    return jax.vmap(lambda key: collect(behaviour, key, 0))(jax.random.split(KEY, 5000))


def test_a_minibatch_holds_the_behaviours_responses_and_what_is_said_of_them():
    minibatch = collect_often(ELSEWHERE)
    arms, groups = np.asarray(minibatch.responses), minibatch.groups
    assert arms.shape == (5000, 2, 2)
    assert minibatch.contexts is None
    drawn = np.bincount(arms.ravel(), minlength=5)
    assert stats.chisquare(drawn, arms.size * np.exp(ELSEWHERE)).pvalue > 1e-3
    pairs = np.bincount((arms @ [5, 1]).ravel(), minlength=25)
    law = np.exp(ELSEWHERE[:, None] + ELSEWHERE).ravel()
    assert stats.chisquare(pairs, 10_000 * law).pvalue > 1e-3
    across = np.bincount((5 * arms[:, 0] + arms[:, 1]).ravel(), minlength=25)
    assert stats.chisquare(across, 10_000 * law).pvalue > 1e-3
    for found, law in (
        (groups.log_probs, ELSEWHERE),
        (groups.behaviour_log_probs, ELSEWHERE),
        (groups.reference_log_probs, START),
        (groups.rewards, REWARDS),
    ):
        np.testing.assert_allclose(found, law[arms], rtol=1e-12)
    np.testing.assert_array_equal(groups.shares, 0.5)
    wins = REWARDS[arms][..., :, None] > REWARDS[arms][..., None, :]
    np.testing.assert_array_equal(groups.pair_weights, wins)


def test_without_prompts_a_minibatch_is_one_draw_and_labels_have_keys_of_their_own():
    def label(key, rewards):
        return jax.random.uniform(key, 2 * rewards.shape)

    collect = on_policy(
        POLICY,
        None,
        lambda context, arms: jnp.asarray(REWARDS)[arms],
        SCHEDULE,
        reference_log_prob=lambda context, arms: jnp.asarray(START)[arms],
        label=label,
    )
    found = collect(jnp.asarray(ELSEWHERE), KEY, 0)
    draw_key, label_key = jax.random.split(KEY)
    arms = POLICY.sample(jnp.asarray(ELSEWHERE), draw_key, None, 4).reshape(2, 2)
    np.testing.assert_array_equal(found.responses, arms)
    keys = jax.random.split(label_key)
    labels = [label(key, REWARDS[own]) for key, own in zip(keys, arms, strict=True)]
    np.testing.assert_array_equal(found.groups.pair_weights, labels)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_prompts_are_taken_all_in_order_or_some_without_repeats(count):
    policy, prompts = context_network(4, 2, widths=(3,)), jnp.arange(6.0).reshape(3, 2)
    params = policy.init(key=KEY)
    collect = on_policy(
        policy,
        prompts,
        lambda context, arms: context[0] + arms,
        Schedule(1, 2, 2 * count, 2 * count),
        reference_log_prob=lambda context, arms: context[1] * arms,
    )
    minibatches = jax.jit(jax.vmap(lambda key: collect(params, key, 0)))(jax.random.split(KEY, 300))
    contexts, arms = np.asarray(minibatches.contexts), minibatches.responses
    groups = minibatches.groups
    assert arms.shape == (300, count, 2)
    np.testing.assert_array_equal(groups.rewards, contexts[..., :1] + arms)
    np.testing.assert_array_equal(groups.reference_log_probs, contexts[..., 1:] * arms)
    laws = jax.vmap(policy.log_probs, (None, 0))(params, prompts)
    places = (contexts[..., 0] // 2).astype(int)
    np.testing.assert_allclose(groups.log_probs, laws[places[..., None], arms], rtol=1e-9)
    if count == 3:
        np.testing.assert_array_equal(contexts, np.tile(prompts, (300, 1, 1)))
    else:
        counts = np.bincount(places.ravel(), minlength=3)
        assert np.ptp(counts) < 4 * np.sqrt(2 * counts.sum() / 3)
    if count < 3:
        assert (places[:, 0] != places[:, 1]).all()


def test_prompts_may_be_numpy_arrays():
    prompts = np.arange(6.0).reshape(3, 2)
    zeros = on_policy(
        POLICY,
        prompts,
        lambda context, arms: context[0] + arms,
        SCHEDULE,
        reference_log_prob=lambda context, arms: jnp.zeros(2),
    )
    minibatch = jax.jit(zeros)(START, KEY, 0)
    assert np.isin(minibatch.contexts, prompts).all()


# A dataset


def collected(batch):
    collect = on_bandit(POLICY, bandit(), SCHEDULE)
    parts = [collect(START, jax.random.fold_in(KEY, i), i) for i in range(batch // 4)]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def test_a_dataset_is_read_in_order():
    dataset = collected(12)
    collect = from_dataset(dataset, Schedule(1, 2, 4, 12))
    for number in range(3):
        minibatch = collect(None, None, number)
        expected = dataset.responses[2 * number : 2 * number + 2]
        np.testing.assert_array_equal(minibatch.responses, expected)
        np.testing.assert_array_equal(minibatch.groups.rewards, REWARDS[expected])


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Schedule(1, 4, 4, 8), "group is 4; the dataset has 2 a prompt"),
        (Schedule(1, 2, 4, 12), "batch is 12; the dataset holds 8 responses"),
        (Schedule(1, 2, 4, 8, most_batch=16), "batch is 16; the dataset holds 8"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(schedule, message):
    with pytest.raises(InvalidInput, match=message):
        from_dataset(collected(8), schedule)


# The whole space


def test_the_whole_space_is_one_group_with_the_behaviours_probabilities_as_shares():
    minibatch = on_whole_space(POLICY, bandit())(jnp.asarray(ELSEWHERE), KEY, 0)
    group = jax.tree.map(lambda leaf: np.asarray(leaf)[0], minibatch.groups)
    assert minibatch.contexts is None
    np.testing.assert_array_equal(minibatch.responses, [np.arange(5)])
    np.testing.assert_allclose(group.shares, np.exp(ELSEWHERE), rtol=1e-12)
    np.testing.assert_allclose(group.log_probs, ELSEWHERE, rtol=1e-12)
    np.testing.assert_allclose(group.behaviour_log_probs, ELSEWHERE, rtol=1e-12)
    np.testing.assert_array_equal(group.reference_log_probs, START)
    np.testing.assert_array_equal(group.rewards, REWARDS)
    wins = REWARDS[:, None] > REWARDS
    pairs = 2 * np.exp(ELSEWHERE[:, None] + ELSEWHERE) * wins
    np.testing.assert_allclose(group.pair_weights, pairs, rtol=1e-12)


@jax.jit
def sampled_updates(params, behaviour, rewards):
    """Of two responses each, by DPO and by REINFORCE."""
    collect = on_bandit(POLICY, bandit(rewards), PAIRS)

    def one(key):
        minibatch = collect(behaviour, key, 0)
        return {
            name: update(POLICY, METHODS[name].bind(beta=0.5), params, minibatch)
            for name in ("dpo", "online_dpo", "reinforce")
        }

    return jax.vmap(one)(jax.random.split(KEY, 60_000))


TIED = np.array([0.0, 0.2, 1.0, 0.2, 1.0])


@pytest.mark.parametrize(
    ("name", "behaviour", "rewards"),
    [
        ("dpo", ELSEWHERE, REWARDS),
        ("online_dpo", START, REWARDS),
        ("online_dpo", START, TIED),
        ("reinforce", START, REWARDS),
    ],
    ids=["dpo", "online dpo", "online dpo, ties", "reinforce"],
)
def test_the_update_is_the_mean_of_the_updates_of_two_samples_each(name, behaviour, rewards):
    """DPO's are offline: of another policy than the one that is updated."""
    params = jnp.asarray(START)
    samples = sampled_updates(params, behaviour, rewards)[name]
    minibatch = on_whole_space(POLICY, bandit(rewards))(jnp.asarray(behaviour), None, 0)
    assert_is_the_mean(samples, update(POLICY, METHODS[name].bind(beta=0.5), params, minibatch))


@given(seeds)
def test_the_update_is_the_sum_over_all_two_samples_by_their_chance(seed):
    """The same without chance: all 16 outcomes, each with its own group."""
    rng = np.random.default_rng(seed)
    probs, reference, rewards = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4)), rng.random(4)
    found = expected_updates(np.log(probs), np.log(reference), rewards)
    outcomes = np.stack(np.meshgrid(range(4), range(4), indexing="ij"), axis=-1).reshape(-1, 2)
    each = updates_of_pairs(np.log(probs), np.log(reference), rewards, outcomes)
    for name, updates in each.items():
        expected = probs[outcomes].prod(axis=1) @ updates
        np.testing.assert_allclose(found[name], expected, rtol=1e-10, atol=1e-12)


ON_POLICY = ("online_dpo", "online_ipo", "reinforce")


@jax.jit
def expected_updates(log_probs, reference, rewards):
    minibatch = on_whole_space(POLICY, bandit(rewards, reference))(log_probs, None, 0)
    return {n: update(POLICY, METHODS[n].loss, log_probs, minibatch) for n in ON_POLICY}


@jax.jit
def updates_of_pairs(log_probs, reference, rewards, outcomes):
    def one(arms):
        group = make_group(
            log_probs[arms], rewards[arms], reference_log_probs=jnp.asarray(reference)[arms]
        )
        minibatch = Minibatch(None, arms[None], jax.tree.map(lambda leaf: leaf[None], group))
        return {n: update(POLICY, METHODS[n].loss, log_probs, minibatch) for n in ON_POLICY}

    return jax.vmap(one)(jnp.asarray(outcomes))


def test_given_pairs_are_those_of_every_policy():
    pairs = np.zeros((5, 5))
    pairs[2, 0], pairs[1, 4] = 0.75, 0.25
    collect = on_whole_space(POLICY, bandit(), jnp.asarray(pairs))
    for behaviour in (START, ELSEWHERE):
        np.testing.assert_array_equal(collect(behaviour, KEY, 0).groups.pair_weights[0], pairs)


def test_pairs_of_a_policy_follow_it():
    def twice(log_probs):
        return jnp.outer(jnp.exp(log_probs), jnp.exp(2 * log_probs))

    collect = on_whole_space(POLICY, bandit(), twice)
    for behaviour in (START, ELSEWHERE):
        found = collect(jnp.asarray(behaviour), KEY, 0).groups.pair_weights[0]
        np.testing.assert_allclose(found, np.exp(behaviour[:, None] + 2 * behaviour), rtol=1e-12)


def test_nothing_is_drawn():
    collect = on_whole_space(POLICY, bandit())
    first, other = (collect(jnp.asarray(ELSEWHERE), jax.random.key(i), i) for i in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, other)


def test_log_ratios_are_to_the_behaviour_where_it_is_its_own_reference():
    collect = on_whole_space(POLICY, bandit(), own_reference=True)
    groups = collect(jnp.asarray(ELSEWHERE), KEY, 0).groups
    np.testing.assert_array_equal(groups.log_ratios, 0)
    np.testing.assert_allclose(groups.reference_log_probs[0], ELSEWHERE, rtol=1e-12)


@pytest.mark.parametrize("own_reference", [False, True])
def test_a_law_takes_the_behaviours_place_for_shares_and_pairs_only(own_reference):
    def collect(behaviour):
        whole = on_whole_space(
            POLICY, bandit(), law=lambda own: own[::-1], own_reference=jnp.asarray(own_reference)
        )
        return whole(jnp.asarray(behaviour), KEY, 0).groups

    groups, law = collect(ELSEWHERE), ELSEWHERE[::-1]
    np.testing.assert_allclose(groups.shares[0], np.exp(law), rtol=1e-12)
    np.testing.assert_allclose(groups.behaviour_log_probs[0], law, rtol=1e-12)
    wins = REWARDS[:, None] > REWARDS
    pairs = 2 * np.exp(law[:, None] + law) * wins
    np.testing.assert_allclose(groups.pair_weights[0], pairs, rtol=1e-12)
    reference = ELSEWHERE if own_reference else START
    np.testing.assert_allclose(groups.reference_log_probs[0], reference, rtol=1e-12)


def test_the_parameters_need_not_be_logits():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))
    policy = log_linear(features, jnp.asarray(START))
    theta = jnp.array([0.3, -0.7])
    groups = on_whole_space(policy, bandit())(theta, KEY, 0).groups
    weights = np.exp(START + np.asarray(features @ theta))
    np.testing.assert_allclose(groups.shares[0], weights / weights.sum(), rtol=1e-12)


@pytest.mark.parametrize("name", ["online_dpo", "reinforce", "ppo", "rlhf", "hypo"])
def test_an_excluded_response_is_not_moved_and_leaves_no_nan(name):
    with np.errstate(divide="ignore"):
        log_probs = jnp.asarray(np.log([0.4, 0.3, 0.3, 0.0, 0.0]))
    minibatch = on_whole_space(POLICY, bandit(reference=log_probs))(log_probs, KEY, 0)
    gradient = update(POLICY, METHODS[name].loss, log_probs, minibatch)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[3:], 0)
    assert np.abs(gradient).max() > 1e-4


# Pairs of a policy's own


PROBS = np.array([0.5, 0.3, 0.2])


def test_own_pairs_are_those_computed_by_hand():
    always = np.array([[0, 1, 1], [0, 0, 1], [0, 0, 0]])
    found = own_pairs(jnp.asarray(always))(jnp.log(PROBS))
    np.testing.assert_allclose(found, [[0, 0.3, 0.2], [0, 0, 0.12], [0, 0, 0]], rtol=1e-12)
    noisy = np.array([[0.5, 0.9, 0.8], [0.1, 0.5, 0.7], [0.2, 0.3, 0.5]])
    found = own_pairs(jnp.asarray(noisy))(jnp.log(PROBS))
    expected = [[0, 0.27, 0.16], [0.03, 0, 0.084], [0.04, 0.036, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_pairs_against_demonstrations_are_those_computed_by_hand():
    found = against_own(jnp.array([0.1, 0.3, 0.6]))(jnp.log(PROBS))
    expected = [[0, 0.03, 0.02], [0.15, 0, 0.06], [0.3, 0.18, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@given(seeds)
def test_weights_sum_to_the_chance_that_two_samples_differ(seed):
    rng = np.random.default_rng(seed)
    probs, shown = rng.dirichlet(np.ones(4), 2)
    wins = preference_probabilities(rng.normal(size=4), temperature=1.0)
    for pairs, expected in (
        (own_pairs(wins), 1 - probs @ probs),
        (against_own(jnp.asarray(shown)), 1 - shown @ probs),
    ):
        table = np.asarray(pairs(jnp.log(probs)))
        assert (np.diag(table) == 0).all()
        np.testing.assert_allclose(table.sum(), expected, rtol=1e-12)


def test_self_play_rests_at_its_demonstrations_and_nowhere_else():
    collect = on_whole_space(
        POLICY, bandit(), against_own(jnp.exp(jnp.asarray(ELSEWHERE))), own_reference=True
    )
    loss = METHODS["spin"].loss
    for params, rests in ((ELSEWHERE, True), (START, False)):
        params = jnp.asarray(params)
        gradient = np.abs(update(POLICY, loss, params, collect(params, KEY, 0)))
        assert (gradient.max() < 1e-15) == rests


# Pairs beside samples


OWN = 3


@functools.partial(jax.jit, static_argnames="count")
def collect_beside(behaviour, keys, count=OWN):
    beside = with_own_samples(
        on_bandit(POLICY, bandit(), SCHEDULE),
        POLICY,
        count,
        reference_log_prob=lambda _, arms: jnp.asarray(START)[arms],
    )
    return jax.vmap(lambda key: beside(behaviour, key, 0))(keys)


def test_the_pairs_keep_their_block_and_the_shares_are_on_the_own_samples():
    keys = jax.random.split(KEY, 50)
    minibatch = collect_beside(jnp.asarray(ELSEWHERE), keys)
    groups, arms = minibatch.groups, np.asarray(minibatch.responses)
    sample = on_bandit(POLICY, bandit(), SCHEDULE)
    alone = jax.vmap(lambda key: sample(ELSEWHERE, jax.random.split(key)[0], 0))(keys)
    assert arms.shape == (50, 2, 2 + OWN)
    assert groups.pair_weights.shape == (50, 2, 2 + OWN, 2 + OWN)
    np.testing.assert_array_equal(arms[..., :2], alone.responses)
    np.testing.assert_array_equal(groups.rewards[..., :2], alone.groups.rewards)
    np.testing.assert_array_equal(groups.pair_weights[..., :2, :2], alone.groups.pair_weights)
    assert (np.asarray(groups.pair_weights[..., :2, :2]) > 0).any()
    assert not groups.pair_weights[..., 2:, :].any()
    assert not groups.pair_weights[..., :, 2:].any()
    np.testing.assert_array_equal(groups.rewards[..., 2:], 0)
    np.testing.assert_array_equal(groups.shares[..., :2], 0)
    np.testing.assert_allclose(groups.shares[..., 2:], 1 / OWN, rtol=1e-15)
    np.testing.assert_allclose(groups.shares.sum(axis=-1), 1, rtol=1e-15)
    for found, law in (
        (groups.log_probs, ELSEWHERE),
        (groups.behaviour_log_probs, ELSEWHERE),
        (groups.reference_log_probs, START),
    ):
        np.testing.assert_allclose(found, law[arms], rtol=1e-12)


def test_the_own_samples_are_independent_of_each_other_and_of_the_pairs():
    arms = np.asarray(collect_beside(jnp.asarray(ELSEWHERE), jax.random.split(KEY, 5000)).responses)
    own = np.bincount(arms[..., 2:].ravel(), minlength=5)
    assert stats.chisquare(own, own.sum() * np.exp(ELSEWHERE)).pvalue > 1e-3
    law = 5000 * np.exp(ELSEWHERE[:, None] + ELSEWHERE).ravel()
    flat = arms.reshape(5000, -1)  # two groups, each of a pair and own samples
    for i in range(flat.shape[1]):
        for j in range(i):
            both = np.bincount(flat[:, i] * 5 + flat[:, j], minlength=25)
            assert stats.chisquare(both, law).pvalue > 1e-4


def test_own_samples_are_drawn_for_the_context_of_their_pairs():
    policy, prompts = context_network(4, 2, widths=(3,)), jnp.arange(6.0).reshape(3, 2)
    params = policy.init(key=KEY)
    schedule = Schedule(1, 2, 6, 6)

    def reference(context, arms):
        return context[1] * arms

    collect = with_own_samples(
        on_policy(policy, prompts, lambda _, arms: 1.0 * arms, schedule,
                  reference_log_prob=reference),
        policy, 2, reference_log_prob=reference,
    )  # fmt: skip
    many = jax.jit(jax.vmap(lambda key: collect(params, key, 0)))(jax.random.split(KEY, 2000))
    assert many.responses.shape == (2000, 3, 4)
    np.testing.assert_array_equal(many.contexts, np.tile(prompts, (2000, 1, 1)))
    laws = np.asarray(jax.vmap(policy.log_probs, (None, 0))(params, prompts))
    expected = laws[np.arange(3)[:, None], many.responses]
    np.testing.assert_allclose(many.groups.log_probs, expected, rtol=1e-9)
    np.testing.assert_array_equal(
        many.groups.reference_log_probs, many.contexts[..., 1:] * many.responses
    )
    for p, law in enumerate(laws):
        drawn = np.bincount(np.asarray(many.responses[:, p, 2:]).ravel(), minlength=4)
        assert stats.chisquare(drawn, drawn.sum() * np.exp(law)).pvalue > 1e-3


COEFFICIENT = 0.7


@functools.partial(jax.jit, static_argnames="count")
def hypo_updates(params, dataset, count):
    """By given pairs beside the policy's own samples."""
    collect = with_own_samples(
        from_dataset(dataset, SCHEDULE),
        POLICY,
        count,
        reference_log_prob=lambda _, arms: jnp.asarray(START)[arms],
    )
    loss = METHODS["hypo"].bind(beta=0.5, kl_coefficient=COEFFICIENT)

    def one(key):
        return update(POLICY, loss, params, collect(params, key, 0))

    return jax.vmap(one)(jax.random.split(KEY, 40_000))


@pytest.mark.parametrize("count", [2, 6])
def test_the_mean_update_of_hypo_is_that_of_dpo_and_a_share_of_the_kls(count):
    """The share is 1 − 1/C: the mean that is subtracted contains the sample itself."""
    params, dataset = jnp.asarray(ELSEWHERE), collected(8)
    of_dpo = update(
        POLICY,
        METHODS["dpo"].bind(beta=0.5),
        params,
        from_dataset(dataset, SCHEDULE)(None, None, 0),
    )
    probs, ratios = np.exp(ELSEWHERE), ELSEWHERE - START
    of_kl = probs * (ratios - probs @ ratios)
    expected = of_dpo + COEFFICIENT * (1 - 1 / count) * of_kl
    assert np.abs(COEFFICIENT / count * of_kl).max() > 0.1 * np.abs(expected).max()
    assert_is_the_mean(hypo_updates(params, dataset, count), expected)
