"""Exact divergences from a target q, with every arm in the group: no sampling noise."""

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
    """KL(q‖p): maximum likelihood of the target's samples, mode-covering.

    Its gradient in the logits of a tabular softmax is p − q.
    """
    chex.assert_equal_shape([log_probs, target_log_probs])
    return distributions.kl_divergence(target_log_probs, log_probs)


def reverse_kl(
    log_probs: Float[Array, " K"], target_log_probs: Float[Array, " K"]
) -> Float[Array, ""]:
    """KL(p‖q): policy gradient on the KL-regularised reward whose Gibbs policy is q, mode-seeking.

    Its gradient in the logits of a tabular softmax is p ∘ (log(p/q) − KL(p‖q)).
    """
    chex.assert_equal_shape([log_probs, target_log_probs])
    return distributions.kl_divergence(log_probs, target_log_probs)


def jeffreys(
    log_probs: Float[Array, " K"], target_log_probs: Float[Array, " K"]
) -> Float[Array, ""]:
    """KL(q‖p) + KL(p‖q) = Σ (p − q) log(p/q). Source: Jeffreys 1946."""
    return forward_kl(log_probs, target_log_probs) + reverse_kl(log_probs, target_log_probs)


def jensen_shannon(
    log_probs: Float[Array, " K"], target_log_probs: Float[Array, " K"]
) -> Float[Array, ""]:
    """½ KL(q‖m) + ½ KL(p‖m), m = (p + q)/2: at most log 2. Source: Lin 1991."""
    chex.assert_equal_shape([log_probs, target_log_probs])
    mixture = _log_mean(log_probs, target_log_probs)
    to_policy = distributions.kl_divergence(log_probs, mixture)
    to_target = distributions.kl_divergence(target_log_probs, mixture)
    return 0.5 * (to_policy + to_target)


def _log_mean(a: Float[Array, " K"], b: Float[Array, " K"]) -> Float[Array, " K"]:
    """log((exp a + exp b)/2), −∞ with zero gradient where both are."""
    excluded = jnp.isneginf(a) & jnp.isneginf(b)
    a, b = (jnp.where(excluded, 0.0, x) for x in (a, b))
    return jnp.where(excluded, -jnp.inf, jnp.logaddexp(a, b) - jnp.log(2.0))


def forward_kl_gradient(
    logits: Float[Array, "K *batch"], target_log_probs: Float[Array, "K *batch"]
) -> Float[Array, "K *batch"]:
    """The gradient p − q of `forward_kl` in the logits of a tabular softmax, arms first."""
    weights = jnp.exp(logits - _greatest(logits))
    return weights * (1.0 / _total(weights)) - jnp.exp(target_log_probs)


def reverse_kl_gradient(
    logits: Float[Array, "K *batch"], target_log_probs: Float[Array, "K *batch"]
) -> Float[Array, "K *batch"]:
    """The gradient p ∘ (log(p/q) − KL(p‖q)) of `reverse_kl`, arms first.

    Logits less the greatest do for log p: they differ by a constant, and so do their means under p.
    """
    greatest = _greatest(logits)
    relative = logits - greatest
    weights = jnp.exp(relative)
    scale = 1.0 / _total(weights)

    def weighted(values: Float[Array, "K *batch"]) -> Float[Array, "K *batch"]:
        return jnp.where(weights > 0, weights * values, 0.0)  # 0 times ∞ is 0 here

    mean = _total(weighted(relative - target_log_probs)) * scale
    # Held apart, so that XLA takes the differences anew: it would keep them, and to read them again
    # takes longer.
    greatest, mean, target_log_probs = jax.lax.optimization_barrier(
        (greatest, mean, target_log_probs)
    )
    return scale * weighted(logits - greatest - target_log_probs - mean)


def _greatest(values: Float[Array, "K *batch"]) -> Float[Array, "*batch"]:
    # On a CPU jnp.max takes as long as the exponential, for it lets NaN through. Here NaN may be
    # passed over: its exponential is NaN.
    least = jnp.array(-jnp.inf, values.dtype)
    return jax.lax.reduce(values, least, lambda a, b: jnp.where(a > b, a, b), dimensions=(0,))


def _total(values: Float[Array, "K *batch"]) -> Float[Array, "*batch"]:
    # A product with ones: on a CPU its kernel is no slower than that of jnp.sum, and sums every
    # column in the same order however many there are, in jaxlib 0.10.2 at least. A column alone
    # would get another kernel; two do not.
    columns = values.reshape(len(values), -1)
    if columns.shape[1] == 1:
        columns = jnp.repeat(columns, 2, axis=1)
    ones = jnp.ones(len(values), values.dtype)
    totals = jnp.tensordot(ones, columns, axes=1, precision=jax.lax.Precision.HIGHEST)
    return totals[: values[0].size].reshape(values.shape[1:])


LOGIT_GRADIENTS: dict[Divergence, Callable[[Array, Array], Array]] = {
    forward_kl: forward_kl_gradient,
    reverse_kl: reverse_kl_gradient,
}
"""Gradients that take one exponential an arm, where autodiff takes two."""


def to_gibbs(divergence: Divergence) -> Callable[..., Float[Array, ""]]:
    """The divergence as a method: from the Gibbs policy π* ∝ π_ref exp(r/β) of the whole space."""

    def loss(responses: Responses, beta: ArrayLike = 0.1) -> Float[Array, ""]:
        beta = checks.positive("beta", beta)
        target = jax.nn.log_softmax(responses.reference_log_probs + responses.rewards / beta)
        return divergence(responses.log_probs, target)

    loss.__doc__ = divergence.__doc__
    return loss
