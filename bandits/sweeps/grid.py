"""Say which runs there are, and in what order: axes and the grid that they span."""

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from theory import checks

Place = tuple[int | None, ...]
"""The place of a program's runs in the grid: an index on static axes, None on numeric ones."""


@dataclass(frozen=True)
class static:  # noqa: N801 - reads as a word at the call: axes={"num_arms": static([10, 100])}
    """Mark numbers that change the program (a size, a number of steps): one compile for each."""

    values: Sequence[Any]


class choices:  # noqa: N801 - as `static`: axes={"loss": choices("dpo", "ipo")}
    """Mark named alternatives: they are vmapped, and the names are the axis of the results.

    ``choices("dpo", "ipo")`` gives a run the number of its alternative, as `jax.lax.switch` takes
    it. ``choices({"dpo": value, "ipo": value})`` gives it the value: a pytree whose structure all
    alternatives share. Numbers and arrays in it are stacked. Functions in it become one function,
    which calls that of the alternative; under vmap it calls each different one, and selects.

    Raises InvalidInput for no alternative, names that occur twice, and values that do not match.

    >>> import jax.numpy as jnp
    >>> from bandits import choices, sweep
    >>> curves = choices({"sine": jnp.sin, "square": jnp.square})
    >>> found = sweep(lambda curve, x: {"y": curve(x)}, {"curve": curves, "x": [0.0, 3.0]})
    >>> found["y"].sel(curve="square").values.tolist()
    [0.0, 9.0]
    """

    def __init__(self, *names: str | Mapping[str, Any]) -> None:
        """Mark names, or one mapping of names to values."""
        values = names[0] if len(names) == 1 and isinstance(names[0], Mapping) else None
        self.names: tuple[str, ...] = tuple(names if values is None else values)  # type: ignore[arg-type]
        if not self.names or not all(isinstance(name, str) for name in self.names):
            raise checks.InvalidInput(
                f"choices are {self.names!r}; give at least one name, or a mapping of names to "
                "values"
            )
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise checks.InvalidInput(
                f"choices name {twice[0]!r} twice; give each a name of its own"
            )
        whole = range(len(self.names)) if values is None else values.values()
        leaves, structures = zip(*(jax.tree.flatten(value) for value in whole), strict=True)
        for name, structure in zip(self.names, structures, strict=True):
            if structure != structures[0]:
                raise checks.InvalidInput(
                    f"choice {name!r} is {structure} but {self.names[0]!r} is {structures[0]}; "
                    "give values of one structure"
                )
        self._structure = structures[0]
        self._functions: dict[int, list[Callable[..., Any]]] = {}
        self.values: dict[str, np.ndarray] = {}
        for place, alternatives in enumerate(zip(*leaves, strict=True)):
            self._add(place, alternatives)

    def _add(self, place: int, alternatives: Sequence[Any]) -> None:
        """Keep the alternatives of one leaf: each different function once, and numbers stacked."""
        if all(callable(alternative) for alternative in alternatives):
            functions = list(map(_unbound, alternatives))
            firsts = [functions.index(function) for function in functions]
            different = sorted(set(firsts))
            self._functions[place] = [alternatives[first] for first in different]
            alternatives = [different.index(first) for first in firsts]
        stacked = _as_numbers(alternatives)
        if stacked is None:
            raise checks.InvalidInput(
                f"choices give {', '.join(repr(a) for a in alternatives)} for one value; give "
                "functions only, or numbers or arrays of one shape only"
            )
        self.values[str(place)] = stacked

    def resolve(self, row: Mapping[str, Any]) -> Any:
        """Return what a run gets, from its row of ``values``, which may be traced."""
        leaves = [
            functools.partial(jax.lax.switch, row[str(place)], self._functions[place])
            if place in self._functions
            else row[str(place)]
            for place in range(len(self.values))
        ]
        return jax.tree.unflatten(self._structure, leaves)


def _unbound(function: Any) -> Any:
    """Return what tells a function from others: two that bind the same arguments are one."""
    if isinstance(function, functools.partial):
        return function.func, function.args, function.keywords
    return function


@dataclass(frozen=True)
class Axis:
    """Hold one axis of a grid.

    Attributes:
      name: The argument of the run that the axis sets.
      values: A pytree of NumPy arrays ``[number of values, ...]`` on a vmapped axis, a list on a
        static one.
      labels: The coordinate of the dataset, ``[number of values]``.
      is_static: Whether each value needs a program of its own.
      resolve: From a value of a vmapped axis to what the run gets.
    """

    name: str
    values: Any
    labels: np.ndarray
    is_static: bool
    resolve: Callable[[Any], Any] = lambda value: value

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self.labels)


