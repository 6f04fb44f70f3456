import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from bandits.problems import environments
from bandits.problems.environments import CategoricalBandit, CoverageWarning
from theory.checks import InvalidInput

pytestmark = pytest.mark.usefixtures("float64")

ARMS = np.arange(100)
EDGES = np.arctanh(np.linspace(-1, 1, 101)[1:-1])
PUBLISHED = np.diff(stats.cauchy.cdf(EDGES, -0.7, 0.4), prepend=0, append=1)
FAR, NEAR = (np.exp(-(((ARMS - centre) / 10) ** 2)) for centre in (70, 20))


# Compiled once: a program of a hundred arms, rather than one for each operation.
cauchy_reference = jax.jit(environments.tanh_cauchy_reference, static_argnums=0)


def plain_describe(bandit, beta):
    return bandit.target_log_probs(beta), bandit.concentrability(beta), bandit.peak_distance()


describe = jax.jit(plain_describe)


def test_published_reference_is_scipys_cauchy_through_tanh():
    probs = np.exp(jax.jit(environments.tanh_cauchy_reference)())
    np.testing.assert_allclose(probs, PUBLISHED, rtol=1e-12)
    assert np.argmax(probs[1:-1]) + 1 == 16
    np.testing.assert_allclose(
        [probs[16], probs[0], probs[99]], [0.0268, 0.0781, 0.0422], atol=5e-5, rtol=0
    )
    entropy = special.entr(probs).sum()
    np.testing.assert_allclose(
        [entropy, probs @ FAR, probs @ NEAR], [4.117, 0.0390, 0.3772], atol=5e-4, rtol=0
    )
    np.testing.assert_allclose([probs @ FAR, probs @ NEAR], [0.0390, 0.3772], atol=5e-5, rtol=0)


@given(st.floats(-3, 3), st.floats(0.05, 5))
def test_reference_of_any_location_and_scale_is_scipys(location, scale):
    expected = np.diff(stats.cauchy.cdf(EDGES, location, scale), prepend=0, append=1)
    probs = np.exp(cauchy_reference(100, location, scale))
    # The differences of SciPy's CDF are only absolutely accurate.
    np.testing.assert_allclose(probs, expected, rtol=1e-12, atol=3e-16)


def test_reference_keeps_its_digits_in_float32_where_a_difference_of_cdfs_has_none():
    def narrow(x64):
        with jax.enable_x64(x64):
            return cauchy_reference(100, 0.0, 1e-5)

    assert np.exp(narrow(True)[10]) < 1e-6
    assert narrow(False).dtype == np.float32
    np.testing.assert_allclose(narrow(False), narrow(True), atol=1e-4)


@pytest.mark.parametrize(("bandit", "reward"), [("far", FAR), ("near", NEAR)])
def test_published_bandits_have_the_published_reward_and_reference(bandit, reward):
    built = jax.jit(environments.ENVIRONMENTS[bandit].build)()
    assert built.num_arms == 100
    np.testing.assert_allclose(built.reward, reward, rtol=1e-12)
    np.testing.assert_allclose(np.exp(built.reference_log_probs), PUBLISHED, rtol=1e-12)


def test_the_bump_is_r1_by_default_and_moves_with_its_arguments():
    built = jax.jit(environments.bump_bandit)()
    np.testing.assert_allclose(built.reward, FAR, rtol=1e-12)
    np.testing.assert_allclose(np.exp(built.reference_log_probs), PUBLISHED, rtol=1e-12)
    moved = jax.jit(environments.bump_bandit, static_argnums=0)(40, 12.0, 3.0, 0.5, 0.2)
    np.testing.assert_allclose(moved.reward, np.exp(-(((ARMS[:40] - 12) / 3) ** 2)), rtol=1e-12)
    np.testing.assert_allclose(
        moved.reference_log_probs, cauchy_reference(40, 0.5, 0.2), rtol=1e-12
    )


@pytest.mark.parametrize(("bandit", "best"), [("min_length", 0), ("mode_length", 12)])
def test_length_problems_reward_what_they_are_named_after(bandit, best):
    built = jax.jit(environments.ENVIRONMENTS[bandit].build)()
    assert built.num_arms == 41
    np.testing.assert_allclose(built.reward, -abs(np.arange(41) - best) / 40, atol=1e-15)
    weights = stats.lognorm.pdf(np.arange(41), 0.6, scale=12 * np.exp(0.36))
    np.testing.assert_allclose(
        np.exp(built.reference_log_probs), weights / weights.sum(), rtol=1e-10
    )
    assert np.argmax(built.reference_log_probs) == 12


