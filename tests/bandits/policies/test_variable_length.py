import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from bandits.fitting import minimize
from bandits.losses import METHODS
from bandits.policies import all_responses, hazard_table, recurrent
from bandits.policies.variable_length import lengths, require_responses
from bandits.problems.metrics import DIVERGED_AT
from bandits.training import Schedule, on_policy, train
from theory.checks import InvalidInput
from theory.variable_length import STOP, length_log_probs, table_of_lengths

pytestmark = pytest.mark.usefixtures("float64")

VALUES, MOST, WIDTH = 2, 3, 4
DRAWS = 20_000
KEY = jax.random.key(2)
SPACE = all_responses(VALUES, MOST)
TABLE = np.log([[0.2, 0.5, 0.3], [0.1, 0.3, 0.6], [0.4, 0.35, 0.25]])

POLICIES = {
    "table": hazard_table(VALUES, MOST),
    "recurrent": recurrent(VALUES, MOST, WIDTH),
}
RECURRENT = POLICIES["recurrent"]
each_policy = pytest.mark.parametrize("name", POLICIES)

# One compile a policy for all tests.
log_probs_of = {name: jax.jit(policy.log_probs) for name, policy in POLICIES.items()}
log_prob_of = {name: jax.jit(policy.log_prob) for name, policy in POLICIES.items()}
sample_of = {name: jax.jit(policy.sample, static_argnums=3) for name, policy in POLICIES.items()}


def started(name):
    """Far from independent tokens, where a policy can be."""
    scale = 1.0 if name == "table" else 2.5
    return jax.tree.map(lambda leaf: scale * leaf, POLICIES[name].init(key=KEY))


def content_of(response):
    """The tokens before the stop."""
    return list(response[: list(response).index(STOP)])


def places_of(responses):
    """Where each stands in `SPACE`."""
    number = {tuple(row): i for i, row in enumerate(SPACE)}
    return np.array([number[tuple(row)] for row in np.asarray(responses)])


# The space


@pytest.mark.parametrize(("values", "most"), [(2, 3), (1, 5), (3, 2), (4, 1)])
def test_the_space_is_every_content_the_shorter_first(values, most):
    space = all_responses(values, most)
    assert space.shape == (sum(values**t for t in range(most + 1)), most + 1)
    contents = [content_of(row) for row in space]
    assert contents == sorted(contents, key=lambda c: (len(c), c))
    assert len({tuple(c) for c in contents}) == len(space)
    np.testing.assert_array_equal(lengths(space), [len(c) for c in contents])
    require_responses("space", space, values, most)


@pytest.mark.parametrize(("values", "most"), [(2, 20), (1, 10**6), (50, 4)])
def test_a_space_too_large_to_list_is_refused_and_can_be_sampled(values, most):
    with pytest.raises(InvalidInput, match="at most 1,000,000 can be listed, sample them"):
        all_responses(values, most)


def test_a_policy_over_a_space_too_large_to_list_is_sampled():
    policy = hazard_table(2, 20)
    params = policy.init(key=KEY)
    with pytest.raises(InvalidInput, match="sample them instead"):
        policy.log_probs(params)
    responses = policy.sample(params, KEY, None, 5)
    require_responses("responses", responses, 2, 20)
    assert np.isfinite(policy.log_prob(params, None, responses)).all()


def test_lengths_count_up_to_the_first_stop():
    responses = np.array([[0, 0, 0, 0], [2, 0, 0, 0], [1, 1, 0, 0], [2, 1, 2, 0]])
    np.testing.assert_array_equal(lengths(responses), [0, 1, 2, 3])
    with pytest.raises(InvalidInput, match="content after the stop in row 0"):
        lengths(np.array([1, 0, 2, 0]))
    np.testing.assert_array_equal(lengths(responses[3]), 3)
    np.testing.assert_array_equal(jax.jit(jax.vmap(lengths))(responses[:4, None]).T, [[0, 1, 2, 3]])


# The law of the responses, written again


