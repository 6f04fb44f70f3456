"""Policy gradients on the KL-regularised reward r − β log(π/π_ref), with advantages A held fixed.

The baseline is (1 − m) times the running mean of earlier rewards plus m times that of the prompt's
own group, m = ``prompt_baseline``: 0 the one, 1 the other. As a group's mean contains the
response itself, m = 1 shortens the expected gradient of C samples by 1 − 1/C, without turning it;
where the group is the whole space the mean is exact. β >= 0.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bandits.losses.responses import Responses
from theory import checks
from theory.distributions import kl_divergence

MOST_LOG_RATIO = 60.0
"""Of PPO, in nats: exp of more overflows float32 in products, and a run so far off is lost."""


def reinforce(
    responses: Responses, beta: ArrayLike = 0.05, prompt_baseline: ArrayLike = 0.0
) -> Float[Array, ""]:
    """−Σ s A log π: the score-function gradient, A = r − β log(π/π_ref) − b.

    For the policy's own samples, each used once. Source: Williams 1992.
    """
    log_probs = _drawn(responses, responses.log_probs)
    advantages = _advantages(responses, log_probs, beta, prompt_baseline)
    return -jnp.sum(_shares(responses) * advantages * log_probs)


def ppo(
    responses: Responses,
    beta: ArrayLike = 0.05,
    clip: ArrayLike = 0.2,
    prompt_baseline: ArrayLike = 0.0,
) -> Float[Array, ""]:
    """−Σ s min(ρ A, clip(ρ, 1 − ε, 1 + ε) A), ρ = π/π_behaviour, A taken at the behaviour.

    A response whose ratio has left the trust region in the direction of A has no weight: samples
    can be reused. ε > 0. Source: arXiv:1707.06347.
    """
    clip = checks.positive("clip", clip)
    behaviour_log_probs = _drawn(responses, responses.behaviour_log_probs)
    advantages = _advantages(responses, behaviour_log_probs, beta, prompt_baseline)
    log_ratios = _drawn(responses, responses.log_probs) - behaviour_log_probs
    ratios = jnp.exp(jnp.minimum(log_ratios, MOST_LOG_RATIO))
    clipped = jnp.clip(ratios, 1.0 - clip, 1.0 + clip)
    surrogate = jnp.minimum(ratios * advantages, clipped * advantages)
    return -jnp.sum(_shares(responses) * surrogate)


def soft_optimize(responses: Responses, beta: ArrayLike = 0.1) -> Float[Array, ""]:
    """−Σ π r + β KL(π‖π_ref) over the whole space: the policy gradient without samples.

    The second stage of RLHF, where the rewards are learned from preferences. β >= 0. Source:
    arXiv:2203.02155, section 3.5.
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
) -> Float[Array, " C"]:
    beta = checks.nonnegative("beta", beta)
    penalty = beta * (log_probs - _drawn(responses, responses.reference_log_probs))
    penalized = responses.rewards - penalty
    baseline: ArrayLike = responses.baseline
    # XLA would sum every group for a mean that counts for nothing.
    known = checks.concrete(prompt_baseline)
    if known is None or known != 0.0:
        prompt_mean = jnp.sum(_shares(responses) * penalized)
        baseline = (1.0 - prompt_baseline) * baseline + prompt_baseline * prompt_mean
    return jax.lax.stop_gradient(penalized - baseline)


def _shares(responses: Responses) -> Float[Array, " C"]:
    return jax.lax.stop_gradient(responses.shares)


def _drawn(responses: Responses, log_probs: Float[Array, " C"]) -> Float[Array, " C"]:
    """The log-probabilities, 0 where the share is: an excluded response, −∞, adds nothing."""
    return jnp.where(responses.shares > 0, log_probs, 0.0)
