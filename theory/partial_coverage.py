"""What preference data that leave responses out do to DPO and to RLHF.

The data prefer winners to losers; a response that is in no pair is *uncovered*.

**DPO's optima.** For preferences without a cycle (no response ever beats, directly or through
others, one that beats it), the infimum of −Σ n log σ(β h), h = log π(w)/π_ref(w) −
log π(l)/π_ref(l), is 0. A policy π on the simplex, boundary included, is the limit of policies
whose loss tends to 0 if and only if π(l) = 0 for every response l that loses some pair.

*Proof.* If π(l) > 0, then h stays below −log π(l) + a constant near π, and the loss above a
positive number. If all losers have π = 0, let d(y) be the length of the longest chain of
preferences that ends in y, and mix π with ε times a distribution in proportion to ε^d(y) on the
covered responses. A winner's d is smaller than its loser's, so π(w)/π(l) >= c/ε for every pair, and
every h tends to infinity as ε does to 0. ∎

The loss says nothing of how π is divided over the rest: winners and uncovered responses alike, also
those with π_ref = 0. RLHF's optimum π* ∝ π_ref exp(r/β) cannot go there: with |r| <= R,

    π*(y) <= π_ref(y) e^{2R/β},     as π*/π_ref = exp(r/β)/Z and Z = E_ref exp(r/β) >= e^{−R/β}.

**Displacement.** Gradient descent on one pair in a tabular softmax moves θ_w up and θ_l down alike,
for the derivative of any function of h is ±. When h has grown by m from π_ref, θ_w by m/2,

    π = (p_w e^{m/2}, p_l e^{−m/2}, u)/(u + p_w e^{m/2} + p_l e^{−m/2}),

p_w, p_l their reference probabilities, u = 1 − p_w − p_l that of all others. By the inequality of
arithmetic and geometric means the uncovered mass is largest where p_w e^{m/2} = p_l e^{−m/2}, at
m = log(p_l/p_w), with value u/(u + 2√(p_w p_l)); if p_l <= p_w it falls from the start. DPO passes
through on its way to m = ∞. IPO stops at m = 1/(2τ), and stays there. ∎

Arguments have the shapes and ranges of their types: ``log_probs`` is log π, ``reference_log_probs``
log π_ref, ``data_log_probs`` log μ, the law of the data, ``beta`` β in units of the reward for a
nat, and ``winner`` and ``loser`` are the reference's p_w and p_l, as plain probabilities.
``preferences`` are positive at [w, l] where w was preferred to l. They are never traced, and a
cycle in them is refused. Every function raises `InvalidInput` for what the types refuse. Sources:
arXiv:2406.01462 (coverage), arXiv:2503.01067 (partial coverage).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from theory import checks, distributions
from theory.pairs import require_pairs_in_support
from theory.types import (
    LogProbs,
    NonNegative,
    PerArm,
    PerProblem,
    Positive,
    Preferences,
    Probability,
    checked,
)

BISECTIONS = 60
"""How often [π_ref, 1] is halved: more often than a double has bits."""


class Pair(NamedTuple):
    """Probabilities of a winner, a loser, and all other responses together, the uncovered."""

    winner: PerProblem
    loser: PerProblem
    uncovered: PerProblem


@checked
def is_dpo_optimum(
    log_probs: LogProbs, preferences: Preferences, tolerance: NonNegative = 1e-6
) -> Bool[Array, "*batch"]:
    """Tell whether a policy is a limit of policies whose DPO loss tends to its infimum, 0.

    It is if all losers together have no more mass than ``tolerance``.

    >>> preferences = [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    >>> bool(is_dpo_optimum(np.log([0.1, 1e-9, 0.9]), preferences))
    True
    """
    loses = _losers(preferences)
    mass = jnp.sum(jnp.where(loses, jnp.exp(jnp.asarray(log_probs)), 0.0), axis=-1)
    return mass <= tolerance


@checked
def dpo_optimum(
    reference_log_probs: LogProbs, preferences: Preferences, uncovered_mass: Probability
) -> Float[Array, " K"]:
    """Return the log-probabilities of a DPO optimum with the wanted mass on uncovered responses.

    The uncovered share their mass evenly, and the reference may exclude them all. The undefeated
    winners share the rest in proportion to the reference.

    >>> log_probs = dpo_optimum(np.log([0.4, 0.4, 0.2]), [[0, 1, 0], [0, 0, 0], [0, 0, 0]], 0.9)
    >>> print(np.exp(log_probs).round(4))
    [0.1 0.  0.9]

    Raises:
      InvalidInput: Also for several problems at once, for mass on uncovered responses where there
        are none, and for preferences that name responses the reference excludes.
    """
    checks.require_one_problem(
        "one optimum",
        reference_log_probs=(reference_log_probs, 1),
        uncovered_mass=(uncovered_mass, 0),
    )
    require_pairs_in_support("preferences", preferences, reference_log_probs)
    table = np.asarray(preferences)
    loses, wins = _losers(table), (table > 0).any(axis=1)
    uncovered, undefeated = ~(wins | loses), wins & ~loses
    known = checks.concrete(uncovered_mass)
    if not uncovered.any() and (known is None or (known > 0).any()):
        raise checks.InvalidInput(
            f"uncovered_mass is {uncovered_mass}; every response is in some pair"
        )
    rest = jnp.where(undefeated, jnp.asarray(reference_log_probs), -jnp.inf)
    mass = jnp.asarray(uncovered_mass, rest.dtype)
    even = jnp.where(uncovered, -jnp.log(max(int(uncovered.sum()), 1)), -jnp.inf)
    return jnp.logaddexp(jnp.log1p(-mass) + jax.nn.log_softmax(rest), jnp.log(mass) + even)


@checked
def rlhf_bound(reference_log_probs: LogProbs, reward_bound: NonNegative, beta: Positive) -> PerArm:
    """Return log(π_ref e^{2R/β}), above which RLHF's optimum never goes for |r| <= R, the bound."""
    exponent = 2.0 * jnp.asarray(reward_bound) / jnp.asarray(beta)
    return jnp.asarray(reference_log_probs) + exponent[..., None]


@checked
def displaced(winner: Positive, loser: Positive, margin: ArrayLike) -> Pair:
    """Return the probabilities when the margin has grown by ``margin`` nats, of either sign.

    It refuses a p_w and p_l that sum to more than 1, as do the three functions below.
    """
    _require_pair(winner, loser)
    p_w, p_l, half = jnp.asarray(winner), jnp.asarray(loser), 0.5 * jnp.asarray(margin)
    # Rounding may take a pair that has all the mass above 1.
    uncovered = jnp.maximum(1.0 - p_w - p_l, 0.0)
    # Divided by the largest exponential, so that neither overflows.
    scale = jnp.exp(-jnp.abs(half))
    up, down = p_w * jnp.exp(half - jnp.abs(half)), p_l * jnp.exp(-half - jnp.abs(half))
    total = up + down + uncovered * scale
    return Pair(up / total, down / total, uncovered * scale / total)


@checked
def peak_margin(winner: Positive, loser: Positive) -> PerProblem:
    """Return the growth of the margin, in nats, at which the uncovered mass peaks.

    It is max(0, log p_l/p_w).
    """
    _require_pair(winner, loser)
    return jnp.maximum(jnp.log(jnp.asarray(loser)) - jnp.log(jnp.asarray(winner)), 0.0)


def displacement_peak(winner: Positive, loser: Positive) -> PerProblem:
    """Return the largest uncovered mass on the way: u/(u + 2√(p_w p_l)) if p_l > p_w, else u.

    >>> print(f"{displacement_peak(winner=0.001, loser=0.499):.3f}")
    0.918
    """
    return displaced(winner, loser, peak_margin(winner, loser)).uncovered


@checked
def ipo_parking(winner: Positive, loser: Positive, tau: Positive) -> Pair:
    """Return where IPO stays for ever: the margin has grown by its target, 1/(2τ)."""
    return displaced(winner, loser, 0.5 / jnp.asarray(tau))


@checked
def global_coverage(data_log_probs: LogProbs) -> PerProblem:
    """Return the largest π(y)/μ(y) of any policy: 1/min μ, ∞ if the data leave a response out."""
    return jnp.exp(-jnp.min(jnp.asarray(data_log_probs), axis=-1))


@checked
def kl_ball_coverage(
    reference_log_probs: LogProbs, data_log_probs: LogProbs, radius: NonNegative
) -> PerProblem:
    """Return the largest π(y)/μ(y) of any policy with KL(π‖π_ref) <= radius, in nats.

    The policy with the most mass on y keeps the others in proportion to the reference. Bisection
    finds that mass p, which solves p log(p/q) + (1 − p) log((1 − p)/(1 − q)) = radius for
    q = π_ref(y). The result is ∞ where the data leave out a response with reference mass. A
    response that the reference excludes is in no such policy. The coefficient of a single policy is
    `distributions.concentrability`.
    """
    q = jnp.exp(jnp.asarray(reference_log_probs))
    limit = jnp.asarray(radius)[..., None]

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        inside = _binary_kl(middle, q) <= limit
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    shape = jnp.broadcast_shapes(q.shape, limit.shape)
    start = (jnp.broadcast_to(q, shape), jnp.ones(shape, q.dtype))
    most, above = jax.lax.fori_loop(0, BISECTIONS, halve, start)
    most = jnp.where(_binary_kl(above, q) <= limit, above, most)
    ratio = jnp.exp(jnp.log(most) - jnp.asarray(data_log_probs))
    return jnp.max(jnp.where(q > 0, ratio, 0.0), axis=-1)


def _binary_kl(p: Array, q: Array) -> Array:
    """Return the KL of two coins."""
    log_p, log_q = (jnp.stack([jnp.log(x), jnp.log1p(-x)], axis=-1) for x in (p, q))
    return distributions.kl_divergence(log_p, log_q)


def _losers(preferences: ArrayLike) -> Bool[np.ndarray, " K"]:
    """Return which responses lose a pair; preferences are data, and known before any tracing."""
    beats = np.asarray(preferences) > 0
    reach = beats
    for _ in range(int(np.ceil(np.log2(len(beats)))) + 1):
        reach = reach | (reach.astype(int) @ reach.astype(int) > 0)
    if np.diag(reach).any():
        arm = int(np.argmax(np.diag(reach)))
        raise checks.InvalidInput(
            f"preferences has a cycle through arm {arm}, so DPO's loss cannot tend to 0; its "
            "optimum follows the Bradley–Terry reward of the data instead"
        )
    return np.asarray(beats.any(axis=0))


def _require_pair(winner: ArrayLike, loser: ArrayLike) -> None:
    p_w, p_l = checks.concrete(winner), checks.concrete(loser)
    if p_w is not None and p_l is not None and (p_w + p_l > 1 + checks.SUM_TOLERANCE).any():
        raise checks.InvalidInput(
            f"winner and loser sum to {np.max(p_w + p_l):g}; probabilities sum to at most 1"
        )
