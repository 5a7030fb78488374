"""The renderer: names, scenes, boxes, captions, the held-out rule, styles and what is written to disk."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ppvilg.commands import main
from ppvilg.emoji import objects as objects_module
from ppvilg.emoji import prepare
from ppvilg.emoji.captions import describe, held_out_combinations, held_out_prompts, noun_phrase, noun_phrase_en
from ppvilg.emoji.objects import BACKGROUNDS, load_objects, read_cldr_names, require_assets
from ppvilg.emoji.render import apply_style_filter, draw_glyph, render
from ppvilg.emoji.scenes import (
    GRID,
    STYLES,
    Placement,
    Scene,
    coarse_position,
    is_held_out,
    is_reserved,
    sample_scene,
    scene_combinations,
    scene_is_held_out,
)

NAMES = [item.name for item in load_objects()]
BACKGROUND_NAMES = [item.name for item in BACKGROUNDS]


@pytest.fixture(scope="module")
def train_scenes() -> list[Scene]:
    return [sample_scene(7, index) for index in range(4000)]


@pytest.fixture(scope="module")
def validation_scenes() -> list[Scene]:
    return [sample_scene(7, index, "validation") for index in range(400)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji") / "train"
    assert prepare.write_dataset(folder, num_samples=25, seed=3, samples_per_shard=10) is True
    return folder


def caption(scene: Scene, seed: int = 0):
    return describe(scene, np.random.default_rng(seed))


# Objects and names


def test_forty_objects_have_unique_names_and_measure_words():
    assert len(NAMES) == len(set(NAMES)) == 40
    assert len({item.name_en for item in load_objects()}) == 40
    assert all(len(item.measure) == 1 for item in load_objects())
    # No name is part of another: a caption that says 猫 must not seem to say 熊猫, except by its measure word.
    inside = {(a, b) for a in NAMES for b in NAMES if a != b and a in b}
    assert inside == {("猫", "熊猫")}


def test_names_come_from_cldr_unless_a_shorter_word_is_listed():
    names, names_en = read_cldr_names("zh"), read_cldr_names("en")
    for item in load_objects():
        assert item.name == objects_module._SHORT_NAMES.get(item.emoji, names[item.emoji])
        assert item.name_en == objects_module._SHORT_NAMES_EN.get(item.emoji, names_en[item.emoji])
    by_emoji = {item.emoji: item for item in load_objects()}
    assert names["🐱"] == "猫脸" and by_emoji["🐱"].name == "猫"
    assert by_emoji["🐼"].name == "熊猫" and by_emoji["🐼"].name_en == "panda"


def test_short_name_tables_hold_no_stray_entries():
    emojis = {item.emoji for item in load_objects()}
    assert set(objects_module._SHORT_NAMES) <= emojis
    assert set(objects_module._SHORT_NAMES_EN) <= emojis
    assert set(objects_module._PLURALS_EN) <= {item.name_en for item in load_objects()}


def test_backgrounds_are_clearly_apart():
    colours = np.array([item.rgb for item in BACKGROUNDS], dtype=float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 1e9 * np.eye(len(colours))
    assert len(BACKGROUNDS) == 10
    assert distances.min() > 60


def test_missing_font_names_the_file_and_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(objects_module.os, "geteuid", lambda: 1000)
    with pytest.raises(
        FileNotFoundError, match="sudo apt-get install fonts-noto-color-emoji unicode-cldr-core"
    ) as error:
        require_assets(font=tmp_path / "NoSuch.ttf")
    assert "NoSuch.ttf" in str(error.value)


def test_the_font_is_searched_below_every_folder(tmp_path):
    """Only one with bitmaps is of use: Fedora's newer ones have outlines in colour."""
    system, own = tmp_path / "usr" / "share", tmp_path / "home" / "share"
    outlines, bitmaps = system / "fonts" / "google" / "NotoColorEmoji.ttf", own / "fonts" / "NotoColorEmoji.ttf"
    for path, content in ((outlines, b"COLR"), (bitmaps, objects_module.FONT_PATH.read_bytes()[:2048])):
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    assert objects_module.find_font([system, own]) == bitmaps
    assert objects_module.find_font([system]) == system / objects_module.FONT
    assert objects_module.find_annotations([system]) == system / objects_module.ANNOTATIONS


