"""The folder of the service: pictures by the hash of their content, previews, the secret that signs addresses."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ppvilg.files import write_whole

_HASH = re.compile(r"[0-9a-f]{64}")
_JOB = re.compile(r"[A-Za-z0-9_-]{22}")
_PREVIEW = re.compile(r"[0-9]{1,4}-[0-9]{1,5}\.webp")


class DataFolder:
    """Files of the service under one folder; names are made from hashes and ids alone, never from what a user sent."""

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        for name in ("pictures", "previews"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    @property
    def database(self) -> Path:
        return self.root / "service.sqlite"

    def signing_key(self) -> bytes:
        """The secret of this service, made on first use; readable by its user alone."""
        path = self.root / "signing.key"
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            for _ in range(50):  # whoever made it a moment ago is still writing
                if len(content := path.read_bytes()) == 32:
                    return content
                time.sleep(0.1)
            raise ValueError(f"{path} is damaged: delete it, and addresses of pictures given out so far end") from None
        with os.fdopen(handle, "wb") as file:
            content = secrets.token_bytes(32)
            file.write(content)
        return content

    def picture(self, sha256: str) -> Path:
        """Path of a content. ValueError: not a hash."""
        if not _HASH.fullmatch(sha256):
            raise ValueError(f"not a hash: {sha256!r}")
        return self.root / "pictures" / sha256[:2] / f"{sha256}.png"

    def put(self, content: bytes) -> str:
        """Writes a PNG whole, unless it is there; returns its hash."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.picture(sha256)
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            write_whole(path, content)
        return sha256

    def remove(self, hashes: Iterable[str]) -> None:
        for sha256 in hashes:
            self.picture(sha256).unlink(missing_ok=True)

    def contents(self) -> Iterator[tuple[str, float]]:
        """(hash, time of the last change) of every picture file."""
        for path in (self.root / "pictures").glob("??/*.png"):
            if _HASH.fullmatch(path.stem):
                yield path.stem, path.stat().st_mtime

    def preview(self, job: str, name: str) -> Path:
        """Path of a preview. ValueError: not an id of a job, not a name made by `preview_name`."""
        if not _JOB.fullmatch(job) or not _PREVIEW.fullmatch(name):
            raise ValueError(f"not a preview: {job!r} {name!r}")
        return self.root / "previews" / job / name

    def put_preview(self, job: str, picture: int, step: int, content: bytes) -> None:
        path = self.preview(job, preview_name(picture, step))
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")  # not synced to the disk: a preview may be lost, but is never torn
        partial.write_bytes(content)
        partial.replace(path)

    def remove_preview(self, job: str, picture: int, step: int) -> None:
        self.preview(job, preview_name(picture, step)).unlink(missing_ok=True)

    def remove_previews(self, job: str) -> None:
        if _JOB.fullmatch(job):
            shutil.rmtree(self.root / "previews" / job, ignore_errors=True)

    def jobs_with_previews(self) -> list[str]:
        return [path.name for path in (self.root / "previews").iterdir() if _JOB.fullmatch(path.name)]


def preview_name(picture: int, step: int) -> str:
    return f"{picture}-{step}.webp"
