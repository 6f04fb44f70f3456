"""A sweep into a store: it can be stopped at any time, and goes on where it was."""

import hashlib
import importlib.metadata
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from bandits.sweeps import store
from bandits.sweeps.grid import Place, make_grid
from bandits.sweeps.programs import BLOCK_RUNS, Compiler, Program, lanes
from bandits.sweeps.progress import Progress
from bandits.sweeps.store import Chunk, Layout, Store, Variable
from bandits.sweeps.sweep import own_dims
from bandits.xla import compiler_options
from theory import checks
from theory.checks import InvalidInput


@dataclass(frozen=True)
class Share:
    """Which of several processes this one is; each does its part of the chunks."""

    index: int
    count: int


ALONE = Share(0, 1)

PRECISION = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
"""Settings of JAX that change results."""

ENOUGH, MOST_TIMES = 0.5, 5
"""Seconds, and repeats, that an estimate takes at most, unless one repeat takes longer."""

LONG = 10.0
"""Seconds from which on an estimate looks at several programs,"""

SAMPLES = 4
"""so many of them."""


class Summary(NamedTuple):
    """What a call did.

    Attributes:
      runs: of the whole sweep.
      kept: of this process's share, that were done before and are verified.
      done: in this call.
      missing: that no process has done yet.
      diverged: with NaN among their results, of those done in this call.
    """

    runs: int
    kept: int
    done: int
    missing: int
    diverged: int