def test_root_installs_missing_assets_and_updates_the_index_once(tmp_path, monkeypatch, capsys):
    commands = []

    def run(command, **_):
        commands.append(command[1])
        succeeded = commands != ["install"]
        if succeeded and command[1] == "install":
            (tmp_path / "font.ttf").touch()
        return type("Result", (), {"returncode": 0 if succeeded else 100})

    monkeypatch.setattr(objects_module.os, "geteuid", lambda: 0)
    monkeypatch.setattr(objects_module.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(objects_module.subprocess, "run", run)
    require_assets(font=tmp_path / "font.ttf")
    assert commands == ["install", "update", "install"]
    assert "installing fonts-noto-color-emoji" in capsys.readouterr().out


# Scenes


def test_scenes_depend_on_seed_and_index_alone(train_scenes):
    assert [sample_scene(7, index) for index in (3, 0, 99)] == [train_scenes[index] for index in (3, 0, 99)]
    assert [sample_scene(8, index) for index in range(20)] != train_scenes[:20]


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="'test'.*train, validation"):
        sample_scene(0, 0, "test")


def test_objects_lie_on_the_grid_inside_the_picture_and_never_overlap(train_scenes):
    for scene in train_scenes:
        covered = np.zeros((scene.height, scene.width), dtype=int)
        for item in scene.objects:
            assert item.size in (32, 48) and item.x % GRID == item.y % GRID == 0
            assert 0 <= item.x <= scene.width - item.size and 0 <= item.y <= scene.height - item.size
            covered[item.y : item.y + item.size, item.x : item.x + item.size] += 1
        assert covered.max() == 1, scene


def test_layouts_show_what_they_say(train_scenes):
    for scene in train_scenes:
        names = [item.name for item in scene.objects]
        if scene.layout == "count":
            assert len(names) in (2, 3) and len(set(names)) == 1
        else:
            assert len(set(names)) == len(names) == {"single": 1, "left": 2, "above": 2, "three": 3}[scene.layout]
        for first, second in zip(scene.objects, scene.objects[1:]):
            if scene.arrangement == "row":
                assert first.x + first.size <= second.x
            if scene.arrangement == "column":
                assert first.y + first.size <= second.y
        # Of two relations only the one the caption names holds.
        if scene.layout == "left":
            assert abs(scene.objects[0].y - scene.objects[1].y) <= GRID
        if scene.layout == "above":
            assert abs(scene.objects[0].x - scene.objects[1].x) <= GRID


def test_shapes_layouts_and_styles_have_their_shares(train_scenes):
    count = len(train_scenes)
    shapes = Counter((scene.width, scene.height) for scene in train_scenes)
    layouts = Counter(scene.layout for scene in train_scenes)
    assert set(shapes) == {(64, 64), (64, 96), (96, 64)}
    assert shapes[64, 64] / count == pytest.approx(0.70, abs=0.04)
    assert layouts["single"] / count == pytest.approx(0.40, abs=0.03)
    assert (layouts["left"] + layouts["above"]) / count == pytest.approx(0.30, abs=0.03)
    styled = [scene for scene in train_scenes if scene.style]
    assert {scene.style for scene in styled} == set(STYLES)
    assert {scene.layout for scene in styled} <= {"single", "left", "above"}
    assert len(styled) / count == pytest.approx(0.06, abs=0.02)


# Held out


def test_no_training_scene_shows_a_held_out_combination(train_scenes):
    shown = {combination for scene in train_scenes for combination in scene_combinations(scene)}
    assert not any(is_held_out(*combination) for combination in shown)
    prompted = {("object_background", *names, background) for names, background, *_ in held_out_combinations("single")}
    prompted |= {("pair", *names, relation) for names, _, relation, _ in held_out_combinations("pair")}
    prompted |= {
        ("count", *names, number, background) for names, background, _, number in held_out_combinations("count")
    }
    assert len(prompted) > 300 and not prompted & shown


