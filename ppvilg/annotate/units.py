"""Units of work: one tar, or one folder of pictures. What each is made into, and which a process takes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ppvilg.data import Listing, find_shards, list_folder, list_shard
from ppvilg.data.index import HOME
from ppvilg.data.indexing import find_files, is_picture
from ppvilg.files import digest_of, file_sha256

SUFFIX = ".annotations.jsonl"
FOLDER_FILE = "annotations.jsonl"


@dataclass(frozen=True)
class Unit:
    """A tar or a folder of pictures, and the sidecar that is made of it."""

    path: str
    output: Path
    is_folder: bool = False

    def list(self) -> Listing:
        """Its samples, and what is wrong with it."""
        return list_folder(self.path) if self.is_folder else list_shard(self.path)

    def bytes(self) -> int:
        """Size of a tar; 0 for a folder."""
        return 0 if self.is_folder else os.path.getsize(self.path)

    def source(self, listing: Listing | None = None) -> dict:
        """What the sidecar was made of: name and SHA-256 of the tar, of a folder that of its file names and sizes."""
        if not self.is_folder:
            return {"file": os.path.basename(self.path), "bytes": self.bytes(), "sha256": file_sha256(self.path)}
        listing = listing or self.list()
        files = [(each.key, each.length, each.entry) for each in listing.samples]
        return {"folder": os.path.basename(os.path.abspath(self.path)), "samples": len(files),
                "sha256": digest_of(files)}  # fmt: skip


def find_units(data: str | os.PathLike, output: str | os.PathLike) -> list[Unit]:
    """The units of a data set: one tar, a folder of tars, a pattern `x-{000..009}.tar`, or a folder of pictures.

    Raises:
        FileNotFoundError, PermissionError: what is not there or may not be read, by name.
        ValueError: two shards would have one sidecar, or a sidecar would become a second JSONL of its folder.
    """
    data, output = os.fspath(data), Path(output)
    shards = find_shards(data)
    if not shards:
        _check_folder(Path(data), output)
        if not any(is_picture(name) for name in find_files(data, skip=HOME)[0]):
            raise ValueError(f"{data} holds neither .tar shards nor pictures")
        return [Unit(data, output / FOLDER_FILE, is_folder=True)]
    names = [os.path.basename(shard).removesuffix(".tar") for shard in shards]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"several shards have the name {twice[0]}.tar, and so one sidecar: annotate their folders one "
                         "by one, each with an --output of its own")  # fmt: skip
    return [Unit(shard, output / f"{name}{SUFFIX}") for shard, name in zip(shards, names)]


def _check_folder(folder: Path, output: Path) -> None:
    """The sidecar of a folder may be its only JSONL, or lie elsewhere."""
    others = [path.name for path in folder.glob("*.jsonl") if path.name != FOLDER_FILE]
    own = folder / FOLDER_FILE
    if output.resolve() == folder.resolve() and (others or own.exists()):
        name = others[0] if others else own.name
        raise ValueError(f"{folder} has a JSONL of its own, {name}: choose an --output elsewhere")


def share_of(units: Sequence[Unit], index: int, count: int) -> list[Unit]:
    """Every count-th unit from number `index` on: processes that were told their number need not talk to each other."""
    if not 0 <= index < count:
        raise ValueError(f"--shard-index {index} must be from 0 to {count - 1} with --num-shards {count}")
    if count > 1 and units and units[0].is_folder:
        raise ValueError(f"{units[0].path} is a folder of pictures and one unit of work: pack it as .tar shards to "
                         "share it between processes")  # fmt: skip
    return list(units[index::count])


def sidecars_not_read(units: Sequence[Unit]) -> list[str]:
    """Sidecars that lie beside the shards already, whose lines do not go into ours."""
    own = {unit.output.resolve() for unit in units}
    found = []
    for unit in units:
        if not unit.is_folder:
            folder, name = os.path.split(unit.path)
            found += [os.path.join(folder, FOLDER_FILE), os.path.join(folder, name.removesuffix(".tar") + SUFFIX)]
    return [path for path in dict.fromkeys(found) if os.path.isfile(path) and Path(path).resolve() not in own]
