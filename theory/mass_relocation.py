"""Theorem 6.5 of arXiv:2404.14367, with exact thresholds: which KL moves mass faster in one step.

A tabular softmax policy p = softmax(θ) takes one gradient step of size η towards a target q:

    forward, KL(q‖p):   θ ← θ + η (q − p)
    reverse, KL(p‖q):   θ ← θ − η p ∘ (log(p/q) − KL(p‖q))

For two categories, Δ = log p'(x1)/p(x1) − log p'(x2)/p(x2) says how much mass the step moves from
x2 to x1. The normaliser cancels, so Δ is exactly the difference of the two logit changes, for every
η > 0. Writing (p1, q1), (p2, q2) for the two categories,

    (Δʳ − Δᶠ)/η = p2 (log(p2/q2) − KL) − p1 (log(p1/q1) − KL) − (q1 − p1) + (q2 − p2),    (*)

whose sign decides which KL moves more (`reverse_moves_more`). The theorem's three cases set two of
the four numbers equal; there the sign has a closed form, if and only if (the paper states these
with unspecified constants):

1. p1 = p2 = p and q1 > q2:   Δʳ > Δᶠ  ⟺  p > L(q1, q2), the logarithmic mean.
   *Proof.* The KL terms and p1 − p2 cancel: (*) = p (log q1 − log q2) − (q1 − q2). ∎
2. q1 = q2 = q and p1 > p2:   Δʳ > Δᶠ  ⟺  q > I(p1, p2) exp(−KL(p‖q)), the identric mean.
   *Proof.* (*) = (p1 − p2)(log q + KL + 1) − (p1 log p1 − p2 log p2). Divide by p1 − p2 > 0; the
   last quotient is 1 + log I(p1, p2), by the definition of I. ∎
3. The same setting:          Δʳ < Δᶠ  ⟺  q < I(p1, p2) exp(−KL(p‖q)).
   *Proof.* The same inequality, reversed. ∎

As min <= L, I <= max, the conditions p > q1 (case 1), q > p1 (case 2) and q exp(KL) < p2 (case 3)
are sufficient. Both KLs stay finite only if q is positive wherever p is; categories with p = 0 keep
exactly zero mass, for a logit of −∞ does not move.

Arguments have the shapes and ranges of their types: p ``[..., K]`` is the policy, q ``[..., K]``
the target, ``learning_rate`` η, and ``first`` and ``second`` are x1 and x2. Every function raises
`InvalidInput` for what the types refuse, and where KL(p‖q) is needed and infinite.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from theory import checks
from theory.distributions import kl_divergence
from theory.types import Arm, FiniteNonNegative, PerArm, PerProblem, Positive, Probs, checked


@checked
def forward_kl_step(p: Probs, q: Probs, learning_rate: Positive) -> PerArm:
    """Return the policy after one gradient step on KL(q‖p): p' ∝ p exp(η (q − p)).

    *Proof.* ∂KL(q‖p)/∂θ_i = −Σ_k q_k (1[k = i] − p_i) = p_i − q_i. ∎

    >>> [round(float(p), 4) for p in forward_kl_step([0.5, 0.5], [0.9, 0.1], 1.0)]
    [0.69, 0.31]
    """
    p, q = jnp.asarray(p), jnp.asarray(q)
    return _step(p, q - p, learning_rate)


@checked
def reverse_kl_step(p: Probs, q: Probs, learning_rate: Positive) -> PerArm:
    """Return the policy after a step on KL(p‖q): p' ∝ p exp(−η p ∘ (log(p/q) − KL(p‖q))).

    *Proof.* With d = log(p/q): ∂/∂θ_i Σ_k p_k d_k = Σ_k p_k (1[k = i] − p_i)(d_k + 1)
    = p_i (d_i − Σ_k p_k d_k) = p_i (d_i − KL). ∎

    >>> [round(float(p), 4) for p in reverse_kl_step([0.5, 0.5], [0.9, 0.1], 1.0)]
    [0.75, 0.25]
    """
    checks.require_support("p", p, "q", q)
    p, q = jnp.asarray(p), jnp.asarray(q)
    return _step(p, -p * _centred_log_ratio(p, q), learning_rate)


@checked
def relative_change(p: Probs, p_next: Probs, first: Arm, second: Arm) -> PerProblem:
    """Return Δ = log p'(x1)/p(x1) − log p'(x2)/p(x2): how much a step favours x1, in nats.

    It is NaN or infinite where a category has no mass before the step: its change is undefined.
    """
    change = jnp.log(jnp.asarray(p_next)) - jnp.log(jnp.asarray(p))
    return _at(change, first) - _at(change, second)


@checked
def relocation_gap(p: Probs, q: Probs, first: Arm, second: Arm) -> PerProblem:
    """Return (Δʳ − Δᶠ)/η for any pair of categories: equation (*), the same for every step size."""
    checks.require_support("p", p, "q", q)
    p, q = jnp.asarray(p), jnp.asarray(q)
    gap = -p * _centred_log_ratio(p, q) - (q - p)
    return _at(gap, first) - _at(gap, second)


def reverse_moves_more(p: Probs, q: Probs, first: Arm, second: Arm) -> Bool[Array, "*batch"]:
    """Tell whether reverse KL moves more mass from x2 to x1 than forward KL: Δʳ > Δᶠ, for any η."""
    return relocation_gap(p, q, first, second) > 0


@checked
def equal_policy_threshold(q: Probs, first: Arm, second: Arm) -> PerProblem:
    """Return L(q(x1), q(x2)), the threshold of case 1.

    Where p(x1) = p(x2) = p and q(x1) > q(x2), reverse moves more if and only if p is above it.

    >>> print(f"{equal_policy_threshold([0.6, 0.3, 0.1], 0, 1):.4f}")  # 0.3/log 2
    0.4328
    """
    q = jnp.asarray(q)
    return logarithmic_mean(_at(q, first), _at(q, second))


@checked
def equal_target_threshold(p: Probs, q: Probs, first: Arm, second: Arm) -> PerProblem:
    """Return I(p(x1), p(x2)) exp(−KL(p‖q)), the threshold of cases 2 and 3.

    Where q(x1) = q(x2) = q and p(x1) > p(x2), reverse moves more if and only if q is above it.

    >>> print(f"{equal_target_threshold([0.6, 0.3, 0.1], [0.4, 0.4, 0.2], 0, 1):.4f}")
    0.4044
    """
    checks.require_support("p", p, "q", q)
    p, q = jnp.asarray(p), jnp.asarray(q)
    mean = identric_mean(_at(p, first), _at(p, second))
    return mean * jnp.exp(-kl_divergence(jnp.log(p), jnp.log(q)))


# Jitted, so that a call on plain numbers compiles once rather than operation by operation.
@checked
@jax.jit
def logarithmic_mean(a: FiniteNonNegative, b: FiniteNonNegative) -> Float[Array, "..."]:
    """Return L(a, b) = (a − b)/(log a − log b), with L(a, a) = a and L(a, 0) = 0.

    >>> print(f"{logarithmic_mean(2.0, 1.0):.4f}")  # 1/log 2
    1.4427

    Accurate to rounding also where a ≈ b: with m the arithmetic mean and x = (a − b)/(a + b),
    log a − log b = 2 atanh x, so L = m x/atanh x = m / (1 + x²/3 + x⁴/5 + …), where an error of
    rounding in a small x is squared away.
    """
    high, low, scale = _scaled(a, b)
    return scale * _mean_of_scaled(high, low)


@checked
@jax.jit
def identric_mean(a: FiniteNonNegative, b: FiniteNonNegative) -> Float[Array, "..."]:
    """Return I(a, b) = (1/e) (a^a / b^b)^{1/(a − b)}, with I(a, a) = a and I(a, 0) = a/e.

    For a >= b, log I = (a log a − b log b)/(a − b) − 1 = log a + b (log a − log b)/(a − b) − 1, so
    I = a exp(b/L(a, b) − 1): no cancellation, since 0 <= b/L <= 1.
    """
    high, low, scale = _scaled(a, b)
    # low/L tends to 0 with low; at low = 0 the quotient 0/0 is replaced by that limit.
    mean = jnp.where(low > 0, _mean_of_scaled(high, low), 1.0)
    return scale * high * jnp.exp(low / mean - 1.0)


# x²ᵏ/(2k + 1) is below 1e-17 for |x| < 0.3 from k = 16 on.
_ATANH_SERIES = tuple(1.0 / (2 * k + 1) for k in reversed(range(17)))
_SERIES_RADIUS = 0.3


def _scaled(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array, Array]:
    """Return the larger and the smaller over a scale, and the scale: small squares underflow."""
    a, b = jnp.asarray(a, float), jnp.asarray(b, float)
    high, low = jnp.maximum(a, b), jnp.minimum(a, b)
    scale = jax.lax.stop_gradient(jnp.where(high > 0, high, 1.0))
    return high / scale, low / scale, scale


def _mean_of_scaled(high: Float[Array, "..."], low: Float[Array, "..."]) -> Float[Array, "..."]:
    total = high + low
    x = (high - low) / jnp.where(total > 0, total, 1.0)
    near = x < _SERIES_RADIUS
    far = ~near & (low > 0)
    series = jnp.polyval(jnp.array(_ATANH_SERIES, x.dtype), jnp.where(near, x, 0.0) ** 2)
    # Unused branches are given harmless arguments, for a gradient passes through all of them.
    log_ratio = jnp.log(jnp.where(far, high, 2.0)) - jnp.log(jnp.where(far, low, 1.0))
    return jnp.where(near, 0.5 * total / series, jnp.where(far, (high - low) / log_ratio, 0.0))


def _step(p: PerArm, direction: PerArm, learning_rate: ArrayLike) -> PerArm:
    """Return softmax(log p + η direction); a category without mass has logit −∞ and keeps none."""
    logits = jnp.log(p) + jnp.asarray(learning_rate)[..., None] * direction
    return jax.nn.softmax(logits, axis=-1)


def _centred_log_ratio(p: PerArm, q: PerArm) -> PerArm:
    """Return log(p/q) − KL(p‖q), and 0 where p = 0 (it is always multiplied by p)."""
    held = p > 0
    log_ratio = jnp.log(jnp.where(held, p, 1.0)) - jnp.log(jnp.where(held, q, 1.0))
    return jnp.where(held, log_ratio - jnp.sum(p * log_ratio, axis=-1, keepdims=True), 0.0)


_at = jnp.vectorize(jnp.take, signature="(k),()->()")
"""Return the entry of each problem's arm."""
