"""Keep a sweep on disk: a Zarr store of its results, which any reader of Zarr opens.

xarray makes the store before the first run, with all labels and without any chunk of results:
`xarray.open_zarr` reads them as NaN. Runs are then written chunk by chunk. A chunk is a box of the
grid whose runs follow one another. Zarr puts a checksum into every file and gives the file its name
last. So the files say what is done: a chunk is done when its file of every result is there and has
the right checksum.
"""

import contextlib
import errno
import glob
import itertools
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
"""Attribute that says which sweep a store holds."""

SHOWN = 4
"""Most differences between two sweeps, and most values of a list, that a message shows."""

CHUNK_BYTES = 2**23
"""Most bytes of results in a chunk."""

CHUNKS = 128
"""Least number of chunks of a large sweep, so that little is lost with one."""

LEAST_CHUNK = 256
"""Least number of runs in a chunk where a sweep is cut to reach `CHUNKS`."""

LEFT_BEHIND = 600.0
"""Age in seconds at which a file that is half written must be from a killed process."""


@dataclass(frozen=True)
class Chunk:
    """Name a box of runs of one program.

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
        """Return the number of runs along every axis of the grid."""
        return tuple(part.stop - part.start for part in self.box)


@dataclass(frozen=True)
class Layout:
    """Say how a grid and what its runs return lie in a store.

    Attributes:
      grid: The axes.
      results: Shapes and types of what a run returns.
      chunk_shape: How many values of every axis a chunk holds: one of each static axis; of numeric
        axes one up to some axis, and all of every axis after it.
    """

    grid: Grid
    results: Mapping[str, jax.ShapeDtypeStruct]
    chunk_shape: tuple[int, ...]

    @classmethod
    def fit(
        cls, grid: Grid, results: Mapping[str, jax.ShapeDtypeStruct], chunk_runs: int | None = None
    ) -> "Layout":
        """Return a layout with chunks of about ``chunk_runs`` runs; by default, fit the shapes."""
        run_bytes = max(1, sum(math.prod(r.shape) * stored(r).itemsize for r in results.values()))
        small = max(LEAST_CHUNK, math.ceil(math.prod(grid.shape) / CHUNKS))
        size = chunk_runs or min(CHUNK_BYTES // run_bytes, small)
        shape = [1] * len(grid.axes)
        for i, axis in reversed(list(enumerate(grid.axes))):
            if not axis.is_static:
                shape[i] = min(len(axis), max(1, size))
                # Once an axis is cut, those before it go one value at a time: a box is contiguous.
                size = size // len(axis) if size >= len(axis) else 0
        return cls(grid, results, tuple(shape))

    @property
    def num_programs(self) -> int:
        """Return the number of programs that are compiled."""
        return math.prod(len(axis) for axis in self.grid.axes if axis.is_static)

    @property
    def num_chunks(self) -> int:
        """Return the number of chunks of all programs."""
        lengths = zip(self.grid.shape, self.chunk_shape, strict=True)
        return math.prod(math.ceil(length / piece) for length, piece in lengths)

    @property
    def num_bytes(self) -> int:
        """Return the size of all results before compression."""
        runs = math.prod(self.grid.shape)
        return runs * sum(math.prod(r.shape) * stored(r).itemsize for r in self.results.values())

    def chunks(self) -> Iterator[Chunk]:
        """Yield every chunk, program by program, in the order of their runs."""
        for _, place in self.grid.programs():
            parts = [
                [slice(begin, min(begin + piece, length)) for begin in range(0, length, piece)]
                for length, piece in zip(self.grid.shape, self.chunk_shape, strict=True)
            ]
            # Of a static axis, the program has one value.
            own = [p if at is None else [p[at]] for p, at in zip(parts, place, strict=True)]
            first = 0
            for box in itertools.product(*own):
                last = first + math.prod(part.stop - part.start for part in box)
                yield Chunk(place, first, last, box)
                first = last

    def encoding(self) -> dict[str, dict[str, Any]]:
        """Return how xarray is to store every result: in these chunks, each with a checksum."""
        return {
            name: {
                "chunks": self.chunk_shape + tuple(max(1, n) for n in result.shape),
                "compressors": [ZstdCodec(), Crc32cCodec()],
                "fill_value": np.nan,
                "_FillValue": None,  # xarray would lose the sign of a NaN with it
            }
            for name, result in self.results.items()
        }


@dataclass(frozen=True)
class Store:
    """Hold a store that is open for writing, also by several processes at once.

    Two processes that do one chunk write the same bits, and each file is replaced as a whole.

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
    chunk_shape = next(iter(arrays.values())).chunks[: len(layout.grid.axes)]
    return Store(path, Layout(layout.grid, layout.results, chunk_shape), arrays)


def aside(path: Path) -> Path:
    """Return a new name beside a path, under which a store is made."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.new")


def _create(path: Path, layout: Layout, identity: Mapping[str, Any], template: xr.Dataset) -> None:
    """Make a store aside and rename it, unless another process was quicker."""
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
        if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs) > SHOWN:
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
    if isinstance(value, list) and len(value) > SHOWN:
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
