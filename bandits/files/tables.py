"""Tables from files: rows of any common text format, and one number an arm.

The content decides the format, never the name, so pipes and unusual endings work. What could be
read in two ways is refused, and what is left out is said in a `FileWarning`.
"""

import codecs
import csv
import io
import itertools
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from theory.checks import InvalidInput, require_known

DELIMITERS = "\t;|,"
"""Delimiters in order of preference: labels and decimals hold commas most often."""

NUMBER = re.compile(r"[+-]?(\d+(\.\d*|,\d+)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)
"""A number in plain digits, with a decimal point or a decimal comma."""

THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}", re.ASCII)
"""A number whose comma or point may separate decimals or thousands."""

MISSING = re.compile(
    r"#?n\W?a\W?|n\.d\.|nan|null|none|nil|missing|unknown|undefined|empty|blank|tbd|inf|infinity|"
    r"true|false",
    re.IGNORECASE,
)
"""A word in the place of a number, which therefore is no name of a column."""

ARCHIVES = {
    b"\x1f\x8b": "compressed by gzip",
    b"PK\x03\x04": "a zip archive, as .npz and .xlsx are",
}
"""First bytes of files that hold other files."""

LABEL = re.compile("label|arm|name|word|id|token|letter|tag|item|response")
VALUE = re.compile("value|count|n|p|prob|probability|weight|freq|frequency|reward|score|log_?prob")
"""Names of columns that say what the columns hold."""

MOST_LETTERS = 2**31 - 1
"""Most letters of a cell; the limit of `csv` itself is below the length of some texts."""

MOST_SAID = 8
"""Number of lines or columns that a warning lists."""


class FileWarning(UserWarning):
    """A file was read, but something in it was left out or needed a guess."""


@dataclass(frozen=True)
class Vector:
    """One number an arm.

    Attributes:
      values: ``[K]``, float64.
      labels: the arms' names, or None where the file has none.
    """

    values: np.ndarray
    labels: tuple[str, ...] | None