def next_token(params, name, content):
    """Log-probabilities of the token after some content, by code that sees nothing else."""
    if name == "table":
        return special.log_softmax(np.asarray(params)[len(content)])

    def dense(layer, x):
        return x @ np.asarray(layer.kernel) + np.asarray(layer.bias)

    state = np.zeros(WIDTH)
    for token in [STOP, *content]:
        seen = np.concatenate([state, np.asarray(params.tokens)[token]])
        gate = special.expit(dense(params.update, seen))
        state = (1 - gate) * state + gate * np.tanh(dense(params.candidate, seen))
    places = np.asarray(params.places)[len(content)]
    return special.log_softmax(dense(params.head, state) + places)


@each_policy
def test_the_law_is_that_of_its_tokens_one_by_one_and_sums_to_one(name):
    params = started(name)
    if name == "recurrent":  # the start has no table of its own
        params = params._replace(places=jnp.asarray(2 * TABLE))
    expected = []
    for response in SPACE:
        content = content_of(response)
        own = sum(next_token(params, name, content[:t])[y] for t, y in enumerate(content))
        stop = next_token(params, name, content)[STOP] if len(content) < MOST else 0.0
        expected.append(own + stop)
    found = log_probs_of[name](params)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(special.logsumexp(found), 0, atol=1e-13)


def test_the_random_recurrent_network_under_test_is_far_from_independent_tokens():
    params = started("recurrent")
    first, second = (np.exp(next_token(params, "recurrent", [y])) for y in (1, 2))
    assert np.abs(first - second).max() > 0.05


@each_policy
def test_log_prob_is_that_of_the_responses_asked_for(name):
    params, places = started(name), np.array([5, 0, 0, 14, 7, 1])
    found = log_prob_of[name](params, None, SPACE[places])
    np.testing.assert_allclose(found, log_probs_of[name](params)[places], rtol=1e-12)


@each_policy
def test_one_response_has_the_log_prob_of_a_batch_of_one(name):
    params = started(name)
    for response in SPACE:
        alone = log_prob_of[name](params, None, response)
        assert alone.shape == ()
        (expected,) = log_prob_of[name](params, None, response[None])
        np.testing.assert_allclose(alone, expected, rtol=1e-12)


@each_policy
def test_responses_keep_the_shape_of_their_batch(name):
    params, batch = started(name), SPACE.reshape(3, 5, MOST + 1)
    found = log_prob_of[name](params, None, batch)
    np.testing.assert_allclose(found, log_probs_of[name](params).reshape(3, 5), rtol=1e-12)


@each_policy
def test_policies_transform(name):
    policy = POLICIES[name]
    stacked = jax.vmap(lambda key: policy.init(key=key))(jax.random.split(KEY, 3))
    swept = jax.jit(jax.vmap(policy.log_probs))(stacked)
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
        np.testing.assert_allclose(swept[i], log_probs_of[name](one), rtol=1e-12)
    keys = jax.random.split(KEY, 3)
    drawn = jax.jit(jax.vmap(lambda p, k: policy.sample(p, k, None, 7)))(stacked, keys)
    assert drawn.shape == (3, 7, MOST + 1)
    one = jax.tree.map(lambda leaf: leaf[1], stacked)
    np.testing.assert_array_equal(drawn[1], sample_of[name](one, keys[1], None, 7))


def test_with_one_kind_of_content_the_space_is_the_lengths():
    policy = hazard_table(1, 7)
    params = policy.init(key=KEY)
    found = policy.log_probs(params)
    np.testing.assert_allclose(found, length_log_probs(jax.nn.log_softmax(params)), rtol=1e-13)
    np.testing.assert_allclose(
        found, policy.log_prob(params, None, all_responses(1, 7)), rtol=1e-12
    )
    assert found.shape == (8,)


def test_with_one_kind_of_content_the_recurrent_law_is_that_of_the_lengths_too():
    law = np.log([0.1, 0.2, 0.3, 0.4])
    start = table_of_lengths(law, np.zeros(1))
    policy = recurrent(1, MOST, WIDTH)
    np.testing.assert_allclose(policy.log_probs(policy.init(start, KEY)), law, rtol=1e-12)


# The stop ends everything


def padded(response, token):
    """The response with other tokens after its stop."""
    changed = response.copy()
    changed[len(content_of(response)) + 1 :] = token
    return changed


