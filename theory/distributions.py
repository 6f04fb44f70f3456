"""Entropy and divergences of categorical distributions, in log space, zeros exact.

All functions take log-probabilities ``[..., K]`` (``-inf`` is an excluded category), broadcast over
leading axes and return ``[...]``. They are differentiable where finite: an excluded category adds
nothing to the value and nothing to the gradient. NaN gives NaN.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from theory.types import PerArm, PerProblem


@jax.custom_jvp
def kl_divergence(log_p: PerArm, log_q: PerArm) -> PerProblem:
    """Return KL(p‖q) = Σ p (log p − log q) in nats, >= 0; ∞ where q excludes what p does not.

    The sum is taken as Σ [p (log p − log q) − p + q], which is the same as both sum to 1. No term
    of it is below zero, so rounding cannot make it negative.

    >>> log_p, log_q = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
    >>> print(f"{kl_divergence(log_p, log_q):.4f}")
    0.1438
    """
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    ratio = log_ratio(log_p, log_q)
    # Near p = q the terms cancel: there they are p (e^−L − 1 + L).
    near = jnp.abs(ratio) < 0.5
    small = jnp.where(near, ratio, 0.0)
    terms = jnp.where(near, p * (jnp.expm1(-small) + small), _masked_product(p, ratio) - p + q)
    return jnp.sum(jnp.where(p == 0, q, jnp.maximum(terms, 0.0)), axis=-1)


@kl_divergence.defjvp
def _kl_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[PerProblem, PerProblem]:
    """Return the derivative of Σ p (log p − log q), without the terms −p + q."""
    (log_p, log_q), (to_p, to_q) = primals, tangents
    p = jnp.exp(log_p)
    held = p != 0
    slopes = _masked_product(p, 1.0 + log_ratio(log_p, log_q))
    changes = jnp.where(held, slopes * to_p - p * to_q, 0.0)
    return kl_divergence(log_p, log_q), jnp.sum(changes, axis=-1)


def log_ratio(log_p: PerArm, log_q: PerArm) -> PerArm:
    """Return log p/q, and 0 where p is 0."""
    held = jnp.exp(log_p) != 0
    # Both branches of a `where` are differentiated, so the masked one must be finite too.
    return jnp.where(held, log_p, 0.0) - jnp.where(held, log_q, 0.0)


def _masked_product(p: Array, values: Array) -> Array:
    """Return p times the values, and 0 where p is 0."""
    return jnp.where(p != 0, p * values, 0.0)


def entropy(log_p: PerArm) -> PerProblem:
    """Return H(p) = −Σ p log p in nats, from 0 (one category) to log K (uniform)."""
    p = jnp.exp(log_p)
    return -jnp.sum(_masked_product(p, jnp.where(p != 0, log_p, 0.0)), axis=-1)


def concentrability(log_p: PerArm, log_q: PerArm) -> PerProblem:
    """Return C = max_y p(y)/q(y) >= 1: how far p reaches beyond q; ∞ outside q's support.

    With p the optimal policy and q the reference, it measures geometric alignment, condition C1 of
    arXiv:2404.14367; with q the law of the preference data, coverage, condition C2.
    """
    held = log_p != -jnp.inf
    ratio = jnp.where(held, log_p, 0.0) - jnp.where(held, log_q, 0.0)
    return jnp.exp(jnp.max(jnp.where(held, ratio, -jnp.inf), axis=-1))
