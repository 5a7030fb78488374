"""Low-rank adapters (LoRA, arXiv 2106.09685) of a mixture of experts, and weights with them merged in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import paddle
from paddle import nn


@dataclass(frozen=True)
class LowRank:
    """A change of the weight of one linear or convolutional layer, in PyTorch's layout."""

    down: np.ndarray  # (r, in) or (r, in, kh, kw)
    up: np.ndarray  # (out, r) or (out, r, 1, 1)
    alpha: float | None = None  # None: the rank, a factor of 1

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return len(self.down)

    def delta(self) -> np.ndarray:
        """alpha / r * up @ down, float32 (out, in) or (out, in, kh, kw)."""
        down, up = self.down.astype(np.float32), self.up.astype(np.float32)
        factor = 1.0 if self.alpha is None else self.alpha / self.rank
        product = up.reshape(len(up), self.rank) @ down.reshape(self.rank, -1)  # (out, in * kh * kw)
        return factor * product.reshape(len(up), *down.shape[1:])


Changes = Mapping[str, LowRank]  # by the path of a layer in its network


@dataclass(frozen=True)
class TaughtWord:
    """A word that the base does not know, as its adapter has it; see ppvilg.knowledge.NewWord for the first three."""

    word: str
    mark: str
    key_token_weight: float | None
    row: np.ndarray  # float32 (D,), of the text encoder's token embedding


@dataclass(frozen=True)
class AdapterSettings:
    """What an adapter of this package says of itself: the mixture that it was trained on."""

    num_experts: int
    boundaries: list[int]  # timesteps, as of MoDEUNet2DConditionModel
    base_sha256: str | None = None  # of the pipeline folder, see ppvilg.pipelines.identify
    mark: bool = True  # whether the captions were marked


@dataclass(frozen=True)
class Adapter:
    """Changes of one network or of all experts alike (`shared`), of single experts, and of the text encoder; words."""

    shared: Changes = field(default_factory=dict)
    experts: Mapping[int, Changes] = field(default_factory=dict)
    text_encoder: Changes = field(default_factory=dict)
    settings: AdapterSettings | None = None  # None: a file of another program, made for no particular mixture
    words: Sequence[TaughtWord] = ()

    def of_expert(self, index: int) -> list[Changes]:
        """What changes expert `index`."""
        return [changes for changes in (self.shared, self.experts.get(index, {})) if changes]


def adaptable_layers(network: nn.Layer) -> dict[str, nn.Layer]:
    """Linear and convolutional layers of a network by path: what an adapter may change."""
    return {path: layer for path, layer in network.named_sublayers() if isinstance(layer, (nn.Linear, nn.Conv2D))}


def torch_shape(layer: nn.Layer) -> tuple[int, ...]:
    """Shape of a layer's weight in PyTorch's layout: (out, in) or (out, in, kh, kw)."""
    shape = tuple(layer.weight.shape)
    return shape[::-1] if isinstance(layer, nn.Linear) else shape


def remapped(adapter: Adapter, boundaries: Sequence[int]) -> Adapter:
    """The adapter for a mixture with other boundaries: each expert takes what was made for most of its timesteps."""
    own = adapter.settings
    ranges = list(zip(boundaries[:-1], boundaries[1:]))
    theirs = list(zip(own.boundaries[:-1], own.boundaries[1:]))
    experts = {}
    for index, (low, high) in enumerate(ranges):
        shares = [min(high, end) - max(low, start) for start, end in theirs]
        experts[index] = adapter.experts.get(int(np.argmax(shares)), {})
    settings = AdapterSettings(len(ranges), list(boundaries), own.base_sha256, own.mark)
    return Adapter(adapter.shared, experts, adapter.text_encoder, settings, adapter.words)


class Originals:
    """The weights of a network as they were before anything was merged into them, of the layers that were changed."""

    def __init__(self) -> None:
        self._values: dict[str, np.ndarray] = {}  # float32, which holds every narrower float exactly

    def merge(self, network: nn.Layer, changes: Sequence[tuple[float, Changes]]) -> None:
        """Gives each layer its original weight plus its changes; layers without any get theirs back, bit for bit."""
        layers = adaptable_layers(network)
        wanted = {path for scale, change in changes if scale for path in change}
        for path in wanted - self._values.keys():
            self._values[path] = layers[path].weight.cast("float32").numpy().copy()
        for path, original in list(self._values.items()):
            terms = [(scale, change[path]) for scale, change in changes if scale and path in change]
            set_weight(layers[path], merged(layers[path], original, terms))
            if not terms:
                del self._values[path]

    def forget(self) -> None:
        """From now on the weights as they are count as original."""
        self._values.clear()


def merged(layer: nn.Layer, original: np.ndarray, terms: Sequence[tuple[float, LowRank]]) -> np.ndarray:
    """Weight of a layer, float32 in Paddle's layout, with scaled changes."""
    value = original
    for scale, change in terms:
        delta = scale * change.delta()
        value = value + (delta.T if isinstance(layer, nn.Linear) else delta)
    return value


def merge_into(network: nn.Layer, changes: Sequence[tuple[float, Changes]]) -> None:
    """Adds changes to weights that were just read, and whose originals nobody needs."""
    layers = adaptable_layers(network)
    for path in {path for scale, change in changes if scale for path in change}:
        terms = [(scale, change[path]) for scale, change in changes if scale and path in change]
        original = layers[path].weight.cast("float32").numpy()
        set_weight(layers[path], merged(layers[path], original, terms))


@paddle.no_grad()
def set_weight(layer: nn.Layer, value: np.ndarray) -> None:
    """The weight stays the same object on the same device and of the same dtype."""
    weight = layer.weight
    weight.set_value(paddle.to_tensor(value, place=weight.place).cast(weight.dtype))
