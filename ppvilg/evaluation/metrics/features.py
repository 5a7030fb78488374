"""Pictures -> features: which pictures, how they are cut and resized, and the network that looks at them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import paddle
from PIL import Image
from tqdm import tqdm

from ppvilg.data import BadSample, in_batches, open_source
from ppvilg.emoji.detector import Detector, detector_sha256, to_input
from ppvilg.files import PictureError, damage_of, digest_of, read_picture, whole_file

from ..drawing.folder import METADATA
from ..reporting.protocol import differences
from .distribution import Moments
from .inception import load_inception
from .weights import weights_sha256

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FILTERS = {name: getattr(Image.Resampling, name.upper()) for name in ("box", "bilinear", "bicubic", "lanczos")}
CROPS = ("centre", "none")
NETWORKS = ("detector", "inception", "paddle")


# ---- pictures ----


class Pictures:
    """Pictures in a fixed order, read one at a time.

    path: a folder of pictures (of GenEval's layout only the samples, no grids), or shards as `open_source` takes them.
    ValueError when there are none, or not `count` of them; reading a damaged one raises ValueError with its name.
    """

    def __init__(self, path: str | os.PathLike, count: int | None = None) -> None:
        self.path = str(path)
        self.names, self._read, self._fingerprint = self._list(Path(path))
        if not self.names:
            raise ValueError(f"{path} holds no pictures ({', '.join(PICTURES)})")
        if count is not None and len(self.names) != count:
            raise ValueError(f"{path} holds {len(self.names)} pictures, the protocol asks for {count}")

    def _list(self, path: Path) -> tuple[list[str], Callable[[int], Image.Image], str]:
        if not path.is_dir() and path.suffix != ".tar" and "{" not in str(path):
            raise FileNotFoundError(f"{path} is neither a folder of pictures nor a .tar of samples")
        if not path.is_dir() or any(path.glob("*.tar")):
            source = open_source(path)
            if source.bad:
                raise ValueError(f"{path}: {len(source.bad)} samples cannot be used, the first: {source.bad[0]}")
            return list(source.keys), lambda i: source.read(i).image, source.fingerprint()
        pattern = "*/samples/*" if (path / METADATA).is_file() else "**/*"
        files = sorted(each for each in path.glob(pattern) if each.suffix.lower() in PICTURES and each.is_file())
        files = [each for each in files if not each.name.startswith(".")]
        names = [each.relative_to(path).as_posix() for each in files]
        sizes = [[name, each.stat().st_size] for name, each in zip(names, files)]
        fingerprint = digest_of(sizes)
        return names, lambda i: read_picture(files[i]), fingerprint

    def protocol(self) -> dict:
        """How many pictures, and a hash of their names and the lengths of their files."""
        return {"count": len(self), "names_sha256": self._fingerprint}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Image.Image:
        """Picture i, upright, RGB; PictureError names one that cannot be read."""
        try:
            return self._read(i)
        except BadSample as error:
            raise PictureError(str(error)) from error


@dataclass(frozen=True)
class Preparation:
    """How pictures are brought to one size before any network sees them; size None leaves them as they are.

    crop "centre": the largest part in the middle that has the shape of `size` is resized; "none": all of the picture.
    resize: one of Pillow's antialiased filters.
    """

    size: tuple[int, int] | None = None  # width, height in pixels
    resize: str = "bicubic"
    crop: str = "centre"

    def __post_init__(self) -> None:
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"size={self.size} must be [width, height] in pixels, or null")
        if self.resize not in FILTERS:
            raise ValueError(f"resize={self.resize!r} is not one of {', '.join(FILTERS)}")
        if self.crop not in CROPS:
            raise ValueError(f"crop={self.crop!r} is not one of {', '.join(CROPS)}")

    def protocol(self) -> dict:
        """What the features depend on, of this; filters do not matter where nothing is resized."""
        if self.size is None:
            return {"size": None, "resize": None, "crop": None}
        return {"size": list(self.size), "resize": self.resize, "crop": self.crop}

    def __call__(self, image: Image.Image) -> Image.Image:
        """One picture, cut and resized."""
        if self.size is None or image.size == tuple(self.size):
            return image
        if self.crop == "centre":
            scale = min(image.width / self.size[0], image.height / self.size[1])
            width, height = (max(1, round(side * scale)) for side in self.size)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        return image.resize(tuple(self.size), FILTERS[self.resize])


# ---- networks ----


class FeatureNetwork(Protocol):
    """Features of pictures: (N, H, W, 3) uint8 of one size -> (N, D) float32."""

    name: str
    sha256: str

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Features of one batch; ValueError for pictures of a size it does not take."""


class DetectorFeatures:
    """The project's own detector of the emoji world: what its last layer sees, mean over the picture; 96 numbers."""

    name = "detector"

    def __init__(self, folder: str | os.PathLike | None = None) -> None:
        self.network = Detector.load(folder).network
        self.sha256 = detector_sha256(folder)

    @paddle.no_grad()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[1] % 8 or pixels.shape[2] % 8:
            size = f"{pixels.shape[2]}x{pixels.shape[1]}"
            raise ValueError(f"network=detector takes sides that are multiples of 8, got {size}; set size=")
        return self.network.features(to_input(pixels)).mean(axis=[2, 3]).numpy()  # (N, 96)


class InceptionFeatures:
    """The Inception of 2015 as pytorch-fid runs it; 2,048 numbers."""

    name = "inception"

    def __init__(self, weights: str | os.PathLike | None) -> None:
        if weights is None:
            raise ValueError("network=inception needs weights=, pytorch-fid's Inception as .safetensors")
        self.network = load_inception(weights)
        self.sha256 = weights_sha256(self.network)

    @paddle.no_grad()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        values = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32) / 255
        return self.network(paddle.to_tensor(values)).numpy()  # (N, 2048)


