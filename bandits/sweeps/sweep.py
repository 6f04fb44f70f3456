"""Running a grid: blocks of runs, vmapped, in chunks of bounded memory, into a labelled dataset."""

import dataclasses
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
import xarray as xr
from rich.console import Console

from bandits.metrics import DIVERGED_AT
from bandits.sweeps.grid import Grid, make_grid
from theory import checks

BLOCK_RUNS = 256
"""Most runs in one block by default: it fills vector units and stays in the CPU's cache."""

BLOCK_BYTES = 2**26
"""Arguments and results of one block, at most; a run larger than this is a block of its own."""


PROGRAMS_AHEAD = 2
"""Programs that are compiled at a time: the one that is needed next, and one more."""


class DivergenceWarning(UserWarning):
    """Some runs of a sweep gave NaN."""


def sweep(
    run: Callable[..., Any],
    axes: Mapping[str, Any],
    *,
    fixed: Mapping[str, Any] | None = None,
    dims: Sequence[str] | Mapping[str, Sequence[str]] = (),
    coords: Mapping[str, Any] | None = None,
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    memory_limit: int = 2**30,
    chunk_runs: int | None = None,
    block_runs: int = BLOCK_RUNS,
    progress: bool | None = None,
) -> xr.Dataset:
    """Call ``run`` on every point of a grid and label the results.

    Numeric axes (numbers, or arrays stacked along a leading dimension) are vmapped. Every other
    axis (strings, functions, numbers marked `static`) changes the program, which is compiled once
    for each of its values.

    The same grid gives the same bits whatever the memory: XLA rounds differently for different
    batch sizes, so runs are cut into blocks whose size follows from the shapes alone, and every
    block is executed by the same program. A chunk is a number of whole blocks.

    Args:
      run: a traceable function of keyword arguments, one for each axis and each fixed argument,
        that returns a mapping (or dataclass) of names to arrays.
      axes: argument name -> values, in the order of the dataset's dimensions.
      fixed: argument name -> pytree of arrays that is the same in every run. Pass shared arrays
        here rather than closing over them: XLA spends seconds folding constants.
      dims: names of the dimensions that the results have of their own, in order, such as
        ``["step", "arm"]`` (a result with one of its own takes the first); or a mapping, where
        results differ. Without, ``<name>_dim_0`` and so on.
      coords: coordinates of those dimensions.
      attributes: attributes of a variable or coordinate, such as ``{"kl": {"units": "nats"}}``.
      memory_limit: bytes of device memory for the blocks in flight; at least one block always is.
      chunk_runs: runs in flight, rounded up to whole blocks; by default, from ``memory_limit``.
      block_runs: most runs that are executed as one vmapped program; part of what fixes the bits.
        The default suits runs of a few kilobytes; runs that carry a network are faster in fours.
      progress: whether to show progress; by default on a terminal, for work of over a second.

    Returns:
      A dataset with one dimension an axis, then the results' own. NaN results are kept, and a
      DivergenceWarning names the first, with the step if a result ``diverged_at`` says it.

    Raises:
      InvalidInput: an axis that is empty or that ``run`` does not take, an argument that no axis
        sets, a limit <= 0, or results whose shape differs between programs.
    """
    checks.require_positive("memory_limit", memory_limit)
    if chunk_runs is not None:
        checks.require_positive("chunk_runs", chunk_runs)
    checks.require_whole("block_runs", block_runs)
    shared = jax.tree.map(jnp.asarray, dict(fixed or {}))
    grid = make_grid(run, axes, shared)
    results: dict[str, np.ndarray] = {}
    with _Progress(math.prod(grid.shape), progress) as bar:
        for place, program in _compile_ahead(run, shared, grid, block_runs):
            for runs, values in program.execute(shared, grid, memory_limit, chunk_runs):
                _store(results, values, runs, place, grid)
                bar.advance(len(runs))
    dataset = _label(grid, results, dims, coords or {}, attributes or {})
    _warn_of_divergence(dataset, grid)
    return dataset


