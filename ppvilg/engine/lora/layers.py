"""The low-rank layers that are trained beside layers of frozen networks."""
from __future__ import annotations

from collections.abc import Iterable, Sequence

import paddle
from paddle import nn
from ppdiffusers.models.lora import LoRAConv2dLayer, LoRALinearLayer

from ppvilg.models.lora import LowRank, adaptable_layers

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")  # attention of paddlenlp's ErnieModel


def matching_paths(paths: Iterable[str], targets: Sequence[str]) -> list[str]:
    """Those paths that end in one of the targets, as a whole name; "all": all. ValueError: nothing ends in one."""
    paths = list(paths)
    if "all" in targets:
        return paths
    for target in targets:
        if not any(_ends(path, target) for path in paths):
            names = sorted({path.rpartition(".")[2] for path in paths if not path.rpartition(".")[2].isdigit()})
            raise ValueError(f"no layer's path ends in {target!r}; their last names are {', '.join(names)}")
    return [path for path in paths if any(_ends(path, target) for target in targets)]


def _ends(path: str, target: str) -> bool:
    return f".{path}".endswith(f".{target}")


class LowRankLayers(nn.Layer):
    """LoRA layers of ppdiffusers in groups, each added by a forward hook to the output of one layer or of several.

    Only these layers are trained and saved: the networks that they are attached to are frozen and keep their
    parameters' names. Fresh ones change nothing, for `up` begins with zeros.
    """

    def __init__(self, rank: int, alpha: float | None):
        super().__init__()
        self.rank, self.alpha = rank, alpha
        self._places: dict[str, tuple[str, str]] = {}  # name of the layer here -> (group, path)

    def attach(self, group: str, networks: Sequence[nn.Layer], targets: Sequence[str]) -> None:
        """One LoRA layer for each path that a target matches, common to all of the networks, which are frozen.

        ValueError: a target matches no layer.
        """
        for network in networks:
            for parameter in network.parameters():
                parameter.stop_gradient = True
        layers = [adaptable_layers(network) for network in networks]
        for path in matching_paths(layers[0], targets):
            name = f"{group}.{path}"
            added = self._new(layers[0][path])
            self.add_sublayer(name, added)
            self._places[name] = (group, path)
            for each in layers:
                each[path].register_forward_post_hook(_adding(added))

    def _new(self, layer: nn.Layer) -> nn.Layer:
        if isinstance(layer, nn.Linear):
            features = layer.weight.shape
            return LoRALinearLayer(*features, rank=self.rank, network_alpha=self.alpha)
        channels = layer.weight.shape[1::-1]
        return LoRAConv2dLayer(*channels, rank=self.rank, kernel_size=layer._kernel_size, stride=layer._stride,
                               padding=layer._padding, network_alpha=self.alpha)

    def changes(self) -> dict[str, dict[str, LowRank]]:
        """{group: {path: the change of that layer's weight}}, as they are now."""
        found: dict[str, dict[str, LowRank]] = {}
        for name, (group, path) in self._places.items():
            layer = self._sub_layers[name]
            pair = [part.weight.cast("float32").numpy() for part in (layer.down, layer.up)]
            down, up = (value.T if value.ndim == 2 else value for value in pair)
            found.setdefault(group, {})[path] = LowRank(down, up, self.alpha)
        return found


def _adding(added: nn.Layer):
    scale = 1.0 if added.network_alpha is None else added.network_alpha / added.rank

    def hook(layer: nn.Layer, inputs: tuple, output: paddle.Tensor) -> paddle.Tensor:
        x, dtype = inputs[0], added.down.weight.dtype
        if x.dtype != dtype:
            return output + added(x)
        change = added.up(added.down(x))  # as `added` does, whose casts copy what is of the right type already
        return output + (change if scale == 1.0 else change * scale)

    return hook
