"""The index beside the data: kept, made again when the data change, shared by processes, small in memory."""

import json
import logging
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ppvilg.data import BadSample, BatchOrder, DataReport, ImageTransform, SampleLoader, Tally, open_source
from ppvilg.data import source as source_module
from ppvilg.data.report import file_of, kind_of
from tests.data import mutate
from tests.data.test_records import encode, samples, write_sidecar, write_tar

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path):
    """Three shards of four samples with a sidecar."""
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", samples(4, start=4 * shard))
    write_sidecar(tmp_path / "annotations.jsonl", [{"key": "00001", "captions": {"en": "a cat"}}])
    return tmp_path


def touch_later(path):
    """A file that changed: content may be as long as before, the time is another."""
    stamp = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(stamp, stamp))


def test_the_second_time_nothing_is_read(data, monkeypatch):
    first = open_source(data)
    monkeypatch.setattr(source_module, "fill_from_shards", lambda *_: pytest.fail("indexed again"))
    second = open_source(data)
    assert second.keys == first.keys and second.fingerprint() == first.fingerprint()
    assert second.read(1).captions == {"zh": "第1只猫", "en": "a cat"}
    assert [path.name for path in (data / ".ppvilg").iterdir() if path.is_dir()] == [second.index.folder.name]


@pytest.mark.parametrize("what", ["shard", "sidecar", "new shard", "lost shard", "torn index", "old index",
                                  "index without texts"])
def test_a_change_makes_a_new_index_and_is_named(data, what, caplog):
    source = open_source(data)
    before, manifest = source.fingerprint(), source.index.folder / "manifest.json"
    if what == "shard":
        write_tar(data / "1.tar", samples(4, start=20))
        touch_later(data / "1.tar")
    elif what == "sidecar":
        write_sidecar(data / "annotations.jsonl", [{"key": "00001", "captions": {"en": "a dog"}}])
        touch_later(data / "annotations.jsonl")
    elif what == "new shard":
        write_tar(data / "3.tar", samples(4, start=12))
    elif what == "lost shard":
        (data / "2.tar").unlink()
    elif what == "index without texts":
        (manifest.parent / "text.bin").write_bytes(b"")
    elif what == "torn index":
        manifest.unlink()
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    with caplog.at_level(logging.WARNING):
        source = open_source(data)
    assert (source.fingerprint() == before) == ("index" in what)
    assert "made again" in caplog.text
    changed = {"shard": ["1.tar"], "sidecar": ["annotations.jsonl"], "new shard": ["3.tar"], "lost shard": ["2.tar"]}
    assert source.index.manifest["changed"] == changed.get(what, [])
    assert all(name in caplog.text for name in changed.get(what, []))
    assert len([path for path in (data / ".ppvilg").iterdir() if path.is_dir()]) == 1


def test_index_may_lie_elsewhere_and_data_may_be_read_only(data, tmp_path, monkeypatch):
    assert open_source(data, index=tmp_path / "here").index.folder.parent == tmp_path / "here"
    assert not (data / ".ppvilg").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != ".ppvilg")
    assert open_source(data).index.folder.is_relative_to(tmp_path / "cache" / "ppvilg")
    monkeypatch.undo()
    beside = open_source(data).index.folder
    assert beside.parent == data / ".ppvilg"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != ".ppvilg")
    assert open_source(data).index.folder == beside  # somebody made it before


def test_an_index_moves_with_its_data(data, monkeypatch):
    (data / "9.tar").write_bytes(b"")
    fingerprint = open_source(data).fingerprint()
    moved = data.with_name(data.name + "_moved")
    data.rename(moved)
    monkeypatch.setattr(source_module, "fill_from_shards", lambda *_: pytest.fail("indexed again"))
    source = open_source(moved)
    assert source.fingerprint() == fingerprint and source.read(5).image.getpixel((0, 0)) == (5, 0, 0)
    assert [problem.source for problem in source.bad] == [str(moved / "9.tar")]


def test_several_processes_at_once_make_one_index(data):
    script = f"from ppvilg.data import open_source; print(open_source({str(data)!r}).fingerprint())"
    processes = [subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
                 for _ in range(3)]  # fmt: skip
    found = {process.communicate(timeout=300)[0].strip() for process in processes}
    assert found == {open_source(data).fingerprint()}
    assert sorted(path.name[:6] for path in (data / ".ppvilg").iterdir()) == [".index", "index_"]  # lock and index


def test_an_open_source_is_small_and_can_be_sent(data, tmp_path):
    sizes = {}
    for count in (50, 1000):
        folder = tmp_path / str(count)
        folder.mkdir()
        write_tar(folder / "0.tar", samples(count))
        open_source(folder)
        tracemalloc.start()
        source = open_source(folder)
        sizes[count] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(pickle.dumps(source)) < 1000
        assert pickle.loads(pickle.dumps(source)).keys[count - 1] == f"{count - 1:05d}"
    assert sizes[1000] < sizes[50] + 20_000


