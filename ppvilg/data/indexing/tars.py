"""Walks over the headers of a tar; says where one is cut off, broken or not a tar at all (tarfile would just end)."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ppvilg.files import LFS_POINTER

from ..records import MAX_TEXT_BYTES

_BLOCK = 512
# First bytes of what is taken for a shard by its name: what it is, and the remedy.
_NOT_A_TAR = {
    LFS_POINTER: "is a Git LFS pointer, not the shard itself: run 'git lfs pull'",
    b"\x1f\x8b": "is compressed with gzip and cannot be read by offset: gunzip it",
    b"BZh": "is compressed with bzip2 and cannot be read by offset: bunzip2 it",
    b"\xfd7zXZ\0": "is compressed with xz and cannot be read by offset: unxz it",
    b"\x28\xb5\x2f\xfd": "is compressed with Zstandard and cannot be read by offset: unzstd it",
    b"\x04\x22\x4d\x18": "is compressed with LZ4 and cannot be read by offset: unlz4 it",
    b"PK\x03\x04": "is a ZIP archive: unpack it, and pack its files as a .tar",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive: unpack it, and pack its files as a .tar",
    b"PAR1": "is a Parquet table: img2dataset writes the pictures as .tar with --output_format webdataset",
    b"\x89HDF": "is an HDF5 file: shards are .tar files",
}
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")


@dataclass(frozen=True)
class Member:
    """A file in a tar."""

    name: str
    offset: int  # of the data
    length: int
    header: int = 0  # CRC-32 of the block before the data
    problem: str = ""


class TarDamage(Exception):
    """The walk through a tar cannot go on: (offset, reason, name of the member that was hit or "")."""


def what_else(start: bytes) -> str | None:
    """What a file that begins with `start` is, when it is known to be no tar."""
    return next((reason for magic, reason in _NOT_A_TAR.items() if start.startswith(magic)), None)


def walk_tar(file, file_length: int) -> Iterator[Member]:
    """Yield the files of an open tar, also of several written one after another; TarDamage at a cut or broken header.
    """
    offset, overrides, ended = 0, {}, False
    while True:
        file.seek(offset)
        header_offset, block = offset, file.read(_BLOCK)
        if block == bytes(_BLOCK):  # the end-of-archive mark
            offset, ended = _skip_zeros(file, offset), True
            continue
        if not block and ended:
            return
        info = _parse_header(block, offset)
        name = overrides.get("path", info.name)
        try:
            length = int(overrides.get("size", info.size))
        except ValueError as error:
            raise TarDamage(offset, f"corrupt header (size {overrides['size']!r})", name) from error
        data_offset = offset + _BLOCK
        if length < 0 or data_offset + length > file_length:
            raise TarDamage(header_offset, f"cut off inside member {name!r}", name)
        offset, ended = data_offset + -(-length // _BLOCK) * _BLOCK, False
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            overrides = overrides | _read_overrides(file, header_offset, info.type, length)
            continue
        if info.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            continue
        if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            yield Member(name, data_offset, length, zlib.crc32(block))
        elif not info.isdir():
            yield Member(name, data_offset, 0, 0, f"not a plain file (tar type {info.type!r})")
        overrides = {}


def _parse_header(block: bytes, offset: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        if not block:
            raise TarDamage(offset, "cut off: the end-of-archive mark is missing", "") from error
        what = "cut off inside a header" if len(block) < _BLOCK else f"corrupt header ({error})"
        raise TarDamage(offset, what if offset else f"not a tar file: {what}", "") from error


def _skip_zeros(file, offset: int) -> int:
    """The offset of the first block from `offset` on that holds anything, or of the end of the file."""
    file.seek(offset)
    while piece := file.read(2048 * _BLOCK):
        held = len(piece) - len(piece.lstrip(b"\0"))
        if held < len(piece):
            return offset + held // _BLOCK * _BLOCK
        offset += len(piece)
    return offset


def _read_overrides(file, header_offset: int, kind: bytes, length: int) -> dict[str, str]:
    """The "path" and "size" that a pax or GNU long-name header gives the next member."""
    if length > MAX_TEXT_BYTES:
        raise TarDamage(header_offset, f"corrupt header (extension of {length} bytes)", "")
    data = file.read(length)
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    overrides, position = {}, 0
    while position < length and data[position]:
        match = re.compile(rb"(\d{1,7}) ([^=]+)=").match(data, position)  # "<length of record> <name>=<value>\n"
        if match is None or int(match[1]) <= match.end() - position:
            raise TarDamage(header_offset, "corrupt header (pax record)", "")
        end = position + int(match[1])
        if match[2] in (b"path", b"size"):
            overrides[match[2].decode()] = data[match.end() : end - 1].decode("utf-8", "surrogateescape")
        position = end
    return overrides
