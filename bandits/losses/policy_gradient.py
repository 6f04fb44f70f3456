"""Policy gradients on the KL-regularised reward r − β log(π/π_ref), β >= 0.

The advantage A is the regularised reward minus a baseline; it has no gradient. The baseline is
(1 − m) times the running mean of earlier rewards plus m times the mean of the prompt's own group,
with m = ``prompt_baseline``. A group's mean contains the response itself, so m = 1 shortens the
expected gradient of C samples by 1 − 1/C and does not turn it. Over the whole space the mean is
exact.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bandits.losses.responses import Responses, sum_of_log_probs
from theory import checks
from theory.distributions import kl_divergence

MOST_LOG_RATIO = 60.0
"""Largest log-ratio of PPO, in nats: exp of more overflows float32, and such a run is lost."""


def reinforce(
    responses: Responses, beta: ArrayLike = 0.05, prompt_baseline: ArrayLike = 0.0
) -> Float[Array, ""]:
    """Return −Σ s A log π, A = r − β log(π/π_ref) − b, for samples of the policy itself.

    Source: Williams 1992.
    """
    log_probs = _drawn(responses, responses.log_probs)
    advantages, mean = _advantages(responses, log_probs, beta, prompt_baseline)
    shares = _shares(responses)
    if mean is None:
        return -jnp.sum(shares * advantages * log_probs)
    return sum_of_log_probs(-shares * advantages, -mean, responses, jnp.argmax(shares))


def ppo(
    responses: Responses,
    beta: ArrayLike = 0.05,
    clip: ArrayLike = 0.2,
    prompt_baseline: ArrayLike = 0.0,
) -> Float[Array, ""]:
    """Return −Σ s min(ρ A, clip(ρ, 1 − ε, 1 + ε) A), ρ = π/π_behaviour, ε = ``clip`` > 0.

    A response whose ratio has left the trust region in the direction of A has no weight, so samples
    can be reused. Source: arXiv:1707.06347.
    """
    clip = checks.positive("clip", clip)
    behaviour_log_probs = _drawn(responses, responses.behaviour_log_probs)
    advantages, _ = _advantages(responses, behaviour_log_probs, beta, prompt_baseline)
    log_ratios = _drawn(responses, responses.log_probs) - behaviour_log_probs
    ratios = jnp.exp(jnp.minimum(log_ratios, MOST_LOG_RATIO))
    clipped = jnp.clip(ratios, 1.0 - clip, 1.0 + clip)
    surrogate = jnp.minimum(ratios * advantages, clipped * advantages)
    return -jnp.sum(_shares(responses) * surrogate)


def soft_optimize(responses: Responses, beta: ArrayLike = 0.1) -> Float[Array, ""]:
    """Return −Σ π r + β KL(π‖π_ref) over the whole space: policy gradient without samples.

    With rewards learned from preferences it is the second stage of RLHF. Source: arXiv:2203.02155,
    section 3.5.
    """
    beta = jnp.asarray(checks.nonnegative("beta", beta))
    log_probs = responses.log_probs
    expected_reward = jnp.sum(jnp.exp(log_probs) * responses.rewards)
    return beta * kl_divergence(log_probs, responses.reference_log_probs) - expected_reward


def _advantages(
    responses: Responses,
    log_probs: Float[Array, " C"],
    beta: ArrayLike,
    prompt_baseline: ArrayLike,
) -> tuple[Float[Array, " C"], Float[Array, ""] | None]:
    """Return the advantages, and their mean over the group where its own mean is their baseline."""
    beta = checks.nonnegative("beta", beta)
    penalty = beta * (log_probs - _drawn(responses, responses.reference_log_probs))
    penalized = responses.rewards - penalty
    # XLA would sum every group for a mean that counts for nothing.
    known = checks.concrete(prompt_baseline)
    if known is not None and known == 0.0:
        return jax.lax.stop_gradient(penalized - responses.baseline), None
    # Of differences to one response, so that the mean of equal rewards is that reward.
    first = penalized[jnp.argmax(responses.shares)]
    prompt_mean = first + jnp.sum(_shares(responses) * (penalized - first))
    ahead = (1.0 - jnp.asarray(prompt_baseline)) * (prompt_mean - responses.baseline)
    return jax.lax.stop_gradient((penalized - prompt_mean + ahead, ahead))


def _shares(responses: Responses) -> Float[Array, " C"]:
    return jax.lax.stop_gradient(responses.shares)


def _drawn(responses: Responses, log_probs: Float[Array, " C"]) -> Float[Array, " C"]:
    """Return log-probabilities, 0 where the share is 0: an excluded response adds nothing."""
    return jnp.where(responses.shares > 0, log_probs, 0.0)
