"""Exports of detectors: their graph called directly, preprocessing by PaddleDetection's rules, what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
import yaml
from paddle import inference
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
import exports  # noqa: E402
from annotation_shards import noise  # noqa: E402

from ppvilg.annotate import Rejection, open_detector  # noqa: E402
from ppvilg.annotate.detectors.preprocessing import Preprocessing  # noqa: E402

INPUTS = {"image": [None, 3, 64, 96], "scale_factor": [None, 2]}


@pytest.fixture(scope="module")
def yolo(tmp_path_factory):
    """The folder of a random detector in the form of PP-YOLOE."""
    paddle.seed(3)
    return exports.save(exports.WithSuppression(), INPUTS, tmp_path_factory.mktemp("detector") / "yolo")


def directly(folder: Path, feeds: dict[str, np.ndarray], stem: str = "model") -> list[np.ndarray]:
    """A graph's outputs by Paddle Inference alone."""
    config = inference.Config(str(folder / f"{stem}.json"), str(folder / f"{stem}.pdiparams"))
    config.disable_gpu()
    config.disable_mkldnn()
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    for name, value in feeds.items():
        predictor.get_input_handle(name).copy_from_cpu(value)
    predictor.run()
    return [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]


def stretched(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """(image, scale_factor) of one picture as STRETCH says, written down once more."""
    pixels = np.asarray(picture)
    small = cv2.resize(pixels, (96, 64), interpolation=cv2.INTER_CUBIC).astype(np.float32) / 255
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    scale = np.float32([[64 / pixels.shape[0], 96 / pixels.shape[1]]])
    return ((small - mean) / std).transpose(2, 0, 1)[None], scale


def rows_of(detections) -> np.ndarray:
    """Detections as rows of the graph."""
    return np.array([[exports.LABELS.index(each.label), each.score, *each.box] for each in detections])


def test_a_detector_with_suppression_gives_what_its_graph_gives(yolo):
    pictures = [noise(1, (200, 150)), noise(2, (64, 96)), noise(3, (300, 40))]
    found = open_detector(str(yolo)).detect(pictures)
    assert sum(map(len, found)) > 10
    for picture, mine in zip(pictures, found):
        image, scale = stretched(picture)
        rows = directly(yolo, {"image": image, "scale_factor": scale})[0]
        rows = rows[rows[:, 1] >= 0.2]
        rows[:, 2:] = rows[:, 2:].clip(0, np.tile(picture.size, 2))
        rows = rows[(rows[:, 4] > rows[:, 2]) & (rows[:, 5] > rows[:, 3])]
        np.testing.assert_allclose(rows_of(mine), rows[np.argsort(-rows[:, 1], kind="stable")], atol=0.011)


def test_a_transformer_of_paddlex_and_a_batch_of_one(tmp_path):
    paddle.seed(4)
    inputs = {"im_shape": [1, 2], "image": [1, 3, 64, 96], "scale_factor": [1, 2]}
    folder = exports.save(exports.FixedNumber(), inputs, tmp_path / "rtdetr", names=("inference.yml", "inference"))
    pictures = [noise(1, (200, 150)), noise(2, (90, 70))]
    for picture, mine in zip(pictures, open_detector(str(folder), min_score=0.0).detect(pictures)):
        image, scale = stretched(picture)
        feeds = {"im_shape": np.float32([[64, 96]]), "image": image, "scale_factor": scale}
        rows = directly(folder, feeds, "inference")[0]
        rows[:, 2:] = rows[:, 2:].clip(0, np.tile(picture.size, 2))
        assert len(mine) == 5
        np.testing.assert_allclose(rows_of(mine), rows[np.argsort(-rows[:, 1], kind="stable")], atol=0.011)


def test_a_graph_of_the_format_before_paddle_3(tmp_path):
    folder = exports.save_old(tmp_path / "old")
    assert (folder / "model.pdmodel").is_file()
    found = open_detector(str(folder)).detect([noise(1, (200, 150)), noise(2, (20, 70))])  # one by one
    assert [each[0] for each in found] == [("cat", 0.9, (5, 5, 30, 30)), ("cat", 0.9, (5, 5, 20, 30))]


def test_preprocessing_that_does_not_fit_the_graph_is_said(yolo, tmp_path):
    operators = [{"type": "Permute"}]
    with pytest.raises(ValueError, match=r"gives pictures of \[3, 4, 4\], the graph takes \[3, 64, 96\]"):
        open_detector(str(rewrite(yolo, tmp_path / "other", Preprocess=operators))).detect([noise(1, (4, 4))])


def test_an_onnx_detector_gives_what_its_graph_gives(tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    helper = onnx.helper
    weight = np.random.default_rng(5).normal(size=(3, 12)).astype(np.float32)
    nodes = [  # means of the channels -> two rows of six, in (0, 1)
        helper.make_node("ReduceMean", ["image"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "weight"], ["twelve"]),
        helper.make_node("Sigmoid", ["twelve"], ["values"]),
        helper.make_node("Reshape", ["values", "rows"], ["halves"]),
        helper.make_node("Mul", ["halves", "factors"], ["boxes"]),
    ]
    constants = [onnx.numpy_helper.from_array(weight, "weight"),
                 onnx.numpy_helper.from_array(np.int64([-1, 6]), "rows"),
                 onnx.numpy_helper.from_array(np.float32([2, 1, 5, 5, 90, 90]), "factors")]  # fmt: skip
    image = helper.make_tensor_value_info("image", 1, ["n", 3, 64, 96])
    boxes = helper.make_tensor_value_info("boxes", 1, ["m", 6])
    graph = helper.make_graph(nodes, "detector", [image], [boxes], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(tmp_path / "model.onnx"))
    settings = {"Preprocess": exports.STRETCH, "label_list": exports.LABELS}
    (tmp_path / "infer_cfg.yml").write_text(yaml.safe_dump(settings))
    pictures = [noise(1, (200, 150)), noise(2, (90, 70))]
    found = open_detector(str(tmp_path / "model.onnx"), min_score=0.0).detect(pictures)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for picture, mine in zip(pictures, found):
        image, scale = stretched(picture)
        rows = session.run(None, {"image": image})[0]
        rows[:, 0] = rows[:, 0].astype(int)
        rows[:, 2:] = (rows[:, 2:] / np.tile(scale[:, ::-1], 2)).clip(0, np.tile(picture.size, 2))  # it knows no scale
        rows = rows[(rows[:, 4] > rows[:, 2]) & (rows[:, 5] > rows[:, 3])]
        np.testing.assert_allclose(rows_of(mine), rows[np.argsort(-rows[:, 1], kind="stable")], atol=0.011)


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (77, 31), (5000, 1), (1, 5000)])
@pytest.mark.parametrize("kind", ["stretch", "ratio", "letter box"])
def test_a_point_of_the_picture_is_found_where_it_was(kind, size):
    """A bright square goes through preprocessing; where it lies then leads back to where it was."""
    operators = {
        "stretch": [{"type": "Resize", "target_size": [320, 480]}, {"type": "Permute"}],
        "ratio": [{"type": "Resize", "target_size": [320, 480], "keep_ratio": True}, {"type": "Permute"},
                  {"type": "PadStride", "stride": 32}],
        "letter box": [{"type": "LetterBoxResize", "target_size": [320, 480]}, {"type": "Permute"}],
    }  # fmt: skip
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    left, top = width // 2, height // 2
    box = np.array([left, top, min(width, left + max(8, width // 8)), min(height, top + max(8, height // 8))])
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    prepared = Preprocessing(operators[kind], "test")(pixels)
    bright = np.argwhere(prepared.pixels[0] > 128)
    (y0, x0), (y1, x1) = bright.min(0), bright.max(0) + 1
    down, across = prepared.scale
    x, y = prepared.offset
    back = np.array([(x0 - x) / across, (y0 - y) / down, (x1 - x) / across, (y1 - y) / down])
    tolerance = 1 + 1 / np.array([across, down, across, down])
    assert (abs(back - box) <= tolerance).all(), (back, box)
    assert prepared.pixels.shape[1] % 32 == 0 or kind == "stretch"


def rewrite(folder: Path, target: Path, **changes) -> Path:
    """A copy of a detector's folder with other settings."""
    target.mkdir()
    for name in ("model.json", "model.pdiparams"):
        os.link(folder / name, target / name)
    settings = yaml.safe_load((folder / "infer_cfg.yml").read_text()) | changes
    (target / "infer_cfg.yml").write_text(yaml.safe_dump(settings))
    return target


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"Preprocess": [{"type": "WarpAffine", "keep_res": True}]}, "the operator 'WarpAffine', which is not among"),
        ({"Preprocess": [{"type": "Resize", "target_size": [64, 96], "size_divisor": 3}]}, "setting 'size_divisor'"),
        ({"Preprocess": [{"type": "NormalizeImage", "norm_type": "minmax"}]}, "norm_type 'minmax' is neither"),
        ({"Preprocess": "Resize"}, "Preprocess must be a list"),
        ({"label_list": ["cat", "dog", "cat"]}, "label_list has cat twice"),
        ({"label_list": [1, 2]}, "label_list must be a list of labels"),
    ],
)
def test_what_is_not_known_is_refused_by_name(yolo, tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_detector(str(rewrite(yolo, tmp_path / "other", **changes)))


def test_too_few_labels_and_damaged_files_are_named(yolo, tmp_path):
    other = rewrite(yolo, tmp_path / "other", label_list=["cat"])
    with pytest.raises(ValueError, match="has 1 labels, the graph found class 2"):
        open_detector(str(other)).detect([noise(1, (200, 150))])
    (other / "model.pdiparams").unlink()
    with pytest.raises(FileNotFoundError, match="model.pdiparams is missing"):
        open_detector(str(other))
    (other / "model.pdiparams").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="Git LFS pointer"):
        open_detector(str(other))
    with pytest.raises(FileNotFoundError, match="holds neither infer_cfg.yml nor inference.yml"):
        open_detector(str(tmp_path))


