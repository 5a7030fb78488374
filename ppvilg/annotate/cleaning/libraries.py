"""Libraries that only clean-up needs; one that is missing is named with the command that installs it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from ppvilg.files import file_sha256

INSTALL = "pip install 'ppvilg[annotate]'"


def open_library(module: str, package: str, what: str):
    """A module; ModuleNotFoundError says what it is for and how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        raise ModuleNotFoundError(f"{what} needs {package}, which {reason}: {INSTALL}") from error


def library_identity(package: str, models: Iterable[str | Path] = ()) -> dict:
    """Version of an installed package and a hash of the weights it brings, for the header of a sidecar."""
    identity = {"library": f"{package} {version(package)}"}
    digests = [file_sha256(path) for path in sorted(map(str, models))]
    if digests:
        identity["model"] = hashlib.sha256("".join(digests).encode()).hexdigest()
    return identity
