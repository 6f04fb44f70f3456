"""Compile the programs of a grid, and run their blocks of runs, several at a time.

XLA rounds differently for different batch sizes. So a run is always computed in a block of the same
size, at the same place in it. Block b of a program holds its runs from b·n on, and the shapes alone
decide n. It then changes no bit how many blocks run at once, on which devices, in what order, and
which of their runs are kept.

Blocks run in lanes. On a CPU a lane is a core: all lanes call one executable of one device, each
from a thread of its own. Several devices have a lane and an executable each: one executable for all
of them would go through XLA's partitioner, which changes the fusion and so the rounding.

XLA has one pool of threads for all lanes of a CPU. Kernels that split their work would wait there
for one another. So a program of several blocks is compiled not to split its kernels. LAPACK waits
in the same pool, and two lanes of it can wait for ever: a program that calls LAPACK, or other code
that is not XLA's, has a single lane.
"""

import dataclasses
import math
import os
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Lowered, Traced

from bandits.kernels.compiler import compiler_options
from bandits.sweeps.grid import Grid, Place, make_grid
from theory import checks

BLOCK_RUNS = 256
"""Most runs in a block by default: they fill vector units and stay in the CPU's cache."""

LEAST_BLOCK = 32
"""Blocks of fewer runs than this are not split further to keep several devices busy."""

BLOCKS = 8
"""Least number of blocks of a program, if they hold `LEAST_BLOCK` runs each."""

BLOCK_BYTES = 2**26
"""Most bytes of the arguments and results of a block; a larger run is a block of its own."""

CUSTOM_CALL = "stablehlo.custom_call"
"""The operation that calls code that is not XLA's: LAPACK, or Python."""

SHOWN_NUMBERS = 16
"""Most numbers of a constant that the text of a program shows."""

PROGRAMS_AHEAD = 2
"""Number of programs that compile at a time: the one that is needed next, and one more."""

BLOCKS_AHEAD = 2
"""Most blocks under way for each lane: no lane waits while results are put away."""


def lanes(count: int | None = None) -> list[jax.Device]:
    """Return the device of every lane: each local one, or a single CPU once for each of its cores.

    Raises InvalidInput for a count < 1, and for more lanes than devices, unless they are cores.
    """
    devices = jax.local_devices()
    if count is not None:
        checks.require_whole("devices", count)
    if len(devices) == 1 and devices[0].platform == "cpu":
        # The cores that this process may use.
        affinity = getattr(os, "sched_getaffinity", None)
        return devices * (count or (len(affinity(0)) if affinity else os.cpu_count() or 1))
    if count is not None and count > len(devices):
        raise checks.InvalidInput(f"devices is {count}; there are {len(devices)}")
    return devices[:count]


class Lane(NamedTuple):
    """Say where a block runs.

    Attributes:
      device: The device.
      fixed: The fixed arguments, on the device.
      call: (numeric arguments of a block, fixed arguments) -> results, ``[block, ...]``.
    """

    device: jax.Device
    fixed: dict[str, Any]
    call: Callable[..., dict[str, jax.Array]]


