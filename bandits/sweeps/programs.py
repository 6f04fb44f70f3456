"""Compiled programs of a grid: equal blocks of runs, several at a time.

XLA rounds differently for different batch sizes, so a run must always be computed in a block of the
same size, and at the same place in it. Block b of a program holds its runs from b·n on, n being
fixed by the shapes alone. How many blocks run at once, on which devices, in what order, and which
of their runs are kept, then changes no bit.

Blocks run in lanes. On a CPU a lane is a core: all lanes call one executable of one device, each
from a thread of its own. Several devices have a lane each, and an executable each: the partitioner
that one for all would need fuses, and so rounds, otherwise than a single device does.

XLA has one pool of threads for all lanes of a CPU. Kernels that split their work would wait there
for one another, so where there are several blocks they are compiled not to. LAPACK waits there too,
and two lanes of it can wait for ever: a program that calls it, or other code that is not XLA's, has
a single lane.
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
from jax.stages import Lowered

from bandits.kernels.compiler import compiler_options
from bandits.sweeps.grid import Grid, Place
from theory import checks

BLOCK_RUNS = 256
"""Most runs in one block by default: it fills vector units and stays in the CPU's cache."""

LEAST_BLOCK = 32
"""Fewer runs than this are not split further to keep several devices busy."""

BLOCKS = 8
"""A program is split into at least so many blocks, if they hold `LEAST_BLOCK` runs each."""

BLOCK_BYTES = 2**26
"""Arguments and results of one block, at most; a run larger than this is a block of its own."""

CUSTOM_CALL = "stablehlo.custom_call"
"""How a program calls code that is not XLA's: LAPACK, or Python."""

SHOWN_NUMBERS = 16
"""Of a constant in the text of a program."""

PROGRAMS_AHEAD = 2
"""Programs that are compiled at a time: the one that is needed next, and one more."""

BLOCKS_AHEAD = 2
"""Blocks for each lane that are under way at a time: none waits for what is done with results."""


def lanes(count: int | None = None) -> list[jax.Device]:
    """The device of every lane: all local ones, or for a single CPU once for each of its cores.

    Raises InvalidInput for a count < 1, or of more lanes than there are devices.
    """
    devices = jax.local_devices()
    if count is not None:
        checks.require_whole("devices", count)
    if len(devices) == 1 and devices[0].platform == "cpu":
        return devices * (count or _cores())
    if count is not None and count > len(devices):
        raise checks.InvalidInput(f"devices is {count}; there are {len(devices)}")
    return devices[:count]


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Lane(NamedTuple):
    """Where a block runs.

    Attributes:
      device: that has it.
      fixed: the fixed arguments, there.
      call: (numeric arguments of a block, fixed arguments) -> results, ``[block, ...]``.
    """

    device: jax.Device
    fixed: dict[str, Any]
    call: Callable[..., dict[str, jax.Array]]


