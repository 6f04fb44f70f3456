"""Exact divergences from a target q, with every arm in the group: no sampling noise."""

import chex
from jaxtyping import Array, Float

from theory import distributions


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
