"""Readers of what stands in a TOML file: numbers, axes, names, tables.

Every reader takes the key that the value stands under, such as ``training.steps``. It refuses what
is not allowed with an InvalidInput of one sentence that names the key.
"""

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from theory.checks import InvalidInput, require_known

MOST_VALUES = 10**7
"""Most values on an axis."""

DIGITS = 12
"""Significant digits of spaced values, so that every machine finds the same ones."""

SPACINGS: dict[str, Callable[..., np.ndarray]] = {"log": np.geomspace, "linear": np.linspace}


class Kind(NamedTuple):
    """Which numbers are allowed: an interval, of all numbers or of the whole ones.

    Attributes:
      allowed: The interval in words.
      least: Its lower end.
      most: Its upper end.
      is_whole: Whether numbers must be whole.
    """

    allowed: str
    least: float
    most: float
    is_whole: bool = False

    def number(self, key: str, value: Any) -> Any:
        """Read one number: an int where it is whole, else a float."""
        is_number = isinstance(value, int if self.is_whole else int | float)
        if not is_number or isinstance(value, bool) or not self.least <= value <= self.most:
            raise InvalidInput(f"{key} is {show(value)}; it must be {self.allowed}")
        return value if self.is_whole else float(value)

    def axis(self, key: str, value: Any) -> Any:
        """Read one number, or a tuple of numbers that are listed or spaced."""
        if isinstance(value, Mapping):
            numbers = self._spaced(key, value)
        elif isinstance(value, list):
            if not 0 < len(value) <= MOST_VALUES:
                raise InvalidInput(f"{key} has {len(value)} values; give from 1 to {MOST_VALUES}")
            numbers = tuple(self.number(f"{key}[{i}]", entry) for i, entry in enumerate(value))
        else:
            return self.number(key, value)
        distinct, counts = np.unique(
            np.asarray(numbers, np.int64 if self.is_whole else np.float32), return_counts=True
        )
        if len(distinct) < len(numbers):
            twice = distinct[counts > 1][0]
            bits = "" if self.is_whole else ", as a number of 32 bits"
            raise InvalidInput(
                f"{key} holds {twice:.9g} more than once{bits}; give each value once"
            )
        return numbers

    def _spaced(self, key: str, value: Mapping[str, Any]) -> tuple[Any, ...]:
        """Read {log = [first, last, count]} or {linear = …}; leave out repeated whole numbers."""
        (scale, parts), *others = value.items() or [("", None)]
        is_known = scale in SPACINGS and not others
        if not is_known or not isinstance(parts, list) or len(parts) != 3:
            raise InvalidInput(
                f"{key} is {show(value)}; it must be a number, a list, {{log = [first, last, "
                "count]} or {linear = [first, last, count]}"
            )
        kind = self
        if scale == "log" and self.least <= 0:
            kind = whole(1, int(self.most)) if self.is_whole else POSITIVE
        first, last = (kind.number(f"{key}.{scale}[{i}]", parts[i]) for i in (0, 1))
        count = whole(2, MOST_VALUES).number(f"{key}.{scale}[2]", parts[2])
        spaced = SPACINGS[scale](float(first), float(last), count)[1:-1].tolist()
        if not self.is_whole:
            return (first, *(float(f"{x:.{DIGITS}g}") for x in spaced), last)
        inner = dict.fromkeys(round(x) for x in spaced)
        return (first, *(x for x in inner if x not in (first, last)), last)


def whole(least: int, most: int) -> Kind:
    """Return the whole numbers from ``least`` to ``most``."""
    return Kind(f"a whole number from {least} to {most}", least, most, is_whole=True)


_BITS = np.finfo(np.float32)
FINITE = Kind("a finite number within 32 bits", -float(_BITS.max), float(_BITS.max))
NONNEGATIVE = Kind("a finite number >= 0 within 32 bits", 0.0, float(_BITS.max))
POSITIVE = Kind("a finite number > 0 within 32 bits", float(_BITS.tiny), float(_BITS.max))


def read_seeds(key: str, value: Any) -> tuple[int, ...]:
    """Read how many seeds there are, from 0 on, or which."""
    if isinstance(value, int):
        return tuple(range(whole(1, MOST_VALUES).number(key, value)))
    return values_of(whole(0, 2**32 - 1).axis(key, value))


def read_names(key: str, value: Any, what: str, allowed: Iterable[str]) -> Any:
    """Read one of the allowed names, or a tuple of several."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidInput(f"{key} is {show(value)}; it must be a name, or a list of names")
    if not names:
        raise InvalidInput(f"{key} is empty; give at least one {what}")
    for name in names:
        with under(key):
            require_known(what, name, allowed)
        if names.count(name) > 1:
            raise InvalidInput(f"{key} holds {name!r} more than once; give each {what} once")
    return value if isinstance(value, str) else tuple(names)


def read_choice(key: str, value: Any, allowed: Iterable[str]) -> str:
    """Read one of a few names."""
    if value not in list(allowed):
        raise InvalidInput(f"{key} is {show(value)}; it must be {' or '.join(map(repr, allowed))}")
    return str(value)


def read_table(
    key: str, value: Any, required: Sequence[str] = (), optional: Sequence[str] | None = None
) -> dict[str, Any]:
    """Read a table with all required keys and some optional ones: any where None are named."""
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{key} is {show(value)}; it must be a table of keys and values")
    for name in value if optional is not None else ():
        with under(key):
            require_known("key", name, (*required, *(optional or ())))
    for name in required:
        if name not in value:
            raise InvalidInput(f"{key} has no {name!r}; add it")
    return dict(value)


@contextmanager
def under(key: str, names: Sequence[str] = ()) -> Iterator[None]:
    """Put the key in front of a refusal; one that starts with any of ``names`` goes on after it."""
    try:
        yield
    except InvalidInput as error:
        joint = "." if str(error).startswith(tuple(names)) else ": "
        raise InvalidInput(f"{key}{joint}{error}") from None


def values_of(setting: Any) -> tuple[Any, ...]:
    """Return the values of an axis, or the only one."""
    return setting if isinstance(setting, tuple) else (setting,)


def ends_of(setting: Any) -> tuple[Any, ...]:
    """Return the least and the greatest value, or the only one."""
    values = values_of(setting)
    return tuple(dict.fromkeys((min(values), max(values))))


def show(value: Any) -> str:
    """Return any value as one short line."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python prints no whole number of more than 4300 digits
        return "a number of thousands of digits"
