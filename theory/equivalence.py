"""When two-stage RLHF and DPO are the same: one class, seen as rewards or as policies.

**The two views.** A policy π with π_ref's support has the *implicit reward* r = β log π/π_ref, and
π = π_ref exp(r/β) is its Gibbs policy, with Z = 1. Two rewards have the same Gibbs policy if and
only if they differ by a constant. So policies and rewards up to a constant are one set, and
DPO's loss of a policy is the Bradley–Terry loss of its implicit reward.

**Equivalence.** If the policy class is the set of Gibbs policies of the reward class, then
(1) fitting a reward by maximum likelihood, and taking the best policy of the class under the KL
penalty, and (2) fitting a policy by DPO, have the same set of results; the same result, where the
maximum-likelihood reward is unique up to a constant on the arms that π_ref can play.

*Proof.* The first stage and DPO minimise one function over one set, written in two ways; and the
Gibbs policy of the fitted reward, the best of all policies, lies in the class. ∎

Where the data leave directions of the class open, as partial coverage does, each method takes what
its own parameters prefer: the fits below the parameters of least norm, with an
`UndeterminedWarning`. Isomorphic features then need not give the same policy.

For linear rewards ψ w and log-linear policies π_ref exp(φ θ)/Z the classes are isomorphic if and
only if the columns of φ and of ψ, without their means over the arms that π_ref can play, span the
same space. Otherwise the two differ: DPO finds the best *likelihood* in the policy class, RLHF the
reverse-KL projection of the best likelihood in the reward class.

Every function raises `InvalidInput` for an argument that its type does not allow, and for different
numbers of arms. Source: arXiv:2503.01067, section 3.
"""

import warnings
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from theory import bradley_terry, checks, convex
from theory.distributions import kl_divergence
from theory.gibbs import gibbs_log_probs
from theory.pairs import require_pairs_in_support
from theory.types import Features, LogProbs, PerArm, Positive, Preferences, checked

PROJECTION_STEPS = 500
"""Most steps of the natural gradient, which converges linearly where the classes differ."""

REMEDY = "add labels that disagree, such as half a label for each order of every pair"
"""For data on which neither problem has a solution."""


class UndeterminedWarning(UserWarning):
    """The data leave directions of a class open."""


class Alignment(NamedTuple):
    """What fine-tuning on preferences ends with.

    Attributes:
      log_probs: ``[K]``, the policy.
      reward: ``[K]``, learned (RLHF) or implicit (DPO), in nats of log-odds; up to a constant.
    """

    log_probs: Float[Array, " K"]
    reward: Float[Array, " K"]


@checked
def implicit_reward(log_probs: LogProbs, reference_log_probs: LogProbs, beta: Positive) -> PerArm:
    """Return β log π/π_ref, the reward whose Gibbs policy is π; `gibbs.gibbs_log_probs` leads back.

    It is −∞ where π gives up a response of the reference, and 0 where both exclude it, as any
    number is right there.

    >>> print(f"{implicit_reward(np.log([0.25, 0.75]), np.log([0.5, 0.5]), beta=2.0)[1]:.3f}")
    0.811

    Args:
      log_probs: log π ``[..., K]``.
      reference_log_probs: log π_ref ``[..., K]``.
      beta: β ``[...]``, > 0.

    Raises:
      InvalidInput: Also for a π that plays what the reference excludes: no reward leads there.
    """
    log_p, log_q = jnp.asarray(log_probs), jnp.asarray(reference_log_probs)
    played, allowed = checks.concrete(log_p > -jnp.inf), checks.concrete(log_q > -jnp.inf)
    if played is not None and allowed is not None and (played & ~allowed).any():
        arm = np.argwhere(played & ~allowed)[0][-1]
        raise checks.InvalidInput(
            f"log_probs plays arm {arm}, which reference_log_probs excludes; no reward leads there"
        )
    held = log_q > -jnp.inf
    ratio = jnp.where(held, log_p, 0.0) - jnp.where(held, log_q, 0.0)
    return jnp.asarray(beta)[..., None] * ratio


