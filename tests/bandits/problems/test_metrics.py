import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.test_util import check_grads
from scipy import special

from bandits.problems import metrics

pytestmark = pytest.mark.usefixtures("float64")

K = 8
# Few values, so that plateaus, ties and excluded arms are common.
LINES = arrays(float, K, elements=st.sampled_from([-np.inf, 0.0, 1.0, 2.0, 3.0]))
TARGETS = LINES.filter(lambda line: line.max() > -np.inf).map(special.log_softmax)
WEIGHTS = arrays(float, K, elements=st.just(0.0) | st.floats(1e-6, 1)).filter(np.any)
DISTRIBUTIONS = WEIGHTS.map(lambda weights: weights / weights.sum())

find_basins = jax.jit(metrics.find_basins)
modes_held = jax.jit(metrics.modes_held)
highest_density_set = jax.jit(metrics.highest_density_set)


def log(probs):
    with np.errstate(divide="ignore"):
        return np.log(probs)


def brute_force_basins(line):
    """(mode, start, stop) of every basin; a valley's plateau goes to the mode on its left."""
    runs, arm = [], 0
    for value, group in itertools.groupby(line):
        runs.append((value, arm))
        arm += len(list(group))
    values = [-np.inf, *(value for value, _ in runs), -np.inf]
    arms = [*(arm for _, arm in runs), len(line)]
    modes, cuts = [], [0]
    for i, value in enumerate(values[1:-1]):
        left, right = values[i], values[i + 2]
        if left < value > right:
            modes.append(arms[i])
        if left > value < right:
            cuts.append(arms[i + 1])
    return list(zip(modes, cuts, [*cuts[1:], len(line)], strict=True))


@given(TARGETS)
def test_basins_are_those_of_a_walk_along_the_line(target):
    basins = find_basins(target)
    expected = brute_force_basins(target)
    assert np.flatnonzero(basins.is_mode).tolist() == [mode for mode, _, _ in expected]
    assert basins.count == len(expected)
    for number, (_, start, stop) in enumerate(expected):
        assert (basins.index[start:stop] == number).all()
        mass = np.exp(target[start:stop]).sum()
        np.testing.assert_allclose(basins.mass[start:stop], mass, rtol=1e-12)


@given(TARGETS, DISTRIBUTIONS)
def test_modes_held_are_those_with_half_the_targets_mass_in_their_basin(target, probs):
    held = 0
    for _, start, stop in brute_force_basins(target):
        mass, wanted = probs[start:stop].sum(), 0.5 * np.exp(target[start:stop]).sum()
        assume(abs(mass - wanted) > 1e-12)
        held += mass > wanted
    assert modes_held(probs, find_basins(target)) == held


@given(TARGETS)
def test_target_holds_all_its_own_modes(target):
    assert modes_held(np.exp(target), find_basins(target)) == find_basins(target).count


def test_mode_is_held_from_half_its_mass_on():
    basins = find_basins(np.log([0.125, 0.25, 0.125, 0.0625, 0.25, 0.0625, 0.0625, 0.0625]))
    assert basins.count == 2
    for share, held in ((0.5 + 1e-9, 2), (0.5 - 1e-9, 1)):
        policy = np.zeros(K)
        policy[4] = share * 0.4375
        policy[0] = 1 - policy[4]
        assert modes_held(policy, basins) == held


@pytest.mark.parametrize("far_mode", [1e-3, 1e-9, 1e-30])
def test_mode_of_little_mass_is_not_held_by_a_policy_without_any_there(far_mode):
    with jax.enable_x64(False):
        weights = np.array([0.5, 1.0, 0.5, 0.0, 0.0, far_mode / 2, far_mode, 0.0])
        basins = find_basins(log(weights / weights.sum()).astype(np.float32))
        policy = np.array([0.5, 0.5, 0, 0, 0, 0, 0, 0], np.float32)
        assert basins.count == 2
        assert modes_held(policy, basins) == 1


def test_flat_line_is_one_mode_and_a_plateau_counts_once():
    flat = find_basins(np.full(K, -np.log(K)))
    assert (flat.count, flat.index[-1]) == (1, 0)
    plateaus = special.log_softmax([1.0, 1.0, 0.0, 0.0, 2.0, 2.0, 2.0, 1.0])
    assert np.flatnonzero(find_basins(plateaus).is_mode).tolist() == [0, 4]


def brute_force_smallest_sets(probs, mass):
    """All sets of the fewest arms that hold the mass."""
    for size in range(1, K + 1):
        sets = [set(s) for s in itertools.combinations(range(K), size)]
        enough = [s for s in sets if sum(probs[arm] for arm in s) >= mass]
        if enough:
            return enough
    return []


