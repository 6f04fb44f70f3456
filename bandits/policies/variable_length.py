"""Policies over responses of different lengths: a table of hazards, and a recurrent network.

A response is an array ``[T + 1]`` of tokens: content from 1 to V, then the stop, 0, up to the end.
At place T the stop is forced, so every response has one. Log-probabilities end with the first stop;
the padding after it has none, and no gradient. Values that are no response are refused, unless they
are traced.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from bandits.kernels import threefry
from bandits.policies import sampling
from bandits.policies.base import Policy, require_key
from bandits.policies.network import Dense, apply_dense, init_layers
from bandits.policies.sequences import own_tokens, require_listable
from theory import checks
from theory.checks import InvalidInput
from theory.variable_length import STOP, length_log_probs

Rows = Int[Array, "C T1"]
"""Responses: a row of T + 1 tokens each."""
Table = Float[Array, "T S"]
"""Logits of the stop and of V tokens at each place."""


def all_responses(num_values: int, max_length: int) -> Int[np.ndarray, "K T1"]:
    """Return every response, the shorter first, then in lexicographic order.

    Raises:
      InvalidInput: For a space of more than a million responses.
    """
    count = sum(num_values**length for length in range(max_length + 1))
    require_listable(count, f"{num_values} values at up to {max_length} places", "responses")
    content = range(1, num_values + 1)
    return np.array(
        [
            [*tokens, *[STOP] * (max_length + 1 - length)]
            for length in range(max_length + 1)
            for tokens in itertools.product(content, repeat=length)
        ],
        np.int32,
    )


def lengths(responses: Int[ArrayLike, "*batch T1"]) -> Int[Array, "*batch"]:
    """Count the content tokens before the stop, where `require_stops` allows the responses."""
    require_stops("responses", responses)
    return jnp.argmax(jnp.asarray(responses) == STOP, axis=-1)


def require_responses(
    name: str, responses: Int[ArrayLike, "*batch T1"], num_values: int, max_length: int
) -> None:
    """Refuse responses of another length or of unknown tokens, and as `require_stops` does."""
    shape = np.shape(responses)
    if not shape or shape[-1] != max_length + 1:
        raise InvalidInput(
            f"{name} has shape {shape}; a response is {max_length + 1} tokens, at most "
            f"{max_length} of content and then the stop to the end"
        )
    checks.require_index(name, responses, num_values + 1)
    require_stops(name, responses)


def require_stops(name: str, responses: Int[ArrayLike, "*batch T1"]) -> None:
    """Refuse responses without a stop, or with content after it."""
    tokens = checks.concrete(responses)
    if tokens is None:
        return
    rows = tokens.reshape(-1, tokens.shape[-1])
    unstopped = (rows != STOP).all(axis=1)
    if unstopped.any():
        raise InvalidInput(
            f"{name} has no stop ({STOP}) in row {int(np.argmax(unstopped))}; a response is "
            "content, then stops to the end"
        )
    stopped = np.cumsum(rows == STOP, axis=1) > 0
    resumed = (stopped & (rows != STOP)).any(axis=1)
    if resumed.any():
        raise InvalidInput(
            f"{name} has content after the stop in row {int(np.argmax(resumed))}; after the first "
            f"stop ({STOP}) there must be stops only"
        )


def hazard_table(num_values: int, max_length: int) -> Policy:
    """Return the policy of tokens that depend on their place alone, without a context.

    Its table of logits ``[T, 1 + V]``, the stop first, starts at log-probabilities of that shape,
    such as those of `theory.variable_length.table_of_lengths`, or at random with a key: standard
    normal. With V = 1 the whole space is the lengths from 0 to T.
    """
    shape = (max_length, 1 + num_values)

    def init(log_probs: Table | None = None, key: PRNGKeyArray | None = None) -> Table:
        if log_probs is not None:
            return _table(log_probs, shape)
        if key is None:
            raise InvalidInput("a table starts at log_probs, or at random with a key")
        return jax.random.normal(key, shape)

    def log_prob(logits: Table, context: Any, responses: Rows) -> Float[Array, " C"]:
        require_responses("responses", responses, num_values, max_length)
        return _until_stop(jax.nn.log_softmax(logits), jnp.asarray(responses))

    def sample(logits: Table, key: PRNGKeyArray, context: Any, count: int) -> Rows:
        drawn = sampling.sample_categorical(key, jax.nn.log_softmax(logits), count).T
        return _stopped(drawn)

    def log_probs(logits: Table, context: Any = None) -> Float[Array, " K"]:
        if num_values == 1:
            return length_log_probs(jax.nn.log_softmax(logits))
        return log_prob(logits, context, jnp.asarray(all_responses(num_values, max_length)))

    return Policy(init, log_probs, log_prob, sample)


class Recurrent(NamedTuple):
    """Parameters of a gated recurrent network over tokens.

    Attributes:
      tokens: ``[1 + V, width]``, an embedding of each token; that of the stop begins a response.
      update, candidate: (state, token) → the gate, and what it lets in.
      head: state → logits.
      places: ``[T, 1 + V]``, logits that are added at each place.
    """

    tokens: Float[Array, "S width"]
    update: Dense
    candidate: Dense
    head: Dense
    places: Table


def recurrent(num_values: int, max_length: int, width: int = 32) -> Policy:
    """Return a minimal gated recurrent network over the tokens, without a context.

    h ← (1 − z) h + z tanh(candidate(h, token)), z = σ(update(h, token)); logits = head(h) + table.
    To start at log-probabilities ``[T, 1 + V]`` exactly, the head starts at 0 and the table at
    those. Source of the cell: arXiv:1603.09420.
    """
    symbols = 1 + num_values

    def init(log_probs: Table | None = None, key: PRNGKeyArray | None = None) -> Recurrent:
        embedding_key, layer_key = jax.random.split(require_key("a network", key))
        cell = (2 * width, width)
        update, candidate, head = init_layers(layer_key, [cell, cell, (width, symbols)])
        places = jnp.zeros((max_length, symbols))
        if log_probs is not None:
            head = jax.tree.map(jnp.zeros_like, head)
            places = _table(log_probs, places.shape)
        embeddings = jax.random.normal(embedding_key, (symbols, width))
        return Recurrent(embeddings, update, candidate, head, places)

    def advance(
        params: Recurrent, state: Float[Array, "C width"], token: Int[Array, " C"]
    ) -> Float[Array, "C width"]:
        seen = jnp.concatenate([state, params.tokens[token]], axis=-1)
        gate = jax.nn.sigmoid(apply_dense(params.update, seen))
        return (1.0 - gate) * state + gate * jnp.tanh(apply_dense(params.candidate, seen))

    def unroll(
        params: Recurrent, count: int, choose: Callable[[Array, Array], Int[Array, " C"]]
    ) -> tuple[Float[Array, "C T S"], Int[Array, "C T"]]:
        """Return each place's log-probabilities, and the token that ``choose`` takes of them."""

        def step(
            carry: tuple[Array, Array], place: Int[Array, ""]
        ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            state, token = carry
            state = advance(params, state, token)
            logits = apply_dense(params.head, state) + params.places[place]
            log_probs = jax.nn.log_softmax(logits)
            token = choose(log_probs, place)
            return (state, token), (log_probs, token)

        begin = jnp.zeros((count, width)), jnp.full(count, STOP)
        _, (log_probs, tokens) = jax.lax.scan(step, begin, jnp.arange(max_length))
        return jnp.moveaxis(log_probs, 0, 1), tokens.T

    def log_prob(params: Recurrent, context: Any, responses: Rows) -> Float[Array, " C"]:
        require_responses("responses", responses, num_values, max_length)
        given = jnp.asarray(responses, int)
        rows = given.reshape(-1, max_length + 1)
        log_probs, _ = unroll(params, len(rows), lambda _, place: rows[:, place])
        return _until_stop(log_probs, rows).reshape(given.shape[:-1])

    def sample(params: Recurrent, key: PRNGKeyArray, context: Any, count: int) -> Rows:
        keys = threefry.split(key, max_length)

        def draw(log_probs: Float[Array, "C S"], place: Int[Array, ""]) -> Int[Array, " C"]:
            return sampling.sample_categorical(keys[place], log_probs, 1)[:, 0].astype(int)

        return _stopped(unroll(params, count, draw)[1])

    def log_probs(params: Recurrent, context: Any = None) -> Float[Array, " K"]:
        return log_prob(params, context, jnp.asarray(all_responses(num_values, max_length)))

    return Policy(init, log_probs, log_prob, sample)


def _table(log_probs: ArrayLike, shape: tuple[int, ...]) -> Table:
    if np.shape(log_probs) != shape:
        raise InvalidInput(f"log_probs has shape {np.shape(log_probs)}; the table is {shape}")
    return jnp.asarray(log_probs, float)


def _until_stop(log_probs: Float[Array, "*batch T S"], responses: Rows) -> Float[Array, " C"]:
    """Return the sum over places up to the first stop; the stop at place T costs nothing."""
    tokens = responses[..., :-1]
    own = own_tokens(log_probs, tokens)
    # Masked before the sum, so that an excluded token after the stop adds nothing.
    return jnp.sum(jnp.where(_reached(tokens), own, 0.0), axis=-1)


def _reached(tokens: Int[Array, "C T"]) -> Bool[Array, "C T"]:
    """Return whether no stop stands before a place."""
    stops = jnp.cumsum(tokens == STOP, axis=-1)
    return stops - (tokens == STOP) == 0


def _stopped(tokens: Int[Array, "C T"]) -> Rows:
    """Return the tokens with stops from the first one on, and one at the end."""
    kept = jnp.where(_reached(tokens), tokens, STOP)
    return jnp.pad(kept, ((0, 0), (0, 1)), constant_values=STOP)
