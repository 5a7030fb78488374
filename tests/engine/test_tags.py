"""Cached words of captions: what jieba gives, for the data's captions and what completion makes of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ppvilg.data import open_source
from ppvilg.emoji.captions import describe
from ppvilg.emoji.scenes import sample_scene
from ppvilg.engine import distributed
from ppvilg.engine.caches import tags
from ppvilg.engine.caches.tags import cache_tags
from ppvilg.knowledge import TextKnowledge, build_tokenizer
from ppvilg.knowledge.completion import complete_caption
from ppvilg.knowledge.text import tag

ODD = ["一只猫。", "a red cat, on a table", "3D打印的碗，", "café里的人", "[n]猫坐着", "标点；"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    lines = []
    for number in range(60):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
        captions = describe(sample_scene(0, number), np.random.default_rng(number))
        line = {"zh": captions.zh, "en": captions.en, "generated": captions.generated}
        if number < len(ODD):
            line = {"zh": ODD[number]}
        lines.append({"key": str(number), "captions": line})
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return open_source(folder)


def captions_of(source):
    return [text for i in range(len(source)) for text in source.read_text(i).captions.values()]


def test_every_caption_and_its_completions_as_jieba_says(source, tmp_path):
    cache = cache_tags(source, tmp_path)
    for text in captions_of(source):
        for labels in ([], ["碗"], ["苹果", "出租车"], ["bowl"]):
            completed = complete_caption(text, labels)
            assert cache.tag(completed) == tag(completed), completed
    assert cache.missed == 0 and cache.found > 200
    assert cache.tag("从没见过的句子") == tag("从没见过的句子") and cache.missed == 1


def test_it_is_made_once_and_again_when_rules_change(source, tmp_path, monkeypatch):
    first = cache_tags(source, tmp_path)
    monkeypatch.setattr(tags, "_tag_share", lambda *_: pytest.fail("tagged again"))
    assert cache_tags(source, tmp_path).path == first.path
    monkeypatch.undo()
    monkeypatch.setattr(tags.inspect, "getsource", lambda module: "other rules")
    assert cache_tags(source, tmp_path).path != first.path


def test_ranks_share_the_work(source, tmp_path, monkeypatch):
    alone = cache_tags(source, tmp_path / "one")
    (tmp_path / "three").mkdir()
    path = tmp_path / "three" / alone.path.name
    for rank in (1, 2):
        tags._tag_share(source, path.with_name(f".{path.name}.{rank}.partial"), rank, 3)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    together = cache_tags(source, path.parent)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    for text in captions_of(source):
        assert together.tag(text) == alone.tag(text)
    assert together.missed == 0


def test_token_ids_do_not_change(source, tmp_path):
    texts = [complete_caption(text, ["碗"]) for text in captions_of(source)]
    tokenizer = build_tokenizer(texts, tmp_path / "tokenizer")
    plain, cached = TextKnowledge(tokenizer, 48), TextKnowledge(tokenizer, 48)
    cache = cache_tags(source, tmp_path)
    cached.tagger = cache.tag
    one, two = plain.encode(texts), cached.encode(texts)
    assert np.array_equal(one.input_ids, two.input_ids) and cache.found
    assert np.array_equal(one.key_token_weights, two.key_token_weights)