@dataclass(frozen=True)
class Grid:
    """Hold the product of axes, in the order they were given.

    Numeric axes are flattened, the last one fastest: run i of a program is the i-th point of their
    product. The order depends on the axes alone, not on chunks or devices.
    """

    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def numeric(self) -> tuple[Axis, ...]:
        """The vmapped axes."""
        return tuple(axis for axis in self.axes if not axis.is_static)

    @property
    def runs_per_program(self) -> int:
        """Number of runs that one compiled program serves."""
        return math.prod(len(axis) for axis in self.numeric)

    def programs(self) -> Iterator[tuple[dict[str, Any], Place]]:
        """Yield the static arguments of each program, and the place of its runs in the grid."""
        indices = [range(len(axis)) if axis.is_static else [None] for axis in self.axes]
        for place in itertools.product(*indices):
            arguments = {
                axis.name: axis.values[index]
                for axis, index in zip(self.axes, place, strict=True)
                if axis.is_static
            }
            yield arguments, place

    def arguments(self, runs: np.ndarray) -> dict[str, Any]:
        """Return the numeric arguments of runs: pytrees of arrays ``[len(runs), ...]``."""
        lengths = tuple(len(axis) for axis in self.numeric)
        places = np.unravel_index(runs, lengths) if lengths else ()
        return {
            axis.name: jax.tree.map(lambda values, at=place: values[at], axis.values)
            for axis, place in zip(self.numeric, places, strict=True)
        }

    def resolve(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a run gets from its own numeric arguments, which may be traced."""
        return {axis.name: axis.resolve(run[axis.name]) for axis in self.numeric}


def make_grid(run: Callable[..., Any], axes: Mapping[str, Any], fixed: Mapping[str, Any]) -> Grid:
    """Return the grid of ``axes``, checked with ``fixed`` against the arguments that ``run`` takes.

    Raises InvalidInput for an axis that is empty or that ``run`` does not take (with the nearest
    name that it does), and for an argument without default that nothing sets.
    """
    _require_arguments(run, axes, fixed)
    return Grid(tuple(_make_axis(name, values) for name, values in axes.items()))


def _make_axis(name: str, values: Any) -> Axis:
    if isinstance(values, choices):
        for array in values.values.values():
            _require_exact(name, array)
        return Axis(name, values.values, np.array(values.names), False, values.resolve)
    is_static = isinstance(values, static)
    items = values.values if isinstance(values, static) else values
    # An array without dimensions has the method, and no length.
    has_length = hasattr(items, "__len__") and getattr(items, "shape", None) != ()
    if isinstance(items, (str, bytes)) or not has_length:
        raise checks.InvalidInput(f"axis {name!r} is {items!r}; give a list of values")
    if len(items) == 0:
        raise checks.InvalidInput(f"axis {name!r} is empty; give at least one value")
    numeric = None if is_static else _as_numbers(items)
    if numeric is None:
        return Axis(name, list(items), np.array([_label(item) for item in items]), True)
    _require_exact(name, numeric)
    labels = numeric if numeric.ndim == 1 else np.arange(len(numeric))
    return Axis(name, numeric, labels, False)


def _as_numbers(values: Any) -> np.ndarray | None:
    try:
        array = np.asarray(values)
    except ValueError:  # ragged
        return None
    return array if array.dtype.kind in "biuf" else None


def _require_exact(name: str, values: np.ndarray) -> None:
    """Refuse whole numbers that JAX would wrap around without 64-bit types."""
    if values.dtype.kind in "iu":
        limit = np.iinfo(jax.dtypes.canonicalize_dtype(values.dtype))
        beyond = (values < limit.min) | (values > limit.max)
        if beyond.any():
            raise checks.InvalidInput(
                f"axis {name!r} holds {values[beyond].flat[0]}, beyond 32 bits; use smaller "
                "numbers, or call sweep inside `with jax.enable_x64(True)`"
            )


def _label(value: Any) -> Any:
    if isinstance(value, (str, int, float)):
        return value
    return getattr(value, "__name__", None) or getattr(value, "name", None) or repr(value)


def _require_arguments(
    run: Callable[..., Any], axes: Mapping[str, Any], fixed: Mapping[str, Any]
) -> None:
    if not axes:
        raise checks.InvalidInput("axes is empty; name at least one argument of the run")
    parameter = inspect.Parameter
    parameters = inspect.signature(run).parameters.values()
    taken = [
        p for p in parameters if p.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    takes_any = any(p.kind is parameter.VAR_KEYWORD for p in parameters)
    for kind, names in (("axis", axes), ("fixed argument", fixed)):
        for name in names:
            if not takes_any:
                checks.require_known(kind, name, [p.name for p in taken])
            if kind == "fixed argument" and name in axes:
                raise checks.InvalidInput(f"{name!r} is both an axis and fixed; choose one")
    for p in taken:
        if p.default is parameter.empty and p.name not in axes and p.name not in fixed:
            raise checks.InvalidInput(
                f"nothing sets the argument {p.name!r} of the run; add an axis"
            )