@each_policy
@pytest.mark.parametrize("token", [1, 2])
def test_what_stands_after_the_stop_changes_nothing(name, token):
    params = started(name)
    changed = np.array([padded(row, token) for row in SPACE])
    assert (changed != SPACE).any()
    np.testing.assert_array_equal(
        log_prob_of[name](params, None, changed), log_prob_of[name](params, None, SPACE)
    )


@each_policy
@pytest.mark.parametrize("token", [0, 1, 2])
def test_the_stop_ends_all_gradients(name, token):
    params = started(name)
    gradient_of = jax.jit(jax.grad(lambda p, y: POLICIES[name].log_prob(p, None, y[None])[0]))
    for response in SPACE:
        gradient = gradient_of(params, padded(response, token))
        exact = gradient_of(params, response)
        jax.tree.map(np.testing.assert_array_equal, gradient, exact)
        table = gradient if name == "table" else gradient.places
        reached = min(len(content_of(response)) + 1, MOST)
        assert (np.asarray(table)[reached:] == 0).all()
        assert (np.abs(np.asarray(table)[:reached]) > 0).any(axis=1).all()
        if name == "recurrent":
            # Only tokens that are read before the last judged place have a gradient.
            read = {STOP, *content_of(response)[: reached - 1]}
            unread = [y for y in range(1 + VALUES) if y not in read]
            assert (np.asarray(gradient.tokens)[unread] == 0).all()


def test_the_gradient_of_the_table_is_the_tokens_minus_the_law():
    params, response = started("table"), np.array([2, 1, 0, 0])
    found = jax.jit(jax.grad(lambda p: POLICIES["table"].log_prob(p, None, response[None])[0]))(
        params
    )
    np.testing.assert_allclose(
        found, np.eye(3)[response[:3]] - special.softmax(params, axis=1), atol=1e-14
    )


def test_the_gradient_of_a_long_response_reaches_every_parameter():
    gradient = jax.jit(jax.grad(lambda p: RECURRENT.log_prob(p, None, np.array([[1, 2, 1, 0]]))[0]))
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient(started("recurrent"))))


@each_policy
def test_the_expected_score_is_zero(name):
    """Σ_y π(y) ∇ log π(y) = 0, only if the log-probabilities are those of a law."""
    params = started(name)
    weights = np.exp(log_probs_of[name](params))
    mean = jax.jit(jax.grad(lambda p: weights @ POLICIES[name].log_prob(p, None, SPACE)))(params)
    assert all(np.abs(leaf).max() < 1e-13 for leaf in jax.tree.leaves(mean))


@each_policy
def test_a_response_depends_on_no_other(name):
    params = started(name)
    alone = np.array([log_prob_of[name](params, None, row[None])[0] for row in SPACE])
    np.testing.assert_allclose(
        log_prob_of[name](params, None, SPACE[::-1])[::-1], alone, rtol=1e-12
    )


@each_policy
def test_excluded_tokens_after_the_stop_leave_values_and_gradients_finite(name):
    table = np.log([[0.5, 0.5, 0.5]] * MOST)
    table[1:, 2] = -np.inf
    params = POLICIES[name].init(table, KEY)
    response = np.array([[1, 0, 2, 0]])  # refused unless traced
    evaluate = jax.value_and_grad(lambda p, y: POLICIES[name].log_prob(p, None, y)[0])
    value, gradient = jax.jit(evaluate)(params, response)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@each_policy
def test_what_is_no_response_has_no_log_probability(name):
    with pytest.raises(InvalidInput, match="responses has no stop"):
        POLICIES[name].log_prob(started(name), None, np.array([[1, 1, 2, 1]]))


# Samples


@each_policy
def test_samples_are_responses_and_follow_the_law(name):
    params = started(name)
    responses = np.asarray(sample_of[name](params, KEY, None, DRAWS))
    assert responses.shape == (DRAWS, MOST + 1)
    require_responses("responses", responses, VALUES, MOST)
    drawn = np.bincount(places_of(responses), minlength=len(SPACE))
    expected = np.exp(log_probs_of[name](params)) * DRAWS
    assert stats.chisquare(drawn, expected * drawn.sum() / expected.sum()).pvalue > 1e-3


