import jax
import numpy as np
import pytest
from scipy import special, stats

from bandits.policies import all_sequences, causal_transformer, product_of_tokens
from theory.checks import InvalidInput

pytestmark = pytest.mark.usefixtures("float64")

VALUES, LENGTH, LAYERS, HEADS, WIDTH = 3, 3, 2, 2, 8
DRAWS = 20_000
KEY = jax.random.key(20240414)
SPACE = all_sequences(VALUES, LENGTH)
TOKEN_LAW = np.log([0.5, 0.3, 0.2])
PLACE_LAWS = np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2]])

POLICIES = {
    "product": product_of_tokens(VALUES, LENGTH),
    "transformer": causal_transformer(VALUES, LENGTH, LAYERS, HEADS, WIDTH),
}
TRANSFORMER = POLICIES["transformer"]
each_policy = pytest.mark.parametrize("name", POLICIES)

# One compile a policy for all tests.
log_probs_of = {name: jax.jit(policy.log_probs) for name, policy in POLICIES.items()}
log_prob_of = {name: jax.jit(policy.log_prob) for name, policy in POLICIES.items()}
sample_of = {name: jax.jit(policy.sample, static_argnums=3) for name, policy in POLICIES.items()}


def started(name):
    return POLICIES[name].init(key=KEY)


def product_of(laws):
    return np.array([sum(law[y] for law, y in zip(laws, ys, strict=True)) for ys in SPACE])


# The law of the tokens, written again