class ExportedFeatures:
    """A model exported for Paddle Inference: pixels (N, 3, H, W), normalised -> its first output, flattened.

    path: `x` of x.json or x.pdmodel and x.pdiparams, or a folder with `inference.*`. mean, std: of values in [0, 1],
    per channel.
    """

    name = "paddle"

    def __init__(self, path: str | os.PathLike | None, mean: Sequence[float], std: Sequence[float]) -> None:
        if path is None:
            raise ValueError("network=paddle needs weights=, the path of an exported model")
        prefix = Path(path) / "inference" if Path(path).is_dir() else Path(path)
        models = [Path(f"{prefix}{ending}") for ending in (".json", ".pdmodel")]
        models = [each for each in models if each.is_file()]
        weights = Path(f"{prefix}.pdiparams")
        if not models or not weights.is_file():
            raise FileNotFoundError(f"no exported model at {prefix}: needs .json or .pdmodel, and .pdiparams")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean={list(mean)} and std={list(std)} need three numbers each, std above 0")
        self.mean, self.std = (np.array(each, dtype=np.float32) for each in (mean, std))
        digest = hashlib.sha256(models[0].read_bytes() + weights.read_bytes())
        digest.update(json.dumps([list(map(float, mean)), list(map(float, std))]).encode())
        self.sha256 = digest.hexdigest()
        try:
            self.predictor = _predictor(models[0], weights)
        except Exception as error:  # Paddle answers damaged files with several types
            reason = str(error).strip().splitlines()[-1:]
            raise ValueError(f"the exported model at {prefix} cannot be loaded: {' '.join(reason)}") from error

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        values = (pixels.astype(np.float32) / 255 - self.mean) / self.std
        names = self.predictor.get_input_names()
        if len(names) != 1:
            raise ValueError(f"the exported model takes {', '.join(names)}; one input, the pictures, is needed")
        self.predictor.get_input_handle(names[0]).copy_from_cpu(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))
        self.predictor.run()
        output = self.predictor.get_output_handle(self.predictor.get_output_names()[0]).copy_to_cpu()
        return output.reshape(len(pixels), -1).astype(np.float32)  # (N, D)


def _predictor(model: Path, weights: Path) -> Any:
    from paddle import inference

    config = inference.Config(str(model), str(weights))
    config.disable_glog_info()
    if paddle.get_device().startswith("gpu"):
        config.enable_use_gpu(256, 0)
    else:
        config.disable_mkldnn()  # with it, passes of Paddle 3.3 give wrong numbers for some graphs
    return inference.create_predictor(config)


