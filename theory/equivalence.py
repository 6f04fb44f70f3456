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

Where the data leave directions of the class open, as partial coverage does, the fits below take the
parameters of least norm, with an `UndeterminedWarning`. Isomorphic features then need not give the
same policy.

For linear rewards ψ w and log-linear policies π_ref exp(φ θ)/Z the classes are isomorphic if and
only if the columns of φ and of ψ, without their means over the arms that π_ref can play, span the
same space. Otherwise the two differ: DPO finds the best *likelihood* in the policy class, RLHF the
reverse-KL projection of the best likelihood in the reward class.

Arguments have the shapes and ranges of their types: ``log_probs`` is log π, ``reference_log_probs``
log π_ref, and ``beta`` β. A fit takes ``counts``, [a, b] how often a was preferred to b, and one
reference and β; `jax.vmap` fits several. Every function raises `InvalidInput` for what the types
refuse; a fit also for counts that are separable or name what the reference excludes. Source:
arXiv:2503.01067, section 3.
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
    number is right there. A π that plays what the reference excludes is refused.

    >>> reward = implicit_reward(np.log([0.25, 0.75]), np.log([0.5, 0.5]), beta=2.0)
    >>> print(np.asarray(reward).round(3))
    [-1.386  0.811]
    """
    log_p, log_q = jnp.asarray(log_probs), jnp.asarray(reference_log_probs)
    played, allowed = checks.concrete(log_p > -jnp.inf), checks.concrete(log_q > -jnp.inf)
    if played is not None and allowed is not None and (played & ~allowed).any():
        arm = np.argwhere(played & ~allowed)[0][-1]
        raise checks.InvalidInput(
            f"log_probs plays arm {arm}, which reference_log_probs excludes; no reward leads there"
        )
    return _reward(log_p, log_q, jnp.asarray(beta))


@checked
def class_distance(
    features: Features, other_features: Features, reference_log_probs: LogProbs | None = None
) -> float:
    """Return the sine of the largest angle between two classes, from 0 to 1.

    It is 0 if and only if they are isomorphic; 1 if one holds something that is orthogonal to all
    of the other. Features count up to a constant, and only on arms that the reference can play: by
    default all.

    >>> print(f"{class_distance([[1], [0], [0]], [[0], [1], [1]]):.3f}")
    0.000
    """
    held = np.ones(len(np.asarray(features)), bool)
    if reference_log_probs is not None:
        checks.require_one_problem("a distance", reference_log_probs=(reference_log_probs, 1))
        held = np.asarray(reference_log_probs) > -np.inf
    first, second = (_basis(np.asarray(f, np.float64)[held]) for f in (features, other_features))
    outside = [a - b @ (b.T @ a) for a, b in ((first, second), (second, first))]
    return float(min(max(np.linalg.norm(part, 2) if part.size else 0.0 for part in outside), 1.0))


@checked
def are_isomorphic(
    features: Features,
    other_features: Features,
    reference_log_probs: LogProbs | None = None,
    tolerance: Annotated[float, checks.require_nonnegative] = 1e-9,
) -> bool:
    """Tell whether two classes are the same: their `class_distance` is at most ``tolerance``."""
    return class_distance(features, other_features, reference_log_probs) <= tolerance


@checked
def fit_dpo(
    features: Features, counts: Preferences, reference_log_probs: LogProbs, beta: Positive
) -> Alignment:
    """Return the log-linear policy π_ref exp(φ θ)/Z of least DPO loss: it is convex in θ.

    The loss is −Σ n_ab log σ(β h_ab) / Σ n, for counts n and features φ; h, the difference of
    log π/π_ref, is linear in θ.

    >>> fit = fit_dpo([[1], [0]], [[0, 3], [1, 0]], np.log([0.5, 0.5]), beta=1.0)
    >>> print(np.exp(fit.log_probs).round(3))
    [0.75 0.25]
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

    ψ are the reward's features, φ the policy's. The second stage maximises E_π[r] − β KL(π‖π_ref)
    over π = π_ref exp(φ θ)/Z by natural gradient with halved steps. A full step is the regression
    of r/β on φ under π, which ends it at once where r is in the span of φ. Elsewhere the problem
    need not be convex: the result is a stationary point at least as good as the reference.
    Probabilities are exact to rounding; the logarithms of those below 1e-12 are not.

    >>> fit = fit_rlhf([[1], [0]], [[0], [1]], [[0, 3], [1, 0]], np.log([0.5, 0.5]), beta=1.0)
    >>> print(np.exp(fit.log_probs).round(3))
    [0.75 0.25]
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
    def align(theta: Float[Array, " F"]) -> Alignment:
        log_probs = _log_linear(features, reference_log_probs, theta)
        return Alignment(log_probs, _reward(log_probs, reference_log_probs, beta))

    def loss(theta: Float[Array, " F"]) -> Float[Array, ""]:
        return bradley_terry.bradley_terry_loss(align(theta).reward, counts)

    return align(convex.minimize(loss, jnp.zeros(features.shape[1], features.dtype)))


def _reward(log_p: PerArm, log_q: PerArm, beta: Float[Array, "*batch"]) -> PerArm:
    """Return β log p/q, and 0 on arms that q excludes."""
    # Masked before the subtraction, so that −∞ leaves no NaN in the gradient.
    held = log_q > -jnp.inf
    return beta[..., None] * (jnp.where(held, log_p, 0.0) - jnp.where(held, log_q, 0.0))


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
    winners, losers = np.nonzero(pairs)
    seen = np.linalg.matrix_rank(np.asarray(table, np.float64)[winners] - table[losers])
    whole = _basis(np.asarray(table, np.float64)[reference > -np.inf]).shape[1]
    if seen < whole:
        warnings.warn(
            f"counts leave {whole - seen} of {whole} directions of {name} open; the parameters of "
            "least norm are taken, which depend on how the features are written",
            UndeterminedWarning,
            stacklevel=4,  # the caller of a checked fit
        )


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
    axes = {"reference_log_probs": (reference_log_probs, 1), "beta": (beta, 0)}
    checks.require_one_problem("a fit", **axes)
    require_pairs_in_support("counts", counts, reference_log_probs)
    table, pairs = jnp.asarray(features, float), jnp.asarray(counts, float)
    return table, pairs, jnp.asarray(reference_log_probs, float)
