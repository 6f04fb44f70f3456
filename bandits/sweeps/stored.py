"""Run a sweep into a store: it can be stopped at any time, and goes on where it was."""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from bandits.kernels.compiler import compiler_options
from bandits.sweeps import store
from bandits.sweeps.programs import BLOCK_RUNS, Compiler, Program
from bandits.sweeps.progress import Progress
from bandits.sweeps.store import Chunk, Layout, Store
from bandits.sweeps.sweep import label
from theory import checks
from theory.checks import InvalidInput

if TYPE_CHECKING:
    from distributed import Client

PRECISION = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
"""Settings of JAX that change results."""

ENOUGH, MOST_TIMES = 0.5, 5
"""Most seconds and most repeats of an estimate; one repeat may take longer."""

LONG = 10.0
"""An estimate of more seconds than this looks at several programs."""

SAMPLES = 4
"""Number of programs that such an estimate looks at."""


class Summary(NamedTuple):
    """Say what a call did.

    Attributes:
      runs: Number of runs of the whole sweep.
      kept: Runs of this part that were done before, and are verified.
      done: Runs that this call did.
      missing: Runs of the whole sweep that no process has done yet.
      diverged: Runs with NaN among their results, of those that this call did.
    """

    runs: int
    kept: int
    done: int
    missing: int
    diverged: int


