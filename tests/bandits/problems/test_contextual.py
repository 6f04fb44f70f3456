"""The contextual bandit: rewards and reference by hand, domains, and the quality of preferences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from bandits.problems.contextual import ContextualBandit, draw_preferences, random_contextual_bandit
from theory.checks import InvalidInput

pytestmark = pytest.mark.usefixtures("float64")

KEY = jax.random.key(20240414)
COUNT = 4000

BANDIT = ContextualBandit(
    weights=np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 4.0]]),
    reference_weights=np.array(
        [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, -1.0], [0.0, 0.0, 0.3]]
    ),
    spread=np.array([[1.0, 1.0, 0.0, 0.5], [0.2, 0.2, 3.0, 1.0]]),
)
PROMPT = np.array([2.0, -1.0, 1.0, 0.5])
REWARDS = np.array([2.5, -1.5, 0.0]) / 2
LOGITS = np.array([2.0, 2.0, -0.85])

draw = jax.jit(draw_preferences)


def pairs_of_one_prompt(**knobs):
    """Many pairs to the same prompt, and how often each ordered pair came up."""
    pairs = np.asarray(draw(KEY, BANDIT, np.tile(PROMPT, (COUNT, 1)), **knobs))
    counts = np.zeros((3, 3))
    np.add.at(counts, tuple(pairs.T), 1)
    return pairs, counts


def share_preferred(pairs):
    """How often the better of two different responses is first."""
    better = np.diff(REWARDS[pairs], axis=1)[:, 0]
    return (better[better != 0] < 0).mean()


# Rewards, reference and prompts


def test_rewards_are_linear_in_the_prompt_over_the_root_of_the_features():
    np.testing.assert_allclose(BANDIT.rewards(PROMPT), REWARDS, rtol=1e-12)
    batch = np.stack([PROMPT, 2 * PROMPT, 0 * PROMPT])
    np.testing.assert_allclose(
        BANDIT.rewards(batch), REWARDS * np.array([[1.0], [2.0], [0.0]]), rtol=1e-12
    )


def test_the_reference_is_the_softmax_of_linear_logits():
    expected = special.log_softmax(LOGITS)
    np.testing.assert_allclose(BANDIT.reference_log_probs(PROMPT), expected, rtol=1e-12)
    batch = BANDIT.reference_log_probs(np.stack([PROMPT, 0 * PROMPT]))
    np.testing.assert_allclose(batch, [expected, np.full(3, -np.log(3))], rtol=1e-12)


@pytest.mark.parametrize("domain", [0, 1])
def test_prompts_have_the_spread_of_their_domain_about_zero(domain):
    prompts = np.asarray(BANDIT.draw_prompts(KEY, domain, COUNT))
    assert prompts.shape == (COUNT, 4)
    spread = BANDIT.spread[domain]
    for column, deviation in zip(prompts.T, spread, strict=True):
        if deviation:
            assert stats.kstest(column / deviation, "norm").pvalue > 1e-3
        else:
            assert (column == 0).all()
    correlation = np.corrcoef(prompts[:, spread > 0].T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.06


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (2, "domain is 2; .*go from 0 to 1"),
        (-1, "domain is -1; .*go from 0 to 1"),
    ],
)
def test_a_domain_that_no_prompt_has_is_refused(domain, message):
    with pytest.raises(InvalidInput, match=message):
        BANDIT.draw_prompts(KEY, domain, 3)


def test_the_refusal_of_a_domain_does_not_speak_of_arms():
    with pytest.raises(InvalidInput) as refusal:
        BANDIT.draw_prompts(KEY, 2, 3)
    assert "arm" not in str(refusal.value)


# Random bandits


def test_every_domain_has_most_of_its_variance_in_its_own_features():
    bandit = random_contextual_bandit(KEY, 5, 6, 3, off_domain=0.2)
    expected = np.full((3, 6), 0.2)
    for domain in range(3):
        expected[domain, 2 * domain : 2 * domain + 2] = 1
    np.testing.assert_allclose(bandit.spread, expected, rtol=1e-12)
    assert bandit.weights.shape == bandit.reference_weights.shape == (6, 5)


def test_weights_are_standard_normal_so_that_rewards_have_the_prompts_variance():
    bandit = random_contextual_bandit(KEY, 50, 40)
    assert stats.kstest(np.asarray(bandit.weights).ravel(), "norm").pvalue > 1e-3
    scaled = np.asarray(bandit.reference_weights).ravel() * 40**0.5
    assert stats.kstest(scaled, "norm").pvalue > 1e-3


@pytest.mark.parametrize("alignment", [0.0, 0.3, 0.8])
def test_alignment_is_the_correlation_of_the_references_logits_with_the_rewards(alignment):
    bandit = random_contextual_bandit(KEY, 50, 40, alignment=alignment)
    prompts = np.asarray(bandit.draw_prompts(KEY, 0, 100))
    logits, rewards = prompts @ bandit.reference_weights, bandit.rewards(prompts)
    found = np.corrcoef(np.ravel(logits), np.ravel(rewards))[0, 1]
    assert found == pytest.approx(alignment, abs=0.06)


def test_full_alignment_makes_the_rewards_the_references_logits():
    bandit = random_contextual_bandit(KEY, 5, 6, alignment=1.0)
    np.testing.assert_allclose(bandit.reference_weights, bandit.weights / 6**0.5, rtol=1e-12)


def test_random_bandits_differ_by_key_only():
    one, again, other = (random_contextual_bandit(jax.random.key(s)).weights for s in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).all()


def test_what_shapes_a_random_bandit_is_traceable():
    def build(alignment, off_domain):
        bandit = random_contextual_bandit(KEY, 3, 4, 2, alignment, off_domain)
        return bandit, bandit.draw_prompts(KEY, 1, 3)

    values = np.array([0.1, 0.6]), np.array([0.0, 0.4])
    swept = jax.jit(jax.vmap(build))(*values)
    for i in range(2):
        expected = build(values[0][i], values[1][i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-12), swept, expected
        )


def test_features_that_the_domains_do_not_divide_are_refused():
    with pytest.raises(InvalidInput, match=r"num_features is 5; .* a multiple of num_domains, 2"):
        random_contextual_bandit(KEY, num_features=5)


# Preferences


def test_a_noiseless_labeller_puts_the_better_response_to_every_prompt_first():
    bandit = random_contextual_bandit(KEY, 5, 4)
    prompts = bandit.draw_prompts(KEY, 0, COUNT)
    pairs = np.asarray(draw(KEY, bandit, prompts, temperature=0.0))
    first, second = np.take_along_axis(np.asarray(bandit.rewards(prompts)), pairs, 1).T
    assert (first >= second).all()
    assert 0.3 < (first > second).mean() < 1


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_label_noise_is_the_share_of_labels_that_are_flipped(noise):
    clean, _ = pairs_of_one_prompt(temperature=0.0)
    pairs, _ = pairs_of_one_prompt(temperature=0.0, label_noise=noise)
    np.testing.assert_array_equal(np.sort(pairs), np.sort(clean))
    apart = clean[:, 0] != clean[:, 1]
    flipped = (pairs != clean)[apart, 0]
    assert stats.binomtest(int(flipped.sum()), apart.sum(), noise).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_labels_are_bradley_terry_at_the_temperature(temperature):
    _, counts = pairs_of_one_prompt(temperature=temperature)
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        wins, trials = int(counts[i, j]), int(counts[i, j] + counts[j, i])
        expected = special.expit((REWARDS[i] - REWARDS[j]) / temperature)
        assert trials > 50
        assert stats.binomtest(wins, trials, expected).pvalue > 1e-3


def test_a_warmer_labeller_is_right_less_often():
    shares = [share_preferred(pairs_of_one_prompt(temperature=t)[0]) for t in (0.0, 1.0, 100.0)]
    assert shares[0] == 1
    assert shares[0] > shares[1] + 0.05 > shares[2] + 0.1
    assert shares[2] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("coverage", [0.25, 1.0, 4.0])
def test_the_two_of_a_pair_are_drawn_apart_from_the_tempered_reference(coverage):
    _, counts = pairs_of_one_prompt(temperature=1.0, coverage=coverage)
    law = special.softmax(LOGITS / coverage)
    both = np.outer(law, law) * COUNT
    unordered = [(i, j) for i in range(3) for j in range(i, 3)]
    found = np.array([counts[i, j] + (i != j) * counts[j, i] for i, j in unordered])
    expected = np.array([both[i, j] * (1 + (i != j)) for i, j in unordered])
    held = expected > 1
    assert found[~held].sum() <= 5
    scaled = expected[held] / expected[held].sum() * found[held].sum()
    assert stats.chisquare(found[held], scaled).pvalue > 1e-3


def test_less_coverage_is_narrower():
    seen = [(pairs_of_one_prompt(coverage=c)[0] == 2).mean() for c in (0.3, 1.0, 3.0)]
    assert seen[0] < seen[1] / 5 < seen[2] / 10


def test_every_prompt_has_a_pair_of_its_own():
    """Prompts far out have a reference of one response each."""
    weights = 100 * np.eye(3)
    bandit = ContextualBandit(np.eye(3), weights, np.ones((1, 3)))
    pairs = draw(KEY, bandit, np.eye(3)[[2, 0, 1, 0]])
    np.testing.assert_array_equal(pairs, [[2, 2], [0, 0], [1, 1], [0, 0]])


def test_knobs_of_the_data_are_traceable_and_agree_with_plain_calls():
    prompts = BANDIT.draw_prompts(KEY, 0, 6)
    knobs = {
        "temperature": np.array([0.0, 0.3, 2.0]),
        "label_noise": np.array([0.0, 0.4, 1.0]),
        "coverage": np.array([0.5, 1.0, 2.0]),
    }
    swept = jax.jit(jax.vmap(lambda knobs: draw_preferences(KEY, BANDIT, prompts, **knobs)))(knobs)
    assert jnp.issubdtype(swept.dtype, jnp.integer)
    for i in range(3):
        one = draw_preferences(
            KEY, BANDIT, prompts, **{name: values[i] for name, values in knobs.items()}
        )
        np.testing.assert_array_equal(swept[i], one)