def next_token(params, name, context, prefix):
    """Log-probabilities of the token after a prefix, by code that sees nothing else."""
    if name == "product":
        return special.log_softmax(np.asarray(params)[len(prefix)])

    def dense(layer, x):
        return x @ np.asarray(layer.kernel) + np.asarray(layer.bias)

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    read = [context, *prefix]
    x = np.asarray(params.tokens)[read] + np.asarray(params.positions)[: len(read)]
    for layer in range(len(params.blocks.widen.bias)):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params.blocks)
        heads = dense(block.query_key_value, norm(x)).reshape(len(read), HEADS, 3, -1)
        mixed = np.zeros((len(read), HEADS, WIDTH // HEADS))
        for i, head in np.ndindex(len(read), HEADS):
            queries, keys, values = np.moveaxis(heads[: i + 1, head], 1, 0)
            mixed[i, head] = special.softmax(keys @ queries[i] / np.sqrt(WIDTH / HEADS)) @ values
        x = x + dense(block.attended, mixed.reshape(x.shape))
        x = x + dense(block.narrow, np.asarray(jax.nn.gelu(dense(block.widen, norm(x)))))
    return special.log_softmax(dense(params.head, norm(x[-1])))


@each_policy
def test_the_law_is_that_of_its_tokens_one_by_one_and_sums_to_one(name):
    params = started(name)
    expected = [
        sum(next_token(params, name, 1, ys[:t])[ys[t]] for t in range(LENGTH)) for ys in SPACE
    ]
    found = log_probs_of[name](params, 1)
    # JAX takes the softmax of attention in float32, whatever the inputs are.
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(special.logsumexp(found), 0, atol=1e-12)


def test_the_random_transformer_under_test_is_far_from_independent_tokens():
    probs = np.exp(log_probs_of["transformer"](started("transformer"), 1)).reshape(3, 3, 3)
    first, second = probs.sum((1, 2)), probs.sum((0, 2))
    assert np.abs(probs.sum(2) - np.outer(first, second)).max() > 1e-3


@each_policy
def test_log_prob_is_that_of_the_responses_asked_for(name):
    params, places = started(name), np.array([5, 0, 0, 26, 13])
    found = log_prob_of[name](params, 1, SPACE[places])
    np.testing.assert_allclose(found, log_probs_of[name](params, 1)[places], rtol=1e-12)


@each_policy
def test_samples_follow_the_log_probabilities(name):
    params = started(name)
    responses = np.asarray(sample_of[name](params, KEY, 1, DRAWS))
    assert responses.shape == (DRAWS, LENGTH)
    drawn = np.bincount(responses @ VALUES ** np.arange(LENGTH)[::-1], minlength=len(SPACE))
    expected = np.exp(log_probs_of[name](params, 1))
    expected *= drawn.sum() / expected.sum()
    assert stats.chisquare(drawn, expected).pvalue > 1e-3


# Starts


@pytest.mark.parametrize("context", range(VALUES))
def test_transformer_starts_at_exactly_the_given_log_probabilities(context):
    params = TRANSFORMER.init(TOKEN_LAW, KEY)
    found = log_probs_of["transformer"](params, context)
    np.testing.assert_allclose(found, product_of([TOKEN_LAW] * LENGTH), rtol=1e-13)


@pytest.mark.parametrize("laws", [TOKEN_LAW, PLACE_LAWS], ids=["shared", "each place"])
def test_product_starts_at_exactly_the_given_log_probabilities(laws):
    found = log_probs_of["product"](POLICIES["product"].init(laws), None)
    expected = product_of(np.broadcast_to(laws, (LENGTH, VALUES)))
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@each_policy
def test_a_token_excluded_at_the_start_never_comes(name):
    params = POLICIES[name].init(np.append(np.log([0.5, 0.5]), -np.inf), KEY)
    found = log_probs_of[name](params, 0)
    assert ((found == -np.inf) == (SPACE == 2).any(axis=1)).all()
    assert sample_of[name](params, KEY, 0, DRAWS).max() < 2


# Causality


def test_a_later_token_does_not_change_the_law_of_earlier_ones():
    """A transformer that ends earlier, with the same parameters, is the law of the prefixes."""
    params = started("transformer")
    table = np.reshape(log_probs_of["transformer"](params, 1), (VALUES,) * LENGTH)
    for length in (1, 2):
        shorter = causal_transformer(VALUES, length, LAYERS, HEADS, WIDTH)
        cut = params._replace(positions=params.positions[:length])
        found = jax.jit(shorter.log_probs)(cut, 1)
        of_prefixes = special.logsumexp(table.reshape(VALUES**length, -1), axis=1)
        np.testing.assert_allclose(found, of_prefixes, rtol=1e-9)


@each_policy
def test_a_response_depends_on_its_own_tokens_and_on_no_other_response(name):
    params, pair = started(name), SPACE[[5, 20]]
    found = log_prob_of[name](params, 1, pair)
    for other in SPACE[::6]:
        beside = log_prob_of[name](params, 1, np.stack([pair[0], other]))
        np.testing.assert_allclose(beside[0], found[0], rtol=1e-12)
    for place in range(LENGTH):
        changed = pair.copy()
        changed[0, place] = (changed[0, place] + 1) % VALUES
        assert abs(log_prob_of[name](params, 1, changed)[0] - found[0]) > 1e-3


def test_the_transformer_reads_its_prompt():
    params = started("transformer")
    of_prompts = np.stack([log_probs_of["transformer"](params, c) for c in range(VALUES)])
    assert np.ptp(of_prompts, axis=0).max() > 1e-3


def test_the_gradient_reaches_every_parameter():
    params = started("transformer")
    gradient = jax.jit(jax.grad(lambda p: TRANSFORMER.log_prob(p, 1, SPACE[5:6])[0]))(params)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


# The space, and bad input


@pytest.mark.parametrize(("values", "length"), [(3, 3), (2, 5), (4, 1)])
def test_sequences_count_up(values, length):
    space = all_sequences(values, length)
    assert space.shape == (values**length, length)
    numbers = space @ values ** np.arange(length)[::-1]
    np.testing.assert_array_equal(numbers, np.arange(values**length))


@pytest.mark.parametrize(("values", "length"), [(2, 20), (100, 50)])
def test_a_space_too_large_to_list_is_refused(values, length):
    with pytest.raises(InvalidInput, match="at most 1,000,000"):
        all_sequences(values, length)
    policy = product_of_tokens(values, length)
    params = policy.init(np.full(values, -np.log(values)))
    responses = np.zeros((2, length), int)
    np.testing.assert_allclose(
        policy.log_prob(params, None, responses), -length * np.log(values), rtol=1e-14
    )
    with pytest.raises(InvalidInput, match="sample them instead"):
        policy.log_probs(params)


@each_policy
def test_a_random_start_needs_a_key(name):
    with pytest.raises(InvalidInput, match="a key"):
        POLICIES[name].init()


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InvalidInput, match="width is 8; 3 heads"):
        causal_transformer(VALUES, LENGTH, heads=3, width=8)
