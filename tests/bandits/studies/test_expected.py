"""Training without noise: each step against a sum over all outcomes, and what depends on what."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from bandits import training
from bandits.losses import METHODS
from bandits.policies import log_linear, tabular_softmax
from bandits.studies.expected import (
    IN_EXPECTATION,
    IN_GROUPS,
    Descent,
    Problem,
    even_steps,
    updates_in_expectation,
)

K = 4
REWARD = np.array([1.0, 0.4, -0.2, 0.7])
REFERENCE = np.array([0.1, 0.3, 0.35, 0.25])
DATA = np.array([0.5, 0.2, 0.3, 0.0])  # far from the reference, and without its last response
FITTED = np.array([0.2, -0.9, 0.3, 0.5])
WINS = expit(2 * (REWARD[:, None] - REWARD))
BETA, KL = 0.5, 0.3
START = np.array([0.3, -0.4, 0.1, 0.5])
STEPS, STEP = 12, 0.05
OPTIMUM = softmax(np.log(REFERENCE) + REWARD / BETA)

DESCENT = Descent(KL, STEP, STEPS, group=3, batch=60_000)


def problem(reward=REWARD, reference=REFERENCE, data=DATA, fitted=FITTED, wins=WINS):
    with np.errstate(divide="ignore"):
        return Problem(reward, np.log(reference), np.log(data), fitted, wins, BETA)


PROBLEMS = {
    "as it is": problem(),
    "data": problem(data=np.array([0.1, 0.0, 0.3, 0.6])),
    "fitted": problem(fitted=FITTED[::-1]),
    "reward": problem(reward=REWARD[::-1]),
    "wins": problem(wins=WINS.T),
}


def train(names, index, problem, descent=DESCENT, policy=None, start=START, record=None):
    """Return the parameters after the recorded steps, by default all."""
    policy = policy or tabular_softmax()
    problem = Problem(*map(jnp.asarray, problem))._replace(beta=BETA)
    return training.train(
        jax.random.key(0),
        policy,
        jnp.asarray(start),
        *updates_in_expectation(names, index, policy, problem, descent),
        even_steps(descent.step, descent.steps),
        lambda theta: {"theta": theta},
        range(descent.steps + 1) if record is None else record,
    )


@pytest.fixture(scope="module")
def paths():
    """Logits after every step, by change of the problem and method."""
    changes = jax.tree.map(lambda *rows: np.stack(rows), *PROBLEMS.values())
    run = functools.partial(train, IN_EXPECTATION)
    with jax.enable_x64(True):
        every = jax.jit(jax.vmap(jax.vmap(run, in_axes=(0, None)), in_axes=(None, 0)))
        found = every(jnp.arange(len(IN_EXPECTATION)), changes)
    np.testing.assert_array_equal(found["diverged_at"], -1)
    return {
        change: dict(zip(IN_EXPECTATION, np.asarray(found["theta"][i]), strict=True))
        for i, change in enumerate(PROBLEMS)
    }


# Every outcome with its chance


def labelled_pairs(law):
    """Two independent draws and a label: chance, winner, loser; the same twice makes no pair."""
    for i, j in itertools.permutations(range(K), 2):
        yield law[i] * law[j] * WINS[i, j], i, j
        yield law[i] * law[j] * WINS[j, i], j, i


def demonstrations_against(own):
    for i, j in itertools.permutations(range(K), 2):
        yield OPTIMUM[i] * own[j], i, j


def expected_gradient(name, theta, behaviour):
    """By the score function: d log π(y) = e_y − π, weighted and summed by hand."""
    p, old = softmax(theta), softmax(behaviour)
    scores = np.eye(K) - p
    kept = np.log(p / REFERENCE)

    def of_responses(weights):
        return -np.asarray(weights) @ scores

    def of_pairs(pairs, slope, log_ratios=kept):
        """``slope`` is that of the loss in the margin."""
        return sum(
            chance * slope(log_ratios[w] - log_ratios[lo]) * (scores[w] - scores[lo])
            for chance, w, lo in pairs
        )

    def dpo(h):
        return -BETA * expit(-BETA * h)

    def ipo(h):
        return 2 * (h - 10)

    winners = np.zeros(K)
    for chance, w, _ in labelled_pairs(DATA):
        winners[w] += chance
    forward, reverse = of_responses(OPTIMUM), of_responses(-p * np.log(p / OPTIMUM))
    # PPO's advantages are taken where the samples were; outside the trust region they are dropped.
    advantages = REWARD - BETA * np.log(old / REFERENCE)
    advantages = advantages - old @ advantages
    ratios = p / old
    dropped = ((advantages > 0) & (ratios > 1.2)) | ((advantages < 0) & (ratios < 0.8))
    return {
        "forward_kl": lambda: forward,
        "reverse_kl": lambda: reverse,
        "jeffreys": lambda: forward + reverse,
        "jensen_shannon": lambda: of_responses(-0.5 * p * np.log(2 * p / (p + OPTIMUM))),
        "supervised": lambda: of_responses(DATA),
        "preference_likelihood": lambda: of_responses(winners),
        "reward_weighted": lambda: of_responses(p * np.exp(REWARD / BETA)),
        "advantage_weighted": lambda: of_responses(
            p * np.minimum(np.exp((REWARD - REWARD.mean()) / BETA), 20)
        ),
        "dpo": lambda: of_pairs(labelled_pairs(DATA), dpo),
        "online_dpo": lambda: of_pairs(labelled_pairs(p), dpo),
        "ipo": lambda: of_pairs(labelled_pairs(DATA), ipo),
        "online_ipo": lambda: of_pairs(labelled_pairs(p), ipo),
        "hypo": lambda: of_pairs(labelled_pairs(DATA), dpo) + KL * of_responses(-p * kept),
        "spin": lambda: of_pairs(demonstrations_against(old), dpo, np.log(p / old)),
        "hinge": lambda: of_pairs(labelled_pairs(DATA), lambda h: -BETA * (BETA * h < 1)),
        "slic": lambda: (
            of_pairs(labelled_pairs(DATA), lambda h: -1.0 * (h < 1), np.log(p))
            + 0.1 * of_responses(winners)
        ),
        "reinforce": lambda: of_responses(p * (REWARD - BETA * kept)),
        "ppo": lambda: of_responses(np.where(dropped, 0, p * advantages)),
        "rlhf": lambda: of_responses(p * (FITTED - BETA * kept)),
    }[name]()


def normalised(gradient):
    return gradient / (np.linalg.norm(gradient) + 1e-6)  # as optax has it


def test_every_method_is_in_expectation_or_in_groups():
    assert sorted(IN_EXPECTATION + IN_GROUPS) == sorted(METHODS)
    assert IN_GROUPS == (
        "best_of_n", "best_of_n_minus_worst", "best_of_n_minus_mean", "best_of_n_minus_sum",
        "unlikelihood",
    )  # fmt: skip
    assert {name for name in METHODS if METHODS[name].passes > 1} <= set(IN_EXPECTATION)


@pytest.mark.parametrize("name", IN_EXPECTATION)
def test_the_path_is_that_of_normalised_descent_with_samples_as_old_as_the_passes(paths, name):
    theta, behaviour = START, START
    # At a point of rest directions would say nothing.
    assert np.linalg.norm(expected_gradient(name, START, START)) > 1e-3
    for step, found in enumerate(paths["as it is"][name]):
        np.testing.assert_allclose(found, theta, atol=1e-8 if step > 1 else 1e-9 * STEP)
        if step % METHODS[name].passes == 0:
            behaviour = theta
        gradient = expected_gradient(name, theta, behaviour)
        rate = STEP * 0.5 * (1 + np.cos(np.pi * step / STEPS))
        theta = theta - rate * normalised(gradient)


# What depends on what


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        (
            "data",
            {"supervised", "preference_likelihood", "dpo", "ipo", "hypo", "hinge", "slic"},
        ),
        ("fitted", {"rlhf"}),
        (
            "reward",
            {"forward_kl", "reverse_kl", "jeffreys", "jensen_shannon", "reward_weighted",
             "advantage_weighted", "spin", "reinforce", "ppo"},
        ),
        (
            "wins",
            {"preference_likelihood", "dpo", "online_dpo", "ipo", "online_ipo", "hypo", "hinge",
             "slic"},
        ),
    ],
)  # fmt: skip
def test_a_change_of_the_problem_moves_the_methods_that_learn_from_it_and_no_other(
    paths, change, moved
):
    for name in IN_EXPECTATION:
        difference = np.abs(paths[change][name] - paths["as it is"][name]).max()
        assert (difference > 1e-3) if name in moved else (difference == 0), name


@pytest.mark.usefixtures("float64")
def test_the_policy_need_not_be_a_table():
    """Two features: the gradient is that of the logits, projected on them."""
    features = np.random.default_rng(1).normal(size=(K, 2))
    policy = log_linear(jnp.asarray(features), jnp.log(jnp.asarray(REFERENCE)))
    descent, theta = DESCENT._replace(steps=1), np.array([0.2, -0.3])
    found = train(("hypo",), jnp.int32(0), problem(), descent, policy, theta)["theta"][1]
    logits = np.log(REFERENCE) + features @ theta
    gradient = features.T @ expected_gradient("hypo", logits, logits)
    np.testing.assert_allclose(found, theta - STEP * normalised(gradient), atol=1e-9)


# Groups


def group_gradient(name, law):
    """Over all groups of three draws, by what each does to its best and its others."""
    p = softmax(START)
    scores, total = np.eye(K) - p, np.zeros(K)
    for group in itertools.product(range(K), repeat=3):
        best = max(group, key=lambda y: REWARD[y])
        others = [y for y in group if REWARD[y] < REWARD[best]]
        gradient = -scores[best]
        if name == "best_of_n_minus_worst" and others:
            gradient = gradient + 0.1 * scores[min(others, key=lambda y: REWARD[y])]
        elif name in ("best_of_n_minus_mean", "best_of_n_minus_sum") and others:
            count = len(others) if name.endswith("mean") else 1
            gradient = gradient + 0.1 * sum(scores[y] for y in others) / count
        elif name == "unlikelihood" and others:
            gradient = gradient + sum(p[y] / (1 - p[y]) * scores[y] for y in others) / len(others)
        total += law[list(group)].prod() * gradient
    return total


@pytest.fixture(scope="module")
def first_steps_in_groups():
    """With a minibatch so large that little noise is left, from two laws of the data."""
    run = functools.partial(train, IN_GROUPS, descent=DESCENT._replace(steps=1), record=(1,))
    both = jax.tree.map(lambda *x: np.stack(x), PROBLEMS["as it is"], PROBLEMS["data"])
    every = jax.jit(jax.vmap(jax.vmap(run, in_axes=(0, None)), in_axes=(None, 0)))
    found = np.asarray(every(jnp.arange(len(IN_GROUPS)), both)["theta"])[:, :, 0]
    return dict(zip(IN_GROUPS, (found.swapaxes(0, 1) - START) / STEP, strict=True))


@pytest.mark.parametrize("name", IN_GROUPS)
def test_groups_are_sampled_from_the_law_of_the_method(first_steps_in_groups, name):
    here, elsewhere = first_steps_in_groups[name]
    own = METHODS[name].on_policy
    gradient = group_gradient(name, softmax(START) if own else DATA)
    np.testing.assert_allclose(here, -normalised(gradient), atol=0.03)
    assert (np.abs(here - elsewhere).max() == 0) == own
