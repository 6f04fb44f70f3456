"""Policies over sequences of tokens: independent tokens, and a causal transformer.

Tokens are written one after another: log π(y|x) = Σ_t log π(y_t | x, y_<t).
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bandits.kernels import threefry
from bandits.policies import sampling
from bandits.policies.base import Policy, log_normalizer, require_key
from bandits.policies.network import Dense, apply_dense, init_layers, layer_norm
from theory.checks import InvalidInput

MOST_SEQUENCES = 10**6
"""Largest space of sequences that is listed."""

Rows = Int[Array, "C L"]
"""Responses: a row of tokens each."""
PerRow = Float[Array, " C"]
Table = Float[Array, "L V"]
"""Logits of each token at each place."""


def all_sequences(num_values: int, length: int) -> Int[np.ndarray, "K L"]:
    """Return all ``num_values ** length`` sequences in lexicographic order.

    Raises:
      InvalidInput: For a space of more than a million sequences.
    """
    require_listable(num_values**length, f"{num_values} values at {length} places", "sequences")
    return np.array(list(itertools.product(range(num_values), repeat=length)), np.int32)


def require_listable(count: int, what: str, kind: str) -> None:
    """Refuse a space that is too large to be listed."""
    if count > MOST_SEQUENCES:
        raise InvalidInput(
            f"{what} make {count:.3g} {kind}; at most {MOST_SEQUENCES:,} can be listed, sample "
            "them instead"
        )


def product_of_tokens(num_values: int, length: int) -> Policy:
    """Return the policy of independent tokens, log π(y) = Σ_t log p_t(y_t), without a context.

    Its table of logits ``[L, V]`` starts at log-probabilities ``[V]`` or ``[L, V]``, or at random
    with a key: standard normal.
    """

    def init(
        log_probs: Float[Array, "*L V"] | None = None, key: PRNGKeyArray | None = None
    ) -> Table:
        if log_probs is not None:
            return jnp.broadcast_to(log_probs, (length, num_values))
        if key is None:
            raise InvalidInput("a table starts at log_probs, or at random with a key")
        return jax.random.normal(key, (length, num_values))

    def log_prob(logits: Table, context: Any, responses: Rows) -> PerRow:
        return own_tokens(jax.nn.log_softmax(logits), responses).sum(axis=-1)

    def scored(logits: Table, context: Any, responses: Rows) -> tuple[PerRow, Float[Array, ""]]:
        return own_tokens(logits, responses).sum(axis=-1), log_normalizer(logits).sum()

    def sample(logits: Table, key: PRNGKeyArray, context: Any, count: int) -> Rows:
        return sampling.sample_categorical(key, jax.nn.log_softmax(logits), count).T

    def log_probs(logits: Table, context: Any = None) -> Float[Array, " K"]:
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
      tokens: ``[V, width]``, an embedding of each token.
      positions: ``[L, width]``, an embedding of each place.
      blocks: The layers, stacked along a leading axis, so that they compile as one.
      head: width → V logits.
    """

    tokens: Float[Array, "V width"]
    positions: Float[Array, "L width"]
    blocks: Block
    head: Dense


def causal_transformer(
    num_values: int, length: int, layers: int = 3, heads: int = 3, width: int = 48
) -> Policy:
    """Return a decoder-only transformer: the context is one token, ``length`` tokens follow it.

    Each block has causal attention and a GELU network four times as wide, both after LayerNorm. To
    start at given log-probabilities ``[V]`` exactly, the head starts with weights 0 and those for
    its bias. The defaults are those of the published combinatorial bandit.

    Raises:
      InvalidInput: If the heads do not divide the width.
    """
    if width % heads:
        raise InvalidInput(f"width is {width}; {heads} heads must divide it")

    def init(
        log_probs: Float[Array, " V"] | None = None, key: PRNGKeyArray | None = None
    ) -> Transformer:
        embedding_key, layer_key = jax.random.split(require_key("a transformer", key))
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
        """Return log-probabilities of the token after each place."""
        embedded = params.tokens[inputs] + params.positions
        x, _ = jax.lax.scan(lambda x, block: (apply_block(block, x), None), embedded, params.blocks)
        return jax.nn.log_softmax(apply_dense(params.head, layer_norm(x)))

    def shifted(context: Int[Array, ""], responses: Rows) -> Rows:
        """Return what the transformer reads to write the responses: each token's predecessor."""
        first = jnp.broadcast_to(context, (*responses.shape[:-1], 1)).astype(responses.dtype)
        return jnp.concatenate([first, responses[..., :-1]], axis=-1)

    def log_prob(params: Transformer, context: Int[Array, ""], responses: Rows) -> PerRow:
        log_probs = next_tokens(params, shifted(context, responses))
        return own_tokens(log_probs, responses).sum(axis=-1)

    def sample(params: Transformer, key: PRNGKeyArray, context: Int[Array, ""], count: int) -> Rows:
        def extend(responses: Rows, place: Array) -> tuple[Array, None]:
            log_probs = next_tokens(params, shifted(context, responses))[:, place]
            token = sampling.sample_categorical(keys[place], log_probs, 1)
            return responses.at[:, place].set(token[:, 0]), None

        keys = threefry.split(key, length)
        start = jnp.zeros((count, length), jnp.int32)
        return jax.lax.scan(extend, start, jnp.arange(length))[0]

    def log_probs(params: Transformer, context: Int[Array, ""]) -> Float[Array, " K"]:
        return log_prob(params, context, jnp.asarray(all_sequences(num_values, length)))

    return Policy(init, log_probs, log_prob, sample)


def own_tokens(log_probs: Float[Array, "*batch L V"], tokens: Rows) -> Float[Array, "C L"]:
    """Return, at each place, the log-probability of the token that stands there."""
    log_probs = jnp.broadcast_to(log_probs, (*tokens.shape, log_probs.shape[-1]))
    return jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