@checked
def class_distance(
    features: Float[ArrayLike, "K F"],
    other_features: Float[ArrayLike, "K G"],
    reference_log_probs: LogProbs | None = None,
) -> float:
    """Return the sine of the largest angle between two classes, from 0 to 1.

    It is 0 if and only if they are isomorphic; 1 if one holds something that is orthogonal to all
    of the other. Features count up to a constant, and only on arms that the reference can play.

    Args:
      features: ``[K, F]``, finite; not all rows are the same.
      other_features: ``[K, G]``, likewise.
      reference_log_probs: log π_ref ``[K]``; by default it can play all arms.
    """
    num_arms = np.shape(features)[0] if np.ndim(features) else 0
    checks.require_features("features", features, num_arms)
    checks.require_features("other_features", other_features, num_arms)
    held = np.ones(num_arms, bool)
    if reference_log_probs is not None:
        held = np.asarray(reference_log_probs) > -np.inf
        if held.shape != (num_arms,):
            raise checks.InvalidInput(
                f"reference_log_probs has shape {held.shape} but features has {num_arms} arms; "
                "they must match"
            )
    first, second = (_basis(np.asarray(f, np.float64)[held]) for f in (features, other_features))
    outside = [a - b @ (b.T @ a) for a, b in ((first, second), (second, first))]
    return float(min(max(np.linalg.norm(part, 2) if part.size else 0.0 for part in outside), 1.0))


@checked
def are_isomorphic(
    features: Float[ArrayLike, "K F"],
    other_features: Float[ArrayLike, "K G"],
    reference_log_probs: LogProbs | None = None,
    tolerance: Annotated[float, checks.require_nonnegative] = 1e-9,
) -> bool:
    """Tell whether rewards linear in one and policies log-linear in the other are the same class.

    They are if their `class_distance`, of which the other arguments are, is at most ``tolerance``.
    """
    return class_distance(features, other_features, reference_log_probs) <= tolerance


@checked
def fit_dpo(
    features: Features, counts: Preferences, reference_log_probs: LogProbs, beta: Positive
) -> Alignment:
    """Return the log-linear policy π_ref exp(φ θ)/Z of least DPO loss: it is convex in θ.

    The loss is −Σ n_ab log σ(β h_ab) / Σ n, h the difference of log π/π_ref, which is linear in θ.
    Where the data leave θ open it is the one of least norm, with an `UndeterminedWarning`.

    Args:
      features: φ ``[K, F]``.
      counts: n ``[K, K]``, [a, b] how often a was preferred to b.
      reference_log_probs: log π_ref ``[K]``.
      beta: β > 0, a number.

    Raises:
      InvalidInput: Also for separable counts, and for a pair of what the reference excludes.
    """
    features, counts, reference = _one_problem(features, counts, reference_log_probs, beta)
    bradley_terry.require_finite_optimum(features, counts, remedy=REMEDY)
    _warn_of_open_directions("features", features, counts, reference)
    return _fit_dpo(features, counts, reference, jnp.asarray(beta, features.dtype))


@checked
def fit_rlhf(
    policy_features: Features,
    reward_features: Features,
    counts: Preferences,
    reference_log_probs: LogProbs,
    beta: Positive,
) -> Alignment:
    """Return the linear reward ψ w of maximum likelihood, and the best log-linear policy under it.

    The second stage maximises E_π[r] − β KL(π‖π_ref) over π = π_ref exp(φ θ)/Z by natural gradient
    with halved steps. A full step is the regression of r/β on φ under π, which ends it at once
    where r is in the span of φ. Elsewhere the problem need not be convex: the result is a
    stationary point at least as good as the reference. Probabilities are exact to rounding; the
    logarithms of those below 1e-12 are not.

    Args:
      policy_features: φ ``[K, F]``.
      reward_features: ψ ``[K, G]``.
      counts: As in `fit_dpo`, of which the other arguments, warnings and errors are, too.
      reference_log_probs: As there.
      beta: As there.
    """
    features, counts, reference = _one_problem(policy_features, counts, reference_log_probs, beta)
    bradley_terry.require_finite_optimum(reward_features, counts, remedy=REMEDY)
    _warn_of_open_directions("reward_features", reward_features, counts, reference)
    weights = bradley_terry.fit_linear(reward_features, counts, ridge=0.0)
    reward = jnp.asarray(reward_features, float) @ weights
    beta = jnp.asarray(beta, features.dtype)
    return Alignment(project_gibbs(features, reward, reference, beta), reward)


