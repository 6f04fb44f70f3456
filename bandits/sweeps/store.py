"""A sweep on disk: a Zarr store of its results, which any reader of Zarr opens.

xarray makes the store before the first run, with all labels, and with results of which no chunk is
there yet: `xarray.open_zarr` reads them as NaN. Runs are then written chunk by chunk. A chunk is a
box of the grid whose runs follow one another. Zarr puts a checksum into every file and gives the
file its name last. So the files themselves say what is done: a chunk is done when its file of every
result is there and has the right checksum.
"""

import contextlib
import errno
import glob
import json
import math
import shutil
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
import zarr
from rich.filesize import decimal
from zarr.codecs import Crc32cCodec, ZstdCodec

from bandits.sweeps.grid import Grid, Place
from theory.checks import InvalidInput

FORMAT = 2
"""Version of the store's layout; a store of another version is refused."""

IDENTITY = "modeseek"
"""The attribute that says which sweep a store holds."""

SHOWN = 4
"""Differences between two sweeps that a message shows."""

FEW = 4
"""A longer list is abbreviated where two descriptions are compared."""

CHUNK_BYTES = 2**23
"""Most bytes of results in a chunk."""

CHUNKS = 128
"""Least number of chunks of a large sweep, so that little is lost with one."""

LEAST_CHUNK = 256
"""A sweep is not cut into chunks of fewer runs than this to reach `CHUNKS`."""

LEFT_BEHIND = 600.0
"""Age in seconds from which on a file that is half written is taken to be of a killed process."""


