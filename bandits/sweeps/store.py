"""A sweep on disk: a Zarr store of its results, chunk by chunk, and a ledger of what is done.

The results are arrays with the axes of the grid as dimensions; `xarray.open_zarr` reads them as one
labelled dataset, also while the sweep runs: what is not done yet is NaN. A chunk is a box of the
grid whose runs follow one another. Its files are written first, each aside and then renamed; then
its SHA-256 enters the ledger. A chunk without a digest, or with another one, is not done.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
import zarr
from rich.filesize import decimal

from bandits.sweeps.grid import Grid, Place
from theory.checks import InvalidInput

try:
    import fcntl
except ImportError:  # not POSIX: writes stay whole, and two sweeps of one store do the work twice
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
"""Of the store; another one is refused."""

IDENTITY = "modeseek"
"""The attribute that says which sweep a store holds."""

LEDGER = "ledger/sha256"
DIGEST_BYTES = hashlib.sha256().digest_size

SHOWN = 4
"""Differences between two sweeps that a message shows."""

FEW = 4
"""A longer list is abbreviated where two descriptions are compared."""

CHUNK_BYTES = 2**23
"""Results in a chunk, at most."""

CHUNKS = 128
"""A sweep is cut into about so many chunks at least, so that little is lost with one,"""

LEAST_CHUNK = 256
"""unless they would hold fewer runs than this."""


@dataclass(frozen=True)
class Chunk:
    """A box of runs of one program.

    Attributes:
      number: in the ledger.
      place: of the program in the grid.
      first, last: of its runs, the last one excluded.
      box: its place in the arrays, a slice for every axis of the grid.
      shape: of the box.
    """

    number: int
    place: Place
    first: int
    last: int
    box: tuple[slice, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How a grid and what its runs return lie in a store.

    Attributes:
      grid: the axes.
      results: shapes and types of what a run returns.
      pieces: of every numeric axis, how many values a chunk holds: 1 up to some axis, all after it.
    """

    grid: Grid
    results: Mapping[str, jax.ShapeDtypeStruct]
    pieces: tuple[int, ...]

    @classmethod
    def fit(
        cls, grid: Grid, results: Mapping[str, jax.ShapeDtypeStruct], chunk_runs: int | None = None
    ) -> "Layout":
        """Chunks sized from the shapes, or of about so many runs."""
        lengths = [len(axis) for axis in grid.numeric]
        run_bytes = max(1, sum(math.prod(r.shape) * _stored(r).itemsize for r in results.values()))
        small = max(LEAST_CHUNK, math.ceil(math.prod(grid.shape) / CHUNKS))
        size = chunk_runs or min(CHUNK_BYTES // run_bytes, small)
        pieces = []
        for length in reversed(lengths):
            pieces.append(min(length, max(1, size)))
            # Once an axis is cut, those before it go one value at a time: boxes stay contiguous.
            size = size // length if size >= length else 0
        return cls(grid, results, tuple(reversed(pieces)))

    @property
    def chunks_per_program(self) -> int:
        """Number of boxes."""
        return math.prod(self._counts())

    @property
    def num_programs(self) -> int:
        """That are compiled."""
        return math.prod(len(axis) for axis in self.grid.axes if axis.is_static)

    @property
    def num_chunks(self) -> int:
        """Of all programs."""
        return self.chunks_per_program * self.num_programs

    @property
    def num_bytes(self) -> int:
        """Of all results, before compression."""
        runs = math.prod(self.grid.shape)
        return runs * sum(math.prod(r.shape) * _stored(r).itemsize for r in self.results.values())

    def chunks(self) -> Iterator[Chunk]:
        """Every chunk, program by program, in the order of their runs."""
        lengths = tuple(len(axis) for axis in self.grid.numeric)
        for number, (_, place) in enumerate(self.grid.programs()):
            for i in range(self.chunks_per_program):
                begins, ends = self._corners(i)
                first = int(np.ravel_multi_index(begins, lengths)) if lengths else 0
                sizes = [end - at for at, end in zip(begins, ends, strict=True)]
                numeric = iter(zip(begins, ends, strict=True))
                box = tuple(
                    slice(*next(numeric)) if at is None else slice(at, at + 1) for at in place
                )
                yield Chunk(
                    number * self.chunks_per_program + i,
                    place,
                    first,
                    first + math.prod(sizes),
                    box,
                    tuple(part.stop - part.start for part in box),
                )

    def array_chunks(self) -> tuple[int, ...]:
        """Lengths of a chunk along the axes of the grid."""
        pieces = iter(self.pieces)
        return tuple(1 if axis.is_static else next(pieces) for axis in self.grid.axes)

    def _corners(self, number: int) -> tuple[list[int], list[int]]:
        """Where a box begins on every numeric axis, and where it ends."""
        counts = self._counts()
        at = [int(i) for i in np.unravel_index(number, counts)] if counts else []
        begins = [i * piece for i, piece in zip(at, self.pieces, strict=True)]
        ends = [
            min(begin + piece, len(axis))
            for begin, piece, axis in zip(begins, self.pieces, self.grid.numeric, strict=True)
        ]
        return begins, ends

    def _counts(self) -> tuple[int, ...]:
        return tuple(
            math.ceil(len(axis) / piece)
            for axis, piece in zip(self.grid.numeric, self.pieces, strict=True)
        )


class Variable(NamedTuple):
    """What is said of a result: its own dimensions, and attributes such as units."""

    dims: Sequence[str]
    attributes: Mapping[str, Any]


class Ledger:
    """The digests of the chunks that are done."""

    def __init__(self, array: Any):
        self._array = array

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """That of the store at a path."""
        group: Any = zarr.open_group(path, mode="r", zarr_format=2)
        return cls(group[LEDGER])

    def entry(self, chunk: Chunk) -> bytes:
        """Its digest; empty where there is none, or none that can be read."""
        try:
            digest = np.asarray(self._array[chunk.number]).tobytes()
        except Exception:  # codecs raise what they like for what was cut short or altered
            return b""
        return digest if any(digest) else b""

    def enter(self, chunk: Chunk, digest: bytes) -> None:
        """A chunk is done."""
        self._array[chunk.number : chunk.number + 1] = np.frombuffer(digest, np.uint8)[None]

    def unfinished(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Those without a digest."""
        return [chunk for chunk in chunks if not self.entry(chunk)]


class Store:
    """A store that is open for writing. `create_or_open` makes one; `close` lets others have it."""

    def __init__(self, path: Path, layout: Layout, lock: "Lock"):
        self.path = path
        self.layout = layout
        self._lock = lock
        group: Any = zarr.open_group(path, mode="r+", zarr_format=2)
        # A chunk of NaN is written too: its bits would be lost otherwise.
        self._arrays = {
            name: group[name].with_config({"write_empty_chunks": True}) for name in layout.results
        }
        self.ledger = Ledger(group[LEDGER])

    def share(self) -> None:
        """Let other processes of this job write too; no other job can, while one of them does."""
        self._lock.share()

    def close(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def unfinished(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Those that are not done, or whose files are not what the ledger says."""
        return [
            chunk
            for chunk in chunks
            if not (digest := self.ledger.entry(chunk)) or digest != self._digest(chunk)
        ]

    def _digest(self, chunk: Chunk) -> bytes:
        """Of what the files of a chunk hold; empty where they cannot be read."""
        try:
            return _digest([array[chunk.box] for array in self._arrays.values()])
        except Exception:  # as above
            return b""

    def write(self, chunk: Chunk, values: Mapping[str, np.ndarray]) -> None:
        """The results of all runs of a chunk, ``[runs, ...]``, and then its digest."""
        boxed = {
            name: np.ascontiguousarray(value, array.dtype).reshape(chunk.shape + value.shape[1:])
            for (name, array), value in zip(
                self._arrays.items(), (values[name] for name in self._arrays), strict=True
            )
        }
        for name, value in boxed.items():
            self._arrays[name][chunk.box] = value
        self.ledger.enter(chunk, _digest(list(boxed.values())))


def create_or_open(
    path: Path,
    layout: Layout,
    identity: Mapping[str, Any],
    template: xr.Dataset,
    variables: Mapping[str, Variable],
) -> Store:
    """The store of a sweep, locked: a new one, or the one that an earlier call began.

    Args:
      path: a folder, whose name ends as you like; missing, or a store of the same sweep.
      layout: of a new store.
      identity: which sweep it is; what another one would have otherwise.
      template: coordinates.
      variables: what is said of every result.

    Raises InvalidInput for a path that is something else, another sweep's, in use, or cannot be
    written.
    """
    with readable_errors(path):
        if not path.exists():
            lock = _create(path, layout, identity, template, variables)
        else:
            lock = Lock.take(path)
        try:
            for left in path.rglob("*.partial"):  # of a process that was killed while it wrote
                left.unlink()
            return Store(path, _layout_of(path, layout, identity), lock)
        except BaseException:
            lock.release()
            raise


def open_shared(path: Path, layout: Layout, identity: Mapping[str, Any]) -> Store:
    """The store that another process of the same job has made and shares."""
    with readable_errors(path):
        if not path.exists():
            raise InvalidInput(f"{path} was not made by process 0, whose message says why")
        return Store(path, _layout_of(path, layout, identity), Lock.take(path, shared=True))


def read_layout(path: Path, layout: Layout, identity: Mapping[str, Any]) -> Layout:
    """The layout of the store at a path, if there is one; the given layout otherwise."""
    with readable_errors(path):
        return _layout_of(path, layout, identity) if path.exists() else layout


def _create(
    path: Path,
    layout: Layout,
    identity: Mapping[str, Any],
    template: xr.Dataset,
    variables: Mapping[str, Variable],
) -> "Lock":
    """Made aside, with the lock on the folder, which keeps it when the folder takes its place."""
    require_space(path, layout)
    aside = path.with_name(f"{path.name}.new")
    aside.mkdir(parents=True, exist_ok=True)
    lock = Lock.take(aside)
    try:
        for left in aside.iterdir():  # of one that was killed here
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        marked = template.assign_attrs({IDENTITY: json.dumps(identity)})
        marked.to_zarr(aside, mode="a", zarr_format=2, consolidated=False)
        group = zarr.open_group(aside, mode="r+", zarr_format=2)
        outer = [axis.name for axis in layout.grid.axes]
        for name, result in layout.results.items():
            told = variables[name]
            attributes = {**told.attributes, "_ARRAY_DIMENSIONS": outer + list(told.dims)}
            group.create_array(
                name,
                shape=layout.grid.shape + result.shape,
                chunks=layout.array_chunks() + tuple(max(1, n) for n in result.shape),
                dtype=_stored(result),
                fill_value=np.nan,
                attributes=attributes,
            )
        group.create_array(
            LEDGER,
            shape=(layout.num_chunks, DIGEST_BYTES),
            chunks=(1, DIGEST_BYTES),
            dtype=np.uint8,
            fill_value=0,
            compressors=None,
        )
        zarr.consolidate_metadata(aside, zarr_format=2)
        try:
            aside.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise InvalidInput(f"another process has just made {path}") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        lock.release()
        raise
    return lock


def _layout_of(path: Path, layout: Layout, identity: Mapping[str, Any]) -> Layout:
    """The layout with the chunks of the store, once it is known to be of this sweep."""
    try:
        group: Any = zarr.open_group(path, mode="r", zarr_format=2)
        held = json.loads(group.attrs[IDENTITY])
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
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
    first = group[next(iter(layout.results))]
    pieces = [
        n for n, axis in zip(first.chunks, layout.grid.axes, strict=False) if not axis.is_static
    ]
    return Layout(layout.grid, layout.results, tuple(pieces))


def differences(held: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """One phrase for every place in which two nested descriptions differ."""
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


class Lock:
    """A lock on a folder, that of the process: it goes when the process does."""

    def __init__(self, descriptor: int | None):
        self._descriptor = descriptor

    @classmethod
    def take(cls, folder: Path, shared: bool = False) -> "Lock":
        """Raises InvalidInput where a process holds it that does not share it."""
        if fcntl is None:
            return cls(None)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                return cls(None)  # a file system without locks: as where there is no fcntl
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise InvalidInput(
                f"{folder} is being written by another process; wait for it, or stop it"
            ) from error
        return cls(descriptor)

    def share(self) -> None:
        """Let those have it too that share it. Raises InvalidInput where another job was quicker.

        The system gives the one lock back before it takes the other.
        """
        if self._descriptor is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidInput("another process has just taken the store; stop one") from error

    def release(self) -> None:
        """Let others have the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


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


def _stored(result: jax.ShapeDtypeStruct) -> np.dtype:
    """Everything is stored as floats, so that what is not done can be NaN."""
    dtype = np.dtype(result.dtype)
    return dtype if dtype.kind == "f" else np.dtype(np.float64)


def _digest(values: Sequence[np.ndarray]) -> bytes:
    hashed = hashlib.sha256()
    for value in values:
        hashed.update(np.ascontiguousarray(value).tobytes())
    return hashed.digest()
