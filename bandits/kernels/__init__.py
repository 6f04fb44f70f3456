"""Hold what is there for speed alone: faster twins of plain definitions, and how they are attached.

A plain definition stands in its own room and reads as its formula; ``@has_twin`` above it lets
calls go to the twin that `TWINS` names. Twins give the same numbers, up to rounding. With
``MODESEEK_KERNELS=off`` in the environment, or inside ``with kernels.off():``, every call goes to
the plain definition.
"""

import contextlib
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

Plain = TypeVar("Plain", bound=Callable[..., Any])

TWINS = {
    "bandits.training.descent.follow": "descent.follow",
    "bandits.losses.pairs.mean_over_pairs": "pairs.mean_over_pairs",
    "bandits.losses.pairs.sum_over_pairs": "pairs.sum_over_pairs",
    "bandits.losses.responses.label": "pairs.label",
    "bandits.policies.sampling.find_arms": "search.find_arms",
    "bandits.policies.sampling.running_sum": "search.running_sum",
}
"""Plain definition -> its twin in this room, which takes the plain one as its first argument."""

SWITCH = "MODESEEK_KERNELS"
"""Environment variable that turns all twins off, by the word ``off``."""

_here = threading.local()


def are_on() -> bool:
    """Return whether calls go to twins."""
    return not getattr(_here, "off", False) and os.environ.get(SWITCH, "on") != "off"


@contextlib.contextmanager
def off() -> Iterator[None]:
    """Let calls go to plain definitions; forget, before and after, what was compiled."""
    jax.clear_caches()
    try:
        with _plainly():
            yield
    finally:
        jax.clear_caches()


def has_twin(plain: Plain) -> Plain:
    """Mark a plain definition that has a twin; ``.plain`` of the result is the definition."""
    module, name = TWINS[f"{plain.__module__}.{plain.__qualname__}"].split(".")

    def alone(*arguments: Any, **named: Any) -> Any:
        # A twin that falls back on the definition must not meet other twins within it.
        with _plainly():
            return plain(*arguments, **named)

    @functools.wraps(plain)
    def either(*arguments: Any, **named: Any) -> Any:
        if not are_on():
            return plain(*arguments, **named)
        twin = getattr(importlib.import_module(f"bandits.kernels.{module}"), name)
        return twin(alone, *arguments, **named)

    either.plain = plain  # type: ignore[attr-defined]
    return either  # type: ignore[return-value]


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    before = getattr(_here, "off", False)
    _here.off = True
    try:
        yield
    finally:
        _here.off = before