@dataclass(frozen=True)
class Table:
    """Rows of a file, each with its place.

    Attributes:
      source: the file, as errors name it.
      rows: cells of each row: stripped text, or whatever JSON and Parquet hold.
      places: line or record of each row, from 1.
      unit: what a place counts: line, record or row.
      header: names of the columns, or None where the first row may still be the header.
      delimiter: what separates the cells of a text, if anything does.
      hashed: lines that start with ``#``, arms or comments: place and cells, none if malformed.
    """

    source: Path
    rows: Sequence[Sequence[Any]]
    places: Sequence[int]
    unit: str = "line"
    header: tuple[str, ...] | None = None
    delimiter: str | None = None
    hashed: Sequence[tuple[int, list[str]]] = ()

    def refuse(self, index: int, why: object) -> NoReturn:
        """Raise InvalidInput for a row, with its file and place."""
        raise InvalidInput(f"{self.source}, {self.unit} {self.places[index]}: {why}") from None

    def require(self, index: int, what: str, value: str, allowed: Collection[str]) -> None:
        """Refuse a row whose ``value`` is not among the names that are allowed."""
        if value not in allowed:
            try:
                require_known(what, value, allowed)
            except InvalidInput as error:
                self.refuse(index, error)

    def say(self, what: str) -> None:
        """Warn about the file."""
        warnings.warn(FileWarning(f"{self.source}: {what}"), stacklevel=2)

    def say_columns(self, used: Collection[int]) -> None:
        """Warn about columns that are not used, if there are any."""
        names = [str(name) or "''" for name in self.header or ()]
        taken = [name for i, name in enumerate(names) if i in used]
        dropped = [name for i, name in enumerate(names) if i not in used]
        if dropped:
            self.say(f"took the columns {listed(taken)}; dropped {listed(dropped)}")

    def first(self) -> Sequence[Any]:
        """Return the names of the columns, or the cells that may be their names."""
        return self.header or (self.rows[0] if self.rows else ())

    def numbers(self, column: int) -> np.ndarray:
        """Return a column as finite numbers; refuse a cell that is none or that is ambiguous."""
        cells = [row[column] for row in self.rows]
        numbers = [self._number(i, cell) for i, cell in enumerate(cells)]
        commas, points = ([i for i, cell in enumerate(cells) if x in str(cell)] for x in ",.")
        if commas and points:
            first, second = sorted((commas[0], points[0]))
            why = f"{cells[second]!r} has another decimal sign than {cells[first]!r} in "
            self.refuse(second, f"{why}{self.unit} {self.places[first]}; use one of the two")
        sign, remedy = "comma", "write it with a decimal point or in digits"
        if self.delimiter == ";" and points:  # where decimals have commas
            sign, remedy = "point", "write 1234 or 1.2340, or separate by commas"
        doubtful = points if sign == "point" else commas
        if doubtful and all(THOUSANDS.fullmatch(cells[i]) for i in doubtful):
            why = f"the {sign} in {cells[doubtful[0]]!r} may be decimals or thousands; {remedy}"
            self.refuse(doubtful[0], why)
        return np.array(numbers, np.float64)

    def _number(self, index: int, cell: Any) -> float:
        if isinstance(cell, str) and NUMBER.fullmatch(cell):
            if "," in cell and self.delimiter == ",":
                self.refuse(index, f"{cell!r} has a comma; write decimals with a point")
            number = float(cell.replace(",", "."))
        elif isinstance(cell, int | float) and not isinstance(cell, bool):
            number = float(cell) if abs(cell) < 1e308 else np.inf
        elif isinstance(cell, str) and cell.endswith("%"):
            self.refuse(index, f"{cell!r} is a percentage; give a plain number, such as 0.25")
        else:
            self.refuse(index, f"{cell!r} is not a number; give one such as 12, 0.25 or 1e-3")
        if not np.isfinite(number):
            self.refuse(index, f"{cell!r} is not a finite number")
        return number

    def settle(
        self,
        is_header: Callable[[Sequence[Any]], bool],
        is_row: Callable[[Sequence[Any]], bool],
    ) -> "Table":
        """Return the table with its header apart, and with lines that start with ``#`` settled.

        Such a line is a row if it has a row's columns, no header follows it, and ``is_row`` agrees;
        the others are comments, and are said.

        Args:
          is_header: whether the cells of the first row name the columns.
          is_row: whether cells that start with ``#`` can be a row.
        """
        start = int(self.header is None and bool(self.rows) and is_header(self.rows[0]))
        top = self.places[0] if start else 0
        kept = {i: cells for i, cells in self.hashed if cells and i > top and is_row(cells)}
        columns = len(next(iter([*self.rows, *kept.values()]), ()))
        kept = {i: cells for i, cells in kept.items() if len(cells) == columns}
        if comments := [i for i, _ in self.hashed if i not in kept]:
            self.say(f"skipped {counted(comments, 'comment line')}")
        if spaced := [i for i, cells in kept.items() if cells[0][1:2].isspace()]:
            self.say(f"read {counted(spaced, 'line')} as arms, though comments may begin so")
        rows = dict(zip(self.places[start:], self.rows[start:], strict=True)) | kept
        places = sorted(rows)
        header = tuple(self.rows[0]) if start else self.header
        return replace(
            self, rows=[rows[i] for i in places], places=places, header=header, hashed=()
        )


def read_vector(path: Path) -> Vector:
    """Read one number an arm from a file of any format.

    The file is a ``.npy`` array, or a table (text with any delimiter, JSON, JSON lines, Parquet) of
    ``value`` or ``label,value``, with or without a header. Of more columns than two, the header
    must name one as a label and one as a value. JSON may also hold a list of numbers, or one object
    of labels and numbers.

    Raises:
      InvalidInput: the file cannot be read, or a line is malformed or ambiguous.
    """
    content = read_content(path)
    if isinstance(content, np.ndarray):
        if content.ndim != 1:
            raise InvalidInput(f"{path} must hold a one-dimensional array of numbers, one an arm")
        return Vector(content, None)
    tables = read_tables(path, content)
    table = next(filter(_holds_numbers, tables), tables[0])
    table = table.settle(lambda cells: _names_value(table, cells), _is_hashed_arm)
    one_object = table.unit == "record" and table.header and len(table.rows) == 1
    if one_object and not _find_columns(table.first()):
        pairs = list(zip(table.first(), table.rows[0], strict=True))
        table = Table(path, pairs, range(1, len(pairs) + 1), table.unit)
    if not table.rows or not table.first():
        raise InvalidInput(f"{path} holds no arms; give one value a line, or label,value")
    label, value = _choose_columns(table)
    values = table.numbers(value)
    _refuse_year(table, values)
    if label is None:
        return Vector(values, None)
    return Vector(values, _read_labels(table, label, value))


