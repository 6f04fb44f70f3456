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

Everything is in log space and in nats; tables are ``[..., T, 1 + V]``, laws ``[..., T + 1]``. Every
function raises `InvalidInput` for what the types refuse. Source: the length problems of
arXiv:2404.14367, section 4.2.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from theory import checks, distributions
from theory.types import LogProbs, PerProblem, Positive, TokenLogProbs, TwoOrMore, checked

STOP = 0
"""The stop's column in a table, and its token in a response."""


@checked
def length_log_probs(table: TokenLogProbs) -> Float[Array, "*batch T1"]:
    """Return log P(|y| = t) for t = 0 … T, of a token-independent policy.

    >>> print(np.exp(length_log_probs(np.log(np.full((2, 4), 0.25)))).round(4))
    [0.25   0.1875 0.5625]
    """
    stop, goes_on = _hazards(jnp.asarray(table))
    reached = _reached(goes_on)
    forced = reached[..., -1:] + goes_on[..., -1:]
    return jnp.concatenate([reached + stop, forced], axis=-1)


@checked
def table_of_lengths(
    length_log_probs: LogProbs, content_log_probs: Float[ArrayLike, " V"]
) -> Float[Array, "*batch T S"]:
    """Return the policy with this law of the length and the same law of content at every place.

    h_t = P(|y| = t)/P(|y| >= t). Places that are never reached stop at once. ``content_log_probs``
    count up to a constant, and may be a number for V = 1; they are refused if all are −∞.
    """
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


@checked
def skewed_lengths(
    max_length: TwoOrMore, mode: Positive, spread: Positive = 0.6
) -> Float[Array, " T1"]:
    """Return a broad, right-skewed law: log-normal weights on 1 … T with their peak at ``mode``.

    log P(t) = −log t − (log t − μ)²/(2σ²) + constant, μ = log mode + σ²; 0 tokens are excluded. The
    spread is σ, the standard deviation of log t. The mode is in tokens, and must lie in 1 … T.
    """
    known = checks.concrete(mode)
    if known is not None and ((known < 1) | (known > max_length)).any():
        raise checks.InvalidInput(f"mode is {mode}; lengths go from 1 up to {max_length}")
    log_t = jnp.log(jnp.arange(1, max_length + 1))
    sigma = jnp.asarray(spread)
    centre = jnp.log(jnp.asarray(mode)) + sigma**2
    weights = -log_t - (log_t - centre) ** 2 / (2 * sigma**2)
    return jnp.concatenate([jnp.array([-jnp.inf]), jax.nn.log_softmax(weights)])


@checked
def sequence_entropy(table: TokenLogProbs) -> PerProblem:
    """Return H(π) over responses of all lengths, in nats."""
    log_probs = jnp.asarray(table)
    reached = jnp.exp(_reached(_hazards(log_probs)[1]))
    return jnp.sum(reached * distributions.entropy(log_probs), axis=-1)


@checked
def sequence_kl(table: TokenLogProbs, other: TokenLogProbs) -> PerProblem:
    """Return KL(π‖π') over responses of all lengths, in nats; ∞ where π' excludes what π plays.

    Tables of different places or symbols are refused.
    """
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
    """Return log h and log(1 − h) at each place."""
    content = table[..., STOP + 1 :]
    # Where all content is excluded, the derivative of a logsumexp of −∞ alone would be NaN.
    held = jnp.any(content > -jnp.inf, axis=-1)
    goes_on = jax.nn.logsumexp(jnp.where(held[..., None], content, 0.0), axis=-1)
    return table[..., STOP], jnp.where(held, goes_on, -jnp.inf)


def _reached(goes_on: Float[Array, "*batch T"]) -> Float[Array, "*batch T"]:
    """Return log S_t, the probability that place t is reached."""
    before = jnp.cumsum(goes_on, axis=-1)[..., :-1]
    return jnp.concatenate([jnp.zeros_like(goes_on[..., :1]), before], axis=-1)
