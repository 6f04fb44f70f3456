"""The KL-regularised objective of RL fine-tuning, and the Gibbs policy that maximises it.

    J(π) = E_π[r] − β KL(π‖π_ref) = −β KL(π‖π*) + β log Z,      π* = π_ref exp(r/β) / Z.

*Proof.* On the support of π_ref, r/β = log π* − log π_ref + log Z. Insert it:
E_π[r] − β KL(π‖π_ref) = β E_π[log π* − log π_ref + log Z − log π + log π_ref]
= −β KL(π‖π*) + β log Z. The KL is ≥ 0, and 0 only at π = π*. ∎

So π* is the optimum, β log Z is its value, and maximising J is minimising the *reverse* KL to π*.
A category that the reference excludes has π* = 0 whatever its reward: a zero stays zero, exactly.

Arguments have the shapes and ranges of their types: ``log_probs`` is log π, ``reference_log_probs``
log π_ref, ``reward`` r, and ``beta`` β, in units of the reward for a nat. Every function raises
`InvalidInput` for what the types refuse. Source: arXiv:2404.14367, section 3.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from theory.distributions import kl_divergence
from theory.types import LogProbs, NonNegative, PerArm, PerProblem, Positive, Rewards, checked

LOG_RANGE, BISECTIONS = 20.0, 60
"""Half the range of log β around log of the rewards' spread, and how often it is halved."""


@checked
def gibbs_log_probs(reward: Rewards, reference_log_probs: LogProbs, beta: Positive) -> PerArm:
    """Return log π* = log π_ref + r/β − log Z, the optimum of the KL-regularised objective.

    >>> uniform = jnp.log(jnp.array([0.5, 0.5]))
    >>> log_probs = gibbs_log_probs([0.0, 1.0], uniform, beta=1.0)
    >>> [round(float(p), 4) for p in jnp.exp(log_probs)]
    [0.2689, 0.7311]
    """
    return jax.nn.log_softmax(_tilted(reward, reference_log_probs, beta), axis=-1)


@checked
def regularised_objective(
    log_probs: LogProbs, reward: Rewards, reference_log_probs: LogProbs, beta: Positive
) -> PerProblem:
    """Return J(π) = E_π[r] − β KL(π‖π_ref), in units of the reward.

    It is −∞ for a policy ``log_probs`` outside the reference's support.
    """
    log_p = jnp.asarray(log_probs)
    expected_reward = jnp.sum(jnp.exp(log_p) * jnp.asarray(reward), axis=-1)
    return expected_reward - jnp.asarray(beta) * kl_divergence(
        log_p, jnp.asarray(reference_log_probs)
    )


@checked
def optimal_value(reward: Rewards, reference_log_probs: LogProbs, beta: Positive) -> PerProblem:
    """Return max J = J(π*) = β log Z = β log Σ π_ref exp(r/β), in units of the reward.

    >>> print(f"{optimal_value([0.0, 1.0], jnp.log(jnp.array([0.5, 0.5])), 1.0):.4f}")
    0.6201
    """
    tilted = _tilted(reward, reference_log_probs, beta)
    return jnp.asarray(beta) * jax.nn.logsumexp(tilted, axis=-1)


@checked
def gibbs_at_kl(reward: Rewards, reference_log_probs: LogProbs, divergence: NonNegative) -> PerArm:
    """Return the log of the policy of highest reward with KL(π‖π_ref) <= divergence.

    It is the Gibbs policy of the β at which its KL is ``divergence``, in nats. Bisection of log β
    finds it, as KL(π_β‖π_ref) falls with β: its derivative in 1/β is Var_π(r)/β >= 0. Where even
    β → 0 stays nearer, the result is that limit.

    >>> uniform = jnp.log(jnp.array([0.5, 0.5]))
    >>> [round(float(p), 4) for p in jnp.exp(gibbs_at_kl([0.0, 1.0], uniform, 0.1))]
    [0.2802, 0.7198]
    """
    reward, reference = jnp.asarray(reward), jnp.asarray(reference_log_probs)
    limit = jnp.asarray(divergence)
    # Only differences on the support matter.
    held = jnp.isfinite(reference)
    reward = reward - jnp.max(jnp.where(held, reward, -jnp.inf), axis=-1, keepdims=True)
    reward = jnp.where(held, reward, 0.0)
    spread = -jnp.min(reward, axis=-1)
    scale = jnp.where(spread > 0, spread, 1.0)
    shape = jnp.broadcast_shapes(scale.shape, limit.shape)

    def policy(log_beta: PerProblem) -> PerArm:
        beta = scale * jnp.exp(log_beta)
        return jax.nn.log_softmax(_tilted(reward, reference, beta), axis=-1)

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        inside = kl_divergence(policy(middle), reference) <= limit
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    ends = jnp.full(shape, -LOG_RANGE), jnp.full(shape, LOG_RANGE)
    _, log_beta = jax.lax.fori_loop(0, BISECTIONS, halve, ends)
    return policy(log_beta)


def _tilted(reward: ArrayLike, reference_log_probs: ArrayLike, beta: ArrayLike) -> PerArm:
    return jnp.asarray(reference_log_probs) + jnp.asarray(reward) / jnp.asarray(beta)[..., None]