def align(values: Vector, name: str, reference: Vector) -> Vector:
    """Return ``values`` in the order of the arms of ``reference``, where both files name theirs.

    Args:
      values: one number an arm.
      name: what the values are, as errors call them.
      reference: the arms in order.

    Raises:
      InvalidInput: the two name different arms or differ in length.
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
    return Vector(values.values[[place[label] for label in reference.labels]], reference.labels)


def read_content(path: Path) -> np.ndarray | bytes | str:
    """Read a file, a device or a pipe, once.

    Returns:
      The array of a ``.npy`` file, float64; the bytes of a Parquet file; the text of any other.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from error
    if content.startswith(b"PAR1"):
        return content
    return _load(path, content) if content.startswith(b"\x93NUMPY") else _decode(path, content)


def read_tables(path: Path, content: bytes | str) -> list[Table]:
    """Return the ways to read a file as a table, at least one, the likeliest first."""
    if isinstance(content, bytes):
        return [_read_parquet(path, content)]
    if content.lstrip()[:1] in ("[", "{"):
        try:
            return [_read_json(path, content)]
        except InvalidInput:
            # A label such as [UNK] may start a row; a quote, bracket or digit starts JSON.
            if re.match(r"\s*(\{\s*[\"'}]|\[\s*[\[{\"'\d.-])", content):
                raise
    return _read_delimited(path, content)


def read_frame(path: Path, frame: pd.DataFrame) -> Table:
    """Return the table of a DataFrame, with its index where that has names; ``path`` is for errors.

    A missing value, which pandas writes as NaN, is no text and no number.
    """
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    lists = frame.map(lambda cell: cell.tolist() if isinstance(cell, np.ndarray) else cell)
    return read_values(path, lists.to_dict("records"), range(1, len(frame) + 1), "row")


def read_values(path: Path, values: list[Any], places: Sequence[int], unit: str) -> Table:
    """Return the table of values from JSON: records, rows, or the cells of one column."""
    table = Table(path, values, places, unit)
    records = [isinstance(value, dict) for value in values]
    if any(records):
        if not all(records):
            table.refuse(records.index(False), "it is no object, as others are")
        header = tuple(dict.fromkeys(itertools.chain.from_iterable(values)))
        rows = [[value.get(name) for name in header] for value in values]
        return replace(table, rows=rows, header=header)
    rows = [value if isinstance(value, list) else [value] for value in values]
    for i, row in enumerate(rows):
        if not row or len(row) != len(rows[0]):
            table.refuse(i, f"{len(row)} columns, but the first row has {len(rows[0])}")
    return replace(table, rows=rows)


def read_label(cell: Any) -> str | None:
    """Return a cell as the name of an arm, or None if it cannot be one."""
    if isinstance(cell, str):
        # JSON can hold half of a character of UTF-16, which no file can.
        return None if re.search("[\ud800-\udfff]", cell) else cell.strip()
    return str(cell) if isinstance(cell, int) and not isinstance(cell, bool) else None


def normalise(name: Any) -> str:
    """Return the name of a column in small letters, with ``_`` for spaces and dashes."""
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


def is_name(cell: Any) -> bool:
    """Return whether a cell can be the name of a column, and not a number gone wrong."""
    return (
        isinstance(cell, str)
        and (cell[:1].isalpha() or cell[:1] == "_")
        and not MISSING.fullmatch(cell)
        and not re.search(r"\W\d", cell)
    )


def is_number(cell: Any) -> bool:
    """Return whether a cell is a number, in any dialect."""
    return isinstance(cell, int | float) or bool(NUMBER.fullmatch(str(cell)))


def listed(items: Sequence[object]) -> str:
    """Return the first items, separated by commas."""
    shown = list(map(str, items[:MOST_SAID]))
    return ", ".join([*shown, "…"] if len(items) > MOST_SAID else shown)


def counted(places: Sequence[int], what: str) -> str:
    """Return how many there are of something, and where."""
    return f"{len(places)} {what}{'s' * (len(places) != 1)} ({listed(places)})"


def _load(path: Path, content: bytes) -> np.ndarray:
    try:
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # NumPy raises a dozen kinds for damaged files
        raise InvalidInput(f"cannot read {path}: it is not a .npy array of numbers") from error
    if array.dtype.kind not in "iuf":
        raise InvalidInput(f"{path} holds {array.dtype}; it must hold numbers")
    array = array.astype(np.float64)
    for entry in np.argwhere(~np.isfinite(array))[:1]:
        where = ", ".join(map(str, entry))
        raise InvalidInput(f"{path}, entry {where}: {array[tuple(entry)]} is not a finite number")
    return array


