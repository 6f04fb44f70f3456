"""One logit an arm: p = softmax(θ), the policy of the theorems."""

import jax

from bandits.policies.base import Policy


def tabular_softmax() -> Policy:
    """A policy log p = θ − logsumexp(θ), whose parameters are the logits θ ``[K]``.

    They start at log p; ``-inf`` excludes an arm.
    """
    return Policy(init=lambda log_probs: log_probs, log_probs=jax.nn.log_softmax)