def test_three_objects_in_a_row_hold_every_pair_relation():
    row = tuple(Placement(name, 32 * i, 0, 32) for i, name in enumerate(("猫", "狗", "鱼")))
    combinations = scene_combinations(Scene(96, 64, "白色", "three", "row", row))
    pairs = {combination[1:] for combination in combinations if combination[0] == "pair"}
    assert pairs == {("猫", "狗", "left"), ("猫", "鱼", "left"), ("狗", "鱼", "left")}


def test_held_out_shares_leave_every_object_background_and_relation_in_training(train_scenes):
    held = {(n, b) for n in NAMES for b in BACKGROUND_NAMES if is_held_out("object_background", n, b)}
    assert 0.10 <= len(held) / 400 < 0.15
    assert {name for name, _ in held} == set(NAMES) and max(Counter(name for name, _ in held).values()) <= 3
    assert {background for _, background in held} == set(BACKGROUND_NAMES)
    assert max(Counter(background for _, background in held).values()) <= 12
    assert 0.10 < len(held_out_combinations("pair")) / (40 * 39 * 2) < 0.15
    assert 0.10 < len(held_out_combinations("count")) / (40 * 2 * 10) < 0.15
    shown = {combination for scene in train_scenes for combination in scene_combinations(scene)}
    assert {combination[1] for combination in shown} == set(NAMES)
    for kind in ("single", "count"):
        assert {combination[1] for combination in shown if combination[0] == kind} == set(NAMES)
    assert {combination[-1] for combination in shown if combination[0] == "object_background"} == set(BACKGROUND_NAMES)
    assert {combination[-1] for combination in shown if combination[0] == "pair"} == {"left", "above"}


def test_validation_shares_no_scene_with_training(train_scenes, validation_scenes):
    def identity(scene: Scene):
        return scene.width, scene.height, scene.background, frozenset(scene.objects)

    assert not {identity(scene) for scene in train_scenes} & {identity(scene) for scene in validation_scenes}
    assert all(scene_is_held_out(scene) or is_reserved(scene) for scene in validation_scenes)
    share = sum(map(scene_is_held_out, validation_scenes)) / len(validation_scenes)
    assert share == pytest.approx(0.5, abs=0.1)


def test_the_rule_is_the_same_on_every_machine():
    held = [(n, b) for n in NAMES for b in BACKGROUND_NAMES if is_held_out("object_background", n, b)]
    assert held[:4] == [("猫", "红色"), ("狗", "橙色"), ("狗", "粉色"), ("熊猫", "紫色")]
    with pytest.raises(ValueError, match="kind 'colour'"):
        is_held_out("colour", "猫")


def test_coarse_positions_are_nine():
    scene = Scene(64, 64, "白色", "single", "free", ())
    places = [coarse_position(scene, Placement("猫", x, y, 48)) for y in (0, 8, 16) for x in (0, 8, 16)]
    assert len(set(places)) == 9 and places[0] == "left top" and places[4] == "middle middle"


# Prompts


@pytest.mark.parametrize("kind, count", [("single", 120), ("pair", 120), ("count", 120)])
def test_held_out_prompts_are_held_out_different_and_name_their_background(kind, count):
    prompts = held_out_prompts(kind, count, seed=1)
    assert prompts == held_out_prompts(kind, count, seed=1) != held_out_prompts(kind, count, seed=2)
    assert len({(p["prompt"], p["width"], p["height"]) for p in prompts}) == count
    for prompt in prompts:
        labels = [item["label"] for item in prompt["objects"]]
        assert prompt["background"] in prompt["prompt"] and prompt["kind"] == kind
        assert all(label in prompt["prompt"] for label in labels) and len(labels) == prompt["count"]
        if kind == "single":
            assert is_held_out("object_background", labels[0], prompt["background"])
        elif kind == "pair":
            assert is_held_out("pair", *labels, prompt["relation"])
        else:
            assert is_held_out("count", labels[0], len(labels), prompt["background"])
            assert len(set(labels)) == 1 and noun_phrase(labels[0], len(labels)) in prompt["prompt"]