@dataclass(frozen=True)
class Program:
    """A compiled block of runs.

    Attributes:
      lanes: Blocks are dealt out to them.
      grid: The runs span its numeric axes.
      place: Where the runs stand in the grid.
      block: Number of runs in a block.
      run_bytes: Size of the arguments and results of one run.
    """

    lanes: Sequence[Lane]
    grid: Grid
    place: Place
    block: int
    run_bytes: int

    def execute(
        self, first: int = 0, last: int | None = None, memory_limit: float = math.inf
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yield the runs from ``first`` up to ``last``, in order, with their results."""
        total = self.grid.runs_per_program
        last = total if last is None else last
        most = memory_limit / max(self.run_bytes * self.block, 1)
        ahead = max(1, int(min(most, BLOCKS_AHEAD * len(self.lanes))))
        under_way: deque[tuple[np.ndarray, Future[dict[str, np.ndarray]]]] = deque()
        several = len(self.lanes) > 1
        pool = ThreadPoolExecutor(max_workers=len(self.lanes)) if several else _Here()
        try:
            for start in range(first // self.block * self.block, last, self.block):
                if len(under_way) >= ahead:
                    yield _keep(*under_way.popleft(), first, last)
                runs = np.arange(start, start + self.block)
                lane = self.lanes[start // self.block % len(self.lanes)]
                # Placed here, where the caller's precision holds: it is a setting of the thread.
                arguments = jax.device_put(
                    self.grid.arguments(np.minimum(runs, total - 1)), lane.device
                )
                under_way.append((runs, pool.submit(_call, lane, arguments)))
            while under_way:
                yield _keep(*under_way.popleft(), first, last)
        finally:
            pool.shutdown(cancel_futures=True)


class _Here(Executor):
    """Run work at once in this thread: for a single lane a thread of its own would cost time."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Return a future that is done."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _call(lane: Lane, arguments: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in lane.call(arguments, lane.fixed).items()}


def _keep(
    runs: np.ndarray, values: "Future[dict[str, np.ndarray]]", first: int, last: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    kept = slice(max(first - int(runs[0]), 0), min(last - int(runs[0]), runs.size))
    return runs[kept], {name: value[kept] for name, value in values.result().items()}


@dataclass(frozen=True)
class Compiler:
    """Turn a run and a grid into programs.

    Attributes:
      run: A traceable function of keyword arguments.
      fixed: Arguments that are the same in every run.
      grid: The axes.
      block_runs: Most runs in a block.
      devices: The device of every lane; one device may have several.
    """

    run: Callable[..., Any]
    fixed: dict[str, Any]
    grid: Grid
    block_runs: int
    devices: Sequence[jax.Device]
    _ready: "dict[Place, Future[Program]]" = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        run: Callable[..., Any],
        axes: Mapping[str, Any],
        fixed: Mapping[str, Any] | None,
        block_runs: int,
        devices: Sequence[jax.Device] | None,
    ) -> "Compiler":
        """Return the compiler of what `bandits.sweep` takes, checked; by default of all devices."""
        checks.require_whole("block_runs", block_runs)
        shared = jax.tree.map(jnp.asarray, dict(fixed or {}))
        grid = make_grid(run, axes, shared)
        return cls(run, shared, grid, block_runs, devices or lanes())

    def first(self) -> Program:
        """Return the first program, compiled now and kept for when its turn comes."""
        _, place = next(self.grid.programs())
        return next(self.programs({place}))

    def programs(self, wanted: Container[Place] | None = None) -> Iterator[Program]:
        """Yield every program, or those at the wanted places; the next compiles while one runs."""
        waiting: deque[Future[Program]] = deque()
        with ThreadPoolExecutor(max_workers=PROGRAMS_AHEAD) as pool:
            try:
                for arguments, place in self.grid.programs():
                    if wanted is not None and place not in wanted:
                        continue
                    # Traced here, where the caller's settings hold, and compiled in the pool.
                    ready = self._ready.get(place)
                    waiting.append(ready or pool.submit(self._trace(arguments, place)))
                    if len(waiting) == PROGRAMS_AHEAD:
                        yield self._remember(waiting.popleft())
                while waiting:
                    yield self._remember(waiting.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _remember(self, compiled: "Future[Program]") -> Program:
        """Return a program and keep it alone: the next call often goes on with it."""
        program = compiled.result()
        self._ready.clear()
        self._ready[program.place] = compiled
        return program

    def relative_cost(self, samples: int) -> float:
        """Return the mean arithmetic of a few programs over that of the first."""
        every = [arguments for arguments, _ in self.grid.programs()]
        chosen = np.unique(np.linspace(0, len(every) - 1, samples).round().astype(int))
        analyses = [self._trace_block(every[i], 2).lower().cost_analysis() or {} for i in chosen]
        costs = [analysis.get("flops", 1.0) for analysis in analyses]
        return float(np.mean(costs) / costs[0])

    def results(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return names, shapes and types of what a run of the first program returns, without it."""
        arguments, _ = next(self.grid.programs())
        shapes: dict[str, jax.ShapeDtypeStruct] = self._trace_block(arguments, 1).out_info
        return {n: jax.ShapeDtypeStruct(s.shape[1:], s.dtype) for n, s in shapes.items()}

    def _trace_block(self, static_arguments: Mapping[str, Any], block: int) -> Traced:
        """Trace a block of so many runs."""

        def one_run(numeric: dict[str, Any], fixed: dict[str, Any]) -> dict[str, jax.Array]:
            return _as_mapping(self.run(**self.grid.resolve(numeric), **fixed, **static_arguments))

        def alone(numeric: dict[str, Any], fixed: dict[str, Any]) -> dict[str, jax.Array]:
            result = one_run(jax.tree.map(lambda value: value[0], numeric), fixed)
            return {name: jnp.asarray(value)[None] for name, value in result.items()}

        # A single run needs no batch axis: its conditions stay conditions, and it compiles faster.
        batched = jax.vmap(one_run, in_axes=(0, None), axis_size=block) if block > 1 else alone
        # Shapes alone: what a caller has put on one device would bind every executable to it.
        fixed = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(
                a.shape, a.dtype, weak_type=getattr(a, "weak_type", False)
            ),
            self.fixed,
        )
        return jax.jit(batched).trace(self.grid.arguments(np.zeros(block, int)), fixed)

    def _trace(self, static_arguments: Mapping[str, Any], place: Place) -> Callable[[], Program]:
        """Trace a program; return what compiles it."""
        traced = self._trace_block(static_arguments, 1)
        run_bytes = _bytes(self.grid.arguments(np.zeros(1, int))) + _bytes(traced.out_info)
        block = block_size(self.grid.runs_per_program, run_bytes, self.block_runs)
        if block > 1:
            traced = self._trace_block(static_arguments, block)
        # More lanes than blocks would have nothing to do.
        most = math.ceil(self.grid.runs_per_program / block)
        devices = self.devices[:most]
        lowered = {}
        for device in dict.fromkeys(devices):
            with jax.default_device(device):
                lowered[device] = traced.lower()
        if most > 1 and _must_be_alone(lowered[devices[0]], devices[0]):
            most, devices = 1, devices[:1]

        def compile_all() -> Program:
            made = {}
            for device in dict.fromkeys(devices):
                # What is computed decides, not the number of lanes, which must change no bit.
                options = compiler_options(device, in_one_thread=most > 1)
                fixed = jax.device_put(self.fixed, device)
                made[device] = Lane(device, fixed, lowered[device].compile(options))
            return Program([made[d] for d in devices], self.grid, place, block, run_bytes)

        return compile_all


def _must_be_alone(lowered: Lowered, device: jax.Device) -> bool:
    program = lowered.compiler_ir() if device.platform == "cpu" else None
    return program is not None and CUSTOM_CALL in program.operation.get_asm(
        large_elements_limit=SHOWN_NUMBERS
    )


def block_size(total: int, run_bytes: int, block_runs: int) -> int:
    """Return how many runs a block has: few enough for memory and for several devices.

    All blocks are nearly equal, so that the last one is not mostly padding.
    """
    most = max(1, min(block_runs, BLOCK_BYTES // max(run_bytes, 1)))
    shared_out = max(min(LEAST_BLOCK, most), math.ceil(total / BLOCKS))
    most = min(most, shared_out)
    return math.ceil(total / math.ceil(total / most))


def _as_mapping(result: Any) -> dict[str, jax.Array]:
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    if isinstance(result, Mapping):
        return dict(result)
    raise checks.InvalidInput(
        f"the run returns {type(result).__name__}; it must return a mapping of names to arrays"
    )


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