@each_policy
def test_samples_are_independent_of_one_another(name):
    """Neighbours in one draw, and one place in many draws: the products of the law."""
    params = started(name)
    law = np.exp(log_probs_of[name](params))
    for responses in (
        sample_of[name](params, KEY, None, DRAWS).reshape(-1, 2, MOST + 1),
        jax.jit(jax.vmap(lambda key: POLICIES[name].sample(params, key, None, 2)))(
            jax.random.split(KEY, DRAWS // 2)
        ),
    ):
        first, second = (places_of(responses[:, i]) for i in (0, 1))
        counts = np.zeros((len(SPACE), len(SPACE)))
        np.add.at(counts, (first, second), 1)
        expected = np.outer(law, law) * counts.sum()
        often = expected > 5
        found = np.append(counts[often], counts[~often].sum())
        wanted = np.append(expected[often], expected[~often].sum())
        assert stats.chisquare(found, wanted * found.sum() / wanted.sum()).pvalue > 1e-3


def test_places_of_the_recurrent_network_are_drawn_apart():
    """From a start where places do not depend on one another, all pairs of tokens are products."""
    table = np.log(np.full((6, 3), [1e-300, 0.4, 0.6]))
    policy = recurrent(VALUES, 6, WIDTH)
    params = policy.init(jax.nn.log_softmax(table), KEY)
    tokens = np.asarray(jax.jit(policy.sample, static_argnums=3)(params, KEY, None, 5000)) - 1
    for first in range(6):
        np.testing.assert_allclose(tokens[:, first].mean(), 0.6, atol=0.03)
        for second in range(first):
            counts = np.histogram2d(tokens[:, first], tokens[:, second], bins=2)[0]
            assert stats.chi2_contingency(counts).pvalue > 1e-4


@each_policy
def test_other_keys_give_other_samples_and_the_same_key_the_same(name):
    params, other = started(name), jax.random.key(1)
    first, again, different = (sample_of[name](params, k, None, 40) for k in (KEY, KEY, other))
    np.testing.assert_array_equal(first, again)
    assert (first != different).any()


@each_policy
def test_a_token_excluded_at_the_start_never_comes(name):
    table = np.array(TABLE)
    table[:, 2] = -np.inf
    params = POLICIES[name].init(jax.nn.log_softmax(table), KEY)
    found = log_probs_of[name](params)
    np.testing.assert_array_equal(found == -np.inf, (SPACE == 2).any(axis=1))
    np.testing.assert_allclose(special.logsumexp(found), 0, atol=1e-13)
    assert sample_of[name](params, KEY, None, DRAWS).max() == 1


# Starts


@each_policy
def test_a_start_is_exactly_the_given_table(name):
    params = POLICIES[name].init(TABLE, KEY)
    expected = [
        sum(TABLE[t][y] for t, y in enumerate(content_of(row)))
        + (TABLE[len(content_of(row))][STOP] if len(content_of(row)) < MOST else 0)
        for row in SPACE
    ]
    np.testing.assert_allclose(log_probs_of[name](params), expected, rtol=1e-13)


@each_policy
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda w: sum(w) > 0.1))
def test_a_start_at_a_law_of_lengths_has_that_law(name, weights):
    law = np.array(weights) / np.sum(weights)
    with np.errstate(divide="ignore"):
        table = table_of_lengths(np.log(law), np.log([0.3, 0.7]))
    params = POLICIES[name].init(table, jax.random.key(0))
    probs = np.exp(log_probs_of[name](params))
    np.testing.assert_allclose(np.bincount(lengths(SPACE), probs), law, rtol=1e-9, atol=1e-300)


@each_policy
def test_a_random_start_needs_a_key(name):
    with pytest.raises(InvalidInput, match="a key"):
        POLICIES[name].init()


def test_a_network_started_at_a_table_still_needs_a_key():
    with pytest.raises(InvalidInput, match="give a key"):
        RECURRENT.init(TABLE)


@each_policy
@pytest.mark.parametrize("table", [TABLE[0], TABLE[:2], TABLE[:, :2], TABLE[:, :1]])
def test_a_table_of_another_shape_is_refused(name, table):
    with pytest.raises(InvalidInput, match=r"log_probs has shape .*; the table is \(3, 3\)"):
        POLICIES[name].init(table, KEY)


