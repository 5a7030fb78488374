"""Where ppvilg keeps what can be computed again: folders of this user alone."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """ppvilg's folder in $XDG_CACHE_HOME or ~/.cache; a private one for temporary files where that cannot be written.

    A process that imported ppvilg has a home that can be written to (see ppvilg/_runtime.py).
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base) / "ppvilg"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return private_folder()
    return folder if can_write(folder) else private_folder()


def private_folder() -> Path:
    """A folder among the temporary files that nobody else can write to; the same at every start if it is still ours."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    folder = Path(tempfile.gettempdir()) / f"ppvilg-{user}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        ours = not hasattr(os, "getuid") or found.st_uid == os.getuid()
        if not (stat.S_ISDIR(found.st_mode) and ours and not stat.S_IMODE(found.st_mode) & 0o022):
            return Path(tempfile.mkdtemp(prefix="ppvilg-"))  # somebody else was here first
    return folder


def can_write(folder: str | os.PathLike) -> bool:
    """Whether files can be made in a folder that is there."""
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
