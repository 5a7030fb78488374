"""The world of 128 pixels: scenes that keep their rules, sentences that say what is drawn, pictures of open sets."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ppvilg.emoji import prepare
from ppvilg.emoji.emoji128 import packages, phrases
from ppvilg.emoji.emoji128.captions import KINDS, describe, held_out_combinations, held_out_prompts
from ppvilg.emoji.emoji128.glyphs import draw_glyph
from ppvilg.emoji.emoji128.objects import BACKGROUNDS, load_things, thing_by_label
from ppvilg.emoji.emoji128.render import draw_background, render
from ppvilg.emoji.emoji128.scenes import GRID, NUMBER_SHARES, SHAPES, is_held_out, sample_scene, scene_is_held_out
from ppvilg.emoji.emoji128.styles import STYLES, USUAL, style_by_name

SCENES = [sample_scene(3, index) for index in range(1500)]


@pytest.fixture(scope="module")
def sets():
    """The packages of pictures: of the cache, or fetched."""
    try:
        for package in packages.PACKAGES:
            packages.fetch(package)
    except FileNotFoundError as error:
        pytest.skip(f"packages of pictures: {error}")


def test_objects_have_names_of_their_own():
    things = load_things()
    assert len(things) == 80 and len({thing.emoji for thing in things}) == 80
    for names in ([n for t in things for n in t.names], [n for t in things for n in t.names_en]):
        assert not [name for name, times in Counter(names).items() if times > 1]
    kinds = {kind for thing in things for kind in thing.kinds}
    assert kinds.isdisjoint(name for thing in things for name in thing.names)


def test_squares_stand_on_the_grid_and_touch_nothing():
    for scene in SCENES:
        assert (scene.width, scene.height) in SHAPES
        taken = np.zeros((scene.height, scene.width), bool)
        for item in scene.objects:
            assert item.x % GRID == item.y % GRID == 0
            area = taken[item.y : item.y + item.size, item.x : item.x + item.size]
            assert area.shape == (item.size, item.size) and not area.any()
            area[:] = True
        first, *others = scene.objects
        if scene.layout == "left":
            assert first.x + first.size <= others[0].x
        if scene.layout == "above":
            assert first.y + first.size <= others[0].y
    numbers = Counter(len(scene.objects) for scene in SCENES if scene.layout == "count")
    assert set(numbers) == set(NUMBER_SHARES)


def test_training_never_sees_what_is_held_out():
    assert not any(scene_is_held_out(scene) for scene in SCENES)
    validation = [scene_is_held_out(sample_scene(3, index, "validation")) for index in range(300)]
    assert 0.4 < np.mean(validation) < 0.6
    for thing in load_things():  # every object is asked for on some background
        assert any(is_held_out("object_background", thing.label, each.name) for each in BACKGROUNDS)
        assert not is_held_out("object_style", thing.label, USUAL)
    with pytest.raises(ValueError, match="kind 'colour' is not one of object_background"):
        is_held_out("colour", "猫", "红色")


def test_sentences_say_what_is_drawn():
    for index, scene in enumerate(SCENES):
        said = describe(scene, np.random.default_rng(index))
        labels = [item.name for item in scene.objects]
        for label in dict.fromkeys(labels):
            thing = thing_by_label(label)
            named = any(name in said.zh for name in (*thing.names, *thing.kinds))
            assert named or label in said.omitted, (scene, said)
            assert label in said.generated
            assert any(name in said.en for name in (*thing.names_en, thing.plural)), (scene, said)
        if scene.layout == "count":
            counted = f"{phrases.NUMBERS[len(labels)]}{thing_by_label(labels[0]).measure}"
            assert counted in said.zh and phrases.NUMBERS_EN[len(labels)] in said.en
        if scene.style != USUAL:
            style = style_by_name(scene.style)
            assert any(word in said.zh for word in style.words) and any(word in said.en for word in style.words_en)
        if style_by_name(scene.style).glyph_set == "line":  # nothing has a colour there but its background
            colours = {thing_by_label(label).colour for label in labels} - {None, scene.background}
            assert not any(f"{colour}的" in said.zh for colour in colours if colour not in ("白色",))


@pytest.mark.parametrize("kind", KINDS)
def test_test_prompts_are_held_out_and_differ(kind):
    prompts = held_out_prompts(kind, 60, seed=1)
    assert prompts == held_out_prompts(kind, 60, seed=1) and len({p["prompt"] for p in prompts}) > 50
    known = {(tuple(labels), relation, number) for labels, _, relation, number, _ in held_out_combinations(kind)}
    for prompt in prompts:
        labels = [item["label"] for item in prompt["objects"]]
        asked = tuple(labels) if kind == "pair" else (labels[0],)
        assert (asked, prompt["relation"], 1 if kind == "pair" else len(labels)) in known
        assert all(label in prompt["prompt"] for label in labels)
    with pytest.raises(ValueError, match="kind 'colour' is not one of single"):
        held_out_prompts("colour", 1)


def test_every_object_is_drawn(sets):
    glyph_sets = sorted({style.glyph_set for style in STYLES})
    for first, glyph_set in enumerate(glyph_sets):
        for thing in load_things()[first :: len(glyph_sets)]:  # each in one of them
            glyph = draw_glyph(thing.label, glyph_set, 48)
            assert glyph.mode == "RGBA" and max(glyph.size) == 48
            assert 0.1 < (np.asarray(glyph.getchannel("A")) > 127).mean()


def test_pictures_and_boxes(sets):
    for scene in SCENES[:60]:
        picture, boxes = render(scene)
        assert picture.size == (scene.width, scene.height) and picture.mode == "RGB"
        plain = np.asarray(draw_background(scene.background, *picture.size, False), dtype=int)
        for item, (left, top, right, bottom) in zip(scene.objects, boxes):
            assert item.x <= left < right <= item.x + item.size and item.y <= top < bottom <= item.y + item.size
            drawn = np.asarray(picture, dtype=int)[top:bottom, left:right]
            assert np.abs(drawn - plain[top:bottom, left:right]).max() > 30
    scene = replace(SCENES[0], style=USUAL)
    pictures = [np.asarray(render(replace(scene, style=style.name))[0], dtype=int) for style in STYLES]
    for first in range(len(STYLES)):
        for second in range(first):
            assert np.abs(pictures[first] - pictures[second]).mean() > 2, (STYLES[first].name, STYLES[second].name)


def test_data_with_their_licences(sets, tmp_path):
    assert prepare.write_dataset(tmp_path / "train", 12, world_name="emoji128")
    header, *lines = (tmp_path / "train" / prepare.ANNOTATIONS).read_text(encoding="utf-8").splitlines()
    assert json.loads(header)["world"] == "emoji128" and len(lines) == 12
    licences = (tmp_path / "train" / prepare.LICENCES).read_text(encoding="utf-8")
    assert all(package.name in licences and package.licence in licences for package in packages.PACKAGES)
    assert not prepare.write_dataset(tmp_path / "train", 12, world_name="emoji128")
    with pytest.raises(FileExistsError, match="holds another dataset"):
        prepare.write_dataset(tmp_path / "train", 12)
    with tarfile.open(tmp_path / "train" / "00000.tar") as tar:
        picture = Image.open(io.BytesIO(tar.extractfile("000000003.png").read()))
    assert np.array_equal(np.asarray(picture), np.asarray(render(sample_scene(0, 3))[0]))
    with pytest.raises(ValueError, match="no world 'emoji256'; there are: emoji64, emoji128"):
        prepare.write_dataset(tmp_path / "other", 1, world_name="emoji256")


def test_packages_that_are_not_what_they_should_be(tmp_path, monkeypatch):
    monkeypatch.setenv(packages.FOLDER_VARIABLE, str(tmp_path))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("package/a.txt")
        member.size = 2
        tar.addfile(member, io.BytesIO(b"hi"))
    sha512 = base64.b64encode(hashlib.sha512(packed.getvalue()).digest()).decode()
    tiny = packages.Package("@some/tiny", "1.0", sha512, "Somebody", "MIT", "here")
    with pytest.raises(FileNotFoundError, match="tiny-1.0.tgz is not there; PPVILG_EMOJI_PACKAGES names the folder"):
        packages.fetch(tiny)
    (tmp_path / "tiny-1.0.tgz").write_bytes(packed.getvalue())
    assert packages.open_package(tiny) == {"a.txt": b"hi"}
    with pytest.raises(ValueError, match="is not @some/tiny 1.1 .its SHA-512 differs."):
        (tmp_path / "tiny-1.1.tgz").write_bytes(packed.getvalue() + b"x")
        packages.open_package(replace(tiny, version="1.1"))


def test_a_registry_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.delenv(packages.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    with pytest.raises(FileNotFoundError, match="http://127.0.0.1:9/@iconify-json/noto/-/noto-1.2.9.tgz cannot be fe"):
        packages.fetch(packages.NOTO)
    assert not list((tmp_path / "ppvilg" / "packages").iterdir())
