"""What was proven where: proofs/<machine>.json of a bundle, or of the user's cache folder for a read-only bundle.

A proof belongs to one manifest, by its hash, and to one version of the library that ran.
"""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from ppvilg.files import digest_of, file_sha256, read_text, write_whole

from .engines import engine_module
from .manifest import FILE, PROOFS
from .options import BACKENDS, BackendOptions, user_cache_folder

FORMAT = "ppvilg-proof"


@dataclass(frozen=True)
class Proof:
    """What a back end was measured to do on a machine.

    parts: {part: {"max_error": ..., ...}}. trajectory: the errors at its end. step_seconds: of one denoising step, two
    pictures at the model's own size.
    """

    version: str  # of the library
    threads: int | None
    parts: dict[str, dict]
    trajectory: dict
    step_seconds: float


def machine_name() -> str:
    """What tells this machine from others, for a file name: processor and a digest of its instructions and GPUs."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    about = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    model = about.get("model name") or platform.processor() or platform.machine()
    drivers = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    gpus = [re.sub(r"(?m)^(GPU UUID|Bus Location|Device Minor).*$", "", file.read_text()) for file in drivers]
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:40]
    return f"{slug}-{digest_of([platform.machine(), model, sorted(about.get('flags', '').split()), gpus])[:8]}"


def installed_version(options: BackendOptions) -> str | None:
    """Version of the library that runs a back end; None where it is not installed."""
    package = engine_module(options).PACKAGE
    for name in (package, f"{package}-gpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def read_proofs(folder: str | os.PathLike) -> dict[str, dict[str, Proof]]:
    """{machine: {backend: proof}} of a bundle as it stands; proofs of another export under the same name do not count.

    ValueError: a file of them is damaged.
    """
    folder = Path(folder)
    digest = file_sha256(folder / FILE)
    found: dict[str, dict[str, Proof]] = {}
    for place in (folder / PROOFS, _user_folder(digest)):
        for file in sorted(place.glob("*.json")) if place is not None else []:
            content = _read(file)
            if content["manifest"] == digest:
                proofs = {name: Proof(**each) for name, each in content["backends"].items() if name in BACKENDS}
                found.setdefault(file.stem, {}).update(proofs)
    return found


def write_proof(folder: str | os.PathLike, backend: str, proof: Proof, output: str | os.PathLike | None = None) -> Path:
    """Adds a back end's proof on this machine; returns the file: `output`, or in the bundle, or in the user's cache.

    OSError: nothing of these can be written.
    """
    folder = Path(folder)
    digest = file_sha256(folder / FILE)
    places = [Path(output)] if output is not None else [folder / PROOFS / f"{machine_name()}.json"]
    user_folder = _user_folder(digest)
    if output is None and user_folder is not None:
        places.append(user_folder / f"{machine_name()}.json")
    for place in places:
        content = {"format": FORMAT, "manifest": digest, "machine": machine_name(), "backends": {}}
        if place.is_file() and _read(place)["manifest"] == digest:
            content["backends"] = _read(place)["backends"]
        content["backends"][backend] = asdict(proof)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, json.dumps(content, indent=1) + "\n")
            return place
        except OSError:
            if place is places[-1]:
                raise
    raise AssertionError("there is always a place to try")


def fastest_proven(folder: str | os.PathLike) -> tuple[str, Proof]:
    """The back end with the shortest step of those that are proven on this machine, with the library as installed.

    ValueError: nothing is, with what to do.
    """
    here = read_proofs(folder).get(machine_name(), {})
    current = {name: each for name, each in here.items() if installed_version(BackendOptions(name)) == each.version}
    if current:
        return min(current.items(), key=lambda item: item[1].step_seconds)
    changed = f" with the versions installed now (it was with {', '.join(here)} in others)" if here else ""
    raise ValueError(
        f"{os.fspath(folder)} is not proven on this machine{changed}: run 'ppvilg prove {os.fspath(folder)}', or name "
        "a back end that was proven elsewhere"
    )


def check_proven(folder: str | os.PathLike, options: BackendOptions) -> None:
    """ValueError unless the bundle was proven for the back end, here or elsewhere."""
    proven = sorted({name for proofs in read_proofs(folder).values() for name in proofs}, key=BACKENDS.index)
    if options.backend not in proven:
        raise ValueError(
            f"{os.fspath(folder)} is proven for {', '.join(proven) or 'no back end'}, not for backend "
            f"{options.backend!r}: run 'ppvilg prove {os.fspath(folder)} --backends {options.backend}'"
        )


def _user_folder(digest: str) -> Path | None:
    folder = user_cache_folder("proofs")
    return None if folder is None else folder / digest[:16]


def _read(file: Path) -> dict:
    try:
        content = json.loads(read_text(file))
        backends = {name: Proof(**each) for name, each in content["backends"].items()}
        numbers = [float(each.step_seconds) for each in backends.values()]
        if content["format"] != FORMAT or not isinstance(content["manifest"], str) or any(n <= 0 for n in numbers):
            raise ValueError("unknown values")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no proof that can be read ({error}): remove it and prove again") from None
    return content