def _decode(path: Path, content: bytes) -> str:
    """Decode UTF-8, or UTF-16 with its mark; refuse another encoding, with the line."""
    for sign, kind in ARCHIVES.items():
        if content.startswith(sign):
            raise InvalidInput(f"{path} is {kind}; unpack it, and give the file in it")
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        text = content.decode("utf-16" if content.startswith(marks) else "utf-8-sig")
        before, null, _ = text.partition("\0")
        if not null:
            return text
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("latin-1")
    line = before.count("\n") + 1
    raise InvalidInput(f"{path}, line {line}: it is not text in UTF-8; save it as UTF-8")


def _read_parquet(path: Path, content: bytes) -> Table:
    try:
        frame = pd.read_parquet(io.BytesIO(content), engine="pyarrow")
    except ImportError as error:
        why = "it is a Parquet file, which needs pyarrow; install it with: pip install pyarrow"
        raise InvalidInput(f"cannot read {path}: {why}") from error
    except Exception as error:  # pyarrow raises many kinds for damaged files
        raise InvalidInput(f"cannot read {path}: it is a damaged Parquet file") from error
    return read_frame(path, frame)


def _read_json(path: Path, text: str) -> Table:
    """Return the table of one document, or of one value a line."""
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        _JSON.decode(lines[0][1])
        several = len(lines) > 1
    except (ValueError, RecursionError):
        several = False  # one document on several lines
    if several:
        values = [_decode_json(path, line, i) for i, line in lines]
        return read_values(path, values, [i for i, _ in lines], "line")
    document = _decode_json(path, text)
    values = document if isinstance(document, list) else [document]
    return read_values(path, values, range(1, len(values) + 1), "record")


def _decode_json(path: Path, text: str, line: int | None = None) -> Any:
    try:
        return _JSON.decode(text)
    except json.JSONDecodeError as error:
        line, why = line or error.lineno, f"it is not JSON ({error.msg})"
    except (ValueError, RecursionError) as error:  # a key twice, long digits, deep brackets
        why = str(error)
    raise InvalidInput(f"{path}, line {line}: {why}" if line else f"{path}: {why}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = Counter(key for key, _ in pairs)
    for key in (key for key, count in seen.items() if count > 1):
        raise InvalidInput(f"the key {key!r} stands there twice")
    return dict(pairs)


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=str)
"""A decoder that keeps NaN as text, which is no number, and refuses a key that stands twice."""


def _read_delimited(path: Path, text: str) -> list[Table]:
    """Return a table for each delimiter that gives all rows the same columns."""
    tables, failures = [], []
    for delimiter in DELIMITERS:
        if delimiter in text or delimiter == ",":
            table, failure = _split(path, text, delimiter)
            if failure:
                failures.append((failure[0], len(table.first()) > 1, failure[1]))
            else:
                tables.append(table)
    several = [table for table in tables if len(table.first()) != 1]
    # The delimiter that fails last is the likeliest; a tie falls to one that line 1 has.
    if failures and not several:
        line, _, why = max(failures, key=lambda failure: failure[:2])
        raise InvalidInput(f"{path}, line {line}: {why}")
    return several or [replace(tables[-1], delimiter=None)]


def _split(path: Path, text: str, delimiter: str) -> tuple[Table, tuple[int, str] | None]:
    """Split a text; return its table, and the line and the reason where that failed."""
    dialect: dict[str, Any] = {"delimiter": delimiter, "skipinitialspace": True, "strict": True}
    rows: list[list[str]] = []
    places: list[int] = []
    hashed: list[tuple[int, list[str]]] = []
    failure = None
    start = 0  # line at which the present row starts, or 0 between rows

    def lines() -> Iterator[str]:
        """Yield all lines but those that start a row with ``#``; a quoted cell may hold such."""
        nonlocal start
        for place, line in enumerate(io.StringIO(text, newline=None), 1):
            if not start and line.lstrip().startswith("#"):
                hashed.append((place, _split_line(line, dialect)))
            else:
                start = start or place
                yield line

    csv.field_size_limit(MOST_LETTERS)
    try:
        for cells in csv.reader(lines(), **dialect):
            row = [cell.strip() for cell in cells]
            if any(row):
                rows.append(row)
                places.append(start)
            start = 0
    except csv.Error as error:
        failure = start, f"it is not plain CSV text ({error})"
    ragged = next((i for i, row in enumerate(rows) if len(row) != len(rows[0])), None)
    if ragged is not None:
        ends = f" and ends in {delimiter!r}" if not rows[ragged][-1] else ""
        why = f"{len(rows[ragged])} columns{ends}, but line {places[0]} has {len(rows[0])}"
        failure = places[ragged], f"{why}; every line needs the same"
    elif not failure and rows and all(set(row[0][-1:]) & set(DELIMITERS) for row in rows):
        failure = places[0], f"two delimiters follow each other: {rows[0][0][-1]!r}, {delimiter!r}"
    return Table(path, rows, places, delimiter=delimiter, hashed=hashed), failure


