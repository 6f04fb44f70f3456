"""Policies over sequences of tokens: independent tokens, and a causal transformer.

The log-probability of a sequence is the sum of those of its own tokens, each given the tokens
before it: log π(y|x) = Σ_t log π(y_t | x, y_<t).
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bandits.kernels import threefry
from bandits.policies.base import Policy, log_normalizer
from bandits.policies.network import Dense, apply_dense, init_layers, layer_norm
from bandits.problems import sampling
from theory.checks import InvalidInput

MOST_SEQUENCES = 10**6
"""Largest space of sequences that is listed."""


def all_sequences(num_values: int, length: int) -> Int[np.ndarray, "K L"]:
    """Every sequence, in lexicographic order: ``num_values ** length`` rows.

    Raises InvalidInput for a space of more than a million sequences.
    """
    count = num_values**length
    if count > MOST_SEQUENCES:
        raise InvalidInput(
            f"{num_values} values at {length} places make {count:.3g} sequences; at most "
            f"{MOST_SEQUENCES:,} can be listed, sample them instead"
        )
    return np.array(list(itertools.product(range(num_values), repeat=length)), np.int32)


def product_of_tokens(num_values: int, length: int) -> Policy:
    """Independent tokens, log π(y) = Σ_t log p_t(y_t): a table of logits ``[L, V]``.

    The table starts at log-probabilities ``[V]`` or ``[L, V]``, or at random: standard normal. The
    context is not used.
    """

    def init(
        log_probs: Float[Array, "*L V"] | None = None, key: PRNGKeyArray | None = None
    ) -> Float[Array, "L V"]:
        if log_probs is not None:
            return jnp.broadcast_to(log_probs, (length, num_values))
        if key is None:
            raise InvalidInput("a table starts at log_probs, or at random with a key")
        return jax.random.normal(key, (length, num_values))

    def log_prob(
        logits: Float[Array, "L V"], context: Any, responses: Int[Array, "C L"]
    ) -> Float[Array, " C"]:
        return own_tokens(jax.nn.log_softmax(logits), responses).sum(axis=-1)

    def scored(
        logits: Float[Array, "L V"], context: Any, responses: Int[Array, "C L"]
    ) -> tuple[Float[Array, " C"], Float[Array, ""]]:
        scores = own_tokens(logits, responses).sum(axis=-1)
        return scores, log_normalizer(logits).sum()

    def sample(
        logits: Float[Array, "L V"], key: PRNGKeyArray, context: Any, count: int
    ) -> Int[Array, "C L"]:
        return sampling.sample_categorical(key, jax.nn.log_softmax(logits), count).T

    def log_probs(logits: Float[Array, "L V"], context: Any = None) -> Float[Array, " K"]:
        return log_prob(logits, context, jnp.asarray(all_sequences(num_values, length)))

    return Policy(init, log_probs, log_prob, sample, scored)


class Block(NamedTuple):
    """One layer of a transformer."""

    query_key_value: Dense
    attended: Dense
    widen: Dense
    narrow: Dense


class Transformer(NamedTuple):
    """Parameters of a causal transformer.

    Attributes:
      tokens: ``[V, width]``, an embedding a token.
      positions: ``[L, width]``, one a place.
      blocks: the layers, stacked along a leading axis, so that they compile as one.
      head: width → V logits.
    """

    tokens: Float[Array, "V width"]
    positions: Float[Array, "L width"]
    blocks: Block
    head: Dense


def causal_transformer(
    num_values: int, length: int, layers: int = 3, heads: int = 3, width: int = 48
) -> Policy:
    """A decoder-only transformer: the context is one token, the response the ``length`` after it.

    Pre-norm blocks of causal attention and a GELU network four times as wide. To start at given
    log-probabilities ``[V]`` exactly, the head's weights are 0 and its bias is those. The defaults
    are the published combinatorial bandit's.

    Raises InvalidInput if heads do not divide the width.
    """
    if width % heads:
        raise InvalidInput(f"width is {width}; {heads} heads must divide it")

    def init(
        log_probs: Float[Array, " V"] | None = None, key: PRNGKeyArray | None = None
    ) -> Transformer:
        if key is None:
            raise InvalidInput("a transformer starts at random; give a key")
        embedding_key, layer_key = jax.random.split(key)
        embeddings = jax.random.normal(embedding_key, (num_values + length, width))
        block = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
        *dense, head = init_layers(layer_key, [*block * layers, (width, num_values)])
        blocks = [Block(*dense[i : i + 4]) for i in range(0, len(dense), 4)]
        if log_probs is not None:
            head = Dense(jnp.zeros_like(head.kernel), jnp.asarray(log_probs, float))
        return Transformer(
            tokens=embeddings[:num_values],
            positions=embeddings[num_values:],
            blocks=jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks),
            head=head,
        )

    def apply_block(block: Block, x: Float[Array, "*batch L W"]) -> Float[Array, "*batch L W"]:
        projected = apply_dense(block.query_key_value, layer_norm(x))
        by_head = projected.reshape(*x.shape[:-1], heads, 3 * width // heads)
        query, key, value = jnp.split(by_head, 3, axis=-1)
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + apply_dense(block.attended, attended.reshape(x.shape))
        widened = jax.nn.gelu(apply_dense(block.widen, layer_norm(x)))
        return x + apply_dense(block.narrow, widened)

    def next_tokens(
        params: Transformer, inputs: Int[Array, "*batch L"]
    ) -> Float[Array, "*batch L V"]:
        """Log-probabilities of the token after each place."""
        embedded = params.tokens[inputs] + params.positions
        x, _ = jax.lax.scan(lambda x, block: (apply_block(block, x), None), embedded, params.blocks)
        return jax.nn.log_softmax(apply_dense(params.head, layer_norm(x)))

    def shifted(context: Int[Array, ""], responses: Int[Array, "C L"]) -> Int[Array, "C L"]:
        """What the transformer reads to write the responses: each token's predecessor."""
        first = jnp.broadcast_to(context, (*responses.shape[:-1], 1)).astype(responses.dtype)
        return jnp.concatenate([first, responses[..., :-1]], axis=-1)

    def log_prob(
        params: Transformer, context: Int[Array, ""], responses: Int[Array, "C L"]
    ) -> Float[Array, " C"]:
        log_probs = next_tokens(params, shifted(context, responses))
        return own_tokens(log_probs, responses).sum(axis=-1)

    def sample(
        params: Transformer, key: PRNGKeyArray, context: Int[Array, ""], count: int
    ) -> Int[Array, "C L"]:
        def extend(responses: Int[Array, "C L"], place: Array) -> tuple[Array, None]:
            log_probs = next_tokens(params, shifted(context, responses))[:, place]
            token = sampling.sample_categorical(keys[place], log_probs, 1)
            return responses.at[:, place].set(token[:, 0]), None

        keys = threefry.split(key, length)
        start = jnp.zeros((count, length), jnp.int32)
        return jax.lax.scan(extend, start, jnp.arange(length))[0]

    def log_probs(params: Transformer, context: Int[Array, ""]) -> Float[Array, " K"]:
        return log_prob(params, context, jnp.asarray(all_sequences(num_values, length)))

    return Policy(init, log_probs, log_prob, sample)


def own_tokens(
    log_probs: Float[Array, "*batch L V"], tokens: Int[Array, "C L"]
) -> Float[Array, "C L"]:
    """At every place, the log-probability of the token that stands there."""
    log_probs = jnp.broadcast_to(log_probs, (*tokens.shape, log_probs.shape[-1]))
    return jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
