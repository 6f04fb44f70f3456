"""Boundary checks: bad values are refused in one sentence, before any work is done.

A check looks at values only where there are values: traced arrays pass, so every public function
can be jitted, differentiated and vmapped. Lengths and shapes are known while tracing and always
checked.
"""

import difflib
from collections.abc import Iterable

import jax
import numpy as np
from jax.typing import ArrayLike

SUM_TOLERANCE = 1e-5
"""How far the sum of a distribution may lie from 1: float32 rounding at K = 10^5, and no typo."""


class InvalidInput(ValueError):
    """A value the user gave is not allowed; the message names it and says what is."""


def require_distribution(name: str, probs: ArrayLike) -> None:
    """Refuse ``probs [..., K]`` unless each row has K >= 2 entries >= 0 that sum to 1."""
    require_arms(name, probs)
    values = _concrete(probs)
    if values is None:
        return
    if np.isnan(values).any():
        _refuse(name, values, np.isnan(values), "must be a number")
    if (values < 0).any() or np.isinf(values).any():
        _refuse(name, values, (values < 0) | np.isinf(values), "must lie between 0 and 1")
    sums = values.sum(axis=-1, dtype=np.float64)
    if (np.abs(sums - 1) > SUM_TOLERANCE).any():
        worst = sums.flat[np.abs(sums - 1).argmax()]
        raise InvalidInput(f"{name} sums to {worst:.8g}; probabilities must sum to 1")


def require_log_distribution(name: str, log_probs: ArrayLike) -> None:
    """Refuse ``log_probs [..., K]`` unless ``exp(log_probs)`` is a distribution."""
    values = _concrete(log_probs)
    if values is None:
        require_arms(name, log_probs)
    else:
        with np.errstate(over="ignore"):
            require_distribution(f"exp({name})", np.exp(np.asarray(values, np.float64)))


def require_arms(name: str, values: ArrayLike) -> None:
    """Refuse arrays whose last axis holds fewer than two arms."""
    shape = np.shape(values)
    if not shape or shape[-1] < 2:
        count = shape[-1] if shape else "no axis of"
        raise InvalidInput(f"{name} has {count} arms; at least 2 are needed")


def require_same_arms(**arrays: ArrayLike) -> None:
    """Refuse arrays whose last axes differ in length."""
    for name, values in arrays.items():
        require_arms(name, values)
    (first, reference), *rest = arrays.items()
    expected = np.shape(reference)[-1]
    for name, values in rest:
        found = np.shape(values)[-1]
        if found != expected:
            raise InvalidInput(
                f"{name} has {found} arms but {first} has {expected}; they must match"
            )


def require_finite(name: str, values: ArrayLike) -> None:
    """Refuse NaN and infinities."""
    concrete = _concrete(values)
    if concrete is not None and not np.isfinite(concrete).all():
        _refuse(name, concrete, ~np.isfinite(concrete), "must be a finite number")


def require_nonnegative(name: str, values: ArrayLike) -> None:
    """Refuse negative numbers and NaN."""
    concrete = _concrete(values)
    if concrete is not None and not (concrete >= 0).all():
        _refuse(name, concrete, ~(concrete >= 0), "must be >= 0")


def require_positive(name: str, value: ArrayLike) -> None:
    """Refuse anything but finite numbers > 0."""
    concrete = _concrete(value)
    if concrete is None:
        return
    bad = ~(np.isfinite(concrete) & (concrete > 0))
    if bad.any():
        _refuse(name, concrete, bad, "must be a finite number > 0")


def require_index(name: str, index: ArrayLike, num_arms: int) -> None:
    """Refuse arms outside 0 .. num_arms - 1 (JAX would clamp them in silence)."""
    concrete = _concrete(index)
    if concrete is None:
        return
    if not np.issubdtype(concrete.dtype, np.integer):
        raise InvalidInput(f"{name} is {index}; an arm is an integer from 0 to {num_arms - 1}")
    bad = (concrete < 0) | (concrete >= num_arms)
    if bad.any():
        raise InvalidInput(f"{name} is {concrete[bad].flat[0]}; arms go from 0 to {num_arms - 1}")


def require_support(name: str, probs: ArrayLike, inside: str, reference: ArrayLike) -> None:
    """Refuse ``probs`` that are positive on an arm where ``reference`` is zero."""
    inner, outer = _concrete(probs), _concrete(reference)
    if inner is None or outer is None:
        return
    outside = (inner > 0) & (outer == 0)
    if outside.any():
        arm = np.argwhere(np.atleast_1d(outside))[0][-1]
        raise InvalidInput(
            f"{inside} is zero on arm {arm} where {name} is not, so their KL divergence is "
            f"infinite; {inside} must be positive wherever {name} is"
        )


def require_known(name: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a name that is not among ``allowed``, and suggest the nearest."""
    options = list(allowed)
    if value not in options:
        close = difflib.get_close_matches(value, options, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InvalidInput(f"unknown {name} {value!r}; {hint}allowed: {', '.join(options)}")


def _concrete(values: ArrayLike) -> np.ndarray | None:
    """The values as NumPy sees them, or None while they are being traced."""
    return None if isinstance(values, jax.core.Tracer) else np.asarray(values)


def _refuse(name: str, values: np.ndarray, bad: np.ndarray, allowed: str) -> None:
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    where = f"{name}[{', '.join(map(str, index))}]" if index else name
    raise InvalidInput(f"{where} is {values[index]:g}; it {allowed}")