def test_skew_is_min_with_data_of_short_responses_only():
    skewed = jax.jit(environments.ENVIRONMENTS["skew_length"].build)()
    shortest = environments.min_length()
    np.testing.assert_array_equal(skewed.reward, shortest.reward)
    np.testing.assert_array_equal(skewed.reference_log_probs, shortest.reference_log_probs)
    law, whole = np.exp(skewed.data_law()), np.exp(shortest.data_law())
    assert (law[13:] == 0).all()
    np.testing.assert_allclose(law[:13], whole[:13] / whole[:13].sum(), rtol=1e-12)
    np.testing.assert_allclose(skewed.covered_mass(), whole[:13].sum(), rtol=1e-12)
    np.testing.assert_allclose(shortest.covered_mass(), 1, rtol=1e-12)


def test_the_cut_of_skew_is_a_sweep_axis_and_must_leave_data():
    cuts = np.array([3, 12, 40])
    covered = jax.vmap(lambda cut: environments.skew_length(40, cut).covered_mass())(cuts)
    expected = [float(environments.skew_length(40, int(cut)).covered_mass()) for cut in cuts]
    np.testing.assert_allclose(covered, expected, rtol=1e-12)
    assert (np.diff(covered) > 0).all()
    with pytest.raises(InvalidInput, match="leaves no data"):
        environments.skew_length(40, 0)


def test_a_users_own_law_of_data_is_kept():
    reward, reference = [1.0, 0.0, 0.5], [0.2, 0.3, 0.5]
    bandit = CategoricalBandit.from_arrays(reward, reference, [0.5, 0.5, 0.0])
    np.testing.assert_allclose(np.exp(bandit.data_law()), [0.5, 0.5, 0], rtol=1e-12)
    np.testing.assert_allclose(bandit.covered_mass(), 0.5, rtol=1e-12)


def test_the_usual_length_is_the_best_on_mode_only():
    for mode in (3.0, 9.0):
        shortest, usual = (
            build(20, mode, 0.5) for build in (environments.min_length, environments.mode_length)
        )
        np.testing.assert_array_equal(shortest.reference_log_probs, usual.reference_log_probs)
        assert np.argmax(usual.reward) == np.argmax(usual.reference_log_probs) == mode
        assert (np.diff(shortest.reward) < 0).all()


@pytest.mark.parametrize("build", [environments.min_length, environments.mode_length])
def test_the_target_of_a_length_problem_excludes_the_empty_response(build):
    probs = np.exp(build(20, 6.0).target_log_probs(0.01))
    assert probs[0] == 0
    assert np.argmax(probs) == (1 if build is environments.min_length else 6)
    np.testing.assert_allclose(probs.sum(), 1, rtol=1e-12)


def test_length_problems_sweep_over_modes_and_spreads():
    build = jax.jit(jax.vmap(lambda mode, spread: environments.mode_length(20, mode, spread)))
    modes, spreads = np.array([4.0, 11.0]), np.array([0.3, 0.9])
    swept = build(modes, spreads)
    for i in range(2):
        one = environments.mode_length(20, modes[i], spreads[i])
        np.testing.assert_allclose(swept.reward[i], one.reward, rtol=1e-12)
        np.testing.assert_allclose(
            swept.reference_log_probs[i], one.reference_log_probs, rtol=1e-12
        )


def test_far_and_near_differ_as_their_names_say():
    median = np.searchsorted(np.cumsum(PUBLISHED), 0.5)
    _, far_ratio, far = describe(jax.jit(environments.far_bandit)(), 0.1)
    _, near_ratio, near = describe(jax.jit(environments.near_bandit)(), 0.1)
    assert (far, near) == (70 - median, abs(20 - median))
    assert far > 10 * near
    assert far_ratio > 3 * near_ratio


@pytest.mark.parametrize("beta", [0.05, 0.3, 4.0])
def test_target_is_the_tilted_reference_and_concentrability_its_largest_ratio(beta):
    log_probs, ratio, _ = describe(jax.jit(environments.far_bandit)(), beta)
    target = special.softmax(np.log(PUBLISHED) + FAR / beta)
    np.testing.assert_allclose(np.exp(log_probs), target, rtol=1e-11)
    np.testing.assert_allclose(ratio, (target / PUBLISHED).max(), rtol=1e-11)


def test_bump_has_its_centre_width_and_height():
    bump = environments.bump_reward(9, 3.5, 2.0, -4.0)
    np.testing.assert_allclose(bump, -4 * np.exp(-(((np.arange(9) - 3.5) / 2) ** 2)), rtol=1e-13)
    assert environments.bump_reward(9, 4, 2.0)[4] == 1


@pytest.mark.parametrize(
    ("log_probs", "weights"),
    [
        (lambda: environments.gaussian_reference(9, 2.5, 1.5), stats.norm.pdf(range(9), 2.5, 1.5)),
        (
            lambda: environments.power_law_reference(9, 1.5, 3),
            (1 + abs(np.arange(9) - 3.0)) ** -1.5,
        ),
        (lambda: environments.power_law_reference(9, 2.0), stats.zipfian.pmf(range(1, 10), 2, 9)),
        (lambda: environments.uniform_reference(9), np.ones(9)),
        (lambda: environments.reference_from_probabilities(np.full(9, 1 / 9)), np.ones(9)),
    ],
    ids=["gaussian", "power law", "zipf", "uniform", "given"],
)
def test_reference_is_its_density_on_the_arms(log_probs, weights):
    np.testing.assert_allclose(np.exp(log_probs()), weights / weights.sum(), rtol=1e-12)


