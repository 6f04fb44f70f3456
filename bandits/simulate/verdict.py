"""Whether a run can be trusted: one test for all methods, on what the method itself lowers."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

RISE = 1e-3
"""Of what is lowered: a run that ends this far above its start, and above its size, got worse."""

NOISE = 0.02
"""The same of methods that draw their own samples, whose end is noisy."""

WINDOW = 8
"""Successive steps at the end in which a cycle is looked for."""

MOVE = 0.02
"""Total variation between the policies of successive steps that is seen in a result."""


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
      steps: gradient steps of the records; the last are successive.
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
    start, end = objective[0], objective[-1]
    room = (NOISE if sampled else RISE) * max(scale, abs(start) if np.isfinite(start) else 0.0)
    if np.isfinite(start) and not end <= start + room:
        return Verdict(f"ended worse than it began, from {start:.4g} to {end:.4g}")
    if sampled:
        return None
    move = _cycle(probs, steps)
    if move is not None:
        return Verdict(f"does not settle: its policy still swings by {move:.2g} in every step")
    return None


def last_steps(steps: int) -> range:
    """Return the steps that `judge` needs successive records of."""
    return range(max(0, steps - WINDOW), steps + 1)


def _cycle(probs: Float[np.ndarray, "steps K"], steps: Int[np.ndarray, " steps"]) -> float | None:
    """The mean move of the last steps, where they turn back on each other."""
    successive: Bool[np.ndarray, " steps"] = steps >= steps[-1] - WINDOW
    if successive.sum() < 3:
        return None
    moves = np.diff(probs[successive], axis=0)
    sizes = 0.5 * np.abs(moves).sum(axis=1)
    net = 0.5 * np.abs(moves.sum(axis=0)).sum()
    if sizes.mean() > MOVE and net < 0.5 * sizes.sum():
        return float(sizes.mean())
    return None