# Bad responses


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ([[1, 0, 0, 0], [1, 2, 1, 2]], r"data has no stop \(0\) in row 1; .* then stops"),
        ([[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 2, 0]], "data has content after the stop in row 2"),
        ([[0, 1, 0, 0]], r"data has content after the stop in row 0; after the first stop \(0\)"),
        ([[1, 0, 0, 2]], "data has content after the stop in row 0"),
        ([[1, 1, 1, 1, 0]], r"data has shape \(1, 5\); a response is 4 tokens, at most 3"),
        ([[1, 1, 0]], r"data has shape \(1, 3\); a response is 4 tokens"),
        (0, r"data has shape \(\); a response is 4 tokens"),
        ([[1, 3, 0, 0]], "data is 3; arms go from 0 to 2"),
        ([[-1, 0, 0, 0]], "data is -1; arms go from 0 to 2"),
        ([[1.0, 0.0, 0.0, 0.0]], r"data is .*; an arm is an integer from 0 to 2"),
        ([[[1, 0, 0, 0], [1, 2, 1, 2]]], "data has no stop .* in row 1"),
    ],
    ids=[
        "no stop", "resumed", "at once", "at the end", "too long", "too short", "scalar", "unknown",
        "negative", "float", "batch",
    ],
)  # fmt: skip
def test_what_is_no_response_is_refused(responses, message):
    with pytest.raises(InvalidInput, match=f"^{message}"):
        require_responses("data", np.array(responses), VALUES, MOST)


def test_responses_pass_alone_in_batches_and_traced():
    require_responses("data", SPACE, VALUES, MOST)
    require_responses("data", SPACE[3], VALUES, MOST)
    require_responses("data", SPACE.reshape(3, 5, 4), VALUES, MOST)

    @jax.jit
    def traced(responses):
        require_responses("data", responses, VALUES, MOST)
        return lengths(responses)

    assert traced(np.array([1, 1, 1, 1])) == 0
    with pytest.raises(InvalidInput, match="has shape"):
        traced(np.array([1, 1, 0]))


# Training

SCHEDULE = Schedule(steps=40, group=4, minibatch=32, batch=32)


@each_policy
@pytest.mark.parametrize("method", ["reinforce", "online_dpo"])
def test_on_policy_training_raises_the_reward(name, method):
    """Longer is better by one a token; and the law stays a law."""
    policy, loss = POLICIES[name], METHODS[method].loss
    reference = jax.jit(policy.log_prob)

    def learn(key):
        params = policy.init(TABLE, key)
        collect = on_policy(
            policy,
            None,
            lambda _, responses: lengths(responses).astype(float),
            SCHEDULE,
            reference_log_prob=lambda _, responses: reference(params, None, responses),
        )

        def evaluate(params):
            law = policy.log_probs(params)
            return {"reward": jnp.exp(law) @ lengths(SPACE), "sum": jnp.exp(law).sum()}

        return train(
            key, policy, params, loss, collect, SCHEDULE, optax.adam(0.05), evaluate, (0, 20, 40)
        )

    records = jax.jit(learn)(KEY)
    assert records[DIVERGED_AT] == -1
    np.testing.assert_allclose(records["sum"], 1, rtol=1e-9)
    start = np.exp(log_probs_of["table"](TABLE)) @ lengths(SPACE)
    np.testing.assert_allclose(records["reward"][0], start, rtol=1e-12)
    assert np.all(np.diff(records["reward"]) > 0)
    assert records["reward"][-1] > start + 0.5


def test_the_recurrent_network_learns_what_no_table_can():
    """The second token repeats the first: log 2 nats, and log 4 where places are independent."""
    shown = np.array([[1, 1, 0, 0], [2, 2, 0, 0]])

    def learn(name):
        policy = POLICIES[name]

        def loss(params):
            return -policy.log_prob(params, None, shown).mean()

        start = policy.init(TABLE, KEY)
        return jax.jit(lambda p: loss(minimize(loss, p, optax.adam(0.05), 200)))(start)

    np.testing.assert_allclose(learn("table"), np.log(4), atol=0.02)
    np.testing.assert_allclose(learn("recurrent"), np.log(2), atol=0.1)
