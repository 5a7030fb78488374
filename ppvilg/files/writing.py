"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, replace: bool = True) -> Iterator[Path]:
    """A hidden path beside `path` to write to; it becomes `path` when the block ends, and is removed when it fails.

    The content is on the disk before the name is: a crash or a full disk leaves the old file or none.

    Raises:
        FileExistsError: `path` is there, with `replace=False`.
    """
    path = Path(path)
    if not replace and os.path.lexists(path):
        raise FileExistsError(f"{path} is there already")
    with _named(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".partial{path.suffix}", dir=path.parent)
        os.close(handle)
    partial = Path(name)
    try:
        with _named(path):
            yield partial
            _sync(partial)
            _open_to_others(partial)
            if replace:
                os.replace(partial, path)
            else:
                _place_new(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: str | bytes, replace: bool = True) -> None:
    """Writes text (UTF-8) or bytes as by `whole_file`."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with whole_file(path, replace) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def naming_disk_errors(place: str | os.PathLike) -> Iterator[None]:
    """A full or failing disk is an OSError that names `place`, whatever was being written, by SQLite too."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(errno.EIO, f"cannot be written to ({error})", os.fspath(place)) from error
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(place)) from error


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """An error of the system, a full disk say, names the file that was to be rather than the hidden one."""
    try:
        yield
    except OSError as error:
        hidden = error.filename is None or os.path.basename(error.filename).startswith(f".{path.name}.")
        if error.errno is None or not hidden:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _open_to_others(path: Path) -> None:
    """The rights that open() would have given: temporary files are their owner's alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _place_new(partial: Path, path: Path) -> None:
    """Gives the file its name unless somebody took that name meanwhile."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise FileExistsError(f"{path} is there already") from None
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(f"{path} is there already") from None
        os.replace(partial, path)
