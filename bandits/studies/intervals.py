"""Compute 95% intervals of means and of shares."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from theory.checks import InvalidInput

TAIL = 0.025
"""Probability on either side of an interval."""


class Interval(NamedTuple):
    """Hold a measured effect with its 95% interval."""

    effect: float
    low: float
    high: float


def exact(value: ArrayLike) -> Interval:
    """Return the interval of what is computed without any chance: the number itself."""
    number = float(np.asarray(value))
    return Interval(number, number, number)


def mean_interval(samples: ArrayLike) -> Interval:
    """Return the mean of independent samples ``[n]`` with Student's t interval; NaN for n < 2.

    Raises InvalidInput for samples that are not finite: no mean may hide a run that diverged.
    """
    values = np.asarray(samples, np.float64)
    if not np.isfinite(values).all():
        raise InvalidInput(f"samples is {values}; an interval needs finite samples")
    if values.size < 2:
        return Interval(np.nan, np.nan, np.nan)
    half = special.stdtrit(values.size - 1, 1 - TAIL) * values.std(ddof=1) / np.sqrt(values.size)
    mean = float(values.mean())
    return Interval(mean, mean - float(half), mean + float(half))


def proportion_interval(successes: int, trials: int) -> Interval:
    """Return the share of successes with the exact (Clopper–Pearson) interval; trials >= 1."""
    if not 0 <= successes <= trials or trials < 1:
        raise InvalidInput(
            f"successes is {successes} of {trials} trials; need 0 <= successes <= trials"
        )
    failures = trials - successes
    low = special.betaincinv(successes, failures + 1, TAIL) if successes else 0.0
    high = special.betaincinv(successes + 1, failures, 1 - TAIL) if failures else 1.0
    return Interval(successes / trials, float(low), float(high))


def share_interval(outcomes: ArrayLike) -> Interval:
    """Return the share of outcomes that are true, with the interval of `proportion_interval`."""
    values = np.asarray(outcomes, bool)
    return proportion_interval(int(values.sum()), values.size)
