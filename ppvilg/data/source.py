"""Sources: random access to the usable samples of shards or of a folder, through an index that is kept on disk.

Nothing is dropped silently: what cannot be used is in `RecordSource.bad`, with file and reason.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Lock

from .buckets import shape_buckets
from .index import HOME, Index, KeyView, home_of, open_index, stamp_of
from .indexing import (
    COMPRESSED,
    caption_files,
    fill_from_folder,
    fill_from_pictures,
    fill_from_shards,
    find_files,
    find_listing,
    find_sidecars,
    is_picture,
)
from .records import (
    BAD_SAMPLE_SHARE,
    MAX_PIXELS,
    BadSample,
    BadSampleLimit,
    ObjectBox,
    Record,
    decode_image,
    expand_braces,
    validate_objects,
)
from .transforms import ImageTransform

_HEADER = 512  # bytes of the tar header before a picture
_OPEN_FILES = 64


class RecordSource:
    """Random access to the usable samples of a data set; made by `open_source`. Safe to read from several threads.

    `keys` (sequence of str), `sizes` (int32 (n, 2): width, height), `bad` (list of BadSample found while indexing),
    `annotations_without_sample` and `samples_without_annotation` (lists of keys; empty when there is no sidecar). All
    are read from the index when asked for: an open source takes the same memory for ten samples as for 170 million.
    """

    def __init__(self, index: Index):
        self.index = index
        self.sizes = index.column("sizes")
        self._file_of, self._offsets = index.column("file_of"), index.column("offsets")
        self._lengths, self._headers = index.column("lengths"), index.column("headers")
        self._text_ends = index.column("text_ends")
        self._max_pixels = index.manifest["max_pixels"]
        self._files = _OpenFiles()

    def __len__(self) -> int:
        return len(self.index)

    def __reduce__(self):
        return _reopen, (str(self.index.folder), self.index.base, self.fingerprint())

    @property
    def sources(self) -> list[RecordSource]:
        """The data sets that this one is made of: itself."""
        return [self]

    @property
    def keys(self) -> KeyView:
        return KeyView(lambda i: self._text_of(i)[0], len(self))

    @property
    def bad(self) -> list[BadSample]:
        return list(self.index.problems())

    @property
    def annotations_without_sample(self) -> list[str]:
        return list(self.index.keys("unmatched"))

    @property
    def samples_without_annotation(self) -> list[str]:
        return list(self.index.keys("unannotated"))

    def read_text(self, i: int) -> Record:
        """Sample i without its picture (image=None); touches no file. Raises BadSample for a wrong box."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        key, extension, text = self._text_of(i)
        source = self._source_of(i, key, extension)
        objects = [ObjectBox(label, tuple(box), score) for label, box, score in text.get("objects", ())]
        if objects:
            validate_objects(objects, *self.sizes[i].tolist(), key=key, source=source)
        tags = [tuple(tag) for tag in text["tags"]] if "tags" in text else None
        return Record(key, None, text["captions"], objects, tags, source, text.get("extra", {}))

    def read(self, i: int) -> Record:
        """Sample i with its decoded picture, which decides about its size.

        BadSample when the picture is damaged, a box leaves it, or it is no longer where the index says.
        """
        record = self.read_text(i)
        image = decode_image(self._read_bytes(i, record), record.key, record.source, self._max_pixels)
        if image.size != tuple(self.sizes[i].tolist()):
            validate_objects(record.objects, *image.size, key=record.key, source=record.source)
        return replace(record, image=image)

    def captions(self) -> Iterator[str]:
        """Every caption, read one by one; samples with wrong boxes are left out, to be named when they are read."""
        for i in range(len(self)):
            with contextlib.suppress(BadSample):
                yield from self.read_text(i).captions.values()

    def check_share(self, share: float = BAD_SAMPLE_SHARE) -> None:
        """Raise TooManyBadSamples when more than `share` of all samples could not be indexed."""
        counts = self.index.manifest
        limit = BadSampleLimit(counts["samples"] + counts["problems"], share)
        limit.check(counts["problems"], self.index.problems(), self.index.folder / "problems.jsonl")

    def buckets(self, transform: ImageTransform, count: int | None = None):
        """Which samples (the first `count`) fall into which of the transform's shapes, for `BatchOrder`."""
        folder = self.index.folder
        if len(transform.shapes) > 1 and not os.access(folder, os.W_OK):
            folder = home_of(self.index.base)
        return shape_buckets(folder, self.sizes[:count], transform)

    def mixed(self, buckets, kept=None):
        """Buckets of samples in which each comes as often as it should: once, in a single data set."""
        return buckets

    def fingerprint(self) -> str:
        """sha256 of what the data is: file names and sizes, index, texts and sidecar; independent of where it lies."""
        return self.index.manifest["fingerprint"]

    def summary(self, names: int = 10) -> str:
        """Counts, and the first names of everything that cannot be used; for the log."""
        counts = self.index.manifest
        lines = [f"{len(self)} usable samples in {counts['files_used']} files, {counts['problems']} problems"]
        lines += [f"  {problem}" for problem in islice(self.index.problems(), names)]
        for title, which in (
            ("annotations without a sample", "unmatched"),
            ("samples without an annotation", "unannotated"),
            ("pictures of which no line speaks", "unlisted"),
        ):
            if counts[which]:
                more = ", ..." if counts[which] > names else ""
                lines.append(f"  {counts[which]} {title}: {', '.join(islice(self.index.keys(which), names))}{more}")
        if counts["left_out"]:
            first = ", ".join(f"{each.key} ({each.reason})" for each in islice(self.index.left_out(), names))
            more = ", ..." if counts["left_out"] > names else ""
            lines.append(f"  {counts['left_out']} samples left out as the annotations say: {first}{more}")
        if counts["wrong_hints"]:
            lines.append(f"  {counts['wrong_hints']} declared sizes are not those of the pictures, which decide; the "
                         f"first: {counts['first_wrong_hint']}")
        if counts["problems"] > names:
            lines.append(f"  all problems: {self.index.folder / 'problems.jsonl'}")
        return "\n".join(lines)

    def _text_of(self, i: int) -> list:
        """[key, extension, entry] of sample i."""
        return self.index.text(int(self._text_ends[i - 1]) if i else 0, int(self._text_ends[i]))

    def _path_of(self, i: int, extension: str) -> str:
        number = int(self._file_of[i])
        return os.path.join(self.index.base, extension) if number < 0 else self.index.files[number]

    def _source_of(self, i: int, key: str, extension: str) -> str:
        path = self._path_of(i, extension)
        return path if self._file_of[i] < 0 else f"{path}:{key}.{extension}"

    def _read_bytes(self, i: int, record: Record) -> bytes:
        """The picture's bytes, after a look at the header before them: is this still the file that was indexed?"""
        length, offset, header = int(self._lengths[i]), int(self._offsets[i]), int(self._headers[i])
        before = _HEADER if header else 0
        path = record.source if self._file_of[i] < 0 else self.index.files[int(self._file_of[i])]
        try:
            data = self._files.read(path, offset - before, length + before)
        except OSError as error:
            raise BadSample(record.key, record.source, f"cannot be read since indexing ({error})") from error
        if len(data) < length + before:
            left = max(0, len(data) - before)
            raise BadSample(record.key, record.source, f"{left} of {length} bytes are left: cut off since indexing")
        if header and zlib.crc32(data[:before]) != header:
            reason = f"another file stands at byte {offset} of {path} than when it was indexed; start again to index it"
            raise BadSample(record.key, record.source, reason)
        return data[before:]


