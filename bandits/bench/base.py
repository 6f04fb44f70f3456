"""What a measurement is, and how times are taken: side by side, compared as ratios."""

import contextlib
import importlib.metadata
import operator
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bandits.kernels.compiler import compiler_options
from bandits.sweeps.programs import lanes
from theory import checks

TIMES = "×"
"""The unit of a ratio."""

REST = 0.02
"""Seconds between two workloads."""

_COMPARISONS = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Measurement:
    """One number with what it should be.

    Attributes:
      name: what was measured.
      value: the median, or None where it could not be measured; the note says why.
      unit: such as "ns a sample", or "×" for a ratio.
      target: such as "<= 1.5" or ">= 50"; empty where there is none.
      low, high: the quartiles over the repeats.
      note: in one sentence, what to know beside the number.
      holds: whether the value meets the target; None without either.
    """

    name: str
    value: float | None
    unit: str
    target: str = ""
    low: float | None = None
    high: float | None = None
    note: str = ""
    holds: bool | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "holds", _holds(self.value, self.target))


def _holds(value: float | None, target: str) -> bool | None:
    if not target:
        return None
    sign, _, limit = target.partition(" ")
    checks.require_known("comparison in target", sign, _COMPARISONS)
    return None if value is None else bool(_COMPARISONS[sign](value, float(limit)))


def interleaved(workloads: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each workload in each round.

    Every workload runs once beforehand, which compiles it. A round runs all of them, so that a
    machine that slows down slows them alike, in an order of its own, so that none always follows
    another, and with a rest before each, for threads of the one before that still wait for work.
    """
    checks.require_whole("repeats", repeats)
    for run in workloads.values():
        jax.block_until_ready(run())
    names = list(workloads)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    order = np.random.default_rng(0)
    for _ in range(repeats):
        for name in order.permutation(names).tolist():
            time.sleep(REST)
            start = time.perf_counter()
            jax.block_until_ready(workloads[name]())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(
    name: str,
    of: str,
    to: str,
    seconds: Mapping[str, Sequence[float]],
    target: str = "",
    note: str = "",
) -> Measurement:
    """How many times as long one workload takes as another: the median over the rounds."""
    return _summary(name, np.divide(seconds[of], seconds[to]), TIMES, target, note)


def cost(
    name: str,
    seconds: Sequence[float],
    unit: str,
    work: float = 1.0,
    target: str = "",
    note: str = "",
) -> Measurement:
    """Time for a unit of work: seconds, or with a unit such as "ns a sample" in those."""
    scale = {"ns": 1e9, "µs": 1e6, "s": 1.0}[unit.partition(" ")[0]]
    return _summary(name, np.asarray(seconds) * scale / work, unit, target, note)


def _summary(name: str, values: np.ndarray, unit: str, target: str, note: str) -> Measurement:
    low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return Measurement(name, median, unit, target, low, high, note)


def prepare(
    f: Callable[[Any, Any], Any],
    arguments: Any,
    fixed: Any = (),
    devices: Sequence[jax.Device] | None = None,
    *,
    blocks: int | None = None,
    as_jax_does: bool = False,
) -> Callable[[], Any]:
    """The workload f(arguments, fixed), compiled at its first call, with its arguments in place.

    The leading axis of all arguments is cut into equal blocks, by default one for each lane. They
    are dealt out to lanes as those of a sweep are (`bandits.sweeps.programs`), and compiled as a
    sweep compiles, or in vectors as wide as JAX makes them by itself.

    Raises InvalidInput for an axis that cannot be cut so.
    """
    devices = lanes() if devices is None else list(devices)
    blocks = blocks or len(devices)
    runs = jax.tree.leaves(arguments)[0].shape[0]
    checks.require_multiple("the leading axis", runs, "blocks", blocks)
    size = runs // blocks

    def part(i: int) -> Any:
        return jax.tree.map(lambda values: values[i * size : (i + 1) * size], arguments)

    parts = [jax.device_put((part(i), fixed), devices[i % len(devices)]) for i in range(blocks)]
    options = compiler_options(devices[0], in_wide_vectors=not as_jax_does)
    compiled = jax.jit(f, compiler_options=options)
    pool = ThreadPoolExecutor(len(devices))

    def run() -> Any:
        done = pool.map(lambda part: jax.block_until_ready(compiled(*part)), parts)
        return jax.tree.map(lambda *pieces: np.concatenate(pieces), *done)

    return run if blocks > 1 else lambda: compiled(*parts[0])


def describe_machine() -> str:
    """Processor, cores and versions, in one line."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    processor = names[0] if names else platform.processor() or platform.machine()
    versions = []
    for package in ("jax", "numpy", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    device = jax.local_devices()[0].device_kind
    return f"{processor}, {len(lanes())} lanes on {device}; {', '.join(versions)}"
