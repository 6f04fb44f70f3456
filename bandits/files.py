"""Files out: results appear whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from theory.checks import InvalidInput


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