@dataclass(frozen=True)
class Program:
    """A compiled block of runs.

    Attributes:
      lanes: that blocks are dealt out to.
      grid: whose numeric axes the runs span.
      place: of its runs in the grid.
      block: runs in a block.
      run_bytes: arguments and results of one run.
    """

    lanes: Sequence[Lane]
    grid: Grid
    place: Place
    block: int
    run_bytes: int

    def execute(
        self, first: int = 0, last: int | None = None, memory_limit: float = math.inf
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """The runs from ``first`` up to ``last``, in order, with their results."""
        total = self.grid.runs_per_program
        last = total if last is None else last
        most = memory_limit / max(self.run_bytes * self.block, 1)
        ahead = max(1, int(min(most, BLOCKS_AHEAD * len(self.lanes))))
        under_way: deque[tuple[np.ndarray, Future[dict[str, np.ndarray]]]] = deque()
        pool: Executor = Here()
        if len(self.lanes) > 1:
            pool = ThreadPoolExecutor(max_workers=len(self.lanes))
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


class Here(Executor):
    """Runs what it is given at once, in this thread: all that a single lane needs."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """A future that is done."""
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
    """What turns a run and a grid into programs.

    Attributes:
      run: a traceable function of keyword arguments.
      fixed: arguments that are the same in every run.
      grid: axes.
      block_runs: most runs in a block.
      devices: of the lanes that share the blocks; one may stand there several times.
    """

    run: Callable[..., Any]
    fixed: dict[str, Any]
    grid: Grid
    block_runs: int
    devices: Sequence[jax.Device]
    _ready: dict[Place, Program] = field(default_factory=dict)

    def first(self) -> Program:
        """Return the first program, compiled now and kept for when its turn comes."""
        _, place = next(self.grid.programs())
        return next(self.programs({place}))

    def programs(self, wanted: Container[Place] | None = None) -> Iterator[Program]:
        """Every program, or those at the wanted places; the next compiles while one runs."""
        waiting: deque[Future[Program]] = deque()
        with ThreadPoolExecutor(max_workers=PROGRAMS_AHEAD) as pool:
            try:
                for arguments, place in self.grid.programs():
                    if wanted is not None and place not in wanted:
                        continue
                    ready = self._ready.get(place)
                    waiting.append(
                        pool.submit(_same, ready) if ready else self._start(pool, arguments, place)
                    )
                    if len(waiting) == PROGRAMS_AHEAD:
                        yield self._remember(waiting.popleft().result())
                while waiting:
                    yield self._remember(waiting.popleft().result())
            finally:
                pool.shutdown(cancel_futures=True)

    def _remember(self, program: Program) -> Program:
        """Keep the last program, with which the next call often goes on, and return it."""
        self._ready.clear()
        self._ready[program.place] = program
        return program

    def relative_cost(self, samples: int) -> float:
        """Arithmetic of a program on average, over that of the first, from a few of them."""
        every = [arguments for arguments, _ in self.grid.programs()]
        chosen = np.unique(np.linspace(0, len(every) - 1, samples).round().astype(int))
        runs = self.grid.arguments(np.zeros(2, int))
        costs = []
        for i in chosen:
            batched = jax.vmap(self._one_run(every[i]), in_axes=(0, None), axis_size=2)
            analysis = jax.jit(batched).lower(runs, self.fixed).cost_analysis() or {}
            costs.append(analysis.get("flops", 1.0))
        return float(np.mean(costs) / costs[0])

    def results(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Names, shapes and types of what a run of the first program returns; nothing is run."""
        arguments, _ = next(self.grid.programs())
        shapes: dict[str, jax.ShapeDtypeStruct] = jax.eval_shape(
            self._alone(arguments), self.grid.arguments(np.arange(1)), self.fixed
        )
        return {name: shape.update(shape=shape.shape[1:]) for name, shape in shapes.items()}

    def _start(
        self, pool: ThreadPoolExecutor, static_arguments: Mapping[str, Any], place: Place
    ) -> "Future[Program]":
        """Trace here, where the caller's settings hold, and compile in the pool."""
        one_run, alone = self._one_run(static_arguments), self._alone(static_arguments)
        first_run = self.grid.arguments(np.arange(1))
        # Shapes alone: what a caller has put on one device would bind every executable to it.
        fixed = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type), self.fixed
        )
        # A single run is traced for its shapes, and blocks of several once more.
        of_one = jax.jit(alone).trace(first_run, fixed)
        run_bytes = _bytes(first_run) + _bytes(of_one.out_info)
        block = block_size(self.grid.runs_per_program, run_bytes, self.block_runs)

        # A single run needs no batch axis: its conditions stay conditions, and it compiles faster.
        traced = of_one
        if block > 1:
            of_block = jax.jit(jax.vmap(one_run, in_axes=(0, None), axis_size=block))
            traced = of_block.trace(self.grid.arguments(np.zeros(block, int)), fixed)

        def lower(device: jax.Device) -> Lowered:
            with jax.default_device(device):
                return traced.lower()

        lowered = {self.devices[0]: lower(self.devices[0])}
        # More lanes than blocks would have nothing to do.
        most = math.ceil(self.grid.runs_per_program / block)
        if most > 1 and _must_be_alone(lowered[self.devices[0]], self.devices[0]):
            most = 1
        devices = self.devices[:most]
        lowered |= {device: lower(device) for device in dict.fromkeys(devices[1:])}

        def compile_all() -> Program:
            made = {
                device: Lane(
                    device,
                    jax.device_put(self.fixed, device),
                    # By what is computed alone, not by the number of lanes, which must change no
                    # bit.
                    one.compile(compiler_options(device, in_one_thread=most > 1)),
                )
                for device, one in lowered.items()
            }
            dealt = [made[device] for device in devices]
            return Program(dealt, self.grid, place, block, run_bytes)

        return pool.submit(compile_all)

    def _one_run(self, static_arguments: Mapping[str, Any]) -> Callable[..., dict[str, jax.Array]]:
        def one_run(numeric: dict[str, Any], fixed: dict[str, Any]) -> dict[str, jax.Array]:
            return _as_mapping(self.run(**self.grid.resolve(numeric), **fixed, **static_arguments))

        return one_run

    def _alone(self, static_arguments: Mapping[str, Any]) -> Callable[..., dict[str, jax.Array]]:
        one_run = self._one_run(static_arguments)

        def alone(numeric: dict[str, Any], fixed: dict[str, Any]) -> dict[str, jax.Array]:
            result = one_run(jax.tree.map(lambda value: value[0], numeric), fixed)
            return {name: jnp.asarray(value)[None] for name, value in result.items()}

        return alone


def _must_be_alone(lowered: Lowered, device: jax.Device) -> bool:
    program = lowered.compiler_ir() if device.platform == "cpu" else None
    return program is not None and CUSTOM_CALL in program.operation.get_asm(
        large_elements_limit=SHOWN_NUMBERS
    )


def _same(program: Program) -> Program:
    return program


def block_size(total: int, run_bytes: int, block_runs: int) -> int:
    """Runs in a block: few enough for memory and for several devices, all blocks nearly equal."""
    most = max(1, min(block_runs, BLOCK_BYTES // max(run_bytes, 1)))
    shared_out = max(min(LEAST_BLOCK, most), math.ceil(total / BLOCKS))
    most = min(most, shared_out)
    # Equal blocks, so that the last one is not mostly padding.
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
