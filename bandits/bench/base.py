"""Take times side by side and compare them as ratios: measurements, rows, workloads."""

import contextlib
import importlib.metadata
import operator
import platform
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bandits.kernels.compiler import compiler_options
from bandits.sweeps.programs import lanes
from theory import checks

Workload = Callable[[], Any]

TIMES = "×"
"""The unit of a ratio."""

SCALES = {"ns": 1e9, "µs": 1e6, "s": 1.0}
"""How many of each unit of time there are in a second."""

REST = 0.02
"""Seconds between two workloads."""

_COMPARISONS = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Measurement:
    """One number with what it should be.

    Attributes:
      name: What was measured.
      value: The median, or None where it could not be measured; the note says why.
      unit: Unit such as "ns a sample", or "×" for a ratio.
      target: Target such as "<= 1.5" or ">= 50"; empty where there is none.
      low: Lower quartile over the repeats.
      high: Upper quartile.
      note: One sentence to know beside the number.
      holds: Whether the value meets the target; None without either.
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
        holds = None
        if self.target:
            sign, _, limit = self.target.partition(" ")
            checks.require_known("comparison in target", sign, _COMPARISONS)
            if self.value is not None:
                holds = bool(_COMPARISONS[sign](self.value, float(limit)))
        object.__setattr__(self, "holds", holds)


@dataclass(frozen=True)
class Row:
    """A row of the table before it is measured: a workload's time, or its ratio to another's.

    Attributes:
      name: What is measured.
      of: The workload.
      to: The workload that its time is divided by, round by round; None for a time.
      unit: Unit of a time, such as "s" or "ns a sample".
      work: How much work a round is, in what the unit counts.
      target: As in `Measurement`.
      note: As in `Measurement`.
    """

    name: str
    of: Hashable
    to: Hashable = None
    unit: str = TIMES
    work: float = 1.0
    target: str = ""
    note: str = ""

    def summarise(self, seconds: Mapping[Any, Sequence[float]]) -> Measurement:
        """Return the median over the rounds, with the quartiles."""
        if self.to is None:
            scale = SCALES[self.unit.partition(" ")[0]] / self.work
            values = np.asarray(seconds[self.of]) * scale
        else:
            values = np.divide(seconds[self.of], seconds[self.to])
        low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
        return Measurement(self.name, median, self.unit, self.target, low, high, self.note)


def time_rows(
    workloads: Mapping[Any, Workload], rows: Iterable[Row], repeats: int
) -> Iterator[Measurement]:
    """Run the workloads in interleaved rounds, and yield the rows about their times."""
    seconds = interleaved(workloads, repeats)
    yield from (row.summarise(seconds) for row in rows)


def interleaved(workloads: Mapping[Any, Workload], repeats: int) -> dict[Any, list[float]]:
    """Return the seconds of each workload in each round.

    Every workload runs once beforehand, which compiles it. A round runs all of them, so that a
    machine that slows down slows them alike. Each round has an order of its own, so that none
    always follows another. There is a rest before each workload, for threads of the one before
    that still wait for work.
    """
    checks.require_whole("repeats", repeats)
    for run in workloads.values():
        jax.block_until_ready(run())
    names = list(workloads)
    seconds: dict[Any, list[float]] = {name: [] for name in names}
    order = np.random.default_rng(0)
    for _ in range(repeats):
        for i in order.permutation(len(names)):
            time.sleep(REST)
            start = time.perf_counter()
            jax.block_until_ready(workloads[names[i]]())
            seconds[names[i]].append(time.perf_counter() - start)
    return seconds


def prepare(
    f: Callable[[Any, Any], Any],
    arguments: Any,
    fixed: Any = (),
    devices: Sequence[jax.Device] | None = None,
    *,
    blocks: int | None = None,
    as_jax_does: bool = False,
) -> Workload:
    """Return the workload f(arguments, fixed), compiled at its first call.

    The leading axis of all arguments is cut into equal blocks, by default one for each lane. They
    go to lanes as the blocks of a sweep do (`bandits.sweeps.programs`). They are compiled as in a
    sweep, or, if ``as_jax_does``, in vectors as wide as JAX makes them by itself.

    Raises InvalidInput for an axis that cannot be cut into such blocks.
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
    """Return the processor, the lanes and the versions, in one line."""
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