def test_a_sent_source_refuses_an_index_that_was_made_again(data):
    sent = pickle.dumps(open_source(data))
    write_tar(data / "3.tar", samples(4, start=12))
    open_source(data)
    with pytest.raises(ValueError, match="made again meanwhile"):
        pickle.loads(sent)


def test_shards_swapped_or_lost_after_indexing_are_noticed(data):
    source = open_source(data)
    one, two = (data / "0.tar").read_bytes(), (data / "1.tar").read_bytes()
    (data / "0.tar").write_bytes(two)
    (data / "1.tar").write_bytes(one)
    (data / "2.tar").unlink()
    for index, reason in ((0, "another file stands"), (5, "another file stands"), (9, "cannot be read")):
        with pytest.raises(BadSample, match=reason) as caught:
            source.read(index)
        assert caught.value.key == f"{index:05d}" and f"{index // 4}.tar" in caught.value.source


def test_a_deleted_shard_is_gone_though_it_is_still_open(data):
    source = open_source(data)
    assert source.read(0).image is not None
    (data / "0.tar").unlink()
    with pytest.raises(BadSample, match="cannot be read"):
        source.read(0)


def test_keys_behave_like_a_list(data):
    keys = open_source(data).keys
    assert keys[0] == "00000" and keys[-1] == "00011" and keys[2:4] == ["00002", "00003"] and len(keys) == 12
    assert "00007" in keys and keys != ["00000"] and "00000" in repr(keys)
    with pytest.raises(IndexError):
        keys[12]


def test_names_with_broken_characters_survive(tmp_path):
    name = "caf\udce9"
    source = open_source(write_tar(tmp_path / "0.tar", [(f"{name}.png", encode()), (f"{name}.txt", "猫")]))
    assert source.keys == [name] and source.read(0).key == name


# ---- fifty damaged shards in one run


def test_a_run_over_fifty_damaged_shards_ends_and_names_each(tmp_path):
    """As the benchmark does, with small shards: nothing stops it, and no file is forgotten."""
    expected = mutate.write_damaged(tmp_path / "data", shards=60, samples=6, damaged=50, seed=1, size=16)
    source = open_source(tmp_path / "data")
    mutate.damage_after_indexing(tmp_path / "data", expected)
    transform = ImageTransform([(16, 16)])
    order = BatchOrder(source.buckets(transform), 8, seed=0)
    path = tmp_path / "report.jsonl"
    loader = SampleLoader(source, transform, order, 0, bad_sample_share=1.0, account=path)
    batches = loader.iterate_from(0)
    for _ in range(order.epoch_start(1) + 1):
        next(batches)
    batches.close()
    data, *rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    named = {Path(name).name for name in data["files_with_problems"]}
    named |= {Path(name).name for row in rows for name in row["skipped_by_file"]}
    assert named == set(expected) and len(expected) == 50
    assert len({kind.split(":")[0] for kind in expected.values()}) == len(mutate.KINDS)
    assert sum(row["read"] for row in rows) == sum(row["used"] + row["skipped"] for row in rows)


def test_reasons_are_counted_by_kind_and_file():
    assert kind_of("7 of 12 bytes are left: cut off since indexing") == "* of * bytes are left: cut off since indexing"
    assert kind_of("box [1.0, 2.0] of '猫' leaves the 8x8 picture") == "box * of * leaves the *x* picture"
    assert file_of("/a/b.tar:00.1.png") == "/a/b.tar" and file_of("/a/b.jsonl:3") == "/a/b.jsonl"
    assert file_of("/a/b.png") == "/a/b.png"


def test_report_lines_are_added_to(data, tmp_path):
    report = DataReport(tmp_path / "out" / "report.jsonl")
    report.data(open_source(data), rank=3)
    report.samples("latents", 10, 9, Tally([BadSample("k", "x.tar:k.png", "image cannot be decoded (7)")]))
    one, two = [json.loads(line) for line in report.path.read_text().splitlines()]
    assert one["samples"] == 12 and one["rank"] == 3 and one["files_with_problems"] == {}
    assert two["skipped"] == 1 and two["skipped_by_file"] == {"x.tar": 1}
    assert two["skipped_by_reason"] == {"image cannot be decoded *": 1}


def test_a_shard_is_opened_once(data):
    """Reading goes through one descriptor per shard, however often it is read."""
    source = open_source(data)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        for index in range(12):
            source.read(index)
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    assert np.asarray(source.sizes).shape == (12, 2)


def test_a_full_disk_is_named_and_leaves_nothing_half_made(data, tmp_path):
    """A limit of this process on the size of files stands for the disk; SQLite and plain files meet it."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1000, 9000):
        home = tmp_path / str(limit)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(OSError, match=str(home)):
                open_source(data, index=home)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert [path.suffix for path in home.iterdir()] == [".lock"]
    assert len(open_source(data, index=home))
