"""Types of arguments that say what is allowed, and the decorator that refuses all else.

    @checked
    def bonus(log_probs: LogProbs, beta: Positive) -> Float[Array, "*batch"]: ...

A type is `typing.Annotated`: the array's shape, and the checks of `theory.checks` that its values
must pass. `checked` reads the types once, at the first call, and applies their checks at each call,
before any work is done. To a type checker the types are plain arrays and numbers.

Leading axes ``*batch`` broadcast; K is the number of arms, the same in all arguments of a call. An
optional argument that is None is not checked, nor is a default.
"""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, NamedTuple, ParamSpec, TypeVar

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from theory import checks


class Arms(NamedTuple):
    """The mark of an argument that has K arms along this axis."""

    axis: int


class WithArms(NamedTuple):
    """A check that needs the number of arms, K, as the other arguments give it."""

    check: Callable[[str, ArrayLike, int], None]


ARMS = Arms(-1)

Finite = Annotated[Float[ArrayLike, "*batch"], checks.require_finite]
Positive = Annotated[Float[ArrayLike, "*batch"], checks.require_positive]
"""Finite and > 0."""
NonNegative = Annotated[Float[ArrayLike, "*batch"], checks.require_nonnegative]
""">= 0, or infinite."""
FiniteNonNegative = Annotated[Finite, checks.require_nonnegative]
Probability = Annotated[Float[ArrayLike, "*batch"], checks.require_probability]
"""From 0 to 1."""
PositiveProbability = Annotated[Positive, checks.require_probability]
"""Above 0, up to 1."""
Whole = Annotated[int, checks.require_whole]
"""1, 2, 3, …"""
TwoOrMore = Annotated[int, checks.require_integer, checks.require_two]
"""2, 3, 4, …"""
Integers = Annotated[Int[ArrayLike, "*batch"], checks.require_integer]
Counts = Annotated[Int[ArrayLike, "*batch"], checks.require_count]
"""1, 2, 3, …, one for each problem of a batch; floats may hold them."""

Probs = Annotated[Float[ArrayLike, "*batch K"], checks.require_distribution, ARMS]
"""Probabilities of K >= 2 arms; each row sums to 1."""
LogProbs = Annotated[Float[ArrayLike, "*batch K"], checks.require_log_distribution, ARMS]
"""Log-probabilities of K >= 2 arms in nats; ``-inf`` is an excluded arm."""
TokenLogProbs = Annotated[Float[ArrayLike, "*batch T V"], checks.require_log_distribution]
"""Log-probabilities of V >= 2 tokens at each of T places."""
Rewards = Annotated[Float[ArrayLike, "*batch K"], checks.require_arms, checks.require_finite, ARMS]
"""A finite number for each of K >= 2 arms."""
Preferences = Annotated[Float[ArrayLike, "K K"], checks.require_preferences, ARMS]
"""A table of weights >= 0, [a, b] of "a preferred to b"; one is positive, its diagonal is 0."""
Features = Annotated[Float[ArrayLike, "K F"], checks.require_features, Arms(0)]
"""A row of finite numbers for each arm; not all rows are the same."""
Arm = Annotated[Int[ArrayLike, "*batch"], WithArms(checks.require_index)]
"""Arms, from 0 to K − 1."""

PerArm = Float[Array, "*batch K"]
"""What a function returns for each arm."""
PerProblem = Float[Array, "*batch"]
"""What a function returns for each problem of a batch."""

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function with its arguments checked by their types at each call.

    A call raises `InvalidInput` for the first argument that its type does not allow, and for
    different numbers of arms.

    >>> @checked
    ... def half(value: Positive) -> float:
    ...     return 0.5 * value
    >>> half(3.0)
    1.5
    >>> half(-1.0)
    Traceback (most recent call last):
    theory.checks.InvalidInput: value is -1; it must be a finite number > 0
    """

    @functools.cache
    def rules() -> tuple[list[str], dict[str, tuple[object, ...]]]:
        return list(inspect.signature(function).parameters), marks_of(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        names, marks = rules()
        # Too many or unknown arguments are Python's to refuse, below.
        _check(marks, dict(zip(names, args, strict=False)) | kwargs)
        return function(*args, **kwargs)

    return call


def marks_of(function: Callable[..., object]) -> dict[str, tuple[object, ...]]:
    """Return the checks and marks in the types of a function's arguments, in their order."""
    hints = typing.get_type_hints(function, include_extras=True)
    names = (name for name in inspect.signature(function).parameters if name in hints)
    marks = {name: _marks(hints[name]) for name in names}
    return {name: found for name, found in marks.items() if found}


def _marks(hint: object) -> tuple[object, ...]:
    """Return what is annotated, in the type itself or in the alternatives of a union."""
    options = (hint,) if hasattr(hint, "__metadata__") else typing.get_args(hint)
    return tuple(mark for option in options for mark in getattr(option, "__metadata__", ()))


def _check(marks: dict[str, tuple[object, ...]], given: dict[str, typing.Any]) -> None:
    """Check each given argument alone, then their numbers of arms, then what needs that number."""
    rules = [(n, given[n], m) for n, of in marks.items() if given.get(n) is not None for m in of]
    for name, value, mark in rules:
        if callable(mark):
            mark(name, value)
    arms = {n: np.shape(value)[m.axis] for n, value, m in rules if isinstance(m, Arms)}
    checks.require_equal_arms(**arms)
    for name, value, mark in rules:
        if isinstance(mark, WithArms) and arms:
            mark.check(name, value, next(iter(arms.values())))