@dataclass(frozen=True)
class Chunk:
    """A box of runs of one program.

    Attributes:
      place: Where the program stands in the grid.
      first: Number of the first run in the program.
      last: Number of the last run, plus one.
      box: The runs in the arrays, a slice for every axis of the grid.
    """

    place: Place
    first: int
    last: int
    box: tuple[slice, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of runs along every axis of the grid."""
        return tuple(part.stop - part.start for part in self.box)


@dataclass(frozen=True)
class Layout:
    """How a grid and what its runs return lie in a store.

    Attributes:
      grid: The axes.
      results: Shapes and types of what a run returns.
      pieces: How many values of every numeric axis a chunk holds: one up to some axis, all of every
        axis after it.
    """

    grid: Grid
    results: Mapping[str, jax.ShapeDtypeStruct]
    pieces: tuple[int, ...]

    @classmethod
    def fit(
        cls, grid: Grid, results: Mapping[str, jax.ShapeDtypeStruct], chunk_runs: int | None = None
    ) -> "Layout":
        """Return a layout with chunks of about ``chunk_runs`` runs; by default, fit the shapes."""
        lengths = [len(axis) for axis in grid.numeric]
        run_bytes = max(1, sum(math.prod(r.shape) * stored(r).itemsize for r in results.values()))
        small = max(LEAST_CHUNK, math.ceil(math.prod(grid.shape) / CHUNKS))
        size = chunk_runs or min(CHUNK_BYTES // run_bytes, small)
        pieces = []
        for length in reversed(lengths):
            pieces.append(min(length, max(1, size)))
            # Once an axis is cut, those before it go one value at a time: boxes stay contiguous.
            size = size // length if size >= length else 0
        return cls(grid, results, tuple(reversed(pieces)))

    @property
    def num_programs(self) -> int:
        """Number of programs that are compiled."""
        return math.prod(len(axis) for axis in self.grid.axes if axis.is_static)

    @property
    def num_chunks(self) -> int:
        """Number of chunks of all programs."""
        return math.prod(self._counts()) * self.num_programs

    @property
    def num_bytes(self) -> int:
        """Size of all results before compression."""
        runs = math.prod(self.grid.shape)
        return runs * sum(math.prod(r.shape) * stored(r).itemsize for r in self.results.values())

    def chunks(self) -> Iterator[Chunk]:
        """Yield every chunk, program by program, in the order of their runs."""
        lengths = tuple(len(axis) for axis in self.grid.numeric)
        counts = self._counts()
        for _, place in self.grid.programs():
            first = 0
            for at in np.ndindex(counts):
                begins = [int(i) * piece for i, piece in zip(at, self.pieces, strict=True)]
                parts = iter(
                    slice(begin, min(begin + piece, length))
                    for begin, piece, length in zip(begins, self.pieces, lengths, strict=True)
                )
                box = tuple(next(parts) if at is None else slice(at, at + 1) for at in place)
                last = first + math.prod(part.stop - part.start for part in box)
                yield Chunk(place, first, last, box)
                first = last

    def array_chunks(self) -> tuple[int, ...]:
        """Return the length of a chunk along every axis of the grid."""
        pieces = iter(self.pieces)
        return tuple(1 if axis.is_static else next(pieces) for axis in self.grid.axes)

    def encoding(self) -> dict[str, dict[str, Any]]:
        """Return how xarray is to store every result: in these chunks, each with a checksum."""
        return {
            name: {
                "chunks": self.array_chunks() + tuple(max(1, n) for n in result.shape),
                "compressors": [ZstdCodec(), Crc32cCodec()],
                "fill_value": np.nan,
                "_FillValue": None,  # xarray would lose the sign of a NaN with it
            }
            for name, result in self.results.items()
        }

    def _counts(self) -> tuple[int, ...]:
        return tuple(
            math.ceil(len(axis) / piece)
            for axis, piece in zip(self.grid.numeric, self.pieces, strict=True)
        )


@dataclass(frozen=True)
class Store:
    """A store that is open for writing, also by several processes at once.

    Two that do the same chunk write the same bits, and each file is replaced as a whole.

    Attributes:
      path: The folder.
      layout: How the grid lies in it.
      arrays: The Zarr array of every result.
    """

    path: Path
    layout: Layout
    arrays: Mapping[str, Any]

    def missing(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Return the chunks of which a file is missing; nothing is verified."""
        return [chunk for chunk in chunks if not all(f.exists() for f in self._files(chunk))]

    def read(self, chunk: Chunk) -> dict[str, np.ndarray] | None:
        """Return the results of a chunk, or None where a file is missing or damaged."""
        if self.missing([chunk]):
            return None
        try:
            return {name: np.asarray(array[chunk.box]) for name, array in self.arrays.items()}
        except Exception:  # codecs raise what they like for what was cut short or altered
            return None

    def unfinished(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Return the chunks of which a file is missing or damaged."""
        return [chunk for chunk in chunks if self.read(chunk) is None]

    def write(self, chunk: Chunk, values: Mapping[str, np.ndarray]) -> None:
        """Write the results of all runs of a chunk, ``[runs, ...]``."""
        for name, array in self.arrays.items():
            value = values[name]
            array[chunk.box] = value.astype(array.dtype).reshape(chunk.shape + value.shape[1:])

    def _files(self, chunk: Chunk) -> Iterator[Path]:
        for name, array in self.arrays.items():
            if array.size:
                at = [part.start // n for part, n in zip(chunk.box, array.chunks, strict=False)]
                at += [0] * (array.ndim - len(at))
                yield self.path / name / array.metadata.encode_chunk_key(tuple(at))


def create_or_open(
    path: Path, layout: Layout, identity: Mapping[str, Any], template: xr.Dataset
) -> Store:
    """Return the store of a sweep: a new one, or the one that an earlier call began.

    Several processes may call this at once; all of them get the one store.

    Args:
      path: A folder that is missing, or a store of the same sweep.
      layout: The layout of a new store.
      identity: Which sweep it is; another sweep has another identity.
      template: The labelled results, NaN everywhere.

    Raises InvalidInput for a path that is something else, of another sweep, or not writable.
    """
    with readable_errors(path):
        if not path.exists():
            _create(path, layout, identity, template)
        _remove_left_behind(path)
        return open_store(path, layout, identity)


def open_store(path: Path, layout: Layout, identity: Mapping[str, Any]) -> Store:
    """Return the store at a path, with the chunks that it was begun with.

    Raises InvalidInput for a path that holds no sweep, another one, or only a part of this one.
    """
    try:
        group: Any = zarr.open_group(path, mode="r+")
        held = json.loads(group.attrs[IDENTITY])
    except (KeyError, TypeError, ValueError, FileNotFoundError, FileExistsError) as error:
        raise InvalidInput(
            f"{path} is there and holds no sweep; choose another name or remove it"
        ) from error
    found = differences(held, identity)
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise InvalidInput(
            f"{path} holds another sweep: {'; '.join(found[:SHOWN])}{more}; choose another name, "
            "or the sweep that it was begun with"
        )
    # A chunk of NaN only is written too: its file says that it is done.
    arrays = {
        name: group[name].with_config({"write_empty_chunks": True}) for name in layout.results
    }
    lengths = next(iter(arrays.values())).chunks
    pieces = [n for n, axis in zip(lengths, layout.grid.axes, strict=False) if not axis.is_static]
    return Store(path, Layout(layout.grid, layout.results, tuple(pieces)), arrays)


def read_layout(path: Path, layout: Layout, identity: Mapping[str, Any]) -> Layout:
    """Return the layout of the store at a path if there is one, and else the given layout."""
    with readable_errors(path):
        return open_store(path, layout, identity).layout if path.exists() else layout


def aside(path: Path) -> Path:
    """Return a new name beside a path, under which a store is made."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.new")


def _create(path: Path, layout: Layout, identity: Mapping[str, Any], template: xr.Dataset) -> None:
    """Make a store aside and rename it, unless another process was quicker."""
    require_space(path, layout)
    made = aside(path)
    # Zarr has a type of its own for texts; it warns of NumPy's, which other readers do not know.
    texts = {n: c.astype(object) for n, c in template.coords.items() if c.dtype.kind == "U"}
    marked = template.assign_coords(texts).assign_attrs({IDENTITY: json.dumps(identity)})
    try:
        made.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consolidated metadata")  # xarray asks for it
            # Chunks that are NaN everywhere are not written, and that is all of them.
            marked.to_zarr(
                made, encoding=layout.encoding(), zarr_format=3, write_empty_chunks=False,
                consolidated=True,
            )  # fmt: skip
        made.rename(path)
    except OSError:
        if not path.exists():
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _remove_left_behind(path: Path) -> None:
    """Remove what a process that was killed while it wrote has left, once it is old enough."""
    for left in [*path.rglob("*.partial"), *path.parent.glob(f"{glob.escape(path.name)}.*.new")]:
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            if time.time() - left.stat().st_mtime > LEFT_BEHIND:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def differences(held: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Return one phrase for every place in which two nested descriptions differ."""
    old, new = _flatten(held), _flatten(given)
    phrases = []
    for key in dict.fromkeys([*old, *new]):
        ours, theirs = old.get(key), new.get(key)
        if ours == theirs:
            continue
        place = ""
        if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs) > FEW:
            index = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            place, ours, theirs = f"[{index}]", ours[index], theirs[index]
        phrases.append(f"{key}{place} is {_short(ours)} there and {_short(theirs)} here")
    return phrases


def _flatten(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {key: value}
    joint = f"{key}." if key else ""
    return {
        k: v for name, entry in value.items() for k, v in _flatten(entry, f"{joint}{name}").items()
    }


def _short(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, list) and len(value) > FEW:
        return f"[{value[0]}, {value[1]}, …, {value[-1]}] ({len(value)} values)"
    return json.dumps(value)


def require_space(path: Path, layout: Layout) -> None:
    """Refuse results that the disk cannot hold."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if layout.num_bytes > free:
        raise InvalidInput(
            f"the results take up to {decimal(layout.num_bytes)}, and {there} has "
            f"{decimal(free)} free; record fewer steps or metrics, or choose another disk"
        )


@contextlib.contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Say in a sentence what the file system refused, and that what is done is safe."""
    try:
        yield
    except OSError as error:
        advice = (
            "what is done stays valid; free some space and run the same command again"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "what is done stays valid; mend that and run the same command again"
        )
        raise InvalidInput(f"cannot write {path}: {error.strerror or error}; {advice}") from error


def stored(result: jax.ShapeDtypeStruct) -> np.dtype:
    """Return the type in which a result is stored: a float, so that what is not done can be NaN."""
    dtype = np.dtype(result.dtype)
    return dtype if dtype.kind == "f" else np.dtype(np.float64)