def _split_line(line: str, dialect: dict[str, Any]) -> list[str]:
    """Return the cells of a line, or none if it is malformed."""
    try:
        return [cell.strip() for cell in next(csv.reader([line], **dialect))]
    except csv.Error:
        return []


def _holds_numbers(table: Table) -> bool:
    """Return whether a column but the first, or the only one, holds a number."""
    rows = itertools.chain(table.rows, (cells for _, cells in table.hashed))
    return any(is_number(cell) for row in rows for cell in row[len(row) > 1 :])


def _is_hashed_arm(cells: Sequence[Any]) -> bool:
    """Return whether a line is an arm: behind ``# `` it needs a number, behind ``#`` no name."""
    if cells[0][1:2].isspace():
        return is_number(cells[-1])
    return not is_name(cells[-1].lstrip("#"))


def _find_columns(names: Sequence[Any]) -> tuple[int | None, int] | None:
    """Return the columns that the names say: one label, if any, and one value."""
    labels, values = (
        [i for i, name in enumerate(names) if kind.fullmatch(normalise(name))]
        for kind in (LABEL, VALUE)
    )
    if len(labels) == len(values) == 1:
        return labels[0], values[0]
    return (None, 0) if len(names) == 1 and values else None


def _names_value(table: Table, cells: Sequence[Any]) -> bool:
    """Return whether cells are a header; warn of one whose names say nothing."""
    if _find_columns(cells):
        return True
    if len(cells) > 2 or not is_name(cells[-1]) or not isinstance(cells[0], str):
        return False
    if not any(x.fullmatch(normalise(cell)) for cell in cells for x in (LABEL, VALUE)):
        table.say(f"took {table.unit} {table.places[0]}, {','.join(cells)!r}, for the header")
    return True


def _choose_columns(table: Table) -> tuple[int | None, int]:
    """Return the columns of labels, if any, and of values."""
    names = table.first()
    found = _find_columns(names) if table.header else None
    only_values = table.header and all(VALUE.fullmatch(normalise(name)) for name in names)
    if len(names) == 1:
        return None, 0
    if len(names) == 2 and not only_values:
        return found or (0, 1)
    ends = "" if str(names[-1]).strip() else ", the last of them empty"
    if ends or not found:
        why = f"{len(names)} columns ({listed(names)}){ends}"
        table.refuse(0, f"{why}; give value or label,value, or a header that names one of each")
    table.say_columns([column for column in found if column is not None])
    return found


def _refuse_year(table: Table, values: np.ndarray) -> None:
    """Refuse a first line such as ``country,2020``, which may be a header or an arm."""
    years = (values == np.round(values)) & (values >= 1900) & (values <= 2100)
    if table.unit == "line" and table.header is None and years[0] and not years[1:].any():
        why = f"{values[0]:g} may be a value or the year of a header"
        table.refuse(0, f"{why}; add a header line above it, such as label,value")


def _read_labels(table: Table, column: int, value: int) -> tuple[str, ...]:
    """Return the names of the arms; refuse one that is missing, twice, or holds a value, too."""
    first: dict[str, int] = {}
    for i, row in enumerate(table.rows):
        label = read_label(row[column])
        if not label:
            table.refuse(i, f"the label is {label!r}; each arm needs a name, as text")
        if first.setdefault(label, i) != i:
            decimals = NUMBER.fullmatch(f"{label},{row[value]}")
            hint = "; write decimals with a point" if decimals else ""
            line = f"{table.unit} {table.places[first[label]]}"
            table.refuse(i, f"the arm {label!r} stands there twice, also in {line}{hint}")
    labels = tuple(first)
    if table.delimiter == "," and all(re.search(r"[\t;|]\s*[+-]?\d+$", x) for x in labels):
        why = f"{labels[0]!r} ends in a number after another delimiter; use one in all lines"
        table.refuse(0, why)
    return labels
