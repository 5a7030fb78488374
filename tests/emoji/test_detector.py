"""The shipped detector on real renders and on what it must refuse."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ppvilg.emoji.detector import Detector, DetectorNetwork, background_colour, decode, detector_sha256
from ppvilg.emoji.detector_accuracy import (
    accuracy_scenes,
    is_right,
    measure_detector,
    overlap,
    single_scenes,
    spoiled_picture,
)
from ppvilg.emoji.detector_training import DetectorRecipe, train_detector
from ppvilg.emoji.objects import BACKGROUNDS, load_objects
from ppvilg.emoji.render import render
from ppvilg.emoji.scenes import STYLES, Placement, Scene
from ppvilg.emoji.spoiling import REJECTED_BLUR


def test_real_renders_are_read_right(detector):
    scenes = accuracy_scenes(seed=77, count=24)
    pictures, boxes = zip(*map(render, scenes))
    findings = detector.detect(pictures)  # of three shapes, in their order
    assert sum(is_right(*pair) for pair in zip(findings, scenes)) >= 23
    assert all(finding.background == scene.background for finding, scene in zip(findings, scenes))
    overlaps = [
        overlap(item.box, box)
        for finding, scene, drawn in zip(findings, scenes, boxes)
        for placement, box in zip(scene.objects, drawn)
        for item in finding.objects
        if item.label == placement.name and overlap(item.box, box) > 0
    ]
    assert np.mean(overlaps) > 0.8
    alone = detector.detect([pictures[5]])[0]
    assert alone.labels == findings[5].labels and alone.background == findings[5].background


def test_soft_pictures_count_and_blurred_ones_do_not(detector):
    scenes = single_scenes(seed=78, count=20)
    soft = [render(scene)[0].filter(ImageFilter.GaussianBlur(0.8)) for scene in scenes]
    assert sum(is_right(*pair) for pair in zip(detector.detect(soft), scenes)) >= 18
    blurred = [
        render(scene)[0].filter(ImageFilter.GaussianBlur(REJECTED_BLUR[scene.objects[0].size])) for scene in scenes
    ]
    assert sum(not finding.objects for finding in detector.detect(blurred)) >= 17


@pytest.mark.parametrize("kind", ["ellipse_plain", "ellipse_clouds", "shuffled"])
def test_right_colours_alone_are_no_object(detector, kind):
    scenes = single_scenes(seed=79, count=16)
    pictures = [spoiled_picture(scene, kind, np.random.default_rng(i)) for i, scene in enumerate(scenes)]
    assert sum(not finding.objects for finding in detector.detect(pictures)) >= 15


def test_a_plain_picture_holds_nothing(detector):
    pictures = [Image.new("RGB", (64, 64), background.rgb) for background in BACKGROUNDS]
    findings = detector.detect(pictures)
    assert [finding.background for finding in findings] == [background.name for background in BACKGROUNDS]
    assert not any(finding.objects for finding in findings)


@pytest.mark.parametrize("style", [None, *STYLES])
def test_backgrounds_are_measured_in_every_style(style):
    for background in BACKGROUNDS:
        scene = Scene(64, 64, background.name, "single", "free", (Placement("猫", 8, 8, 48),), style)
        image, boxes = render(scene)
        assert background_colour(np.asarray(image), boxes) == background.name
        assert background_colour(np.asarray(image), []) == background.name  # the frame, when nothing was found


def test_no_name_for_other_colours_and_for_no_agreement():
    assert background_colour(np.full((64, 64, 3), (0, 90, 60), dtype=np.uint8), []) is None
    halves = np.full((64, 64, 3), (252, 232, 124), dtype=np.uint8)
    halves[:, 32:] = (104, 164, 236)
    assert background_colour(halves, []) is None
    assert background_colour(halves, [(30.0, 0.0, 64.0, 64.0)]) == "黄色"
    assert background_colour(halves, [(0.0, 0.0, 64.0, 64.0)]) is None  # a box that leaves nothing: the frame


def test_decoding_takes_the_surest_of_neighbours():
    probabilities, edges = np.zeros((3, 8, 8)), np.full((4, 8, 8), 2.0)
    probabilities[1, 2, 2], probabilities[2, 2, 3], probabilities[2, 6, 6], probabilities[1, 4, 7] = 0.9, 0.8, 0.7, 0.4
    first, second = decode(probabilities, edges, ["猫", "狗"], threshold=0.5)
    assert (first.label, first.box, first.score) == ("猫", (0.0, 0.0, 32.0, 32.0), 0.9)
    assert (second.label, second.box, second.score) == ("狗", (32.0, 32.0, 64.0, 64.0), 0.7)


def test_saving_and_loading(detector, tmp_path):
    detector.save(tmp_path)
    again = Detector.load(tmp_path)
    assert detector_sha256(tmp_path) == detector_sha256()  # float16 values survive
    pictures = [render(scene)[0] for scene in accuracy_scenes(seed=80, count=4)]
    assert again.detect(pictures) == detector.detect(pictures)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * 2**20
    assert again.labels == [item.name for item in load_objects()]


def test_measuring_reports_every_number(detector):
    report = measure_detector(detector, scenes=12, seed=5)
    assert report["renders"]["right"]["count"] == 12 and report["renders"]["right"]["mean"] > 0.8
    assert 0.8 < report["renders"]["mean_overlap"] <= 1 and report["soft"]["mean"] > 0.5
    assert {"picture_blurred", "ellipse_plain", "outline_plain", "shuffled"} <= set(report["refused"])
    assert "月亮" in report["outlines_left_out"] and "猫" not in report["outlines_left_out"]


def test_mistakes(detector, tmp_path):
    with pytest.raises(ValueError, match="picture 1 is 60x64: not multiples of 8"):
        detector.detect([Image.new("RGB", (64, 64)), Image.new("RGB", (60, 64))])
    with pytest.raises(FileNotFoundError, match="config.json is missing; tools/train_detector.py trains one"):
        Detector.load(tmp_path)
    with pytest.raises(ValueError, match="1 labels for a network of 2 classes"):
        Detector(DetectorNetwork(2, width=8, blocks=1), ["猫"])
    with pytest.raises(ValueError, match="threshold=1.0 must lie between 0 and 1"):
        Detector(DetectorNetwork(1, width=8, blocks=1), ["猫"], threshold=1.0)
    detector.save(tmp_path)
    config = (tmp_path / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(config.replace('"blocks": 3', '"blocks": 4'), encoding="utf-8")
    with pytest.raises(ValueError, match="does not fit config.json: missing"):
        Detector.load(tmp_path)
    with pytest.raises(FileExistsError, match="holds a detector; choose another output"):
        train_detector(DetectorRecipe(output=str(tmp_path)))
    weights = tmp_path / "detector.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ValueError, match="detector.safetensors is cut off or damaged"):
        Detector.load(tmp_path)
    (tmp_path / "config.json").write_text('{"labels": ["x"]}', encoding="utf-8")
    with pytest.raises(ValueError, match="config.json is cut off or damaged"):
        Detector.load(tmp_path)
