"""Texts that people wrote, and what is wrong with a file that a library cannot read."""

from __future__ import annotations

import os
from pathlib import Path

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_text(path: str | os.PathLike, limit: int = 64 * 2**20) -> str:
    """A UTF-8 text (a byte order mark is dropped).

    Raises:
        FileNotFoundError: no such file; it is a folder (IsADirectoryError) or may not be read (PermissionError).
        ValueError: not UTF-8, or larger than `limit` bytes; both name the file.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, a text file is needed")
    try:
        data = path.read_bytes() if path.stat().st_size <= limit else None
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except PermissionError:
        raise PermissionError(f"{path} may not be read by this user") from None
    if data is None:
        raise ValueError(f"{path} has more than {limit} bytes: it is no text of this kind")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} is UTF-16: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); it may be GBK: save it as UTF-8") from None


def read_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a UTF-8 text that hold something, without the white space around them; errors as `read_text`."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def damage_of(path: str | os.PathLike) -> str:
    """Why a file that should hold weights or the like cannot be read: a sentence that names it and the remedy."""
    path = Path(path)
    if not path.is_file():
        return f"{path} is missing"
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        return f"{path} is a Git LFS pointer, not the file itself: run 'git lfs pull' where it came from"
    if not size:
        return f"{path} is empty: copy or download it again"
    return f"{path} is cut off or damaged ({size} bytes): copy or download it again"
