"""Checks of values: what is not allowed is refused in one sentence, before any work is done.

A check looks at values only where there are values: traced arrays pass, so every public function
can be jitted, differentiated and vmapped. Lengths and shapes are known while tracing and always
checked. `theory.types` makes types of these checks.
"""

import difflib
import re
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

SUM_TOLERANCE = 1e-5
"""How far the sum of a distribution may lie from 1: float32 rounding at K = 10^5, and no typo."""

MOST_LISTED = 40
"""How many allowed names a refusal lists."""


class InvalidInput(ValueError):
    """A value the user gave is not allowed; the message names it and says what is."""


def require_distribution(name: str, probs: ArrayLike) -> None:
    """Refuse ``probs [..., K]`` unless each row has K >= 2 entries >= 0 that sum to 1."""
    require_arms(name, probs)
    values = concrete(probs)
    if values is None:
        return
    _require(name, values, lambda p: ~np.isnan(p), "must be a number")
    _require(name, values, lambda p: (p >= 0) & np.isfinite(p), "must lie between 0 and 1")
    sums = values.sum(axis=-1, dtype=np.float64)
    if (np.abs(sums - 1) > SUM_TOLERANCE).any():
        worst = sums.flat[np.abs(sums - 1).argmax()]
        raise InvalidInput(f"{name} sums to {worst:.8g}; probabilities must sum to 1")


def require_log_distribution(name: str, log_probs: ArrayLike) -> None:
    """Refuse ``log_probs [..., K]`` unless ``exp(log_probs)`` is a distribution."""
    values = concrete(log_probs)
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
    require_equal_arms(**{name: np.shape(values)[-1] for name, values in arrays.items()})


def require_equal_arms(**numbers: int) -> None:
    """Refuse arguments with different numbers of arms."""
    for name, found in numbers.items():
        first, expected = next(iter(numbers.items()))
        if found != expected:
            raise InvalidInput(
                f"{name} has {found} arms but {first} has {expected}; they must match"
            )


def require_finite(name: str, values: ArrayLike, more: str = "") -> None:
    """Refuse NaN, infinities, and numbers that are infinite in JAX's present precision."""
    known = concrete(values)
    if known is None:
        return
    if not jnp.issubdtype(known.dtype, jnp.number) and known.dtype != bool:
        raise InvalidInput(f"{name} is {values!r}; it must be a finite number{more}")
    within = " within 32 bits" if np.isfinite(known).all() else ""
    with np.errstate(over="ignore"):
        held = known.astype(jax.dtypes.canonicalize_dtype(known.dtype))
    _require(name, known, lambda _: np.isfinite(held), f"must be a finite number{more}{within}")


def require_nonnegative(name: str, values: ArrayLike) -> None:
    """Refuse negative numbers and NaN."""
    _require(name, values, lambda x: x >= 0, "must be >= 0")


def require_positive(name: str, value: ArrayLike) -> None:
    """Refuse anything but finite numbers > 0."""
    require_finite(name, value, " > 0")
    _require(name, value, lambda x: x > 0, "must be a finite number > 0")


def require_probability(name: str, value: ArrayLike) -> None:
    """Refuse anything but numbers from 0 to 1."""
    _require(name, value, lambda x: (x >= 0) & (x <= 1), "must lie between 0 and 1")


def positive(name: str, value: ArrayLike) -> ArrayLike:
    """Return the value, refused unless finite and > 0; NaN where a traced one is not.

    A sweep's numbers have no values yet when a function is traced. A run with a bad one must not
    look like a result: it gives NaN, and is reported.
    """
    require_positive(name, value)
    return _nan_unless(value, lambda x: (x > 0) & jnp.isfinite(x))


def nonnegative(name: str, value: ArrayLike) -> ArrayLike:
    """Return the value, refused unless finite and >= 0; NaN where a traced one is not."""
    require_finite(name, value)
    require_nonnegative(name, value)
    return _nan_unless(value, lambda x: (x >= 0) & jnp.isfinite(x))


def between(name: str, value: ArrayLike, low: float, high: float) -> ArrayLike:
    """Return the value, refused unless from ``low`` to ``high``; NaN where a traced one is not."""
    allowed = f"must lie between {low:g} and {high:g}"
    _require(name, value, lambda x: (x >= low) & (x <= high), allowed)
    return _nan_unless(value, lambda x: (x >= low) & (x <= high))


def require_index(name: str, index: ArrayLike, num_arms: int) -> None:
    """Refuse arms outside 0 .. num_arms - 1 (JAX would clamp them in silence)."""
    known = concrete(index)
    if known is None:
        return
    if not np.issubdtype(known.dtype, np.integer):
        raise InvalidInput(f"{name} is {index}; an arm is an integer from 0 to {num_arms - 1}")
    bad = (known < 0) | (known >= num_arms)
    if bad.any():
        raise InvalidInput(f"{name} is {known[bad].flat[0]}; arms go from 0 to {num_arms - 1}")


def require_support(name: str, probs: ArrayLike, inside: str, reference: ArrayLike) -> None:
    """Refuse ``probs`` that are positive on an arm where ``reference`` is zero."""
    inner, outer = concrete(probs), concrete(reference)
    if inner is None or outer is None:
        return
    outside = (inner > 0) & (outer == 0)
    if outside.any():
        arm = np.argwhere(np.atleast_1d(outside))[0][-1]
        raise InvalidInput(
            f"{inside} is zero on arm {arm} where {name} is not, so their KL divergence is "
            f"infinite; {inside} must be positive wherever {name} is"
        )


