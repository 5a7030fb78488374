"""Shards -> index. A sample is a shard and a key: another shard may have a sample of that key.

A shard follows the webdataset convention (what img2dataset writes): the members of a sample share their name up to the
first dot of the basename, `000012.jpg` + `000012.txt` + `000012.json`. Boxes, tags and further captions come from
sidecars (see annotations.py).
"""

from __future__ import annotations

import os

from tqdm import tqdm

from ppvilg.files import LFS_POINTER

from ..records import IMAGE_EXTENSIONS, MAX_TEXT_BYTES, OTHER_PICTURE_EXTENSIONS
from .annotations import Annotations, Sidecars
from .entries import Found, add, json_object, utf8
from .tars import Member, TarDamage, walk_tar, what_else
from .writer import IndexWriter

_HEADER_BYTES = 2**16  # of a JPEG hold its size, as a rule


def fill_from_shards(writer: IndexWriter, shards: list[str], sidecars: Sidecars) -> None:
    """Index shards in their order. ValueError when a sidecar has no header line or is no UTF-8 text."""
    if not _fill_once(writer, shards, sidecars):  # a line was given to one of several samples: now it is given to none
        writer.start_again()
        _fill_once(writer, shards, sidecars)
    os.unlink(writer.folder / "keys.sqlite")


def _fill_once(writer: IndexWriter, shards: list[str], sidecars: Sidecars) -> bool:
    """False when a line of a sidecar turned out to speak of several samples."""
    annotations = Annotations(writer.folder, writer, shards, sidecars)
    try:
        for number, shard in enumerate(tqdm(shards, desc=f"indexing into {writer.folder.parent}", unit="shard",
                                            delay=5)):  # fmt: skip
            annotations.open_shard(number)
            try:
                _Shard(writer, shard, number, annotations).index()
            except OSError as error:
                writer.reject("", shard, f"cannot be read ({error.strerror or error})")
            annotations.close_shard(number)
        annotations.finish()
    finally:
        annotations.close()
    return not annotations.found_several


def fill_from_shard(writer: IndexWriter, shard: str) -> None:
    """Index one shard for itself, without sidecars; a shard that cannot be read is named."""
    try:
        _Shard(writer, shard, 0, None).index()
    except OSError as error:
        writer.reject("", shard, f"cannot be read ({error.strerror or error})")


class _Shard:
    """One shard on its way into the index: one pass over its headers, then its small members and headers of pictures.

    `groups`: for each key its samples, as a rule one; a member that is there already begins another.
    """

    def __init__(self, writer: IndexWriter, path: str, number: int, annotations: Annotations | None):
        self.writer, self.path, self.number, self.annotations = writer, path, number, annotations
        self.groups: dict[str, list[dict[str, Member]]] = {}

    def index(self) -> None:
        length = os.path.getsize(self.path)
        if not length:
            self.writer.reject("", self.path, "shard has zero length: download it again")
            return
        with open(self.path, "rb") as self.file:
            reason = what_else(self.file.read(64))
            if reason:
                self.writer.reject("", self.path, f"shard {reason}")
                return
            self.file_number = self.writer.add_file(self.path, length)
            try:
                for member in walk_tar(self.file, length):
                    self._group(member)
            except TarDamage as damage:
                self._name_damage(length, *damage.args)
            else:
                if not self.groups:
                    self.writer.reject("", self.path, "shard holds no samples")
            for key, samples in self.groups.items():
                self._add_one_of(key, samples)

    def _name_damage(self, length: int, offset: int, reason: str, name: str) -> None:
        key = split_name(name)[0]
        if key in self.groups:
            self.groups[key].pop()  # the sample that was hit is not whole
        kept = sum(map(len, self.groups.values()))
        place = f"at byte {min(offset, length)} of {length}"
        self.writer.reject(key, self.path, f"{reason} {place}; the {kept} samples before it are kept")

    def _group(self, member: Member) -> None:
        key, extension = split_name(member.name)
        problem = member.problem or ("" if key else "member name has no key before its first dot")
        if problem:
            self.writer.reject(key, f"{self.path}:{member.name}", problem)
            return
        samples = self.groups.setdefault(key, [{}])
        if not samples or extension in samples[-1]:
            samples.append({})
        samples[-1][extension] = member

    def _add_one_of(self, key: str, samples: list[dict[str, Member]]) -> None:
        """Take the first sample of a key that can be used; all others are named."""
        annotation = self.annotations.take(self.number, key) if self.annotations else None
        taken = False
        for members in samples:
            if taken:
                reason = "duplicate key in one shard; the first sample with it that can be used is used"
                self.writer.reject(key, f"{self.path}:{key}", f"{reason}; members: {', '.join(sorted(members))}")
            else:
                taken = self._add(key, members, annotation)

    def _add(self, key: str, members: dict[str, Member], annotation: bytes | None) -> bool:
        images = [each for each in members if each in IMAGE_EXTENSIONS]
        images = images or [each for each in members if each in OTHER_PICTURE_EXTENSIONS]  # its content may be ours
        if len(images) != 1:
            reason = f"has {len(images)} images ({', '.join(images)})" if images else "image is missing"
            self.writer.reject(key, f"{self.path}:{key}", f"{reason}; members: {', '.join(sorted(members))}")
            return False
        image = members[images[0]]
        try:
            text = self._text(members.get("json"))
            details = json_object(text) if text.strip() else {}
            caption = utf8(self._text(members.get("txt"))).strip() or details.get("caption") or ""
            if not isinstance(caption, str):
                raise ValueError(f'.json: "caption" is not text: {caption!r}')
        except (ValueError, OSError) as error:
            self.writer.reject(key, f"{self.path}:{key}", f"caption or .json cannot be read ({error})")
            return False
        location = (self.file_number, image.offset, image.length, image.header)
        return add(self.writer, Found(key, f"{self.path}:{image.name}", location, images[0],
                                      lambda: self._header(image), caption, details, annotation))  # fmt: skip

    def _text(self, member: Member | None) -> bytes:
        if member is None:
            return b""
        if member.length > MAX_TEXT_BYTES:
            raise ValueError(f"{member.name} has {member.length} bytes, more than {MAX_TEXT_BYTES}")
        data = self._read(member, member.length)
        if data.startswith(LFS_POINTER):
            raise ValueError(f"{member.name} is a Git LFS pointer, not the text itself: run 'git lfs pull'")
        return data

    def _header(self, image: Member) -> bytes:
        start = self._read(image, min(image.length, _HEADER_BYTES))
        return start if has_size(start) else start + self.file.read(image.length - len(start))

    def _read(self, member: Member, length: int) -> bytes:
        self.file.seek(member.offset)
        return self.file.read(length)


def has_size(start: bytes) -> bool:
    """Whether the start of a picture is enough to know its size by: a JPEG up to its frame header."""
    place = 2
    if not start.startswith(b"\xff\xd8\xff"):
        return False
    while place + 4 <= len(start) and start[place] == 0xFF:
        if start[place + 1] == 0xDA:  # the pixels begin
            return True
        place += 2 + int.from_bytes(start[place + 2 : place + 4], "big")
    return False


def split_name(name: str) -> tuple[str, str]:
    """`a/0001.seg.png` -> ("a/0001", "seg.png"): key and extension, cut at the first dot of the basename."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem if stem else "", extension.lower()
