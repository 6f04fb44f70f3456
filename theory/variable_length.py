"""Responses of different lengths: a stop token, its hazard, and the law of the length.

A response is up to T content tokens, each one of V, and then the stop, which is forced after T. A
token-independent policy is a table ``[T, 1 + V]`` of log-probabilities, a row a place, the stop in
column 0 (`STOP`). With h_t the probability of the stop at place t, the *hazard*, and
S_t = Π_{s<t} (1 − h_s) that of getting there,

    P(|y| = t) = S_t h_t for t < T,      P(|y| = T) = S_T.

Sums over responses are sums over places: the log-probability of a response ends with its stop, so

    H(π) = Σ_t S_t H(π_t),      KL(π‖π') = Σ_t S_t KL(π_t‖π'_t).

*Proof.* log π(y) = Σ_t 1[y has not stopped before t] log π_t(y_t). Take expectations: the tokens of
a place are independent of those before it, so that the indicator has mean S_t and factors out. ∎

Everything is in log space and in nats; tables are ``[..., T, 1 + V]``, laws ``[..., T + 1]``.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from theory import checks, distributions

STOP = 0
"""The stop's column in a table, and its token in a response."""


def length_log_probs(table: Float[ArrayLike, "*batch T S"]) -> Float[Array, "*batch T1"]:
    """Log P(|y| = t) for t = 0 … T, of a token-independent policy.

    Raises InvalidInput if a row is no distribution.
    """
    checks.require_log_distribution("table", table)
    stop, goes_on = _hazards(jnp.asarray(table))
    reached = _reached(goes_on)
    forced = reached[..., -1:] + goes_on[..., -1:]
    return jnp.concatenate([reached + stop, forced], axis=-1)


def table_of_lengths(
    length_log_probs: Float[ArrayLike, "*batch T1"], content_log_probs: Float[ArrayLike, " V"]
) -> Float[Array, "*batch T S"]:
    """The policy with this law of the length, and content tokens drawn alike at every place.

    h_t = P(|y| = t)/P(|y| >= t). Places that are never reached stop at once.

    Raises InvalidInput for lengths that are no distribution; ``content_log_probs`` may have one
    entry.
    """
    checks.require_log_distribution("length_log_probs", length_log_probs)
    known = checks.concrete(content_log_probs)
    if known is not None and not (np.max(known) > -np.inf and (known < np.inf).all()):
        raise checks.InvalidInput(
            f"content_log_probs is {known}; it must be logarithms, one of them above -inf"
        )
    law = jnp.asarray(length_log_probs)
    content = jax.nn.log_softmax(jnp.atleast_1d(jnp.asarray(content_log_probs)))
    # log P(|y| >= t), summed from the end.
    survives = jax.lax.cumlogsumexp(law, axis=law.ndim - 1, reverse=True)
    reached, beyond = survives[..., :-1], survives[..., 1:]
    held = reached > -jnp.inf
    base = jnp.where(held, reached, 0.0)
    stop = jnp.where(held, law[..., :-1] - base, 0.0)
    goes_on = jnp.where(held, beyond - base, -jnp.inf)
    return jax.nn.log_softmax(
        jnp.concatenate([stop[..., None], goes_on[..., None] + content], axis=-1), axis=-1
    )


def skewed_lengths(
    max_length: int, mode: ArrayLike, spread: ArrayLike = 0.6
) -> Float[Array, " T1"]:
    """A broad, right-skewed law: log-normal weights on 1 … T with their peak at ``mode``.

    log P(t) = −log t − (log t − μ)²/(2σ²) + constant, μ = log mode + σ²; 0 tokens are excluded.

    Args:
      max_length: T >= 2.
      mode: the most probable length, from 1 to T, in tokens.
      spread: σ > 0, the standard deviation of log t.

    Raises InvalidInput for values out of range.
    """
    checks.require_whole("max_length", max_length)
    if max_length < 2:
        raise checks.InvalidInput(f"max_length is {max_length}; at least 2 are needed")
    checks.require_positive("mode", mode)
    checks.require_positive("spread", spread)
    known = checks.concrete(mode)
    if known is not None and ((known < 1) | (known > max_length)).any():
        raise checks.InvalidInput(f"mode is {mode}; lengths go from 1 up to {max_length}")
    log_t = jnp.log(jnp.arange(1, max_length + 1))
    sigma = jnp.asarray(spread)
    centre = jnp.log(jnp.asarray(mode)) + sigma**2
    weights = -log_t - (log_t - centre) ** 2 / (2 * sigma**2)
    return jnp.concatenate([jnp.array([-jnp.inf]), jax.nn.log_softmax(weights)])


def sequence_entropy(table: Float[ArrayLike, "*batch T S"]) -> Float[Array, "*batch"]:
    """H(π) over responses of all lengths, in nats. Raises as `length_log_probs` does."""
    checks.require_log_distribution("table", table)
    log_probs = jnp.asarray(table)
    reached = jnp.exp(_reached(_hazards(log_probs)[1]))
    return jnp.sum(reached * distributions.entropy(log_probs), axis=-1)


def sequence_kl(
    table: Float[ArrayLike, "*batch T S"], other: Float[ArrayLike, "*batch T S"]
) -> Float[Array, "*batch"]:
    """KL(π‖π') over responses of all lengths, in nats; infinite where π' excludes what π plays.

    Raises as `length_log_probs` does, or for tables of different symbols.
    """
    checks.require_log_distribution("table", table)
    checks.require_log_distribution("other", other)
    if np.shape(table)[-2:] != np.shape(other)[-2:]:
        raise checks.InvalidInput(
            f"table has shape {np.shape(table)} but other {np.shape(other)}; their places and "
            "symbols must match"
        )
    log_probs = jnp.asarray(table)
    reached = jnp.exp(_reached(_hazards(log_probs)[1]))
    # 0 · ∞ = 0: a place that π never reaches does not count, whatever π' excludes there.
    there = jnp.where((reached > 0)[..., None], log_probs, jnp.asarray(other))
    return jnp.sum(reached * distributions.kl_divergence(there, jnp.asarray(other)), axis=-1)


def _hazards(
    table: Float[Array, "*batch T S"],
) -> tuple[Float[Array, "*batch T"], Float[Array, "*batch T"]]:
    """Log h and log(1 − h) at each place."""
    content = table[..., STOP + 1 :]
    # Where all content is excluded, the derivative of a logsumexp of −∞ alone would be NaN.
    held = jnp.any(content > -jnp.inf, axis=-1)
    goes_on = jax.nn.logsumexp(jnp.where(held[..., None], content, 0.0), axis=-1)
    return table[..., STOP], jnp.where(held, goes_on, -jnp.inf)


def _reached(goes_on: Float[Array, "*batch T"]) -> Float[Array, "*batch T"]:
    """Log S_t, the probability that place t is reached."""
    before = jnp.cumsum(goes_on, axis=-1)[..., :-1]
    return jnp.concatenate([jnp.zeros_like(goes_on[..., :1]), before], axis=-1)