@dataclass(frozen=True)
class StoredSweep:
    """A sweep of ``run`` over ``axes`` whose results go to a Zarr store.

    Attributes:
      path: of the store.
      compiler: of its programs.
      layout: of its chunks.
      identity: which sweep it is.
      template: coordinates of the dataset.
      variables: what is said of every result.
    """

    path: Path
    compiler: Compiler
    layout: Layout
    identity: Mapping[str, Any]
    template: xr.Dataset
    variables: Mapping[str, Variable]

    @property
    def runs(self) -> int:
        """Of the whole grid."""
        return math.prod(self.layout.grid.shape)

    def remaining(self) -> int:
        """Runs that the store, if there is one, does not have; nothing is verified."""
        if not self.path.exists():
            return self.runs
        return _count_runs(store.Ledger.read(self.path).unfinished(self.layout.chunks()))

    def estimate(self, runs: int) -> float | None:
        """Seconds for so many runs on these devices, compiling left out; None where it is not long.

        From a block in every lane. Where that is long, other programs are weighed by their
        arithmetic.
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
        share: Share = ALONE,
        *,
        barrier: Callable[[], None] = lambda: None,
        progress: bool | None = None,
    ) -> Summary:
        """Do what is not done. The store is the same to the bit however often this was stopped.

        Args:
          share: of this process, where several write one store; the first must be among them.
          barrier: what all of them wait at until the store is there.
          progress: whether to show progress; by default a bar on a terminal, elsewhere a line at
            most once a minute.

        Raises InvalidInput for a store of another sweep, in use, or that cannot be written.
        """
        if share.index == 0:
            held = store.create_or_open(
                self.path, self.layout, self.identity, self.template, self.variables
            )
            if share.count > 1:
                held.share()
            barrier()
        else:
            barrier()
            held = store.open_shared(self.path, self.layout, self.identity)
        try:
            return self._fill(held, share, progress)
        finally:
            held.close()

    def _fill(self, held: Store, share: Share, progress: bool | None) -> Summary:
        chunks = list(held.layout.chunks())
        first, last = (len(chunks) * (share.index + i) // share.count for i in (0, 1))
        with store.readable_errors(self.path):
            own = held.unfinished(chunks[first:last])
        count = _count_runs(own)
        diverged = 0
        by_place: dict[Place, list[Chunk]] = {}
        for chunk in own:
            by_place.setdefault(chunk.place, []).append(chunk)
        with Progress(count, progress, logged=True) as bar:
            for program in self.compiler.programs(by_place) if by_place else ():
                for chunk, values in _chunks_of(program, by_place[program.place]):
                    _require_results(values, self.layout)
                    with store.readable_errors(self.path):
                        held.write(chunk, values)
                    diverged += _count_nan(values)
                    bar.advance(chunk.last - chunk.first)
        with store.readable_errors(self.path):
            missing = _count_runs(held.ledger.unfinished(chunks))
        kept = _count_runs(chunks[first:last]) - count
        return Summary(self.runs, kept, count, missing, diverged)


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
    """`sweep` into a Zarr store, for grids that are large or take long. Nothing runs yet.

    The arguments that `sweep` has too mean the same.

    Args:
      run: a traceable function.
      axes: argument name -> values.
      path: of the store, missing or begun by the same sweep.
      identity: what tells this sweep from others beside axes, fixed arguments, precision and
        versions, as JSON can hold it: what stands in the code of ``run``.
      fixed, dims, coords, attributes, block_runs, devices: as in `sweep`.
      chunk_runs: about how many runs a chunk holds; by default, from the shapes. It changes no bit.

    Raises InvalidInput as `sweep` does, and for a store that holds another sweep.
    """
    checks.require_whole("block_runs", block_runs)
    if chunk_runs is not None:
        checks.require_whole("chunk_runs", chunk_runs)
    shared = jax.tree.map(jnp.asarray, dict(fixed or {}))
    grid = make_grid(run, axes, shared)
    compiler = Compiler(run, shared, grid, block_runs, devices or lanes())
    results = compiler.results()
    labels = {axis.name: axis.labels for axis in grid.axes}
    template = xr.Dataset(coords={**labels, **(coords or {})})
    for name, entries in (attributes or {}).items():
        if name in template.coords:
            template[name].attrs.update(entries)
    whole = {
        **(identity or {}),
        "axes": {axis.name: _fingerprint(axis.labels, axis.values) for axis in grid.axes},
        "fixed": _fingerprint(list(shared), shared),
        "results": {name: f"{r.dtype}{list(r.shape)}" for name, r in results.items()},
        "block_runs": block_runs,
        "device": compiler.devices[0].device_kind,
        "compiler": compiler_options(compiler.devices[0]),
        **{name: str(getattr(jax.config, name)) for name in PRECISION},
        **{name: importlib.metadata.version(name) for name in ("modeseek", "jax", "jaxlib")},
        "format": store.FORMAT,
    }
    whole = json.loads(json.dumps(whole))  # as it will be read: a tuple is a list then
    layout = store.read_layout(Path(path), Layout.fit(grid, results, chunk_runs), whole)
    if not Path(path).exists():
        store.require_space(Path(path), layout)
    variables = {
        name: Variable(
            own_dims(name, len(result.shape), dims, results), (attributes or {}).get(name, {})
        )
        for name, result in results.items()
    }
    return StoredSweep(Path(path), compiler, layout, whole, template, variables)


def _fingerprint(labels: Any, values: Any) -> str:
    """Of arrays by their bits; of functions and the like by their names."""
    hashed = hashlib.sha256(repr([str(label) for label in labels]).encode())
    for leaf in jax.tree.leaves(values):
        if jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array | np.ndarray):
            hashed.update(f"{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return hashed.hexdigest()[:16]


def _chunks_of(
    program: Program, chunks: Sequence[Chunk]
) -> Iterator[tuple[Chunk, dict[str, np.ndarray]]]:
    """The chunks of one program with their results; what follows on is computed as one."""
    for stretch in _stretches(chunks):
        waiting = iter(stretch)
        chunk = next(waiting)
        parts: list[dict[str, np.ndarray]] = []
        for runs, values in program.execute(stretch[0].first, stretch[-1].last):
            at = 0
            while at < len(runs):
                end = min(len(runs), chunk.last - int(runs[0]))
                parts.append({name: value[at:end] for name, value in values.items()})
                at = end
                if int(runs[0]) + at == chunk.last:
                    yield (
                        chunk,
                        {name: np.concatenate([part[name] for part in parts]) for name in values},
                    )
                    parts = []
                    chunk = next(waiting, chunk)


def _stretches(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    """Chunks that follow on from one another, together."""
    stretch: list[Chunk] = []
    for chunk in chunks:
        if stretch and stretch[-1].last != chunk.first:
            yield stretch
            stretch = []
        stretch.append(chunk)
    if stretch:
        yield stretch


def _require_results(values: Mapping[str, np.ndarray], layout: Layout) -> None:
    """Every program must return what the first does."""
    found = {name: f"{value.dtype}{list(value.shape[1:])}" for name, value in values.items()}
    expected = {
        name: f"{result.dtype}{list(result.shape)}" for name, result in layout.results.items()
    }
    if found != expected:
        raise InvalidInput(
            f"the run returns {found} somewhere but {expected} elsewhere; every program must "
            "return the same"
        )


def _count_runs(chunks: Sequence[Chunk]) -> int:
    return sum(chunk.last - chunk.first for chunk in chunks)


def _count_nan(values: Mapping[str, np.ndarray]) -> int:
    broken = [
        np.isnan(value).reshape(len(value), -1).any(axis=1)
        for value in values.values()
        if value.dtype.kind == "f"
    ]
    return int(np.any(broken, axis=0).sum()) if broken else 0