@jax.jit
def project_gibbs(
    features: Float[Array, "K F"],
    reward: Float[Array, " K"],
    reference_log_probs: Float[Array, " K"],
    beta: Float[Array, ""],
) -> Float[Array, " K"]:
    """Return the second stage of `fit_rlhf`: the reverse-KL projection of a Gibbs policy."""
    target = gibbs_log_probs(reward, reference_log_probs, beta)

    def distance(theta: Float[Array, " F"]) -> Float[Array, ""]:
        return kl_divergence(_log_linear(features, reference_log_probs, theta), target)

    def fisher(theta: Float[Array, " F"]) -> Float[Array, "F F"]:
        probs = jnp.exp(_log_linear(features, reference_log_probs, theta))
        centred = features - probs @ features
        return (centred * probs[:, None]).T @ centred

    theta = convex.minimize(
        distance,
        jnp.zeros(features.shape[1], features.dtype),
        curvature=fisher,
        most_steps=PROJECTION_STEPS,
    )
    return _log_linear(features, reference_log_probs, theta)


@jax.jit
def _fit_dpo(
    features: Float[Array, "K F"],
    counts: Float[Array, "K K"],
    reference_log_probs: Float[Array, " K"],
    beta: Float[Array, ""],
) -> Alignment:
    held = reference_log_probs > -jnp.inf

    def reward(theta: Float[Array, " F"]) -> Float[Array, " K"]:
        log_probs = _log_linear(features, reference_log_probs, theta)
        # Masked before the subtraction, so that −∞ leaves no NaN in the gradient.
        ratio = jnp.where(held, log_probs, 0.0) - jnp.where(held, reference_log_probs, 0.0)
        return beta * ratio

    def loss(theta: Float[Array, " F"]) -> Float[Array, ""]:
        return bradley_terry.bradley_terry_loss(reward(theta), counts)

    theta = convex.minimize(loss, jnp.zeros(features.shape[1], features.dtype))
    return Alignment(_log_linear(features, reference_log_probs, theta), reward(theta))


def _log_linear(
    features: Float[Array, "K F"], reference_log_probs: Float[Array, " K"], theta: Array
) -> Float[Array, " K"]:
    return jax.nn.log_softmax(reference_log_probs + features @ theta)


def _warn_of_open_directions(
    name: str, features: ArrayLike, counts: ArrayLike, reference_log_probs: ArrayLike
) -> None:
    table, pairs, reference = map(checks.concrete, (features, counts, reference_log_probs))
    if table is None or pairs is None or reference is None:
        return
    compared = np.argwhere(pairs + pairs.T > 0)
    seen = _rank(np.asarray(table, np.float64)[compared[:, 0]] - table[compared[:, 1]])
    whole = _basis(np.asarray(table, np.float64)[reference > -np.inf]).shape[1]
    if seen < whole:
        warnings.warn(
            f"counts leave {whole - seen} of {whole} directions of {name} open; the parameters of "
            "least norm are taken, which depend on how the features are written",
            UndeterminedWarning,
            stacklevel=4,  # the caller of a checked fit
        )


def _rank(rows: Float[np.ndarray, "n F"]) -> int:
    singular = np.linalg.svd(rows, compute_uv=False)
    return int((singular > np.finfo(np.float64).eps * max(rows.shape) * singular.max()).sum())


def _basis(features: Float[np.ndarray, "K F"]) -> Float[np.ndarray, "K R"]:
    """Return an orthonormal basis of the columns without their means."""
    centred = features - features.mean(axis=0, keepdims=True)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    rounding = np.finfo(np.float64).eps * max(features.shape)
    return left[:, singular > rounding * max(singular.max(initial=0.0), np.abs(features).max())]


def _one_problem(
    features: ArrayLike, counts: ArrayLike, reference_log_probs: ArrayLike, beta: ArrayLike
) -> tuple[Float[Array, "K F"], Float[Array, "K K"], Float[Array, " K"]]:
    """Return the arrays of one fit, refused if they are of several or outside the support."""
    checks.require_one_problem(
        "a fit", reference_log_probs=(reference_log_probs, 1), beta=(beta, 0)
    )
    require_pairs_in_support("counts", counts, reference_log_probs)
    table, pairs = jnp.asarray(features, float), jnp.asarray(counts, float)
    return table, pairs, jnp.asarray(reference_log_probs, float)
