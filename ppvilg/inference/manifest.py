"""manifest.json of an export bundle: which parts there are, how they fit together, hashes.

```
bundle/
  manifest.json
  text_encoder/ vae_encoder/ vae_decoder/ expert_00/ ...   inference.json + inference.pdiparams, model.onnx: one or both
  tokenizer/ scheduler/                                    as in a pipeline folder
  proof/                                                   inputs, and what the model itself gave for them
  proofs/                                                  what was measured, one file a machine; not in the manifest
```
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from ppvilg.files import file_sha256, read_json, write_whole

from .trusted import SCHEDULER_FILES, TOKENIZER_FILES

FILE = "manifest.json"
FORMAT = "ppvilg-export"
FORMAT_VERSION = 2
GRAPH, WEIGHTS = "inference.json", "inference.pdiparams"
ONNX, ONNX_WEIGHTS = "model.onnx", "model.onnx.data"  # weights are in the first unless they are large
PROOF, PROOFS, TRAJECTORY = "proof", "proofs", "trajectory"
PART_FILES = (GRAPH, WEIGHTS, ONNX, ONNX_WEIGHTS)
OTHER_FILES = (*(f"tokenizer/{name}" for name in TOKENIZER_FILES), *(f"scheduler/{name}" for name in SCHEDULER_FILES))
_PART_NAME = re.compile(r"text_encoder|vae_encoder|vae_decoder|expert_\d{2,}")
_PROOF_NAME = re.compile(rf"{PROOFS}/[\w.-]+\.json")
_PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddlenlp", "ppdiffusers", "paddle2onnx", "onnxruntime")


@dataclass(frozen=True)
class Port:
    """An input or output of a graph; -1 in `shape` is any size."""

    name: str
    shape: list[int]
    dtype: str


@dataclass(frozen=True)
class Stored:
    """A file of the bundle as it was when the bundle was proven."""

    sha256: str
    bytes: int


@dataclass
class Part:
    """One static graph: its files (names inside the part's folder) and what goes in and out."""

    files: dict[str, Stored]
    inputs: list[Port]
    outputs: list[Port]
    weight_bytes: int  # in memory, in the dtype the graph computes in
    rounding_error: float = 0.0  # of narrower stored weights: the largest, over the output's standard deviation


@dataclass
class Manifest:
    """Everything that a bundle says of itself.

    routing: num_experts, boundaries, num_train_timesteps. components: configs of unet, vae and text_encoder.
    pipeline: the other arguments of ErnieViLG2Pipeline. weights: how they are stored ("float32", "float16", "int8");
    graphs compute in float32 whatever it is. trajectory: what is drawn to prove the whole. files: those outside of the
    parts.
    """

    versions: dict[str, str]
    program_version: int  # of Paddle's graph format
    weights: str
    routing: dict
    components: dict[str, dict]
    prediction_type: str | None = None
    pipeline: dict | None = None  # None: a bundle of experts alone
    parts: dict[str, Part] = field(default_factory=dict)
    files: dict[str, Stored] = field(default_factory=dict)
    trajectory: dict = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes folder/manifest.json."""
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        write_whole(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def listed(self) -> dict[str, Stored]:
        """Every file of the bundle but the manifest, by its path inside the bundle."""
        own = {f"{name}/{file}": entry for name, part in self.parts.items() for file, entry in part.files.items()}
        return own | self.files


def read_manifest(folder: str | os.PathLike) -> Manifest:
    """The manifest of a bundle, whose folder holds exactly the files that it lists.

    Raises:
        FileNotFoundError: the folder has no manifest.json, or lacks a file that it lists.
        ValueError: it is not one of ours, is damaged, or was written in a newer format; a file is not listed, or is not
            one that a bundle has; a link leaves the folder.
    """
    manifest = _read(Path(folder) / FILE)
    _check_files(Path(folder), manifest)
    return manifest


def _read(file: Path) -> Manifest:
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} is not an export bundle: it has no {FILE}")
    content = read_json(file)
    kind, version = content.pop("format", None), content.pop("format_version", None)
    if kind != FORMAT:
        raise ValueError(f"{file} has format {kind!r}, not {FORMAT!r}: it belongs to something else")
    if version != FORMAT_VERSION:
        raise ValueError(f"{file} has format_version {version}, this ppvilg reads {FORMAT_VERSION}: export again")
    try:
        parts = {name: _part(part) for name, part in content.pop("parts").items()}
        files = {name: Stored(**stored) for name, stored in content.pop("files").items()}
        return Manifest(**content, parts=parts, files=files)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is incomplete or has unknown entries ({error}): export the model again") from None


def _part(content: dict) -> Part:
    files = {name: Stored(**stored) for name, stored in content["files"].items()}
    inputs, outputs = ([Port(**port) for port in content[key]] for key in ("inputs", "outputs"))
    return Part(files, inputs, outputs, int(content["weight_bytes"]), float(content["rounding_error"]))


def is_bundle(folder: str | os.PathLike) -> bool:
    """Whether a folder holds an export bundle."""
    return (Path(folder) / FILE).is_file()


def _check_files(folder: Path, manifest: Manifest) -> None:
    """FileNotFoundError or ValueError unless the manifest lists what is there, by names that a bundle has."""
    listed = manifest.listed()
    for name in manifest.parts:
        if not _PART_NAME.fullmatch(name):
            raise ValueError(f"{folder / FILE} lists the part {name!r}, which no bundle has: export the model again")
    known = {f"{part}/{file}" for part in manifest.parts for file in PART_FILES} | set(OTHER_FILES)
    known |= {f"{PROOF}/{name}.safetensors" for name in (*manifest.parts, TRAJECTORY)}
    for name in listed.keys() - known:
        raise ValueError(f"{folder / FILE} lists {name!r}, which no bundle has: export the model again")
    here = folder.resolve()
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    for name, path in found.items():
        if path.is_symlink() and not path.resolve().is_relative_to(here):
            raise ValueError(f"{path} is a link that leaves the bundle: put the file itself there")
        if not (path.is_dir() or name == FILE or name in listed or _PROOF_NAME.fullmatch(name)):
            raise ValueError(f"{path} is not listed in {FILE}: remove it, or get the bundle from another source")
    for name in listed.keys() - found.keys():
        raise FileNotFoundError(f"{folder / name} is missing from the export bundle: copy it again, or export again")


def stored(file: Path) -> Stored:
    """Hash and size of a file."""
    return Stored(file_sha256(file), file.stat().st_size)


def verify(folder: Path, expected: dict[str, Stored]) -> None:
    """Compares files with their hashes, which finds damage; malice changes the hash, too.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not the one that was exported and proven.
    """
    for name, entry in expected.items():
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing from the export bundle: copy it again, or export again")
        found = stored(file)
        if found != entry:
            what = f"{found.bytes} bytes instead of {entry.bytes}" if found.bytes != entry.bytes else "other contents"
            raise ValueError(
                f"{file} has {what} than when the bundle was proven (sha256 {found.sha256[:12]}..., manifest "
                f"{entry.sha256[:12]}...): it is damaged or was changed. Copy it again, or export again"
            )


def installed_versions() -> dict[str, str]:
    """Versions of what an export depends on."""
    versions = {"ppvilg": _version("ppvilg")} | {name: _version(name) for name in _PACKAGES}
    return {name: version for name, version in versions.items() if version is not None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
