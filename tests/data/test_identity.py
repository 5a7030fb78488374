"""A sample is a shard and a key (in a folder: a file); sidecars are joined by both."""

import json
import os
import tarfile

import numpy as np
import pytest

from ppvilg.data import BatchOrder, ImageTransform, SampleLoader, open_source
from tests.data.test_records import encode, samples, write_sidecar, write_tar


def captions(source) -> list[str]:
    return [source.read_text(i).captions.get("zh") for i in range(len(source))]


@pytest.fixture
def downloads(tmp_path):
    """Two downloads, each counted from 00000, as img2dataset does."""
    for name, color in (("a", 10), ("b", 200)):
        members = [(f"{i:05d}.{kind}", data) for i in range(3)
                   for kind, data in (("png", encode((color, i, 0))), ("txt", f"{name}猫{i}"))]  # fmt: skip
        write_tar(tmp_path / f"{name}.tar", members)
    return tmp_path


def test_equal_keys_in_two_shards_are_two_samples(downloads):
    source = open_source(downloads)
    assert source.keys == ["00000", "00001", "00002"] * 2 and source.bad == []
    assert captions(source) == ["a猫0", "a猫1", "a猫2", "b猫0", "b猫1", "b猫2"]
    assert [source.read(i).image.getpixel((0, 0)) for i in (1, 4)] == [(10, 1, 0), (200, 1, 0)]
    assert source.read(1).source != source.read(4).source
    transform = ImageTransform([(16, 8)])
    loader = SampleLoader(source, transform, BatchOrder(source.buckets(transform), 6, 0), 0)
    _, batch = next(loader.iterate_from(0))
    assert sorted(record.captions["zh"] for record in batch.records) == captions(source)


def test_a_broken_sample_takes_no_other_with_it(tmp_path):
    write_tar(tmp_path / "0.tar", [("1.png", b"broken"), ("1.txt", "猫")])
    write_tar(tmp_path / "1.tar", [("1.png", encode()), ("1.txt", "猫"), ("2.png", encode()), ("2.txt", "狗")])
    source = open_source(tmp_path)
    assert source.keys == ["1", "2"] and [problem.key for problem in source.bad] == ["1"]


def test_within_one_shard_the_first_good_one_counts_and_the_others_are_named(tmp_path):
    good, other = encode((1, 1, 1)), encode((2, 2, 2))
    members = [("1.png", b"broken"), ("1.txt", "坏"), ("1.png", good), ("1.txt", "好"), ("1.png", other),
               ("1.txt", "晚"), ("2.png", good), ("2.txt", "二"), ("2.png", other)]  # fmt: skip
    write_tar(tmp_path / "0.tar", members)
    write_sidecar(tmp_path / "annotations.jsonl", [{"key": "1", "captions": {"en": "one"}}])
    source = open_source(tmp_path)
    assert captions(source) == ["好", "二"] and source.read(0).image.getpixel((0, 0)) == (1, 1, 1)
    assert source.read(0).captions["en"] == "one"
    reasons = [(problem.key, problem.reason) for problem in source.bad]
    assert [key for key, _ in reasons] == ["1", "1", "2"] and "not a picture" in reasons[0][1]
    assert all("duplicate key in one shard" in reason for _, reason in reasons[1:])


def test_shards_written_one_after_another_are_read_to_the_end(tmp_path):
    one, two = (write_tar(tmp_path / name, samples(2, start)).read_bytes() for name, start in (("x", 0), ("y", 2)))
    (tmp_path / "0.tar").write_bytes(one + two)
    source = open_source(tmp_path / "0.tar")
    assert source.keys == ["00000", "00001", "00002", "00003"] and source.bad == []
    assert source.read(3).image.getpixel((0, 0)) == (3, 0, 0)
    (tmp_path / "0.tar").write_bytes(one + b"no tar" * 200)
    source = open_source(tmp_path / "0.tar")
    assert len(source) == 2 and "corrupt header" in source.bad[0].reason


# ---- sidecars


def test_a_line_that_names_no_shard_is_nobodys_where_two_have_the_key(downloads):
    lines = [{"key": "00001", "captions": {"zh": "谁的"}}, {"key": "00007", "captions": {"zh": "没有"}}]
    write_sidecar(downloads / "annotations.jsonl", lines)
    source = open_source(downloads)
    assert captions(source) == ["a猫0", "a猫1", "a猫2", "b猫0", "b猫1", "b猫2"]
    (problem,) = source.bad
    assert problem.source.endswith("annotations.jsonl:2") and 'must name its "shard"' in problem.reason
    assert source.annotations_without_sample == ["00007"] and len(source.samples_without_annotation) == 6