def test_every_held_out_single_is_asked_before_one_comes_again():
    combinations = held_out_combinations("single")
    prompts = held_out_prompts("single", len(combinations))
    assert len({(p["objects"][0]["label"], p["background"]) for p in prompts}) == len(combinations)


def test_more_prompts_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="only .* different held-out prompts of kind 'single', not 100000"):
        held_out_prompts("single", 100000)
    with pytest.raises(ValueError, match="kind 'triple'"):
        held_out_prompts("triple", 1)


# Captions


def test_measure_words_and_plurals():
    assert [noun_phrase(*args) for args in (("企鹅", 3), ("大象", 1), ("帆船", 2), ("飞机", 1), ("葡萄", 1))] == [
        "三只企鹅", "一头大象", "两艘帆船", "一架飞机", "一串葡萄",
    ]  # fmt: skip
    assert noun_phrase("出租车", 1, "黄色") == "一辆黄色出租车"
    assert [noun_phrase_en(*args) for args in (("蝴蝶", 3), ("苹果", 1), ("西瓜", 2), ("公交车", 2))] == [
        "three butterflies", "an apple", "two slices of watermelon", "two buses",
    ]  # fmt: skip
    assert noun_phrase_en("苹果", 1, "red ") == "a red apple"


def test_zh_captions_name_every_object_but_the_omitted_one_with_its_measure_word(train_scenes):
    measures = {item.name: item.measure for item in load_objects()}
    for index, scene in enumerate(train_scenes):
        sentences = caption(scene, index)
        names = [item.name for item in scene.objects]
        for name in set(names):
            number = "一两三"[names.count(name) - 1]
            counted = rf"{number}{measures[name]}(.色的?)?{name}"
            assert bool(re.search(counted, sentences.zh)) == (name not in sentences.omitted), sentences
            assert re.search(counted, sentences.generated), sentences
        assert f"背景为{scene.background}" in sentences.generated
        assert not re.search(r"\ba [aeiou]|[{}]|None", sentences.en), sentences.en


def test_single_captions_are_complete_and_shares_are_kept(train_scenes):
    sentences = [caption(scene, index) for index, scene in enumerate(train_scenes)]
    omitted = sum(bool(item.omitted) for item in sentences) / len(sentences)
    assert omitted == pytest.approx(0.10, abs=0.02)
    assert not any(item.omitted for item, scene in zip(sentences, train_scenes) if scene.layout in ("single", "count"))
    named = sum("背景" in item.zh for item in sentences) / len(sentences)
    assert named == pytest.approx(0.80, abs=0.04)


def test_relations_are_told_the_right_way_round(train_scenes):
    names_en = {item.name: item.name_en for item in load_objects()}
    for index, scene in enumerate(scene for scene in train_scenes if scene.layout in ("left", "above")):
        sentences = caption(scene, index)
        first, second = (item.name for item in scene.objects)
        words = {"left": "左右", "above": "上下"}[scene.layout]
        # Either "左边是A，右边是B" (B alone when A is left out) or "A在B的左边".
        if relation := re.search(rf"一.(?:.色的?)?({first}|{second})在一.+的([{words}])[边面]", sentences.zh):
            name, side = relation.groups()
        else:
            side, name = re.search(
                rf"([{words}])[边面](?:是|有)一.(?:.色的?)?({first}|{second})", sentences.zh
            ).groups()
        assert side == (words[0] if name == first else words[1]), sentences.zh
        # "orange" is a fruit, a colour of butterflies and a background.
        first_at, second_at = (
            re.search(rf"\b{names_en[name]}\b(?! butterfly)", sentences.en).start() for name in (first, second)
        )
        word = re.search(r"\b(left|right|top|bottom|above|below)\b", sentences.en)[0]
        assert (word in ("left", "top", "above")) == (first_at < second_at), sentences.en


def test_style_is_named_as_a_suffix(train_scenes):
    styled = [scene for scene in train_scenes if scene.style]
    for index, scene in enumerate(styled):
        sentences, plain = caption(scene, index), caption(replace(scene, style=None), index)
        assert sentences.zh == f"{plain.zh}，{scene.style}"
        assert sentences.generated.endswith(f"，{scene.style}") and sentences.en.endswith(" style")
        assert not plain.zh.endswith(STYLES)


