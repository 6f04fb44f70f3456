"""Judge whether a run can be trusted: one test for all methods, on what each lowers."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

RISE = 1e-3
"""Least rise, as a share of the size of what is lowered, of a run that counts as worse."""

NOISE = 0.02
"""The same for methods that draw their own samples: their end is noisy."""

WINDOW = 8
"""Number of steps at the end that are judged: a run that cycles may end at a good policy."""

MOVE = 0.02
"""Least total variation between successive policies that counts as swinging."""

CYCLE = 0.1
"""Least sum of the rises in the last steps, as RISE, of a run that cycles; kinks give some."""


class Verdict(NamedTuple):
    """What is wrong with a run.

    Attributes:
      sentence: what happened, without a subject.
      curable: whether a smaller step can help.
    """

    sentence: str
    curable: bool = True


def judge(
    objective: Float[np.ndarray, " steps"],
    probs: Float[np.ndarray, "steps K"],
    steps: Int[np.ndarray, " steps"],
    *,
    diverged_at: int,
    sampled: bool,
    scale: float,
) -> Verdict | None:
    """Return what is wrong with a run, or None.

    Args:
      objective: what the method lowers, at each recorded step.
      probs: the policies there.
      steps: gradient steps of the records; the last `WINDOW` are successive.
      diverged_at: steps after which the training saw NaN; -1 if never.
      sampled: whether gradients were noisy: then the policy moves without cycling.
      scale: a natural size of the objective, such as the range of the rewards.
    """
    broken = np.isnan(probs).any(axis=1)
    if diverged_at == 0 or broken[0]:
        return Verdict("is not finite at the start", curable=False)
    if broken.any():
        at = diverged_at if diverged_at > 0 else int(steps[broken][0])
        return Verdict(f"became NaN after {at:,} steps")
    successive = steps >= steps[-1] - WINDOW
    start, last = objective[0], objective[successive]
    size = max(scale, abs(start) if np.isfinite(start) else 0.0)
    end = last.mean() if sampled else last[-1]  # noise moves a single step
    most = start + (NOISE if sampled else RISE) * size
    if np.isfinite(start) and not end <= most:
        return Verdict(f"ended worse than it began, from {start:.4g} to {end:.4g}")
    if sampled:
        return None
    if np.isfinite(start) and not last.max() <= most:
        return Verdict(
            f"does not settle: what it lowers began at {start:.4g} and is up to {last.max():.4g} "
            "in the last steps"
        )
    if len(last) > 2 and (move := _cycle(probs[successive])) > MOVE:
        return Verdict(f"does not settle: its policy still swings by {move:.2g} in every step")
    rise = np.maximum(np.diff(last), 0.0).sum()
    if rise > CYCLE * size:
        return Verdict(f"does not settle: what it lowers rose by {rise:.2g} in the last steps")
    return None


def last_steps(steps: int) -> range:
    """Return the steps that `judge` needs successive records of."""
    return range(max(0, steps - WINDOW), steps + 1)


def _cycle(probs: Float[np.ndarray, "steps K"]) -> float:
    """Return the mean move of successive steps if they turn back on each other, else 0."""
    moves = np.diff(probs, axis=0)
    sizes = 0.5 * np.abs(moves).sum(axis=1)
    net = 0.5 * np.abs(moves.sum(axis=0)).sum()
    return float(sizes.mean()) if net < 0.5 * sizes.sum() else 0.0
