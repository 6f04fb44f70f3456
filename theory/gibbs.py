"""The KL-regularised objective of RL fine-tuning, and the Gibbs policy that maximises it.

    J(π) = E_π[r] − β KL(π‖π_ref) = −β KL(π‖π*) + β log Z,      π* = π_ref exp(r/β) / Z.

*Proof.* On the support of π_ref, r/β = log π* − log π_ref + log Z. Insert it:
E_π[r] − β KL(π‖π_ref) = β E_π[log π* − log π_ref + log Z − log π + log π_ref]
= −β KL(π‖π*) + β log Z. The KL is ≥ 0, and 0 only at π = π*. ∎

So π* is the optimum, β log Z is its value, and maximising J is minimising the *reverse* KL to π*.
A category that the reference excludes has π* = 0 whatever its reward: a zero stays zero, exactly.

Everything is in log space; rewards ``[..., K]``, reference log-probabilities ``[..., K]`` (``-inf``
allowed), β scalar or ``[...]``; leading axes broadcast. Source: arXiv:2404.14367, section 3.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from theory import checks
from theory.distributions import kl_divergence

LOG_RANGE, BISECTIONS = 20.0, 60
"""Of log β around the range of rewards, and its halvings: more than the bits of a double."""


def gibbs_log_probs(
    reward: Float[ArrayLike, "*batch K"],
    reference_log_probs: Float[ArrayLike, "*batch K"],
    beta: Float[ArrayLike, "*batch"],
) -> Float[Array, "*batch K"]:
    """Log π* = log π_ref + r/β − log Z, the optimum of the KL-regularised objective.

    Raises InvalidInput for non-finite rewards, a reference that is no distribution, β <= 0, or
    different numbers of arms.
    """
    _require(reward, reference_log_probs, beta)
    return jax.nn.log_softmax(_tilted(reward, reference_log_probs, beta), axis=-1)


def regularised_objective(
    log_probs: Float[ArrayLike, "*batch K"],
    reward: Float[ArrayLike, "*batch K"],
    reference_log_probs: Float[ArrayLike, "*batch K"],
    beta: Float[ArrayLike, "*batch"],
) -> Float[Array, "*batch"]:
    """J(π) = E_π[r] − β KL(π‖π_ref), in units of the reward; −inf outside the reference's support.

    Raises as `gibbs_log_probs` does.
    """
    checks.require_log_distribution("log_probs", log_probs)
    checks.require_same_arms(reward=reward, log_probs=log_probs)
    _require(reward, reference_log_probs, beta)
    log_p = jnp.asarray(log_probs)
    expected_reward = jnp.sum(jnp.exp(log_p) * jnp.asarray(reward), axis=-1)
    return expected_reward - jnp.asarray(beta) * kl_divergence(
        log_p, jnp.asarray(reference_log_probs)
    )


def optimal_value(
    reward: Float[ArrayLike, "*batch K"],
    reference_log_probs: Float[ArrayLike, "*batch K"],
    beta: Float[ArrayLike, "*batch"],
) -> Float[Array, "*batch"]:
    """Max J = J(π*) = β log Z = β log Σ π_ref exp(r/β), in units of the reward.

    Raises as `gibbs_log_probs` does.
    """
    _require(reward, reference_log_probs, beta)
    tilted = _tilted(reward, reference_log_probs, beta)
    return jnp.asarray(beta) * jax.nn.logsumexp(tilted, axis=-1)


def gibbs_at_kl(
    reward: Float[ArrayLike, "*batch K"],
    reference_log_probs: Float[ArrayLike, "*batch K"],
    divergence: Float[ArrayLike, "*batch"],
) -> Float[Array, "*batch K"]:
    """Log of the policy of highest reward among those with KL(π‖π_ref) <= divergence, in nats.

    It is the Gibbs policy of the β at which its KL is that: KL(π_β‖π_ref) falls with β, as its
    derivative in 1/β is Var_π(r)/β >= 0. Found by bisection of log β. Where even β → 0 stays
    nearer, the result is that limit.

    Raises InvalidInput for a divergence < 0, and as `gibbs_log_probs` does.
    """
    checks.require_nonnegative("divergence", divergence)
    reward, reference = jnp.asarray(reward), jnp.asarray(reference_log_probs)
    limit = jnp.asarray(divergence)
    _require(reward, reference, 1.0)
    # Only differences on the support matter.
    held = jnp.isfinite(reference)
    reward = reward - jnp.max(jnp.where(held, reward, -jnp.inf), axis=-1, keepdims=True)
    reward = jnp.where(held, reward, 0.0)
    spread = -jnp.min(reward, axis=-1)
    scale = jnp.where(spread > 0, spread, 1.0)
    shape = jnp.broadcast_shapes(scale.shape, limit.shape)

    def policy(log_beta: Float[Array, "*batch"]) -> Float[Array, "*batch K"]:
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


def _tilted(
    reward: ArrayLike, reference_log_probs: ArrayLike, beta: ArrayLike
) -> Float[Array, "*batch K"]:
    return jnp.asarray(reference_log_probs) + jnp.asarray(reward) / jnp.asarray(beta)[..., None]


def _require(reward: ArrayLike, reference_log_probs: ArrayLike, beta: ArrayLike) -> None:
    checks.require_finite("reward", reward)
    checks.require_arms("reward", reward)
    checks.require_log_distribution("reference_log_probs", reference_log_probs)
    checks.require_same_arms(reward=reward, reference_log_probs=reference_log_probs)
    checks.require_positive("beta", beta)