class _OpenFiles:
    """The last files that were read stay open; a file is closed when nobody reads it any more."""

    def __init__(self):
        self._files: OrderedDict[str, object] = OrderedDict()
        self._lock = Lock()

    def read(self, path: str, offset: int, length: int) -> bytes:
        with self._lock:
            file = self._files.pop(path, None)
            if file is None or not os.fstat(file.fileno()).st_nlink:  # deleted or replaced since it was opened
                file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed when it falls out and is not in use)
            self._files[path] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        parts, left = [], length
        while left and (data := os.pread(file.fileno(), left, offset)):  # one call gives 2 GiB at most
            parts.append(data)
            left, offset = left - len(data), offset + len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _reopen(folder: str, base: str, fingerprint: str) -> RecordSource:
    source = RecordSource(Index(folder, base))
    if source.fingerprint() != fingerprint:
        raise ValueError(f"{folder}: the index was made again meanwhile, for the data changed; start the run again")
    return source


def open_source(
    path: str | os.PathLike,
    annotations: str | os.PathLike | None = None,
    max_pixels: int = MAX_PIXELS,
    index: str | os.PathLike | None = None,
) -> RecordSource:
    """Open one .tar, a folder of .tar shards, a pattern `x-{000..009}.tar`, or a folder of pictures.

    The captions of a folder of pictures are in its one .jsonl or, without any, in text files or the pictures' names.

    `annotations` is the sidecar JSONL of shards, or a folder of them; when None, `annotations.jsonl` beside the shards
    and `NAME.annotations.jsonl` beside NAME.tar are used where they exist. For a folder of pictures it is the JSONL
    itself. The index is kept in the folder `index`; None: in `.ppvilg` beside the data or, where that cannot be
    written, in the user's cache folder.

    Raises:
        FileNotFoundError, PermissionError: what is not there or may not be read, by name.
        ValueError: there is nothing usable; what was found is named.
    """
    path = os.fspath(path)
    home = None if index is None else Path(index)
    given = None if annotations is None else os.fspath(annotations)
    if given is not None and not os.path.exists(given):
        raise FileNotFoundError(f"no such annotations: {given}")
    shards = find_shards(path)
    if not shards:
        return _open_folder(path, given, max_pixels, home)
    base = os.path.dirname(shards[0])
    sidecars = find_sidecars(shards, given)
    stamps = {os.path.relpath(file, base or "."): stamp_of(file) for file in [*shards, *sidecars.paths]}
    names = [os.path.relpath(sidecar, base or ".") for sidecar in sidecars.shared]
    request = {"path": os.path.relpath(path, base or "."), "annotations": names, "max_pixels": max_pixels}
    fill = lambda writer: fill_from_shards(writer, shards, sidecars)  # noqa: E731
    return RecordSource(open_index(base, request, stamps, max_pixels, fill, home))