def require_integer(name: str, value: ArrayLike) -> None:
    """Refuse anything but whole numbers, of either sign."""
    if not _is_whole(value):
        raise InvalidInput(f"{name} is {value}; it must be a whole number")


def require_whole(name: str, value: ArrayLike, least: int = 1, most: int | None = None) -> None:
    """Refuse anything but whole numbers of at least ``least`` and, if it is given, at most."""
    known = concrete(value)
    if known is None:
        return
    if _is_whole(value) and (known >= least).all() and (most is None or (known <= most).all()):
        return
    allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise InvalidInput(f"{name} is {value}; it must be a whole number {allowed}")


def require_two(name: str, value: ArrayLike) -> None:
    """Refuse numbers below 2."""
    known = concrete(value)
    if known is not None and not (known >= 2).all():
        raise InvalidInput(f"{name} is {value}; at least 2 are needed")


def require_count(name: str, value: ArrayLike) -> None:
    """Refuse anything but 1, 2, 3, …, which floats may hold."""
    allowed = "must be a whole number >= 1"
    _require(name, value, lambda x: (x >= 1) & (x == np.floor(x)) & np.isfinite(x), allowed)


def require_multiple(name: str, value: ArrayLike, of: str, unit: int) -> None:
    """Refuse whole numbers that ``unit`` does not divide."""
    known = concrete(value)
    if known is not None and (known % unit).any():
        wrong = known[known % unit != 0].flat[0]
        raise InvalidInput(f"{name} is {wrong}; it must be a multiple of {of}, {unit}")


def require_preferences(name: str, table: ArrayLike) -> None:
    """Refuse what is no ``[K, K]`` table of preferences among K >= 2 different arms.

    Its weights are >= 0, at least one is positive, and no arm is preferred to itself.
    """
    shape = np.shape(table)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2:
        raise InvalidInput(f"{name} has shape {shape}; it must be [K, K] for K >= 2 arms")
    require_finite(name, table)
    require_nonnegative(name, table)
    known = concrete(table)
    if known is not None:
        winners, losers = np.nonzero(known)
        require_weights(name, winners, losers, known[winners, losers])


def require_weights(
    name: str, winners: np.ndarray, losers: np.ndarray, weights: np.ndarray
) -> None:
    """Refuse lists ``[P]`` of pairs without any weight, or with weight of an arm against itself."""
    if not weights.any():
        raise InvalidInput(f"{name} is zero everywhere; there must be at least one preference")
    itself = (winners == losers) & (weights > 0)
    if itself.any():
        arm = winners[np.argmax(itself)]
        raise InvalidInput(f"{name} prefers arm {arm} to itself; a pair needs two different arms")


def require_one_problem(what: str, **values: tuple[ArrayLike, int]) -> None:
    """Refuse batches: each value is given with the number of axes that one problem has."""
    for name, (value, axes) in values.items():
        if np.ndim(value) != axes:
            raise InvalidInput(
                f"{name} has shape {np.shape(value)}; {what} is of one problem, use jax.vmap for "
                "several"
            )


def require_features(name: str, features: ArrayLike) -> None:
    """Refuse what is no ``[K, F]`` table of finite numbers with F >= 1, or tells no arms apart.

    A column that is the same on all arms is invisible to preferences and to a softmax, so features
    whose columns all are make a class of a single policy.
    """
    shape = np.shape(features)
    if len(shape) != 2 or 0 in shape:
        raise InvalidInput(f"{name} has shape {shape}; it must be [K, F], a row for each arm")
    require_finite(name, features)
    known = concrete(features)
    if known is not None and not np.ptp(known, axis=0).any():
        raise InvalidInput(
            f"{name} has rank 0: every column is the same on all arms; at least one must differ"
        )


def require_known(name: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a name that is not among ``allowed``, and suggest the nearest."""
    options = list(allowed)
    if value not in options:
        plain = {_plain(option): option for option in options}
        close = difflib.get_close_matches(_plain(value), plain, n=1, cutoff=0.5)
        hint = f"did you mean {plain[close[0]]!r}? " if close else ""
        listed = options if len(options) <= MOST_LISTED else [*options[:MOST_LISTED], "…"]
        raise InvalidInput(f"unknown {name} {value!r}; {hint}allowed: {', '.join(listed)}")


def _plain(name: str) -> str:
    """Return a name without what is easily mistaken: upper case, dashes, underscores, spaces."""
    return re.sub(r"[-_\s]", "", name.casefold())


def concrete(values: ArrayLike) -> np.ndarray | None:
    """Return the values as NumPy sees them, or None while they are being traced."""
    return None if isinstance(values, jax.core.Tracer) else np.asarray(values)


def _is_whole(value: ArrayLike) -> bool:
    known = concrete(value)
    # Beyond 64 bits a whole number is an object to NumPy.
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return known is None or is_int or np.issubdtype(known.dtype, np.integer)


def _require(
    name: str, values: ArrayLike, holds: Callable[[np.ndarray], np.ndarray], allowed: str
) -> None:
    known = concrete(values)
    if known is None or (held := holds(known)).all():
        return
    index = tuple(int(i) for i in np.argwhere(~held)[0])
    where = f"{name}[{', '.join(map(str, index))}]" if index else name
    raise InvalidInput(f"{where} is {known[index]:g}; it {allowed}")


def _nan_unless(value: ArrayLike, holds: Callable[[jax.Array], jax.Array]) -> ArrayLike:
    """Return a value as it stands, but a traced one as NaN where it is not allowed."""
    if not isinstance(value, jax.core.Tracer):
        return value
    return jnp.where(holds(value), value, jnp.nan)
