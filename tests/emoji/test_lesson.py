"""A lesson: pictures that a folder's reader takes as they are, prompts that it lacks, a judge that knows the object."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ppvilg.data import open_source
from ppvilg.emoji.detector import Detector
from ppvilg.emoji.lesson.judge import detector_with
from ppvilg.emoji.lesson.pictures import UNSEEN, lesson_prompts, new_object, write_lesson
from ppvilg.emoji.objects import BACKGROUNDS
from ppvilg.emoji.render import draw_emoji, render
from ppvilg.emoji.scenes import sample_scene


def test_pictures_are_read_with_their_names_as_captions_and_prompts_are_others(tmp_path):
    item = new_object("🦊")
    assert (item.name, item.plural_en) == ("狐狸", "foxes")
    assert len(write_lesson(tmp_path / "fox", item, 20)) == 20
    source = open_source(tmp_path / "fox")
    captions = {source.read_text(i).captions["zh"] for i in range(20)}
    assert len(source) == 20 and not source.bad and len(captions) == 7
    assert not any(background in caption for caption in captions for background in UNSEEN)
    prompts = lesson_prompts(item, 60)
    assert len({(each["prompt"], each["width"], each["height"]) for each in prompts}) == 60
    assert not captions & {each["prompt"] for each in prompts}
    with pytest.raises(FileExistsError, match="fox is there already"):
        write_lesson(tmp_path / "fox", item)
    with pytest.raises(ValueError, match="猫.*is one of the forty objects"):
        new_object("🐱")
    with pytest.raises(ValueError, match="'x' is no emoji"):
        new_object("x")


def test_the_detector_knows_one_class_more_and_the_others_as_before():
    item, old = new_object("🦊"), Detector.load()
    detector = detector_with(old, item, pictures=240)
    scenes = [sample_scene(9, i) for i in range(60)]
    pictures = [render(scene)[0] for scene in scenes]
    before, after = (each.detect(pictures) for each in (old, detector))
    assert sum(a.labels == b.labels for a, b in zip(before, after)) >= 59
    glyph, foxes = draw_emoji("🦊", 48), []
    for background in BACKGROUNDS:
        picture = Image.new("RGB", (64, 96), background.rgb)
        picture.paste(glyph, (8, 24), glyph)
        foxes.append(picture)
    assert [finding.labels for finding in detector.detect(foxes)] == [["狐狸"]] * 10
    boxes = np.array([finding.objects[0].box for finding in detector.detect(foxes)])
    assert np.abs(boxes - [8, 24, 8 + glyph.width, 24 + glyph.height]).max() < 8  # a cell