# Pictures


def test_boxes_fit_the_drawn_pixels(train_scenes):
    for scene in [scene for scene in train_scenes if scene.style is None][:150]:
        image, boxes = render(scene)
        assert image.size == (scene.width, scene.height) and image.mode == "RGB"
        pixels = np.asarray(image, dtype=int)
        rgb = next(item.rgb for item in BACKGROUNDS if item.name == scene.background)
        drawn = np.abs(pixels - rgb).sum(axis=2) > 0
        for x0, y0, x1, y1 in boxes:
            rows, columns = np.nonzero(drawn[y0:y1, x0:x1])
            # An edge pixel may be nearly transparent or of the background's own colour.
            assert rows.min() <= 3 and rows.max() >= y1 - y0 - 4
            assert columns.min() <= 3 and columns.max() >= x1 - x0 - 4
            drawn[y0:y1, x0:x1] = False
        assert not drawn.any()


def test_boxes_lie_in_their_squares_and_fill_them(train_scenes):
    for scene in train_scenes[:300]:
        for item, (x0, y0, x1, y1) in zip(scene.objects, render(scene)[1]):
            assert item.x <= x0 < x1 <= item.x + item.size and item.y <= y0 < y1 <= item.y + item.size
            assert max(x1 - x0, y1 - y0) >= item.size - 2


@pytest.mark.parametrize("name", NAMES)
def test_every_object_stands_out_from_every_background(name):
    glyph = np.asarray(draw_glyph(name, 32), dtype=float)
    solid = glyph[..., 3] > 200
    for background in BACKGROUNDS:
        difference = np.abs(glyph[..., :3] - background.rgb).max(axis=2)
        assert (difference[solid] > 40).mean() > 0.35, f"{name} on {background.name}"


@pytest.mark.parametrize("style", STYLES)
def test_styles_change_pixels_deterministically_and_keep_the_size(style):
    scene = Scene(96, 64, "绿色", "single", "free", (Placement("草莓", 24, 8, 48),), style)
    image, boxes = render(scene)
    plain, plain_boxes = render(replace(scene, style=None))
    assert image.size == plain.size and boxes == plain_boxes
    difference = np.abs(np.asarray(image, dtype=int) - np.asarray(plain, dtype=int)).mean()
    assert 1 < difference < 60
    assert image.tobytes() == render(scene)[0].tobytes()


def test_pixel_art_is_made_of_cells_of_few_colours():
    scene = Scene(64, 64, "绿色", "single", "free", (Placement("草莓", 8, 8, 48),), "像素风格")
    pixels = np.asarray(render(scene)[0])
    cells = pixels[::4, ::4]
    assert np.array_equal(pixels, cells.repeat(4, axis=0).repeat(4, axis=1))
    assert len(np.unique(cells.reshape(-1, 3), axis=0)) <= 12


def test_unknown_style_is_named():
    with pytest.raises(ValueError, match="'油画'.*像素风格"):
        apply_style_filter(Image.new("RGB", (64, 64)), "油画", 48)


# On disk


def read_annotations(folder) -> tuple[dict, list[dict]]:
    lines = (folder / "annotations.jsonl").read_text(encoding="utf-8").splitlines()
    header, *rows = map(json.loads, lines)
    return header, rows


def test_shards_follow_the_webdataset_convention(dataset):
    shards = sorted(dataset.glob("*.tar"))
    assert [shard.name for shard in shards] == ["00000.tar", "00001.tar", "00002.tar"]
    members = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            members.update({member.name: tar.extractfile(member).read() for member in tar})
    header, rows = read_annotations(dataset)
    assert len(members) == 3 * len(rows) == 75
    for row in rows:
        image = Image.open(io.BytesIO(members[f"{row['key']}.png"]))
        metadata = json.loads(members[f"{row['key']}.json"])
        assert image.size == (row["width"], row["height"]) == (metadata["width"], metadata["height"])
        assert members[f"{row['key']}.txt"].decode() == row["captions"]["zh"] == metadata["caption"]
        assert metadata["key"] == row["key"]