@dataclass(frozen=True)
class _Program:
    """A compiled block of runs.

    Attributes:
      execute_block: (numeric arguments of the block, fixed arguments) -> results.
      block: runs in it.
      run_bytes: arguments and results of one run.
    """

    execute_block: Callable[..., dict[str, jax.Array]]
    block: int
    run_bytes: int

    def execute(
        self, fixed: dict[str, Any], grid: Grid, memory_limit: int, chunk_runs: int | None
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Every run, block by block, a chunk of blocks in flight."""
        total, block = grid.runs_per_program, self.block
        in_flight = int(chunk_runs or memory_limit // max(self.run_bytes, 1))
        blocks_in_flight = max(
            1, math.ceil(in_flight / block) if chunk_runs else in_flight // block
        )
        starts = range(0, total, block)
        for first in range(0, len(starts), blocks_in_flight):
            chunk = []
            for start in starts[first : first + blocks_in_flight]:
                runs = np.arange(start, start + block)
                arguments = grid.arguments(np.minimum(runs, total - 1))
                chunk.append((runs, self.execute_block(arguments, fixed)))
            for runs, values in chunk:
                kept = runs[runs < total]
                yield kept, {name: np.asarray(value)[: kept.size] for name, value in values.items()}


def _compile_ahead(
    run: Callable[..., Any], fixed: dict[str, Any], grid: Grid, block_runs: int
) -> Iterator[tuple[tuple[Any, ...], _Program]]:
    """Every program with its place in the grid; the next one compiles while one runs."""
    waiting: deque[tuple[tuple[Any, ...], Future[_Program]]] = deque()
    with ThreadPoolExecutor(max_workers=PROGRAMS_AHEAD) as pool:
        try:
            for arguments, place in grid.programs():
                program = _start_compiling(pool, run, arguments, fixed, grid, block_runs)
                waiting.append((place, program))
                if len(waiting) == PROGRAMS_AHEAD:
                    place, program = waiting.popleft()
                    yield place, program.result()
            for place, program in waiting:
                yield place, program.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _start_compiling(
    pool: ThreadPoolExecutor,
    run: Callable[..., Any],
    static_arguments: Mapping[str, Any],
    fixed: dict[str, Any],
    grid: Grid,
    block_runs: int,
) -> "Future[_Program]":
    """Trace here, where the caller's settings hold, and compile in the pool."""

    def one_run(numeric: dict[str, jax.Array], fixed: dict[str, Any]) -> dict[str, jax.Array]:
        return _as_mapping(run(**numeric, **fixed, **static_arguments))

    def alone(numeric: dict[str, jax.Array], fixed: dict[str, Any]) -> dict[str, jax.Array]:
        result = one_run({name: value[0] for name, value in numeric.items()}, fixed)
        return {name: jnp.asarray(value)[None] for name, value in result.items()}

    total = grid.runs_per_program
    first_run = grid.arguments(np.arange(1))
    # Traced once for the shapes and once in blocks; JAX keeps what was traced of the parts.
    run_bytes = _bytes(first_run) + _bytes(jax.eval_shape(alone, first_run, fixed))
    # Equal blocks, so that the last one is not mostly padding.
    most = max(1, min(block_runs, BLOCK_BYTES // max(run_bytes, 1)))
    block = math.ceil(total / math.ceil(total / most))
    # A single run needs no batch axis: its conditions stay conditions, and it compiles faster.
    vmapped = jax.vmap(one_run, in_axes=(0, None), axis_size=block)
    lowered = jax.jit(alone if block == 1 else vmapped).lower(
        grid.arguments(np.arange(block) % total), fixed
    )
    return pool.submit(lambda: _Program(lowered.compile(), block, run_bytes))


def _store(
    results: dict[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    runs: np.ndarray,
    place: tuple[Any, ...],
    grid: Grid,
) -> None:
    """Put a block of runs into the arrays of the whole grid, made when the first block arrives."""
    if results and results.keys() != values.keys():
        raise checks.InvalidInput(
            f"the run returns {sorted(values)} for {_describe(grid, place)} but {sorted(results)} "
            "before; every program must return the same names"
        )
    for name, value in values.items():
        own = value.shape[1:]
        if name not in results:
            results[name] = np.empty(grid.shape + own, value.dtype)
        whole = results[name]
        if whole.dtype != value.dtype:
            whole = results[name] = whole.astype(np.result_type(whole, value))
        if whole.shape[len(grid.shape) :] != own:
            raise checks.InvalidInput(
                f"{name} has shape {own} for {_describe(grid, place)} but "
                f"{whole.shape[len(grid.shape) :]} before; every program must return one shape"
            )
        lengths = tuple(len(axis) for axis in grid.numeric)
        program = whole[(*place, ...)]  # a view, also where every axis is static
        if lengths:
            program[np.unravel_index(runs, lengths)] = value
        else:
            program[...] = value[0]


def _label(
    grid: Grid,
    results: Mapping[str, np.ndarray],
    dims: Sequence[str] | Mapping[str, Sequence[str]],
    coords: Mapping[str, Any],
    attributes: Mapping[str, Mapping[str, Any]],
) -> xr.Dataset:
    outer = tuple(axis.name for axis in grid.axes)
    variables = {
        name: (outer + _own_dims(name, array.ndim - len(outer), dims, results), array)
        for name, array in results.items()
    }
    labels = {axis.name: axis.labels for axis in grid.axes}
    dataset = xr.Dataset(variables, coords={**labels, **coords})
    for name, entries in attributes.items():
        if name in dataset.variables:
            dataset[name].attrs.update(entries)
    return dataset


def _own_dims(
    name: str,
    count: int,
    dims: Sequence[str] | Mapping[str, Sequence[str]],
    results: Mapping[str, np.ndarray],
) -> tuple[str, ...]:
    unnamed = tuple(f"{name}_dim_{i}" for i in range(count))
    if not isinstance(dims, Mapping):
        return (*dims[:count], *unnamed[len(dims) :])
    for key in dims:
        checks.require_known("result in dims", key, results)
    named = tuple(dims.get(name, unnamed))
    if len(named) != count:
        raise checks.InvalidInput(
            f"dims names {len(named)} dimensions of {name}; it has {count} of its own"
        )
    return named


def _warn_of_divergence(dataset: xr.Dataset, grid: Grid) -> None:
    outer = [axis.name for axis in grid.axes]
    for name, variable in dataset.data_vars.items():
        if variable.dtype.kind != "f":
            continue
        diverged = variable.isnull().any([d for d in variable.dims if d not in outer])
        count = int(diverged.sum())
        if count:
            first = np.argwhere(diverged.values)[0]
            where = ", ".join(
                f"{axis.name}={axis.labels[i]}" for axis, i in zip(grid.axes, first, strict=True)
            )
            if DIVERGED_AT in dataset:
                where += f", after {int(dataset[DIVERGED_AT].values[tuple(first)])} steps"
            warnings.warn(
                f"{count} of {diverged.size} runs gave NaN in {name}, the first at {where}",
                DivergenceWarning,
                stacklevel=3,
            )


class _Progress:
    """A bar on the terminal that appears only for work that takes over a second."""

    def __init__(self, total: int, shown: bool | None):
        console = Console(stderr=True)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.completed:,.0f} of {task.total:,.0f} runs"),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (console.is_terminal if shown is None else shown),
        )
        self._task = self._bar.add_task("sweep", total=total)
        self._patience = 0.0 if shown else 1.0
        self._started = False

    def __enter__(self) -> "_Progress":
        self._clock = self._bar.get_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, runs: int) -> None:
        if not self._started and self._bar.get_time() - self._clock >= self._patience:
            self._bar.start()
            self._started = True
        self._bar.advance(self._task, runs)


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


def _describe(grid: Grid, place: tuple[Any, ...]) -> str:
    return ", ".join(
        f"{axis.name}={axis.labels[index]}"
        for axis, index in zip(grid.axes, place, strict=True)
        if axis.is_static
    )