def test_a_program_answers_line_by_line(tmp_path):
    program = tmp_path / "detector.py"
    program.write_text(
        "import json, sys\n"
        "print(json.dumps({'tool': 'mine', 'version': '2'}), flush=True)\n"
        "for number, line in enumerate(sys.stdin):\n"
        "    question = json.loads(line)\n"
        "    if 'flush' in question: continue\n"
        "    if question['width'] == 1: answer = {'error': 'too narrow'}\n"
        "    elif question['width'] == 2: answer = {'objects': [{'label': 'x', 'score': 1, 'box': [0, 0, 'a', 1]}]}\n"
        "    elif question['width'] == 3: sys.exit('out of memory')\n"
        "    else: answer = {'objects': [{'label': 'cat', 'score': .9, 'box': [-4, 0, 10, 9.5]}]}\n"
        "    print(json.dumps(answer), flush=True)\n"
    )
    detector = open_detector(f"command:{sys.executable} {program}")
    one, two, three = detector.detect([noise(0, (30, 20)), noise(0, (1, 9)), noise(0, (2, 9))])
    assert one[0].box == (0, 0, 10, 9.5) and two == Rejection("too narrow")
    assert "cannot be used" in three.reason and detector.identity["its_version"] == "2"
    with pytest.raises(ValueError, match="ended with code 1: out of memory"):
        detector.detect([noise(0, (3, 3))])
    detector.close()


def test_real_weights_know_animals(tmp_path):
    """The short form of tests/benchmarks/detector_photos.py."""
    import centernet
    from photos import RCC, animal_photos, package_folder

    rcc = package_folder(RCC)
    if rcc is None:
        pytest.skip("the Debian package gcompris-qt-data is not there: see tests/annotate/photos.py")
    try:
        centernet.save_detector(tmp_path, tmp_path)
    except OSError as error:
        pytest.skip(f"the weights of {centernet.URL} cannot be had ({error}): {centernet.GIVEN} may name the file")
    photos = [each for each in animal_photos(rcc) if each[0].startswith("explore_farm")]
    found = open_detector(str(tmp_path), min_score=0.3).detect([picture for _, _, picture in photos])
    assert [each[0].label for each in found] == [kind for _, kind, _ in photos]