@pytest.mark.parametrize("name", ["b", "b.tar", "./b.tar", "{folder}/b.tar"])
def test_a_line_may_name_its_shard(downloads, name):
    line = {"key": "00001", "shard": name.format(folder=downloads), "captions": {"zh": "乙"}}
    others = [{"key": "00001", "shard": "c.tar"}, {"key": "00002", "shard": 3}]
    write_sidecar(downloads / "annotations.jsonl", [line, *others])
    source = open_source(downloads)
    assert captions(source) == ["a猫0", "a猫1", "a猫2", "b猫0", "乙", "b猫2"]
    assert source.annotations_without_sample == ["00001"]  # of c.tar, which is not among these
    assert [problem.reason for problem in source.bad] == ['"shard" must be the name of a shard, not 3']


def test_a_sidecar_beside_its_shard_speaks_of_that_one(downloads):
    for name in "ab":
        write_sidecar(downloads / f"{name}.annotations.jsonl", [{"key": "00001", "captions": {"zh": name + "的"}}])
    write_sidecar(downloads / "annotations.jsonl", [{"key": "00002", "shard": "a", "captions": {"zh": "共"}}])
    source = open_source(downloads)
    assert captions(source) == ["a猫0", "a的", "共", "b猫0", "b的", "b猫2"] and source.bad == []
    fingerprint = source.fingerprint()
    lines = [{"key": "00001", "captions": {"zh": "新"}}, {"key": "00000", "shard": "a"}]
    write_sidecar(downloads / "b.annotations.jsonl", lines)
    assert "'a' is not the shard beside which" in open_source(downloads).bad[0].reason
    assert captions(open_source(downloads))[4] == "新" and open_source(downloads).fingerprint() != fingerprint


def test_sidecars_in_a_folder_of_their_own(downloads, tmp_path):
    (downloads / "boxes").mkdir()
    write_sidecar(downloads / "boxes" / "b.annotations.jsonl", [{"key": "00000", "captions": {"zh": "盒"}}])
    source = open_source(downloads, annotations=downloads / "boxes")
    assert captions(source)[3] == "盒" and len(source.samples_without_annotation) == 5
    (downloads / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="holds neither annotations.jsonl nor"):
        open_source(downloads, annotations=downloads / "none")


def test_each_folder_of_a_pattern_has_its_own_sidecar(tmp_path):
    for folder in "xy":
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", samples(1))
        write_sidecar(tmp_path / folder / "annotations.jsonl", [{"key": "00000", "captions": {"zh": folder}}])
    source = open_source(str(tmp_path / "{x,y}" / "0.tar"))
    assert captions(source) == ["x", "y"] and source.bad == []
    write_sidecar(tmp_path / "x" / "annotations.jsonl", [{"key": "00000", "shard": "0.tar"}])
    assert "is the name of 2 shards" in open_source(str(tmp_path / "{x,y}" / "0.tar")).bad[0].reason


def test_the_fingerprint_of_data_without_repeated_keys_is_as_before(tmp_path):
    """Checkpoints of runs on such data go on."""
    members = [(f"{i}.{kind}", data) for i in range(2) for kind, data in (("png", PIXEL), ("txt", f"猫{i}"))]
    write_tar(tmp_path / "0.tar", members, tarfile.USTAR_FORMAT, mtime=1)
    write_sidecar(tmp_path / "annotations.jsonl", [{"key": "1", "width": 1, "height": 1, "captions": {"en": "a cat"}}])
    assert open_source(tmp_path).fingerprint() == "b56ed18684447d9e530ccc72a1d5ef8cd51d26e5d29bb66257352d9127254285"


PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100"
    "c9fe92ef0000000049454e44ae426082"
)


# ---- folders


def write_listing(folder, lines, name="metadata.jsonl"):
    (folder / name).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")


def test_in_a_folder_the_file_is_the_sample(tmp_path):
    for name, color in (("a.png", 1), ("a.jpg", 200), ("b.png", 3)):
        (tmp_path / name).write_bytes(encode((color,) * 3, kind="JPEG" if name.endswith("jpg") else "PNG"))
    write_listing(tmp_path, [
        {"file_name": "a.png", "caption": "甲"}, {"file_name": "a.jpg", "caption": "乙"},
        {"file_name": "b.png", "objects": [{"box": 1}], "caption": "坏"}, {"file_name": "b.png", "caption": "好"},
        {"file_name": "./b.png", "caption": "又"}, {"key": "a", "caption": "哪个"},
    ])  # fmt: skip
    source = open_source(tmp_path)
    assert captions(source) == ["甲", "乙", "好"] and source.keys == ["a", "a", "b"]
    assert [source.read(i).image.getpixel((0, 0))[0] for i in range(3)] == [1, 200, 3]
    reasons = [problem.reason for problem in source.bad]
    assert "label" in reasons[0] and "b.png is listed twice" in reasons[1] and "several pictures" in reasons[2]


def test_many_equal_keys_take_no_memory_each(tmp_path):
    """The order of samples and of problems stays that of the shards."""
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", samples(20))
    source = open_source(tmp_path)
    assert np.array_equal(source.index.column("file_of"), np.repeat([0, 1, 2], 20)) and len(source) == 60
    assert not os.path.exists(source.index.folder / "keys.sqlite")