def test_given_reference_keeps_zeros_and_is_normalised_exactly():
    given_probs = np.array([[0.2, 0.0, 0.8 + 5e-6], [1.0, 0.0, 0.0]])
    log_probs = environments.reference_from_probabilities(given_probs)
    assert (np.isneginf(log_probs) == (given_probs == 0)).all()
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, rtol=1e-15)


@pytest.mark.parametrize(
    ("build", "values"),
    [
        (lambda c: environments.bump_reward(7, c, 2.0), [0.0, 2.5]),
        (lambda w: environments.bump_reward(7, 3.0, w), [0.5, 2.0]),
        (lambda w: environments.gaussian_reference(7, w, w), [0.5, 2.0]),
        (lambda x: environments.power_law_reference(7, x, x), [0.5, 2.3]),
        (lambda s: environments.tanh_cauchy_reference(7, -s, s), [0.1, 1.0]),
        (lambda p: environments.reference_from_probabilities(jnp.stack([p, 1 - p])), [0.2, 0.5]),
    ],
    ids=["centre", "width", "gaussian", "power law", "cauchy", "given"],
)
def test_builder_is_the_same_under_vmap_and_jit_with_finite_gradients(build, values):
    start, end = values
    swept = jax.jit(jax.vmap(build))(np.array([start, end, end - 1e-6, end + 1e-6]))
    np.testing.assert_allclose(swept[0], build(start), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(swept[1], build(end), rtol=1e-12, atol=1e-15)
    slope = jax.jit(jax.jacfwd(build))(end)
    np.testing.assert_allclose(slope, (swept[3] - swept[2]) / 2e-6, rtol=1e-6, atol=1e-8)
    assert np.abs(slope).max() > 0.01


def test_bandits_sweep_as_pytrees():
    @jax.jit
    def small_bandit(width):
        reference = environments.gaussian_reference(7, 1.0, width)
        return CategoricalBandit(environments.bump_reward(7, 5.0, width), reference)

    widths, betas = np.array([1.0, 3.0]), np.array([0.1, 0.5])
    points = zip(widths, betas, strict=True)
    rows = list(zip(*(describe(small_bandit(w), b) for w, b in points), strict=True))
    bandits = jax.vmap(small_bandit)(widths)
    for transformed in (plain_describe, describe, jax.vmap(describe)):
        for found, expected in zip(transformed(bandits, betas), rows, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_rewards_broadcast_over_one_reference():
    rewards = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    bandit = CategoricalBandit.from_arrays(rewards, [0.6, 0.3, 0.1])
    expected = special.softmax(np.log([0.6, 0.3, 0.1]) + rewards / 0.5, axis=1)
    np.testing.assert_allclose(np.exp(bandit.target_log_probs(0.5)), expected, rtol=1e-12)
    np.testing.assert_array_equal(bandit.peak_distance(), [2, 0])


@pytest.mark.parametrize(
    ("reward", "reference", "best", "reachable"),
    [
        ([1.0, 0.5, -2.0], [0.0, 0.4, 0.6], "1", "0.5"),
        ([3.0, -0.25, 3.0], [0.0, 1.0, 0.0], "3", "-0.25"),
        ([[1.0, 0.0], [0.0, 2.0]], [1.0, 0.0], "2", "0"),
        ([0.0, 7.0], [[0.5, 0.5], [1.0, 0.0]], "7", "0"),
    ],
    ids=["one best", "two best", "a batch of rewards", "a batch of references"],
)
def test_a_reference_without_any_best_arm_is_a_warning(reward, reference, best, reachable):
    expected = f"highest reward, {best}; .* the most it can reach is {reachable}$"
    with pytest.warns(CoverageWarning, match=expected) as caught:
        bandit = CategoricalBandit.from_arrays(reward, reference)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # where the bandit was made
    assert bandit.num_arms == np.shape(reward)[-1]


@pytest.mark.parametrize(
    ("reward", "reference"),
    [
        ([1.0, 0.5, 1.0], [0.0, 0.4, 0.6]),
        ([1.0, 0.5, 0.0], [1e-300, 1.0, 0.0]),
        ([0.0, 0.0], [1.0, 0.0]),
        ([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]], [0.5, 0.5, 0.0]),
    ],
    ids=["one of two", "hardly", "equal rewards", "batch"],
)
def test_a_reference_that_keeps_one_of_the_best_arms_is_no_warning(reward, reference):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CategoricalBandit.from_arrays(reward, reference)


def test_a_traced_bandit_is_not_warned_of():
    def mass(reward):
        bandit = CategoricalBandit.from_arrays(reward, np.array([0.0, 1.0]))
        return jnp.exp(bandit.target_log_probs(0.5))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(jax.jit(mass)(np.array([1.0, 0.0])), [0, 1])