@given(DISTRIBUTIONS, st.sampled_from([0.5, 0.8, 0.95]))
def test_highest_density_set_is_the_smallest_set_that_holds_the_mass(probs, mass):
    sums = np.cumsum(np.sort(probs)[::-1])
    assume((np.abs(sums - mass) > 1e-12).all())
    found = set(np.flatnonzero(highest_density_set(log(probs), mass)).tolist())
    smallest = brute_force_smallest_sets(probs, mass)
    assert found in smallest
    densest = max(sum(probs[arm] for arm in s) for s in smallest)
    np.testing.assert_allclose(sum(probs[arm] for arm in found), densest, rtol=1e-12)


def test_modes_are_taken_to_hold_95_percent():
    probs = np.array([0.4, 0.3, 0.21, 0.05, 0.02, 0.02])
    chosen = metrics.highest_density_set(np.log(probs))
    np.testing.assert_array_equal(chosen, [True, True, True, True, False, False])


@functools.partial(jax.jit, static_argnums=3)
def measure(log_probs, target, reward, with_reward=True):
    return metrics.measure(log_probs, target, reward if with_reward else None)


@given(DISTRIBUTIONS, DISTRIBUTIONS, arrays(float, K, elements=st.integers(-2, 2)))
def test_metrics_are_scipys_and_plain_sums(policy, target, reward):
    found = measure(log(policy), log(target), reward)
    modes = np.asarray(highest_density_set(log(target)))
    expected = {
        "forward_kl": special.rel_entr(target, policy).sum(),
        "reverse_kl": special.rel_entr(policy, target).sum(),
        "entropy": special.entr(policy).sum(),
        "expected_reward": policy @ reward,
        "optimal_mass": policy[reward == reward.max()].sum(),
        "mode_mass": policy[modes].sum(),
        "modes_held": modes_held(policy, find_basins(log(target))),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-14, err_msg=name)


def test_without_a_reward_the_best_arms_are_the_targets_most_probable():
    target = np.array([0.3, 0.1, 0.3, 0.1, 0.05, 0.05, 0.05, 0.05])
    policy = np.array([0.2, 0.1, 0.4, 0.1, 0.05, 0.05, 0.05, 0.05])
    found = measure(np.log(policy), np.log(target), None, False)
    assert "expected_reward" not in found
    np.testing.assert_allclose(found["optimal_mass"], 0.6, rtol=1e-12)


def test_every_metric_has_a_name_and_a_unit():
    uniform = np.full(K, -np.log(K))
    for name in measure(uniform, uniform, np.zeros(K)):
        assert metrics.ATTRIBUTES[name].keys() == {"long_name", "units"}


POLICIES = np.random.default_rng(0).dirichlet(np.ones(K), 3)
TARGET, REWARD = np.log(POLICIES[0, ::-1]), np.arange(K) % 3.0


def test_transformations_agree(assert_transforms):
    target = jnp.asarray(TARGET)
    basins = find_basins(target)

    def all_metrics(log_probs, shift):
        measured = metrics.measure(log_probs, target, REWARD)
        masses = metrics.basin_masses(jnp.exp(log_probs), basins)
        return {name: value + shift for name, value in measured.items()}, masses + shift[..., None]

    assert_transforms(all_metrics, np.log(POLICIES), np.zeros(3))


def test_target_may_be_a_numpy_array_that_a_jitted_function_closes_over():
    found = jax.jit(lambda log_probs: metrics.measure(log_probs, TARGET)["mode_mass"])(TARGET)
    np.testing.assert_allclose(found, measure(TARGET, TARGET, REWARD)["mode_mass"], rtol=1e-12)


def test_target_functions_agree_under_jit_and_vmap():
    for function in (metrics.find_basins, metrics.highest_density_set):
        swept = jax.tree.leaves(jax.jit(jax.vmap(function))(np.log(POLICIES)))
        for i, row in enumerate(np.log(POLICIES)):
            for leaf, expected in zip(swept, jax.tree.leaves(function(row)), strict=True):
                np.testing.assert_allclose(leaf[i], expected, rtol=1e-12)


def test_gradients_are_finite_differences():
    smooth = ("forward_kl", "reverse_kl", "entropy", "expected_reward", "mode_mass")

    @jax.jit
    def some(logits):
        measured = measure(jax.nn.log_softmax(logits), TARGET, REWARD)
        return [measured[name] for name in smooth]

    check_grads(some, (np.log(POLICIES[1]),), order=1, modes=["rev"], eps=1e-6)