def find_shards(path: str) -> list[str]:
    """The shards that a path stands for: one, those of a folder, or a pattern; none when it is a folder of pictures.

    FileNotFoundError, PermissionError: what is not there or may not be read, by name.
    """
    shards = _shards_in(path) if os.path.isdir(path) else expand_braces(path)
    missing = [shard for shard in shards if not os.path.exists(shard)]
    if missing:
        raise FileNotFoundError(f"no such shard: {', '.join(missing[:10])} ({len(missing)} of {len(shards)} missing)")
    return shards


def _shards_in(folder: str) -> list[str]:
    """The shards in a folder in the order of their names, compressed ones too, for they are to be named."""
    try:
        names = sorted(os.listdir(folder))
    except PermissionError:
        raise PermissionError(f"{folder} may not be read by this user: change its permissions") from None
    shards = [name for name in names if name.lower().endswith((".tar", *COMPRESSED))]
    if not any(name.lower().endswith(".tar") for name in shards):
        return []
    return [path for name in shards if not os.path.isdir(path := os.path.join(folder, name))]  # a broken link is named


def _open_folder(folder: str, annotations: str | None, max_pixels: int, home: Path | None) -> RecordSource:
    listing = find_listing(folder) if annotations is None else annotations
    if listing is not None and os.path.isdir(listing):
        listing = os.path.join(listing, "annotations.jsonl")
        if not os.path.isfile(listing):
            raise FileNotFoundError(f"{annotations}: holds no annotations.jsonl for the folder of pictures {folder}")
    folder = os.path.normpath(folder)
    files, unreadable = find_files(folder, skip=HOME)
    stamps = {name: stamp_of(path) for name, path in files.items() if is_picture(name, others=True)}
    if listing is None:
        return _open_pictures(folder, files, unreadable, stamps, max_pixels, home)
    stamps[os.path.relpath(listing, folder)] = stamp_of(listing)
    request = {"folder": True, "annotations": os.path.relpath(listing, folder), "max_pixels": max_pixels}
    fill = lambda writer: fill_from_folder(writer, folder, listing, files, unreadable)  # noqa: E731
    return RecordSource(open_index(folder, request, stamps, max_pixels, fill, home))


def _open_pictures(
    folder: str, files: dict, unreadable: list, stamps: dict, max_pixels: int, home: Path | None
) -> RecordSource:
    """Pictures with captions in text files beside them or in their names."""
    if not stamps:
        where = "in one .jsonl, in .txt files or in names"
        raise ValueError(f"{folder}: needs .tar shards or pictures, whose captions are {where}")
    stamps |= {os.path.relpath(path, folder): stamp_of(path) for path in caption_files(files).values()}
    request = {"folder": True, "annotations": None, "max_pixels": max_pixels}
    fill = lambda writer: fill_from_pictures(writer, files, unreadable)  # noqa: E731
    return RecordSource(open_index(folder, request, stamps, max_pixels, fill, home))
