"""What stands in a TOML file, read strictly: numbers, axes, names, tables.

Every function takes the key that the value stands under, such as ``training.steps``, and refuses
what is not allowed with an InvalidInput of one sentence that names it.
"""

import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from theory import checks
from theory.checks import InvalidInput

MOST_VALUES = 10**7
"""Values on an axis."""

DIGITS = 12
"""Significant digits of spaced values, so that every machine finds the same ones."""

SPACINGS: dict[str, Callable[..., np.ndarray]] = {"log": np.geomspace, "linear": np.linspace}


class Kind(NamedTuple):
    """Which numbers are allowed: an interval, of all numbers or of the whole ones.

    Attributes:
      allowed: the interval in words.
      least, most: its ends.
      is_whole: whether numbers must be whole.
    """

    allowed: str
    least: float
    most: float
    is_whole: bool = False


_BITS = np.finfo(np.float32)
FINITE = Kind("a finite number within 32 bits", -float(_BITS.max), float(_BITS.max))
NONNEGATIVE = Kind("a finite number >= 0 within 32 bits", 0.0, float(_BITS.max))
POSITIVE = Kind("a finite number > 0 within 32 bits", float(_BITS.tiny), float(_BITS.max))


def whole(least: int, most: int) -> Kind:
    """The whole numbers from ``least`` to ``most``."""
    return Kind(f"a whole number from {least} to {most}", least, most, is_whole=True)


def read_number(key: str, value: Any, kind: Kind) -> Any:
    """One number of the kind: an int where it is whole, else a float."""
    is_number = isinstance(value, int if kind.is_whole else int | float)
    if not is_number or isinstance(value, bool) or not kind.least <= value <= kind.most:
        raise InvalidInput(f"{key} is {show(value)}; it must be {kind.allowed}")
    return value if kind.is_whole else float(value)


def read_axis(key: str, value: Any, kind: Kind) -> Any:
    """One number, or a tuple of those that are listed or spaced."""
    if isinstance(value, Mapping):
        numbers = _read_spaced(key, value, kind)
    elif isinstance(value, list):
        if not 0 < len(value) <= MOST_VALUES:
            raise InvalidInput(f"{key} has {len(value)} values; give from 1 to {MOST_VALUES}")
        numbers = tuple(read_number(f"{key}[{i}]", entry, kind) for i, entry in enumerate(value))
    else:
        return read_number(key, value, kind)
    distinct, counts = np.unique(
        np.asarray(numbers, np.int64 if kind.is_whole else np.float32), return_counts=True
    )
    if len(distinct) < len(numbers):
        twice = distinct[counts > 1][0]
        bits = "" if kind.is_whole else ", as a number of 32 bits"
        raise InvalidInput(f"{key} holds {twice:.9g} more than once{bits}; give each value once")
    return numbers


def _read_spaced(key: str, value: Mapping[str, Any], kind: Kind) -> tuple[Any, ...]:
    """{log = [first, last, count]} or {linear = …}; whole numbers without repeats."""
    (scale, parts), *others = value.items() or [("", None)]
    is_known = scale in SPACINGS and not others
    if not is_known or not isinstance(parts, list) or len(parts) != 3:
        raise InvalidInput(
            f"{key} is {show(value)}; it must be a number, a list, {{log = [first, last, count]}} "
            "or {linear = [first, last, count]}"
        )
    if scale == "log" and kind.least <= 0:
        kind = whole(1, int(kind.most)) if kind.is_whole else POSITIVE
    first, last = (read_number(f"{key}.{scale}[{i}]", parts[i], kind) for i in (0, 1))
    count = read_number(f"{key}.{scale}[2]", parts[2], whole(2, MOST_VALUES))
    spaced = SPACINGS[scale](float(first), float(last), count)[1:-1].tolist()
    if not kind.is_whole:
        return (first, *(float(f"{x:.{DIGITS}g}") for x in spaced), last)
    inner = dict.fromkeys(round(x) for x in spaced)
    return (first, *(x for x in inner if x not in (first, last)), last)


def read_names(key: str, value: Any, what: str, allowed: Iterable[str]) -> Any:
    """One of the allowed names, or a tuple of those that are listed."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidInput(f"{key} is {show(value)}; it must be a name, or a list of names")
    if not names:
        raise InvalidInput(f"{key} is empty; give at least one {what}")
    for name in names:
        require_known(key, what, name, allowed)
        if names.count(name) > 1:
            raise InvalidInput(f"{key} holds {name!r} more than once; give each {what} once")
    return value if isinstance(value, str) else tuple(names)


def read_choice(key: str, value: Any, allowed: Sequence[str]) -> str:
    """One of a few names."""
    if value not in allowed:
        raise InvalidInput(f"{key} is {show(value)}; it must be {' or '.join(map(repr, allowed))}")
    return str(value)


def read_table(
    key: str, value: Any, required: Sequence[str] = (), optional: Sequence[str] | None = None
) -> dict[str, Any]:
    """A table with the required keys and some of the optional ones; without these, with any."""
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{key} is {show(value)}; it must be a table of keys and values")
    for name in value if optional is not None else ():
        require_known(key, "key", name, (*required, *(optional or ())))
    for name in required:
        if name not in value:
            raise InvalidInput(f"{key} has no {name!r}; add it")
    return dict(value)


def require_known(key: str, what: str, name: str, allowed: Iterable[str]) -> None:
    """Refuse a name that is not allowed, with the nearest that is."""
    try:
        checks.require_known(what, name, allowed)
    except InvalidInput as error:
        raise InvalidInput(f"{key}: {error}") from None


def values_of(setting: Any) -> tuple[Any, ...]:
    """The values of an axis, or the only one."""
    return setting if isinstance(setting, tuple) else (setting,)


def ends_of(setting: Any) -> tuple[Any, ...]:
    """The least and the greatest value, or the only one."""
    values = values_of(setting)
    return tuple(dict.fromkeys((min(values), max(values))))


def show(value: Any) -> str:
    """A value on one short line, whatever it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python prints no whole number of more than 4300 digits
        return "a number of thousands of digits"
