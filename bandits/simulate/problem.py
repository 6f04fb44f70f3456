"""What is asked: where policies start, where they should go, and whether a method can get there."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from bandits.environments import CategoricalBandit, reference_from_probabilities
from bandits.files import Vector, align
from bandits.losses import DIVERGENCES, METHODS
from theory import checks

GIVEN_PAIRS = ("preferences", "preferences and samples", "learned rewards")
"""What methods need that can learn from pairs that are given."""


def to_distribution(name: str, weights: Vector, normalize: bool, pseudocount: float) -> Vector:
    """The weights as probabilities: as given, or divided by their sum; zeros can be smoothed.

    Raises InvalidInput if they are no distribution, with the remedy where there is one.
    """
    checks.require_finite("pseudocount", pseudocount)
    checks.require_nonnegative("pseudocount", pseudocount)
    checks.require_finite(name, weights.values)
    checks.require_nonnegative(name, weights.values)
    checks.require_arms(name, weights.values)
    values = weights.values + pseudocount
    total = values.sum()
    if total <= 0:
        raise checks.InvalidInput(f"{name} is zero on every arm; at least one must be positive")
    if not (normalize or pseudocount) and abs(total - 1) > checks.SUM_TOLERANCE:
        raise checks.InvalidInput(
            f"{name} sums to {total:.8g}; probabilities must sum to 1 (for counts, add --normalize)"
        )
    return Vector(values / total, weights.labels)


class Problem(NamedTuple):
    """Where policies start and where they should go.

    Attributes:
      start, goal: log-probabilities ``[K]``.
      reward: ``[K]``, given or learned, or None if only a target is given.
      labels: the arms' names.
      attributes: of the dataset.
    """

    start: Float[Array, " K"]
    goal: Float[Array, " K"]
    reward: Float[Array, " K"] | None
    labels: Sequence[object]
    attributes: dict[str, float]


def pose(
    reference: Vector,
    reward: Vector | None,
    target: Vector | None,
    fitted: Float[Array, " K"] | None,
    beta: float,
) -> Problem:
    """The problem of exactly one of a reward, a target and a fitted reward, checked."""
    if reward is not None and target is not None:
        raise checks.InvalidInput("give either a reward or a target, one of the two")
    if reward is None and target is None and fitted is None:
        raise checks.InvalidInput("give either a reward or a target, or preferences")
    start = reference_from_probabilities(reference.values)
    if target is not None:
        other = align(target, "target", reference)
        checks.require_distribution("target", other.values)
        goal = reference_from_probabilities(other.values)
        return Problem(start, goal, None, _names(other), {})
    if reward is None:
        assert fitted is not None
        reward = Vector(np.asarray(fitted), reference.labels)
    other = align(reward, "reward", reference)
    bandit = CategoricalBandit.from_arrays(other.values, reference.values)
    goal = bandit.target_log_probs(beta)
    if np.isnan(np.asarray(goal)).any():
        raise checks.InvalidInput(
            f"beta is {beta:g}, so reward / beta is beyond range; choose a larger "
            "beta or smaller rewards"
        )
    attributes = {"beta": beta, "peak_distance": int(bandit.peak_distance())}
    return Problem(start, goal, bandit.reward, _names(other), attributes)


def _names(arms: Vector) -> Sequence[object]:
    return arms.labels or range(len(arms.values))


def learns_from_pairs(method: str) -> bool:
    """Whether it takes pairs that are given."""
    return METHODS[method].needs in GIVEN_PAIRS and (
        METHODS[method].needs != "preferences" or not METHODS[method].on_policy
    )


def require_data(
    methods: Sequence[str],
    problem: Problem,
    reward: Vector | None,
    target: Vector | None,
    preferences: np.ndarray | None,
    natural_gradient: bool,
) -> None:
    """Refuse methods that lack the data they learn from, or the mass to get there."""
    for name in methods:
        method = METHODS[name]
        if natural_gradient and name not in DIVERGENCES:
            raise checks.InvalidInput(
                f"natural_gradient is for exact descent of a divergence; {name} is none, leave it "
                "out"
            )
        if name in DIVERGENCES:
            _require_reachable(name, problem)
        elif method.needs == "demonstrations":
            if target is None:
                raise checks.InvalidInput(
                    f"{name} learns from demonstrations, but no target is given; add --target, "
                    "their law"
                )
            shown, start = np.exp(problem.goal), np.exp(problem.start)
            checks.require_support("target", shown, "reference", start)
        elif method.needs == "learned rewards":
            if preferences is None:
                raise checks.InvalidInput(
                    f"{name} fits its reward to preferences, but none are given; add "
                    "--preferences, or choose reverse_kl, which optimises the same objective for a "
                    "--reward"
                )
        elif problem.reward is None or not (
            reward is not None or method.on_policy or learns_from_pairs(name)
        ):
            given = "only a target is" if target is not None else "only preferences are"
            why = "samples its own responses" if method.on_policy else "learns from responses"
            from_pairs = ", ".join(n for n in METHODS if learns_from_pairs(n))
            raise checks.InvalidInput(
                f"{name} {why}, which a reward must label, but {given} given; add --reward, or "
                f"choose a method that learns from --preferences: {from_pairs}"
            )


def _require_reachable(method: str, problem: Problem) -> None:
    """Refuse a divergence that is infinite at the start and stays so."""
    start, goal = np.asarray(problem.start), np.asarray(problem.goal)
    missing = {
        "target": np.isneginf(goal) & ~np.isneginf(start),
        "reference": np.isneginf(start) & ~np.isneginf(goal),
    }
    infinite = {
        "reverse_kl": ("target",),
        "forward_kl": ("reference",),
        "jeffreys": ("target", "reference"),
        "jensen_shannon": (),
    }
    for excluded in infinite[method]:
        if missing[excluded].any():
            arm = problem.labels[int(np.argmax(missing[excluded]))]
            other = "reference" if excluded == "target" else "target"
            raise checks.InvalidInput(
                f"{excluded} is zero on arm {str(arm)!r} where the {other} is not, so {method} is "
                "infinite; smooth the zeros (--pseudocount 0.5 for counts) or choose another "
                "--method"
            )
