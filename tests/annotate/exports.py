"""Small random detectors in the forms that PaddleDetection, PaddleX and paddle2onnx write."""

from __future__ import annotations

from pathlib import Path

import paddle
import yaml

LABELS = ["cat", "dog", "bowl"]
STRETCH = [
    {"type": "Resize", "target_size": [64, 96], "keep_ratio": False, "interp": 2},
    {"type": "NormalizeImage", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "is_scale": True},
    {"type": "Permute"},
]


class WithSuppression(paddle.nn.Layer):
    """The form of PP-YOLOE: boxes over all scales, then NMS in the graph. (N, 3, H, W), (N, 2) -> (n, 6), (N,)."""

    def __init__(self):
        super().__init__()
        self.body = paddle.nn.Conv2D(3, 4 + len(LABELS), 8, stride=8)

    def forward(self, image, scale_factor):
        features = self.body(image).flatten(2)  # (N, 4 + C, cells)
        near = paddle.nn.functional.sigmoid(features[:, :4]).transpose([0, 2, 1]) * 60  # (N, cells, 4)
        boxes = paddle.concat([near[..., :2], near[..., :2] + near[..., 2:] + 1], -1)
        boxes = boxes / paddle.concat([scale_factor[:, ::-1], scale_factor[:, ::-1]], -1).unsqueeze(1)
        scores = paddle.nn.functional.sigmoid(features[:, 4:])  # (N, C, cells)
        out, numbers = paddle.vision.ops.matrix_nms(boxes, scores, 0.2, 0.2, -1, 20, background_label=-1)[:2]
        return out, numbers


class FixedNumber(paddle.nn.Layer):
    """The form of RT-DETR: as many boxes of each picture. (N, 2), (N, 3, H, W), (N, 2) -> (N * 5, 6), (N,)."""

    def __init__(self):
        super().__init__()
        self.body = paddle.nn.Conv2D(3, 30, 8, stride=8)

    def forward(self, im_shape, image, scale_factor):
        features = self.body(image).mean([2, 3]).reshape([-1, 5, 6])
        original = (im_shape / scale_factor)[:, ::-1]  # width, height
        middle = paddle.nn.functional.sigmoid(features[..., :2]) * original.unsqueeze(1)
        half = paddle.nn.functional.sigmoid(features[..., 2:4]) * original.unsqueeze(1) / 2
        scores = paddle.nn.functional.sigmoid(features[..., 4:])
        rows = [(scores[..., :1] > scores[..., 1:]).astype("float32"), scores[..., :1], middle - half, middle + half]
        return paddle.concat(rows, -1).flatten(0, 1), paddle.full_like(im_shape[:, 0], 5).astype("int32")


def save(network: paddle.nn.Layer, inputs: dict[str, list], folder: Path, preprocess=None, names=("infer_cfg.yml",
         "model"), labels=LABELS) -> Path:  # fmt: skip
    """Writes a detector's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    network.eval()
    spec = [paddle.static.InputSpec(shape, "float32", name) for name, shape in inputs.items()]
    paddle.jit.save(paddle.jit.to_static(network, input_spec=spec, full_graph=True), str(folder / names[1]))
    settings = {"arch": "YOLO", "draw_threshold": 0.5, "Preprocess": preprocess or STRETCH, "label_list": labels}
    (folder / names[0]).write_text(yaml.safe_dump(settings, sort_keys=False))
    return folder


def save_old(folder: Path) -> Path:
    """A detector of one box in the format before Paddle 3, model.pdmodel, for one picture at a time."""
    from paddle.pir_utils import OldIrGuard

    folder.mkdir(parents=True, exist_ok=True)
    paddle.enable_static()
    try:
        with OldIrGuard(), paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()):
            image = paddle.static.data("image", [1, 3, 64, 96])
            scale = paddle.static.data("scale_factor", [1, 2])
            means = paddle.mean(image, axis=[2, 3])
            thirty = paddle.nn.initializer.Constant(30.0)
            corner = paddle.static.create_parameter([1, 2], "float32", default_initializer=thirty)
            parts = [means[:, :1] * 0, means[:, :1] * 0 + 0.9, scale * 0 + 5, corner]
            rows, number = paddle.concat(parts, 1), paddle.cast(means[0, :1] * 0 + 1, "int32")
            executor = paddle.static.Executor()
            executor.run(paddle.static.default_startup_program())
            paddle.static.save_inference_model(str(folder / "model"), [image, scale], [rows, number], executor,
                                               program=paddle.static.default_main_program())  # fmt: skip
    finally:
        paddle.disable_static()
    (folder / "infer_cfg.yml").write_text(yaml.safe_dump({"Preprocess": STRETCH, "label_list": LABELS}))
    return folder
