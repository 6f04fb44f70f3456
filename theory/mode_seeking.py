"""Lemmas 6.1 and 6.2 of arXiv:2404.14367: what on-policy samples and negative gradients do.

All for a tabular softmax policy p = softmax(θ), where ∇log p(y) = e_y − p and hence

    ∇E_p[a] = Σ_y p_y a_y (e_y − p) = p ∘ (a − E_p[a])      for a held fixed.                  (*)

**Lemma 6.1.** Policy gradient on J(π) = E_π[r] − β KL(π‖π_ref) is reverse KL to the Gibbs policy:

    ∇J = p ∘ (a − E_p[a]), a = r − β log(p/π_ref);      ∇J = −β ∇KL(p‖π*), π* ∝ π_ref exp(r/β).

*Proof.* J = E_p[a], and a moves with θ too, but adds E_p[∇a] = −β E_p[∇log p] = −β ∇Σp = 0 to (*).
With a = log(p/π*) the same holds for the KL. As log π* = log π_ref + r/β − log Z, the first a is
−β times the second plus the constant β log Z, which the centring in (*) removes. ∎

On its own samples, weighted likelihood is a policy gradient as well. It follows E_{y~p}[w ∇log p],
which is ∇E_p[w], w held fixed, by (*): RWR maximises the reward w = exp(r/β). Best-of-N follows
E_{y~q}[∇log p] = q − p, where q is the law of the best of N draws; that is (*) with w = q/p.

**Lemma 6.2.** The contrastive step θ' = θ + η [c1 ∇log p(w) − c2 ∇log p(l)] on a winner w and
a loser l, with c1, c2 >= 0 (likelihood of winners is c2 = 0), changes

    log p(w) − log p(l)   by   η [c1 (1 − p_w + p_l) + c2 (1 + p_w − p_l)],   exactly, for every η,
    log p(w)   by at most   η [c1 (1 − 2 p_w + Σp²) + c2 (p_w + p_l − Σp²)],   its first order in η.

*Proof.* The normaliser cancels in the margin, so it grows by exactly (θ'_w − θ_w) − (θ'_l − θ_l)
= η [c1 (1 − p_w) + c2 p_w] − η [−c1 p_l − c2 (1 − p_l)]. For one arm, with d = θ' − θ, the change
is d_y − log E_p[exp d] <= d_y − E_p[d] = ⟨∇log p(y), d⟩ by Jensen, equal to first order in η;
and ⟨∇log p(w), ∇log p(w)⟩ = 1 − 2 p_w + Σp², ⟨∇log p(w), ∇log p(l)⟩ = Σp² − p_w − p_l. ∎

So a negative gradient always widens the margin, and to first order it *helps the winner itself* if
and only if Σp² < p_w + p_l, that is, the two gradients point apart. This holds with two arms, and
whenever either arm is the policy's mode, for Σp² <= max p. It fails for two arms that the policy
finds unlikely next to a third, as off-policy pairs can be; the mass then goes to the third, and

- with c2 > c1 (1 − 2 p_w + Σp²)/(Σp² − p_w − p_l), a bound above c1, the winner falls at every η
  while the margin grows (the first order is an upper bound);
- with c1 = c2 = c, as in DPO on a single pair, the winner rises at every η all the same.
  *Proof.* d = ηc (e_w − e_l), so E_p[exp d] <= 1 + p_w (exp(ηc) − 1) <= exp(ηc) = exp d_w. ∎

Arguments have the shapes and ranges of their types: ``log_probs`` is log p, ``reward`` r,
``winner`` w, ``loser`` l, ``learning_rate`` η, ``winner_weight`` c1, ``loser_weight`` c2, and
``beta`` β, in units of the reward for a nat. An excluded arm keeps zero mass, and its gradient is
0. Every function raises `InvalidInput` for what the types refuse. Those of Lemma 6.1 also refuse a
reference or target that excludes what p does not; those of Lemma 6.2 a winner and loser that are
equal or that p excludes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from theory import checks
from theory.distributions import log_ratio
from theory.types import (
    Arm,
    Counts,
    FiniteNonNegative,
    LogProbs,
    PerArm,
    PerProblem,
    Positive,
    Rewards,
    checked,
)


@checked
def policy_gradient(
    log_probs: LogProbs, reward: Rewards, reference_log_probs: LogProbs, beta: Positive
) -> PerArm:
    """Return ∇J in the logits: p ∘ (a − E_p[a]), a = r − β log(p/π_ref), in units of the reward.

    It equals −β `reverse_kl_gradient` towards the Gibbs policy (Lemma 6.1).

    >>> uniform = np.log([0.5, 0.5])
    >>> print(np.asarray(policy_gradient(uniform, [1.0, 0.0], uniform, beta=0.1)).round(4))
    [ 0.25 -0.25]
    """
    _require_policy_in_support(log_probs, "reference_log_probs", reference_log_probs)
    log_p = jnp.asarray(log_probs)
    penalty = jnp.asarray(beta)[..., None] * log_ratio(log_p, jnp.asarray(reference_log_probs))
    return _gradient_of_mean(log_p, jnp.asarray(reward) - penalty)


@checked
def reverse_kl_gradient(log_probs: LogProbs, target_log_probs: LogProbs) -> PerArm:
    """Return ∇KL(p‖q) in the logits: p ∘ (log(p/q) − KL(p‖q)), in nats."""
    _require_policy_in_support(log_probs, "target_log_probs", target_log_probs)
    log_p = jnp.asarray(log_probs)
    return _gradient_of_mean(log_p, log_ratio(log_p, jnp.asarray(target_log_probs)))


@checked
def weighted_likelihood_gradient(log_probs: LogProbs, weights: Rewards) -> PerArm:
    """Return E_{y~p}[w ∇log p] = ∇E_p[w] = p ∘ (w − E_p[w]).

    With w = exp(r/β) this is on-policy RWR; with w = r it is REINFORCE.
    """
    return _gradient_of_mean(jnp.asarray(log_probs), jnp.asarray(weights))


@checked
def best_of_n_log_probs(log_probs: LogProbs, reward: Rewards, n: Counts) -> PerArm:
    """Return log q of the best of n draws from p: q(y) = p(y) (F(y)ⁿ − F(y⁻)ⁿ)/(F(y) − F(y⁻)).

    F(y) is the mass of arms with reward <= r(y), F(y⁻) that of arms with less. For distinct rewards
    q(y) = F(y)ⁿ − F(y⁻)ⁿ. Arms of equal reward share that mass in proportion to p.

    *Proof.* The best of n draws has reward <= r(y) if and only if all have: probability F(y)ⁿ.
    Given which draws reach the best reward, each of them is independently distributed as p on the
    arms of that reward; so is the one kept, if it is chosen without a look at the arm. ∎

    >>> print(np.exp(best_of_n_log_probs(np.log([0.5, 0.5]), [0.0, 1.0], 3)).round(4))
    [0.125 0.875]
    """
    log_p = jnp.asarray(log_probs)
    return _best_of_n(log_p, jnp.asarray(reward), jnp.asarray(n, log_p.dtype))


def best_of_n_gradient(log_probs: LogProbs, reward: Rewards, n: Counts) -> PerArm:
    """Return E_{y~q}[∇log p] = q − p, which on-policy best-of-n follows; q is the law above.

    It is `weighted_likelihood_gradient` with w = q/p, as E_p[w] = Σq = 1. It is a forward KL step
    towards q as well, a target that moves with the policy.
    """
    return jnp.exp(best_of_n_log_probs(log_probs, reward, n)) - jnp.exp(jnp.asarray(log_probs))


@checked
def contrastive_step(
    log_probs: LogProbs,
    winner: Arm,
    loser: Arm,
    learning_rate: Positive,
    winner_weight: FiniteNonNegative,
    loser_weight: FiniteNonNegative,
) -> PerArm:
    """Return log-probabilities after θ ← θ + η [c1 (e_w − p) − c2 (e_l − p)], exactly.

    >>> log_probs = np.log([0.1, 0.1, 0.8])
    >>> print(np.exp(contrastive_step(log_probs, 0, 1, 1.0, 1.0, 1.0)).round(4))
    [0.2452 0.0332 0.7216]
    """
    _require_pair(log_probs, winner, loser)
    log_p = jnp.asarray(log_probs)
    p = jnp.exp(log_p)
    eta, c1, c2 = (
        jnp.asarray(value)[..., None] for value in (learning_rate, winner_weight, loser_weight)
    )
    raised, lowered = c1 * (_one_hot(winner, p) - p), c2 * (_one_hot(loser, p) - p)
    return jax.nn.log_softmax(log_p + eta * (raised - lowered), axis=-1)


@checked
def margin_growth(
    log_probs: LogProbs,
    winner: Arm,
    loser: Arm,
    learning_rate: Positive,
    winner_weight: FiniteNonNegative,
    loser_weight: FiniteNonNegative,
) -> PerProblem:
    """Return a step's growth of log p(w) − log p(l): η [c1 (1 − p_w + p_l) + c2 (1 + p_w − p_l)].

    In nats, never negative, and exact for every η (Lemma 6.2).
    """
    pair = _pair_masses(log_probs, winner, loser)
    from_winner = jnp.asarray(winner_weight) * (2 * pair.loser + pair.rest)
    from_loser = jnp.asarray(loser_weight) * (2 * pair.winner + pair.rest)
    return jnp.asarray(learning_rate) * (from_winner + from_loser)


@checked
def winner_growth(
    log_probs: LogProbs,
    winner: Arm,
    loser: Arm,
    learning_rate: Positive,
    winner_weight: FiniteNonNegative,
    loser_weight: FiniteNonNegative,
) -> PerProblem:
    """Return the first order of log p(w)'s growth: η [c1 (1 − 2 p_w + Σp²) + c2 (p_w + p_l − Σp²)].

    In nats. The true growth is never more and differs by O(η²) (Lemma 6.2), so a large step can
    lower a winner that a small one raises. The loser falls by the same formula with the arms and
    c1, c2 exchanged, or by more.
    """
    pair = _pair_masses(log_probs, winner, loser)
    squared_norm = (pair.loser + pair.rest) ** 2 + pair.loser**2 + pair.rest_squares
    raised = jnp.asarray(winner_weight) * squared_norm
    return jnp.asarray(learning_rate) * (raised - jnp.asarray(loser_weight) * _alignment(pair))


@checked
def negative_gradient_helps_winner(
    log_probs: LogProbs, winner: Arm, loser: Arm
) -> Bool[Array, "*batch"]:
    """Tell whether Σp² < p_w + p_l: to first order, lowering the loser raises the winner.

    Then ⟨∇log p(w), ∇log p(l)⟩ = (e_w − p)·(e_l − p) = Σp² − p_w − p_l is below 0, and
    `winner_growth` has minus this as the factor of c2.
    """
    return _alignment(_pair_masses(log_probs, winner, loser)) < 0


class _PairMasses(NamedTuple):
    """The masses of a pair and of the other arms.

    1 − p_w is taken as p_l + rest: a difference would lose the small masses of a peaked policy.
    """

    winner: PerProblem
    loser: PerProblem
    rest: PerProblem
    rest_squares: PerProblem


def _pair_masses(log_probs: ArrayLike, winner: ArrayLike, loser: ArrayLike) -> _PairMasses:
    _require_pair(log_probs, winner, loser)
    p = jnp.exp(jnp.asarray(log_probs))
    is_winner, is_loser = _one_hot(winner, p), _one_hot(loser, p)
    rest = p * (1 - is_winner - is_loser)
    return _PairMasses(
        winner=jnp.sum(p * is_winner, axis=-1),
        loser=jnp.sum(p * is_loser, axis=-1),
        rest=jnp.sum(rest, axis=-1),
        rest_squares=jnp.sum(rest**2, axis=-1),
    )


def _alignment(pair: _PairMasses) -> PerProblem:
    """Return ⟨∇log p(w), ∇log p(l)⟩ = Σp² − p_w − p_l, p_w − p_w² being p_w (p_l + rest)."""
    inside = 2 * pair.winner * pair.loser + (pair.winner + pair.loser) * pair.rest
    return pair.rest_squares - inside


def _gradient_of_mean(log_p: PerArm, a: PerArm) -> PerArm:
    """Return ∇E_p[a] in the logits for fixed a: equation (*)."""
    p = jnp.exp(log_p)
    return p * (a - jnp.sum(p * a, axis=-1, keepdims=True))


def _one_hot(arm: ArrayLike, like: PerArm) -> PerArm:
    return jax.nn.one_hot(jnp.asarray(arm), like.shape[-1], dtype=like.dtype)


# Jitted, so that a call on plain numbers compiles once rather than operation by operation.
@jax.jit
@functools.partial(jnp.vectorize, signature="(k),(k),()->(k)")
def _best_of_n(
    log_p: Float[Array, " K"], reward: Float[Array, " K"], n: Float[Array, ""]
) -> Float[Array, " K"]:
    """Return log q = log p + (n − 1) log F + log Σ_{j<n} (F⁻/F)ʲ, without differences."""
    num_arms = log_p.shape[0]
    _, level = jnp.unique(reward, return_inverse=True, size=num_arms)  # equal rewards, ascending
    log_level = _segment_logsumexp(log_p, level, num_arms)
    log_at_most = jax.lax.cumlogsumexp(log_level)
    # Near 1, log F is taken from the mass above: n multiplies its rounding error.
    above = jnp.append(jax.lax.cumsum(jnp.exp(log_level), reverse=True)[1:], 0.0)
    upper = above < 0.5
    log_at_most = jnp.where(upper, jnp.log1p(-jnp.where(upper, above, 0.0)), log_at_most)
    log_below = jnp.append(-jnp.inf, log_at_most[:-1])

    held = log_level > -jnp.inf
    log_odds = jnp.where(held, log_level, 0.0) - jnp.where(held, log_below, 0.0)
    log_weight = (n - 1) * jnp.where(held, log_at_most, 0.0) + _log_geometric_sum(
        jax.nn.softplus(log_odds), n
    )
    return log_p + log_weight[level]


def _log_geometric_sum(decay: Float[Array, " K"], n: Float[Array, ""]) -> Float[Array, " K"]:
    """Return log Σ_{j<n} exp(−j decay): log n at decay 0, and 0 at decay ∞."""
    positive = decay > jnp.finfo(decay.dtype).tiny
    safe = jnp.where(positive, decay, 1.0)
    total = jnp.log(-jnp.expm1(-n * safe)) - jnp.log(-jnp.expm1(-safe))
    return jnp.where(positive, total, jnp.log(n))


def _segment_logsumexp(
    values: Float[Array, " K"], segment: Int[Array, " K"], num_segments: int
) -> Float[Array, " segments"]:
    """Return log Σ exp(values) over each segment, and −∞ where it has no mass."""
    peak = jax.ops.segment_max(values, segment, num_segments)
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
    total = jax.ops.segment_sum(jnp.exp(values - peak[segment]), segment, num_segments)
    held = total > 0
    return jnp.where(held, jnp.log(jnp.where(held, total, 1.0)) + peak, -jnp.inf)


def _require_policy_in_support(log_probs: ArrayLike, inside: str, reference: ArrayLike) -> None:
    # A reference of exp(−800) underflows, but does not exclude: its support is read off the logs.
    support = jnp.asarray(reference) > -jnp.inf
    checks.require_support(
        "exp(log_probs)", jnp.exp(jnp.asarray(log_probs)), f"exp({inside})", support
    )


def _require_pair(log_probs: ArrayLike, winner: ArrayLike, loser: ArrayLike) -> None:
    """Refuse two arms that are equal, or that the policy excludes."""
    log_p = jnp.asarray(log_probs)
    for name, arm in (("winner", winner), ("loser", loser)):
        chosen = _one_hot(arm, log_p) > 0
        checks.require_finite(f"log_probs[{name}]", jnp.sum(jnp.where(chosen, log_p, 0.0), axis=-1))
    first, second = checks.concrete(winner), checks.concrete(loser)
    if first is None or second is None:
        return
    same = first == second
    if same.any():
        arm = np.broadcast_to(first, same.shape)[same].flat[0]
        raise checks.InvalidInput(
            f"winner and loser are both arm {arm}; a preference is between two different arms"
        )
