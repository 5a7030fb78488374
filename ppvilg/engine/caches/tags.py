"""Words and parts of speech of every caption of a data set, found once and kept in a file (knowledge cache)."""
from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import os
import re
import sqlite3
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from ppvilg.data import BadSample, RecordSource
from ppvilg.engine.parallel import distributed
from ppvilg.files import naming_disk_errors
from ppvilg.knowledge import tagging
from ppvilg.knowledge.tagging import MARKS, tag

logger = logging.getLogger(__name__)
_COMPLETED = re.compile("(?:，|, )" + re.escape(MARKS["n"]))  # where a completed caption goes beyond the given one
_ENDS = "。.，,；;、 "  # what completion takes off the end of a caption
_TABLE = "CREATE TABLE IF NOT EXISTS tags (text BLOB PRIMARY KEY, words TEXT) WITHOUT ROWID"


class TagCache:
    """Looks texts up in the file; what is not there is tagged as ever. The file is read, never kept in memory."""

    def __init__(self, path: Path):
        self.path, self.found, self.missed = path, 0, 0
        self._tag_rest = lru_cache(maxsize=4096)(tag)  # names of objects, which come again and again
        self._file = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, check_same_thread=False)

    def tag(self, text: str) -> list[tuple[str, str]]:
        """What `ppvilg.knowledge.tag` gives; a caption that was completed is put together from its pieces."""
        given, rest = text, ""
        completed = _COMPLETED.search(text)
        if completed:
            given, rest = text[: completed.start()], text[completed.start() :]
        row = self._file.execute("SELECT words FROM tags WHERE text = ?", (_bytes(given),)).fetchone()
        if row is None:
            self.missed += 1
            return tag(text)
        self.found += 1
        return [(word, pos) for word, pos in json.loads(row[0])] + (self._tag_rest(rest) if rest else [])


def made_of(source: RecordSource) -> str:
    """Hash of everything that tags depend on: the captions, jieba and its dictionary, our rules."""
    import jieba

    with open(os.path.join(os.path.dirname(jieba.__file__), "dict.txt"), "rb") as file:
        dictionary = hashlib.sha256(file.read()).hexdigest()
    rules = hashlib.sha256(inspect.getsource(tagging).encode()).hexdigest()
    parts = f"1 {source.fingerprint()} {jieba.__version__} {dictionary} {rules}"
    return hashlib.sha256(parts.encode()).hexdigest()


def cache_tags(source: RecordSource, root: Path, name: str = "training") -> TagCache:
    """Tag every caption of `source`, or find it done: the file's name is a hash of captions, jieba and rules."""
    path = root / f"tags_{name}_{made_of(source)[:16]}.sqlite"
    if distributed.is_main() and path.exists() and _is_torn(path):
        logger.warning("%s is cut off or damaged: it is made again", path)
        path.unlink()
    distributed.barrier()
    if not path.exists():
        rank, world = distributed.rank(), distributed.world_size()
        root.mkdir(parents=True, exist_ok=True)
        part = root / f".{path.name}.{rank}.partial"
        with naming_disk_errors(part):
            _tag_share(source, part, rank, world)
        distributed.barrier()
        if distributed.is_main():
            _join(part, [root / f".{path.name}.{other}.partial" for other in range(1, world)])
            os.replace(part, path)
        distributed.barrier()
    return TagCache(path)


def _is_torn(path: Path) -> bool:
    """Whether a file is no whole database: the header says how many pages there must be (sqlite.org/fileformat2)."""
    with open(path, "rb") as file:
        header = file.read(100)
    page = int.from_bytes(header[16:18], "big")
    pages = int.from_bytes(header[28:32], "big")
    if not header.startswith(b"SQLite format 3") or path.stat().st_size != (65536 if page == 1 else page) * pages:
        return True
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
            return database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'tags'").fetchone() != (1,)
    except sqlite3.DatabaseError:
        return True


def _tag_share(source: RecordSource, path: Path, rank: int, world: int) -> None:
    path.unlink(missing_ok=True)
    file = sqlite3.connect(path)
    for statement in ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", _TABLE):
        file.execute(statement)
    indices = range(rank, len(source), world)
    for index in tqdm(indices, desc=f"tags in {path.parent}", unit="sample", disable=rank > 0, delay=2):
        try:
            captions = source.read_text(index).captions.values()
        except BadSample:  # a wrong box; named when it is read for training
            continue
        for caption in captions:
            for text in {caption, caption.rstrip(_ENDS)}:
                known = file.execute("SELECT 1 FROM tags WHERE text = ?", (_bytes(text),)).fetchone()
                if text and known is None:
                    row = (_bytes(text), json.dumps(tag(text), ensure_ascii=False))
                    file.execute("INSERT INTO tags VALUES (?, ?)", row)
    file.commit()
    file.close()


def _join(path: Path, others: list[Path]) -> None:
    file = sqlite3.connect(path, isolation_level=None)
    for other in others:
        file.execute("ATTACH ? AS other", (str(other),))
        file.execute("INSERT OR IGNORE INTO tags SELECT * FROM other.tags")
        file.execute("DETACH other")
        other.unlink()
    file.close()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