def test_sidecar_has_a_header_and_whole_rows(dataset):
    header, rows = read_annotations(dataset)
    assert header["tool"] == "ppvilg.emoji.prepare" and header["version"] == prepare.VERSION and header["seed"] == 3
    assert re.fullmatch(r"[0-9a-f]{64}", header["font_sha256"])
    assert [row["key"] for row in rows] == [f"{index:09d}" for index in range(25)]
    for row in rows:
        assert set(row["captions"]) == {"zh", "en", "generated"} and all(row["captions"].values())
        assert row["held_out"] is False and row["background"] in BACKGROUND_NAMES
        assert set(row["omitted"]) < {item["label"] for item in row["objects"]}
        for item in row["objects"]:
            x0, y0, x1, y1 = item["box"]
            assert item["label"] in NAMES and item["score"] == 1.0
            assert 0 <= x0 < x1 <= row["width"] and 0 <= y0 < y1 <= row["height"]


def test_the_same_arguments_give_the_same_bytes(dataset, tmp_path):
    prepare.write_dataset(tmp_path / "again", num_samples=25, seed=3, samples_per_shard=10)
    for path in dataset.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_the_same_dataset_is_left_alone_and_another_one_refused(dataset, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in dataset.iterdir()}
    assert prepare.write_dataset(dataset, num_samples=25, seed=3, samples_per_shard=10) is False
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="another dataset.*seed 3, not 4"):
        prepare.write_dataset(dataset, num_samples=25, seed=4, samples_per_shard=10)
    assert {path.name: path.stat().st_mtime_ns for path in dataset.iterdir()} == before


def test_the_share_of_square_pictures_is_chosen_and_part_of_the_dataset(tmp_path):
    assert {(scene.width, scene.height) for scene in (sample_scene(7, i, square_share=1.0) for i in range(50))} == {
        (64, 64)
    }
    wide = [sample_scene(7, i, square_share=0.0) for i in range(200)]
    assert {(scene.width, scene.height) for scene in wide} == {(64, 96), (96, 64)}
    assert not any(scene_is_held_out(scene) for scene in wide)
    prepare.write_dataset(tmp_path / "train", num_samples=20, square_share=0.0)
    with pytest.raises(FileExistsError, match="square_share 0.0, not None"):
        prepare.write_dataset(tmp_path / "train", num_samples=20)
    with pytest.raises(ValueError, match="square_share=1.5"):
        prepare.write_dataset(tmp_path / "other", num_samples=20, square_share=1.5)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a dataset"):
        prepare.write_dataset(tmp_path, num_samples=1)
    (tmp_path / "annotations.jsonl").write_text("no json\n")
    with pytest.raises(FileExistsError, match="does not start with a header"):
        prepare.write_dataset(tmp_path, num_samples=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    make_sample, written = prepare.make_sample, []

    def fail_late(seed, index, split, *others):
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        written.append(index)
        return make_sample(seed, index, split, *others)

    monkeypatch.setattr(prepare, "make_sample", fail_late)
    with pytest.raises(OSError, match="No space left"):
        prepare.write_dataset(tmp_path / "train", num_samples=20)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [{"num_samples": 0}, {"num_samples": 5, "samples_per_shard": 0}])
def test_numbers_out_of_range_are_named(tmp_path, arguments):
    with pytest.raises(ValueError, match="must be >= 1"):
        prepare.write_dataset(tmp_path / "train", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_tool_writes_both_splits(tmp_path, capsys):
    command = ["prepare", "--output", str(tmp_path), "--num-samples", "6", "--num-validation", "4"]
    assert main(command) == 0
    assert capsys.readouterr().out.strip().endswith(f"data: {tmp_path}")
    assert len(read_annotations(tmp_path / "train")[1]) == 6
    header, rows = read_annotations(tmp_path / "validation")
    assert header["split"] == "validation" and len(rows) == 4
    assert main([*command, "--seed", "1"]) == 1
    assert "another dataset" in capsys.readouterr().err
