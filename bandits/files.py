"""Files in and out: distributions are read strictly, results appear whole or not at all."""

import csv
import errno
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from theory.checks import InvalidInput, require_known


@dataclass(frozen=True)
class Vector:
    """One number an arm.

    Attributes:
      values: ``[K]``, float64.
      labels: the arms' names, or None where the file has none.
    """

    values: np.ndarray
    labels: tuple[str, ...] | None


def read_vector(path: Path) -> Vector:
    """Read one number an arm, from a ``.npy`` array or a CSV file.

    A CSV file holds one arm a line, ``value`` or ``label,value``; its first line may be a header,
    and blank lines and lines that start with ``#`` are skipped.

    Raises InvalidInput for a file that cannot be read or a line that is malformed, with its number.
    """
    try:
        if path.suffix == ".npy":
            return _read_npy(path)
        if path.suffix in (".csv", ".txt"):
            return _read_csv(path)
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from error
    raise InvalidInput(f"cannot read {path}: its name must end in .csv, .txt or .npy")


def align(values: Vector, name: str, reference: Vector) -> Vector:
    """``values`` in the order of the arms of ``reference``, where both files name their arms.

    Raises InvalidInput if they name different arms or differ in length.
    """
    if len(values.values) != len(reference.values):
        raise InvalidInput(
            f"{name} has {len(values.values)} arms but reference has {len(reference.values)}; "
            "they must match"
        )
    if values.labels is None or reference.labels is None:
        return Vector(values.values, reference.labels or values.labels)
    place = {label: i for i, label in enumerate(values.labels)}
    for label in reference.labels:
        if label not in place:
            raise InvalidInput(f"{name} has no arm {label!r}, which reference has; they must match")
    order = [place[label] for label in reference.labels]
    return Vector(values.values[order], reference.labels)


def read_preferences(path: Path, arms: Vector) -> np.ndarray:
    """Read pairs, one a line: ``winner,loser`` or ``winner,loser,count``, arms by name or number.

    The first line may be the header ``winner,loser``; a pair that stands there twice counts twice.

    Returns:
      ``[K, K]``, float64: [a, b] is how often a was preferred to b.

    Raises InvalidInput for a file that cannot be read or holds no pairs, and for a line that is
    malformed, names an unknown arm, or prefers an arm to itself, with its number.
    """
    names = arms.labels or tuple(str(i) for i in range(len(arms.values)))
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    try:
        rows = list(_rows(path))
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from error
    for i, (number, row) in enumerate(rows):
        where = f"{path}, line {number}"
        if not i and [cell.lower() for cell in row[:2]] == ["winner", "loser"]:
            continue
        if len(row) not in (2, 3):
            raise InvalidInput(f"{where}: {len(row)} columns; give winner,loser or with a count")
        for arm in row[:2]:
            try:
                require_known("arm", arm, names)
            except InvalidInput as error:
                raise InvalidInput(f"{where}: {error}") from None
        if row[0] == row[1]:
            raise InvalidInput(f"{where}: {row[0]!r} is preferred to itself; a pair needs two arms")
        count = _number(row[2]) if len(row) == 3 else 1.0
        if count is None or not 0 < count < np.inf:
            raise InvalidInput(f"{where}: the count is {row[2]!r}; it must be a number > 0")
        counts[place[row[0]], place[row[1]]] += count
    if not counts.any():
        raise InvalidInput(f"{path} holds no preferences; give one pair a line: winner,loser")
    return counts


@contextmanager
def whole_files(*paths: Path) -> Iterator[list[Path]]:
    """Names to write to; the files take their places together, once all of them are complete.

    Raises InvalidInput if one cannot be written; none of them is left behind then.
    """
    parts: list[Path] = []
    path = paths[0]
    try:
        for path in paths:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            handle, name = tempfile.mkstemp(f"-{path.name}", ".part-", path.parent)
            os.close(handle)
            parts.append(Path(name))
        yield parts
        for path, part in zip(paths, parts, strict=True):
            part.chmod(0o666 & ~_umask())
            os.replace(part, path)
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to; the file takes its place only once it is complete."""
    with whole_files(path) as (part,):
        yield part


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder within ``folder`` for what is not complete yet; in the end it is removed."""
    try:
        scratch = tempfile.TemporaryDirectory("", ".part-", folder, ignore_cleanup_errors=True)
    except OSError as error:
        raise InvalidInput(f"cannot write to {folder}: {error.strerror or error}") from error
    with scratch as path:
        yield Path(path)


def move_files(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Where the files are, once all of them stand in ``folder``; they take their places together.

    Raises InvalidInput if one cannot.
    """
    places = [folder / path.name for path in paths]
    with whole_files(*places) as parts:
        for path, part in zip(paths, parts, strict=True):
            os.replace(path, part)
    return places


def make_folder(path: Path) -> None:
    """Make the folder, and refuse one that cannot be written before any work is done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise InvalidInput(
            f"cannot write to the folder {path}: {reason}; choose another"
        ) from error


def _read_npy(path: Path) -> Vector:
    with path.open("rb") as file:
        try:
            array = np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # NumPy raises a dozen kinds for damaged files
            raise InvalidInput(f"cannot read {path}: it is not a .npy array of numbers") from error
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise InvalidInput(f"{path} must hold a one-dimensional array of numbers, one an arm")
    return Vector(array.astype(np.float64), None)


def _read_csv(path: Path) -> Vector:
    values: list[float] = []
    labels: dict[str, None] = {}  # in order, and quick to look up
    columns = 0
    for number, row in _rows(path):
        where = f"{path}, line {number}"
        value = _number(row[-1])
        if value is None and not columns and _is_name(row[-1]):  # the header names no arm
            columns = len(row)
            continue
        if value is None:
            raise InvalidInput(f"{where}: {row[-1]!r} is not a number")
        columns = columns or len(row)
        if len(row) != columns or columns > 2:
            raise InvalidInput(f"{where}: {len(row)} columns; give one value an arm or label,value")
        if columns == 2 and row[0] in labels:
            raise InvalidInput(f"{where}: the arm {row[0]!r} stands there twice")
        values.append(value)
        labels[row[0]] = None
    if not values:
        raise InvalidInput(f"{path} holds no arms; give one value a line, or label,value")
    return Vector(np.array(values), tuple(labels) if columns == 2 else None)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row that holds any, with the number of the line that it starts on."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InvalidInput(f"{path}, line {line}: it is not plain CSV text (not UTF-8)") from error
    source = _Lines(text)
    reader = csv.reader(source, skipinitialspace=True, strict=True)
    while True:
        source.in_row = False
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            where = f"{path}, line {source.row_start}"
            raise InvalidInput(f"{where}: it is not plain CSV text ({error})") from error
        if any(cells):
            yield source.row_start, cells


class _Lines:
    """The lines of a text without its comments; a line inside a quoted cell is no comment."""

    def __init__(self, text: str):
        self._lines = enumerate(io.StringIO(text, newline=None), start=1)
        self.in_row = False
        self.row_start = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        for number, line in self._lines:
            if self.in_row:
                return line
            if not line.lstrip().startswith("#"):
                self.in_row, self.row_start = True, number
                return line
        raise StopIteration


def _is_name(text: str) -> bool:
    return text[:1].isalpha() or text[:1] == "_"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
