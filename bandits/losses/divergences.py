"""Exact divergences of a policy p from a target q, over all arms and without sampling noise."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bandits.losses.responses import Responses
from theory import checks, distributions

Divergence = Callable[[Float[Array, " K"], Float[Array, " K"]], Float[Array, ""]]
"""(log_probs, target_log_probs) -> nats."""


def forward_kl(
    log_probs: Float[Array, " K"], target_log_probs: Float[Array, " K"]
) -> Float[Array, ""]:
    """Return KL(q‖p): maximum likelihood of the target's samples, which covers modes.

    Its gradient in the logits of a tabular softmax is p − q.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> f"{forward_kl(p, q):.3f} {reverse_kl(p, q):.3f}"
    '0.368 0.511'
    """
    chex.assert_equal_shape([log_probs, target_log_probs])
    return distributions.kl_divergence(target_log_probs, log_probs)


def reverse_kl(
    log_probs: Float[Array, " K"], target_log_probs: Float[Array, " K"]
) -> Float[Array, ""]:
    """Return KL(p‖q): policy gradient on the reward whose Gibbs policy is q, which seeks modes.

    Its gradient in the logits of a tabular softmax is p ∘ (log(p/q) − KL(p‖q)).
    """
    chex.assert_equal_shape([log_probs, target_log_probs])
    return distributions.kl_divergence(log_probs, target_log_probs)


def jeffreys(
    log_probs: Float[Array, " K"], target_log_probs: Float[Array, " K"]
) -> Float[Array, ""]:
    """Return KL(q‖p) + KL(p‖q) = Σ (p − q) log(p/q). Source: Jeffreys 1946."""
    return forward_kl(log_probs, target_log_probs) + reverse_kl(log_probs, target_log_probs)


def jensen_shannon(
    log_probs: Float[Array, " K"], target_log_probs: Float[Array, " K"]
) -> Float[Array, ""]:
    """Return ½ KL(q‖m) + ½ KL(p‖m), m = (p + q)/2, at most log 2. Source: Lin 1991."""
    chex.assert_equal_shape([log_probs, target_log_probs])
    mixture = _log_mean(log_probs, target_log_probs)
    to_policy = distributions.kl_divergence(log_probs, mixture)
    to_target = distributions.kl_divergence(target_log_probs, mixture)
    return 0.5 * (to_policy + to_target)


def _log_mean(a: Float[Array, " K"], b: Float[Array, " K"]) -> Float[Array, " K"]:
    """Return log((exp a + exp b)/2); where both are −∞ so is it, with zero gradient."""
    excluded = jnp.isneginf(a) & jnp.isneginf(b)
    a, b = (jnp.where(excluded, 0.0, x) for x in (a, b))
    return jnp.where(excluded, -jnp.inf, jnp.logaddexp(a, b) - jnp.log(2.0))


def to_gibbs(divergence: Divergence) -> Callable[..., Float[Array, ""]]:
    """Return the divergence from the Gibbs policy π* ∝ π_ref exp(r/β) as a method's loss."""

    def loss(responses: Responses, beta: ArrayLike = 0.1) -> Float[Array, ""]:
        beta = checks.positive("beta", beta)
        target = jax.nn.log_softmax(responses.reference_log_probs + responses.rewards / beta)
        return divergence(responses.log_probs, target)

    loss.__doc__ = divergence.__doc__
    return loss
