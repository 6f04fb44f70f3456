"""What is exactly zero stays zero in float32: adaptive optimisers divide rounding by its size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bandits.losses import METHODS, make_group, switch
from bandits.policies import context_network, log_linear, product_of_tokens, tabular_softmax
from bandits.problems.environments import CategoricalBandit
from bandits.simulation import OPTIMIZERS
from bandits.training import (
    Schedule,
    from_dataset,
    make_trainer,
    on_bandit,
    on_whole_space,
    train,
)
from theory.pairs import Pairs

STEPS = 1_000
COVERED = 3
SETTINGS = {
    "dpo": {"beta": 0.5},
    "ipo": {"tau": 0.5},
    "hinge": {"beta": 0.5},
    "dpo smoothed": {"beta": 0.5, "label_smoothing": 0.1},
    "slic": {"regularization": 0.0},
}
"""Methods under which a response in no pair has no gradient: all that compare pairs alone."""

OF_REWARDS = {
    "best_of_n_minus_worst": {"coefficient": 1.0},
    "best_of_n_minus_mean": {"coefficient": 1.0},
    "reinforce": {"beta": 0.0, "prompt_baseline": 1.0},
    "online_dpo": {"beta": 0.5},
}
"""Methods under which a response that was not drawn has none: their weights sum to zero."""


def bind(settings):
    return [METHODS[name.split()[0]].bind(**values) for name, values in settings.items()]


def references():
    return np.random.default_rng(0).dirichlet(np.ones(6), size=3)


def given_pairs(dtype):
    wins = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    weights = np.array([2, 2, 1, 3, 1, 1]) / 10
    winners, losers = np.array(wins).T
    return Pairs(jnp.asarray(winners), jnp.asarray(losers), jnp.asarray(weights, dtype))


def uncovered_logits(optimizer, settings, collect_of, schedule):
    """Logits of the responses without data at the end, of every method and reference."""
    losses, policy = bind(settings), tabular_softmax()

    def run(index, reference):
        start = jnp.log(reference)
        end = train(
            jax.random.key(0),
            policy,
            start,
            switch(index, losses),
            collect_of(policy, start),
            schedule,
            optimizer,
            lambda logits: {"logits": logits},
        )
        return end["logits"][-1, COVERED:]

    by_method = jax.vmap(run, in_axes=(0, None))
    by_reference = jax.jit(jax.vmap(by_method, in_axes=(None, 0)))
    return np.asarray(by_reference(jnp.arange(len(losses)), jnp.asarray(references(), float)))


def from_pairs(policy, start):
    unrewarded = CategoricalBandit(jnp.zeros_like(start), start)
    return on_whole_space(policy, unrewarded, given_pairs(start.dtype))


def from_batch(policy, start):
    """Eight groups of the covered responses, labelled by a reward with ties."""
    schedule = Schedule(STEPS, 4, 32, 32, STEPS)
    reward = jnp.array([0.3, 0.1, 0.7, 0.0, 0.0, 0.0], start.dtype)
    bandit = CategoricalBandit(reward, start)
    drawn = on_bandit(policy, bandit, schedule)
    law = jnp.where(jnp.arange(6) < COVERED, 0.0, -jnp.inf)
    return from_dataset(drawn(law, jax.random.key(1), jnp.int32(0)), schedule)


def differences(logits):
    return logits[..., 1:] - logits[..., :1]


KINDS = pytest.mark.parametrize(
    ("settings", "collect_of", "schedule"),
    [
        (SETTINGS, from_pairs, Schedule.whole_space(STEPS, 6)),
        (OF_REWARDS, from_batch, Schedule(STEPS, 4, 32, 32, STEPS)),
    ],
    ids=["given pairs", "one batch"],
)


@KINDS
def test_a_step_leaves_responses_without_data_as_they_are(settings, collect_of, schedule):
    losses, policy = bind(settings), tabular_softmax()
    start = jnp.log(jnp.asarray(references()[0], jnp.float32))

    def step(index, logits):
        collect = collect_of(policy, start)
        trainer = make_trainer(policy, switch(index, losses), collect, schedule, optax.sgd(1.0))
        return trainer.step(trainer.init(logits), jax.random.key(0)).params

    logits = jnp.asarray(np.random.default_rng(0).normal(scale=3.0, size=(64, 6)), jnp.float32)
    by_method = jax.vmap(step, in_axes=(0, None))
    moved = jax.jit(jax.vmap(by_method, (None, 0)))(jnp.arange(len(losses)), logits)
    change = np.asarray(moved - logits[:, None])
    np.testing.assert_array_equal(change[..., COVERED:], 0.0)
    assert (np.abs(change[..., :COVERED]).max((0, 2)) > 1e-2).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimiser_moves_a_logit_whose_gradient_is_zero(name):
    gradients = np.random.default_rng(0).normal(size=(STEPS, 6)) * (np.arange(6) < COVERED)

    def follow(dtype):
        optimizer = OPTIMIZERS[name](0.03)
        logits = jnp.log(jnp.asarray(references()[0], dtype))

        def step(carry, gradient):
            logits, state = carry
            updates, state = optimizer.update(gradient, state, logits)
            return (optax.apply_updates(logits, updates), state), None

        start = logits, optimizer.init(logits)
        (end, _), _ = jax.lax.scan(step, start, jnp.asarray(gradients, dtype))
        return differences(np.asarray(end, float)[COVERED:])

    found = follow(jnp.float32)
    with jax.enable_x64(True):
        exact = follow(jnp.float64)
    # A weight decay takes 3e-6 of itself off a logit each time. Each time that rounds by up to
    # 2.4e-7, half of the last place of a logit of 7.
    bound = 2.4e-7 * STEPS if name == "adamw" else 1e-5
    assert np.abs(found - exact).max() < bound
    if name not in ("adamw", "lion", "yogi"):  # which let all logits decay, or start with a push
        start = differences(np.log(references()[0])[COVERED:])
        assert np.abs(found - start).max() < 1e-6


@KINDS
def test_responses_without_data_keep_their_logits_under_adam(settings, collect_of, schedule):
    found = uncovered_logits(optax.adam(0.03), settings, collect_of, schedule)
    assert np.isfinite(found).all()
    start = differences(np.log(references())[:, None, COVERED:])
    assert np.abs(differences(found) - start).max() < 1e-6


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_and_features_of_no_pair_have_no_gradient_at_all(name):
    (loss,) = bind({name: SETTINGS[name]})
    pairs = given_pairs(jnp.float32)

    def gradient(policy, params, responses):
        def total(params):
            scores, log_normalizer = policy.score(params, None, responses)
            log_probs = scores - log_normalizer
            group = make_group(
                log_probs, jnp.zeros(3), reference_log_probs=jnp.zeros(3), preferences=pairs
            )
            return loss(dataclasses.replace(group, scores=scores))

        return jax.jit(jax.grad(total))(params)

    features = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)
    features = features.at[:COVERED, 3:].set(0.0)  # the last two tell responses without data apart
    of_features = gradient(log_linear(features), jnp.full(5, 0.3), jnp.arange(COVERED))
    assert np.abs(of_features[:3]).max() > 1e-3
    np.testing.assert_array_equal(of_features[3:], 0.0)

    sequences = jnp.array([[0, 1], [1, 2], [2, 0]])
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5)), jnp.float32)
    of_tokens = gradient(product_of_tokens(5, 2), logits, sequences)
    np.testing.assert_array_equal(of_tokens[:, 3:], 0.0)

    network = context_network(6, 4, (8,))
    layers = network.init(key=jax.random.key(0))
    of_layers = gradient(
        network._replace(scored=lambda p, _, arms: network.scored(p, jnp.ones(4), arms)),
        layers, jnp.arange(COVERED),
    )  # fmt: skip
    np.testing.assert_array_equal(of_layers[-1].bias[COVERED:], 0.0)
    np.testing.assert_array_equal(of_layers[-1].kernel[:, COVERED:], 0.0)


def test_an_excluded_response_survives_optimisers_that_let_logits_decay():
    start = jnp.log(jnp.array([0.2, 0.3, 0.5, 0.0]))
    pairs = Pairs(jnp.array([0, 1]), jnp.array([1, 2]), jnp.array([0.5, 0.5]))
    policy = tabular_softmax()
    collect = on_whole_space(policy, CategoricalBandit(jnp.zeros(4), start), pairs)
    for name in ("adamw", "lion"):
        end = train(
            jax.random.key(0), policy, start, METHODS["dpo"].bind(), collect,
            Schedule.whole_space(20, 4), OPTIMIZERS[name](0.03), lambda logits: {"logits": logits},
        )  # fmt: skip
        assert int(end["diverged_at"]) == -1
        assert np.isneginf(end["logits"][-1, 3])
        assert np.isfinite(end["logits"][-1, :3]).all()