@dataclass(frozen=True)
class StoredSweep:
    """Hold a sweep whose results go to a Zarr store; `stored_sweep` makes one.

    Attributes:
      path: The store.
      compiler: What compiles the programs of the sweep.
      layout: How the grid is cut into chunks.
      identity: Which sweep it is.
      template: The labelled results, NaN everywhere.
      arguments: The arguments of `stored_sweep` but the devices, for workers elsewhere.
    """

    path: Path
    compiler: Compiler
    layout: Layout
    identity: Mapping[str, Any]
    template: xr.Dataset
    arguments: Mapping[str, Any]

    @property
    def runs(self) -> int:
        """Return the number of runs of the whole grid."""
        return math.prod(self.layout.grid.shape)

    def remaining(self) -> int:
        """Return the number of runs that the store does not have yet; nothing is verified."""
        if not self.path.exists():
            return self.runs
        held = store.open_store(self.path, self.layout, self.identity)
        return _count_runs(held.missing(self.layout.chunks()))

    def estimate(self, runs: int) -> float | None:
        """Return the seconds that so many runs take on these devices, compiling left out.

        This times a block in every lane. If the estimate is long, it weighs other programs by their
        arithmetic. It returns None for no more runs than it would time.
        """
        program = self.compiler.first()
        sample = min(program.block * len(program.lanes), self.layout.grid.runs_per_program)
        if runs <= sample:
            return None
        times: list[float] = []
        while sum(times) < ENOUGH and len(times) < MOST_TIMES:
            begin = time.perf_counter()
            list(program.execute(0, sample))
            times.append(time.perf_counter() - begin)
        estimate = min(times) * runs / sample
        if estimate < LONG or self.layout.num_programs == 1:
            return estimate
        return estimate * self.compiler.relative_cost(SAMPLES)

    def run(
        self,
        client: "Client | None" = None,
        part: tuple[int, int] = (1, 1),
        *,
        progress: bool | None = None,
    ) -> Summary:
        """Do what is not done; the store is the same to the bit however often this was stopped.

        Args:
          client: A `distributed.Client` whose workers do the runs; without, this process does them.
            All workers must see the store under its path.
          part: ``(i, n)`` does the i-th of n parts, from 1; parts need no word between them, and
            may run at once.
          progress: Whether to show progress; by default a bar on a terminal, and elsewhere a line
            at most once a minute.

        Raises InvalidInput for a store that is of another sweep or cannot be written, and where
        workers die again and again.
        """
        number, count = read_part("/".join(map(str, part)))
        held = store.create_or_open(self.path, self.layout, self.identity, self.template)
        chunks = list(held.layout.chunks())
        own = chunks[len(chunks) * (number - 1) // count : len(chunks) * number // count]
        with store.readable_errors(self.path):
            unfinished = held.unfinished(own)
        finished = self.fill(held, unfinished)
        if client is not None and unfinished:
            from bandits.sweeps import cluster

            finished = cluster.fill(client, self.arguments, unfinished)
        diverged = 0
        with (
            Progress(_count_runs(unfinished), progress, logged=True) as bar,
            contextlib.closing(finished),
        ):
            for runs, broken in finished:
                bar.advance(runs)
                diverged += broken
        with store.readable_errors(self.path):
            missing = _count_runs(held.missing(chunks))
        done = _count_runs(unfinished)
        return Summary(self.runs, _count_runs(own) - done, done, missing, diverged)

    def fill(self, held: Store, chunks: Sequence[Chunk]) -> Generator[tuple[int, int], None, None]:
        """Do chunks; for each, yield the number of its runs, and of those that gave NaN."""
        by_place = {place: list(own) for place, own in itertools.groupby(chunks, lambda c: c.place)}
        for program in self.compiler.programs(by_place) if by_place else ():
            for chunk, values in _chunks_of(program, by_place[program.place]):
                _require_results(values, self.layout)
                with store.readable_errors(self.path):
                    held.write(chunk, values)
                yield chunk.last - chunk.first, count_nan(values)


def read_part(text: str) -> tuple[int, int]:
    """Return the numbers of I/N, the I-th of N parts.

    Raises InvalidInput for anything else, and for I outside 1 .. N.
    """
    try:
        number, count = (int(digits) for digits in text.split("/"))
    except ValueError:
        number, count = 0, 0
    if not 1 <= number <= count:
        raise InvalidInput(f"part is {text!r}; give I/N, with I from 1 to N")
    return number, count


def stored_sweep(
    run: Callable[..., Any],
    axes: Mapping[str, Any],
    path: str | Path,
    *,
    identity: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
    dims: Sequence[str] | Mapping[str, Sequence[str]] = (),
    coords: Mapping[str, Any] | None = None,
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    block_runs: int = BLOCK_RUNS,
    chunk_runs: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> StoredSweep:
    """Return a `sweep` into a Zarr store, for grids that are large or take long; nothing runs yet.

    Args:
      run, axes, fixed, dims, coords, attributes, block_runs, devices: As in `sweep`.
      path: The store, which is missing, or was begun by the same sweep.
      identity: What tells this sweep from others beside axes, fixed arguments, precision and
        versions, as JSON can hold it: what stands in the code of ``run``.
      chunk_runs: About how many runs a chunk holds, at least 1; by default, from the shapes. It
        changes no bit.

    Raises InvalidInput as `sweep` does, and for a store that holds another sweep.

    >>> import xarray as xr
    >>> squares = stored_sweep(lambda x: {"y": x**2}, {"x": [1.0, 2.0, 3.0]}, "squares.zarr")
    >>> squares.run()
    Summary(runs=3, kept=0, done=3, missing=0, diverged=0)
    >>> xr.open_zarr("squares.zarr")["y"].values.tolist()
    [1.0, 4.0, 9.0]
    """
    arguments = locals() | {"path": Path(path).absolute()}
    del arguments["devices"]
    if chunk_runs is not None:
        checks.require_whole("chunk_runs", chunk_runs)
    path = Path(path)
    compiler = Compiler.of(run, axes, fixed, block_runs, devices)
    grid, results = compiler.grid, compiler.results()
    whole = {
        **(identity or {}),
        "axes": {axis.name: _fingerprint(axis.labels, axis.values) for axis in grid.axes},
        "fixed": _fingerprint(list(compiler.fixed), compiler.fixed),
        "results": _types(results),
        "block_runs": block_runs,
        "device": compiler.devices[0].device_kind,
        "compiler": compiler_options(compiler.devices[0]),
        **{name: str(getattr(jax.config, name)) for name in PRECISION},
        **{name: importlib.metadata.version(name) for name in ("modeseek", "jax", "jaxlib")},
        "format": store.FORMAT,
    }
    whole = json.loads(json.dumps(whole))  # as it will be read: a tuple is a list then
    layout = Layout.fit(grid, results, chunk_runs)
    with store.readable_errors(path):
        if path.exists():
            layout = store.open_store(path, layout, whole).layout
        else:
            store.require_space(path, layout)
    nothing = {
        name: np.broadcast_to(np.array(np.nan, store.stored(r)), grid.shape + r.shape)
        for name, r in results.items()
    }
    template = label(grid, nothing, dims, coords or {}, attributes or {})
    return StoredSweep(path, compiler, layout, whole, template, arguments)


def _fingerprint(labels: Any, values: Any) -> str:
    """Return a hash of arrays by their bits, and of functions and the like by their names."""
    hashed = hashlib.sha256(repr([str(name) for name in labels]).encode())
    for leaf in jax.tree.leaves(values):
        if jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array | np.ndarray):
            hashed.update(f"{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return hashed.hexdigest()[:16]


def _chunks_of(
    program: Program, chunks: Sequence[Chunk]
) -> Iterator[tuple[Chunk, dict[str, np.ndarray]]]:
    """Yield the chunks of one program with their results; what follows on is computed as one."""
    for stretch in _stretches(chunks):
        blocks = program.execute(stretch[0].first, stretch[-1].last)
        parts: list[dict[str, np.ndarray]] = []
        end = stretch[0].first
        for chunk in stretch:
            while end < chunk.last:
                runs, values = next(blocks)
                parts.append(values)
                end = int(runs[-1]) + 1
            held = parts[0]
            if len(parts) > 1:
                held = {name: np.concatenate([part[name] for part in parts]) for name in held}
            count = chunk.last - chunk.first
            yield chunk, {name: value[:count] for name, value in held.items()}
            parts = [{name: value[count:] for name, value in held.items()}]


def _stretches(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    """Yield chunks that follow on from one another together."""
    stretch: list[Chunk] = []
    for chunk in chunks:
        if stretch and stretch[-1].last != chunk.first:
            yield stretch
            stretch = []
        stretch.append(chunk)
    if stretch:
        yield stretch


def _types(results: Mapping[str, Any]) -> dict[str, str]:
    """Return types and shapes of results, as a message or an identity names them."""
    return {name: f"{result.dtype}{list(result.shape)}" for name, result in results.items()}


def _require_results(values: Mapping[str, np.ndarray], layout: Layout) -> None:
    """Refuse a program that does not return what the first does."""
    found = _types({name: value[0] for name, value in values.items()})
    expected = _types(layout.results)
    if found != expected:
        raise InvalidInput(
            f"the run returns {found} somewhere but {expected} elsewhere; every program must "
            "return the same"
        )


def _count_runs(chunks: Sequence[Chunk]) -> int:
    return sum(chunk.last - chunk.first for chunk in chunks)


def count_nan(values: Mapping[str, np.ndarray]) -> int:
    """Return how many runs have NaN among their results, arrays ``[runs, ...]``."""
    broken = [
        np.isnan(value).reshape(len(value), -1).any(axis=1)
        for value in values.values()
        if value.dtype.kind == "f"
    ]
    return int(np.any(broken, axis=0).sum()) if broken else 0
