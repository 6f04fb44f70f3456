"""Policies over responses of different lengths: a table of hazards, and a recurrent network.

A response is an array ``[T + 1]`` of tokens: content from 1 to V, then the stop, 0, up to the end.
At place T the stop is forced, so every response has one. Log-probabilities end with the first stop;
what pads a response after it has none, and no gradient. What is no response is refused where it
has values: traced ones are taken at their word.
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
from bandits.policies.base import Policy
from bandits.policies.network import Dense, apply_dense, init_layers
from bandits.policies.sequences import MOST_SEQUENCES, own_tokens
from bandits.problems import sampling
from theory import checks
from theory.checks import InvalidInput
from theory.variable_length import STOP, length_log_probs


def all_responses(num_values: int, max_length: int) -> Int[np.ndarray, "K T1"]:
    """Every response, the shorter first, then in lexicographic order.

    Raises InvalidInput for a space of more than a million responses.
    """
    count = sum(num_values**length for length in range(max_length + 1))
    if count > MOST_SEQUENCES:
        raise InvalidInput(
            f"{num_values} values at up to {max_length} places make {count:.3g} responses; at most "
            f"{MOST_SEQUENCES:,} can be listed, sample them instead"
        )
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
    """Content tokens before the stop. Raises InvalidInput as `require_responses` does."""
    require_stops("responses", responses)
    return jnp.argmax(jnp.asarray(responses) == STOP, axis=-1)


def require_responses(
    name: str, responses: Int[ArrayLike, "*batch T1"], num_values: int, max_length: int
) -> None:
    """Refuse responses without a stop, with content after it, too long, or of unknown tokens."""
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
    """Tokens that depend on their place alone: a table of logits ``[T, 1 + V]``, stop first.

    The table starts at log-probabilities of that shape, such as those of
    `theory.variable_length.table_of_lengths`, or at random: standard normal. The context is not
    used. With V = 1 the whole space is the lengths from 0 to T.
    """
    shape = (max_length, 1 + num_values)

    def init(
        log_probs: Float[Array, "T S"] | None = None, key: PRNGKeyArray | None = None
    ) -> Float[Array, "T S"]:
        if log_probs is not None:
            return _table(log_probs, shape)
        if key is None:
            raise InvalidInput("a table starts at log_probs, or at random with a key")
        return jax.random.normal(key, shape)

    def log_prob(
        logits: Float[Array, "T S"], context: Any, responses: Int[Array, "C T1"]
    ) -> Float[Array, " C"]:
        require_responses("responses", responses, num_values, max_length)
        return _until_stop(jax.nn.log_softmax(logits), jnp.asarray(responses))

    def sample(
        logits: Float[Array, "T S"], key: PRNGKeyArray, context: Any, count: int
    ) -> Int[Array, "C T1"]:
        drawn = sampling.sample_categorical(key, jax.nn.log_softmax(logits), count).T
        return _stopped(drawn)

    def log_probs(logits: Float[Array, "T S"], context: Any = None) -> Float[Array, " K"]:
        if num_values == 1:
            return length_log_probs(jax.nn.log_softmax(logits))
        return log_prob(logits, context, jnp.asarray(all_responses(num_values, max_length)))

    return Policy(init, log_probs, log_prob, sample)


class Recurrent(NamedTuple):
    """Parameters of a gated recurrent network over tokens.

    Attributes:
      tokens: ``[1 + V, width]``, an embedding a token; the stop's stands for the beginning.
      update, candidate: (state, token) → the gate, and what it lets in.
      head: state → logits.
      places: ``[T, 1 + V]``, logits a place has of its own.
    """

    tokens: Float[Array, "S width"]
    update: Dense
    candidate: Dense
    head: Dense
    places: Float[Array, "T S"]


def recurrent(num_values: int, max_length: int, width: int = 32) -> Policy:
    """A minimal gated recurrent network that reads the tokens before, with a table of its own.

    h ← (1 − z) h + z tanh(candidate(h, token)), z = σ(update(h, token)); logits = head(h) + table.
    To start at log-probabilities ``[T, 1 + V]`` exactly, the head is 0 and the table is those. The
    context is not used. Source of the cell: arXiv:1603.09420.
    """
    symbols = 1 + num_values

    def init(
        log_probs: Float[Array, "T S"] | None = None, key: PRNGKeyArray | None = None
    ) -> Recurrent:
        if key is None:
            raise InvalidInput("a network starts at random; give a key")
        embedding_key, layer_key = jax.random.split(key)
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
        """At each place the log-probabilities, and the token that ``choose`` takes of them."""

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

    def log_prob(
        params: Recurrent, context: Any, responses: Int[Array, "C T1"]
    ) -> Float[Array, " C"]:
        require_responses("responses", responses, num_values, max_length)
        given = jnp.asarray(responses, int)
        rows = given.reshape(-1, max_length + 1)
        log_probs, _ = unroll(params, len(rows), lambda _, place: rows[:, place])
        return _until_stop(log_probs, rows).reshape(given.shape[:-1])

    def sample(
        params: Recurrent, key: PRNGKeyArray, context: Any, count: int
    ) -> Int[Array, "C T1"]:
        keys = threefry.split(key, max_length)

        def draw(log_probs: Float[Array, "C S"], place: Int[Array, ""]) -> Int[Array, " C"]:
            return sampling.sample_categorical(keys[place], log_probs, 1)[:, 0].astype(int)

        return _stopped(unroll(params, count, draw)[1])

    def log_probs(params: Recurrent, context: Any = None) -> Float[Array, " K"]:
        return log_prob(params, context, jnp.asarray(all_responses(num_values, max_length)))

    return Policy(init, log_probs, log_prob, sample)


def _table(log_probs: ArrayLike, shape: tuple[int, ...]) -> Float[Array, "T S"]:
    if np.shape(log_probs) != shape:
        raise InvalidInput(f"log_probs has shape {np.shape(log_probs)}; the table is {shape}")
    return jnp.asarray(log_probs, float)


def _until_stop(
    log_probs: Float[Array, "*batch T S"], responses: Int[Array, "C T1"]
) -> Float[Array, " C"]:
    """The sum over places up to the first stop; that at place T is forced and costs nothing."""
    tokens = responses[..., :-1]
    own = own_tokens(log_probs, tokens)
    # Masked before the sum, so that an excluded token after the stop adds nothing.
    return jnp.sum(jnp.where(_reached(tokens), own, 0.0), axis=-1)


def _reached(tokens: Int[Array, "C T"]) -> Bool[Array, "C T"]:
    """Whether no stop stands before a place."""
    stops = jnp.cumsum(tokens == STOP, axis=-1)
    return stops - (tokens == STOP) == 0


def _stopped(tokens: Int[Array, "C T"]) -> Int[Array, "C T1"]:
    """Stops from the first one on, and one at the end."""
    kept = jnp.where(_reached(tokens), tokens, STOP)
    return jnp.pad(kept, ((0, 0), (0, 1)), constant_values=STOP)
