"""Entropy and divergences of categorical distributions, in log space, zeros exact.

All functions take log-probabilities ``[..., K]`` (``-inf`` is an excluded category), broadcast over
leading axes and return ``[...]``. They are differentiable where finite: an excluded category adds
nothing to the value and nothing to the gradient. NaN gives NaN.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def kl_divergence(
    log_p: Float[Array, "*batch K"], log_q: Float[Array, "*batch K"]
) -> Float[Array, "*batch"]:
    """KL(p‖q) = Σ p (log p − log q) in nats; infinite where q excludes what p does not."""
    p = jnp.exp(log_p)
    held = p != 0
    # Both branches of a `where` are differentiated, so the masked one must be finite too.
    log_ratio = jnp.where(held, log_p, 0.0) - jnp.where(held, log_q, 0.0)
    return jnp.sum(jnp.where(held, p * log_ratio, 0.0), axis=-1)


def entropy(log_p: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
    """H(p) = −Σ p log p in nats, from 0 (one category) to log K (uniform)."""
    p = jnp.exp(log_p)
    return -jnp.sum(jnp.where(p != 0, p * jnp.where(p != 0, log_p, 0.0), 0.0), axis=-1)


def concentrability(
    log_p: Float[Array, "*batch K"], log_q: Float[Array, "*batch K"]
) -> Float[Array, "*batch"]:
    """C = max_y p(y)/q(y) >= 1: how far p reaches beyond q; infinite outside q's support.

    With p the optimal policy and q the reference, this is the measure of geometric alignment
    (condition C1) of Tajwar et al. 2024, arXiv:2404.14367; with q the law of the preference data,
    it is that of coverage (condition C2).
    """
    held = log_p != -jnp.inf
    log_ratio = jnp.where(held, log_p, 0.0) - jnp.where(held, log_q, 0.0)
    return jnp.exp(jnp.max(jnp.where(held, log_ratio, -jnp.inf), axis=-1))