def build_network(
    name: str,
    weights: str | os.PathLike | None = None,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> FeatureNetwork:
    """The network of a name: "detector" (weights: a folder, None for the shipped one), "inception" or "paddle"."""
    if name not in NETWORKS:
        raise ValueError(f"network={name!r} is not one of {', '.join(NETWORKS)}")
    if name == "detector":
        return DetectorFeatures(weights)
    return InceptionFeatures(weights) if name == "inception" else ExportedFeatures(weights, mean, std)


# ---- features ----


def extract(
    pictures: Pictures, preparation: Preparation, network: FeatureNetwork, batch_size: int = 64, description: str = ""
) -> tuple[np.ndarray, str]:
    """Features (N, D) of all pictures in their order, and one SHA-256 over their pixels.

    ValueError names the first picture that cannot be read or whose features are not finite.
    """
    digest = hashlib.sha256()

    def prepared() -> Iterator[np.ndarray]:
        for i in tqdm(range(len(pictures)), desc=description or pictures.path, unit="picture"):
            pixels = np.asarray(preparation(pictures[i]))
            digest.update(f"{pixels.shape}".encode() + pixels.tobytes())
            yield pixels

    features = features_of(network, prepared(), batch_size)
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(wrong):
        name = f"{pictures.path}: {pictures.names[wrong[0]]}"
        raise ValueError(f"{name} has features that are not finite numbers (network={network.name})")
    return features, digest.hexdigest()


def features_of(network: FeatureNetwork, pixels: Iterable[np.ndarray], batch_size: int = 64) -> np.ndarray:
    """Features (N, D) of pictures (H, W, 3) uint8 of any sizes, in their order."""
    rows: dict[int, np.ndarray] = {}
    for batch in in_batches(enumerate(pixels), lambda item: item[1].shape, batch_size):
        numbers, pictures = zip(*batch)
        rows.update(zip(numbers, network(np.stack(pictures))))
    return np.stack([rows[i] for i in range(len(rows))])


@dataclass(frozen=True)
class Statistics:
    """What is known of a set of pictures, with how it was measured; `features` (N, D) are None where only moments are.

    protocol: {"count", "size", "resize", "crop", "network", "network_sha256", ...}.
    """

    moments: Moments
    protocol: dict
    features: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        pictures: Pictures,
        preparation: Preparation,
        network: FeatureNetwork,
        batch_size: int = 64,
        description: str = "",
    ) -> Statistics:
        """Measured on pictures."""
        features, sha256 = extract(pictures, preparation, network, batch_size, description)
        protocol = {**pictures.protocol(), **feature_protocol(preparation, network), "pictures_sha256": sha256}
        return cls(Moments.of(features), protocol, features)

    def save(self, path: str | os.PathLike) -> None:
        """As .npz: protocol (JSON), features, and mu and sigma under the names that pytorch-fid reads."""
        arrays = {"mu": self.moments.mean, "sigma": self.moments.covariance}
        if self.features is not None:
            arrays["features"] = self.features.astype(np.float32)
        with whole_file(path) as partial:
            np.savez(partial, protocol=np.array(json.dumps(self.protocol)), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Statistics:
        """From what `save` wrote; ValueError for any other file, with what it lacks."""
        arrays = _read_npz(path)
        for name in ("protocol", "mu", "sigma"):
            if name not in arrays:
                raise ValueError(f"{path} has no {name!r} inside: a statistics file says how it was measured")
        protocol = _parse_protocol(path, arrays["protocol"])
        mean, covariance, features = arrays["mu"], arrays["sigma"], arrays.get("features")
        numbers = [each for each in (mean, covariance, features) if each is not None]
        if not all(each.dtype.kind == "f" and np.isfinite(each).all() for each in numbers):
            raise ValueError(f"{path} holds numbers that are not finite")
        if mean.ndim != 1 or covariance.shape != (mean.size, mean.size):
            raise ValueError(f"{path}: mu {mean.shape} and sigma {covariance.shape} do not fit together")
        if features is not None and features.shape != (protocol["count"], mean.size):
            wanted = (protocol["count"], mean.size)
            raise ValueError(f"{path}: features {features.shape}, its protocol and mu say {wanted}")
        return cls(Moments(protocol["count"], mean, covariance), protocol, features)

    def require(self, wanted: dict, origin: str, advice: str = "") -> None:
        """ValueError when the protocol says otherwise than `wanted` in any of its keys; `advice` ends its message."""
        different = differences({key: self.protocol.get(key) for key in wanted}, wanted)
        if different:
            raise ValueError(f"{origin} was measured with another protocol ({different}){advice}")


def _read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise FileNotFoundError(damage_of(path)) from None
    except Exception as error:  # damaged archives raise whatever their bytes lead to
        raise ValueError(f"{damage_of(path)} (not readable as .npz: {error})") from error


def _parse_protocol(path: str | os.PathLike, text: np.ndarray) -> dict:
    try:
        protocol = json.loads(str(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a protocol that is not readable as JSON ({error})") from error
    count = protocol.get("count") if isinstance(protocol, dict) else None
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise ValueError(f"{path} has a protocol without a count of pictures: measure the reference again")
    return protocol


def feature_protocol(preparation: Preparation, network: FeatureNetwork) -> dict:
    """What two sets of features must share to be compared."""
    return {**preparation.protocol(), "network": network.name, "network_sha256": network.sha256}
