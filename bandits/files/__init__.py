"""Files out: results appear whole or not at all."""

import errno
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from theory.checks import InvalidInput


@contextmanager
def whole_files(*paths: Path) -> Iterator[list[Path]]:
    """Yield names to write to; the files take their places together, once all are complete.

    Raises InvalidInput if one cannot be written; none of them is left behind then.
    """
    parts: list[Path] = []
    path = paths[0]
    try:
        for path in paths:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            part = path.with_name(f".part-{secrets.token_hex(4)}-{path.name}")
            part.touch(exist_ok=False)
            parts.append(part)
        yield parts
        for path, part in zip(paths, parts, strict=True):
            os.replace(part, path)
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a name to write to; the file takes its place only once it is complete."""
    with whole_files(path) as (part,):
        yield part


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder within ``folder`` for what is not complete yet; it is removed in the end."""
    try:
        scratch = tempfile.TemporaryDirectory("", ".part-", folder, ignore_cleanup_errors=True)
    except OSError as error:
        raise InvalidInput(f"cannot write to {folder}: {error.strerror or error}") from error
    with scratch as path:
        yield Path(path)


def move_files(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Move files into ``folder``, where they take their places together; return their new paths.

    Raises InvalidInput if one cannot be moved.
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
