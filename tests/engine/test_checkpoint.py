"""Checkpoints on disk: whole ones are found, torn ones never used, and a full disk costs nothing that was there."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import threading

import numpy as np
import pytest

from ppvilg.engine.checkpoint import (
    BackgroundWriter,
    CheckpointError,
    CheckpointStore,
    claimed,
    hash_folder,
    replaced_folder,
)


def objects(step: int, size: int = 8) -> dict:
    return {"net": {"w": np.full(size, step, np.float32)}, "optimizer": {"moment/w": np.full(size, -step, np.float32)}}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", SETTINGS, keep=2)


def save(store, *steps):
    for step in steps:
        store.save(step, objects(step), {"next_step": step})


def newest(store):
    """(step, weights) of what would be resumed from."""
    manifest, found = store.load_newest()
    return manifest["progress"]["next_step"], found["net"]["w"].tolist()


@contextlib.contextmanager
def small_disk(limit: int):
    """No file can grow beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_saved_comes_back(store):
    assert store.load_newest() is None
    save(store, 3)
    manifest, found = store.load_newest()
    assert manifest["progress"] == {"next_step": 3} and manifest["step"] == 3
    assert found.keys() == {"net", "optimizer"}
    assert found["optimizer"]["moment/w"].tolist() == [-3.0] * 8


def test_the_last_ones_are_kept(store):
    save(store, 5, 10, 15, 100)
    assert [folder.name for folder in store.folders()] == ["step_00000015", "step_00000100"]
    assert newest(store) == (100, [100.0] * 8)


def cut_weights(folder):
    os.truncate(folder / "net.safetensors", 40)


def change_one_bit(folder):
    data = bytearray((folder / "net.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "net.safetensors").write_bytes(data)


def lose_weights(folder):
    (folder / "net.safetensors").unlink()


def lose_manifest(folder):
    (folder / "manifest.json").unlink()


def cut_manifest(folder):
    os.truncate(folder / "manifest.json", 30)


@pytest.mark.parametrize("damage", [cut_weights, change_one_bit, lose_weights, lose_manifest, cut_manifest])
def test_a_torn_checkpoint_is_named_and_skipped(store, damage, caplog):
    save(store, 1, 2)
    damage(store.root / "step_00000002")
    assert newest(store) == (1, [1.0] * 8)
    assert "step_00000002 is skipped" in caplog.text


def test_when_all_are_torn_there_is_none(store):
    save(store, 1, 2)
    for folder in store.folders():
        lose_manifest(folder)
    assert store.load_newest() is None


def test_a_torn_one_does_not_push_out_a_whole_one(store):
    store.keep = 1
    save(store, 10)
    shutil.copytree(store.root / "step_00000010", store.root / "step_00000030")
    lose_manifest(store.root / "step_00000030")
    save(store, 20)
    assert newest(store) == (20, [20.0] * 8)
    save(store, 30)  # takes the place of the torn one
    assert newest(store) == (30, [30.0] * 8)
    assert [folder.name for folder in store.folders()] == ["step_00000030"]


SETTINGS = {"train.base.beta2": 0.999, "model.scheduler.prediction_type": "epsilon", "data": "abc"}


def test_changed_settings_are_told_and_strictly_refused(store):
    save(store, 1)
    assert store.changes("step_00000001") == {}
    now = {**SETTINGS, "train.base.beta2": 0.9, "data": "def", "ranks": 4}
    changed = {"train.base.beta2": (0.999, 0.9), "data": ("abc", "def"), "ranks": (None, 4)}
    assert CheckpointStore(store.root, now).changes("step_00000001") == changed
    with pytest.raises(CheckpointError, match="step_00000001: resume.strict=true.*data: abc -> def.*ranks: none -> 4; "
                                              "train.base.beta2: 0.999 -> 0.9"):
        CheckpointStore(store.root, now, strict=True).changes("step_00000001")
    assert CheckpointStore(store.root, SETTINGS, strict=True).changes("step_00000001") == {}


def test_what_gives_weights_their_meaning_is_always_refused(store):
    save(store, 1)
    with pytest.raises(CheckpointError, match="another model: model.scheduler.prediction_type: epsilon -> sample"):
        CheckpointStore(store.root, {**SETTINGS, "model.scheduler.prediction_type": "sample"}).changes("step_00000001")


def test_a_checkpoint_of_an_earlier_version_says_nothing_of_its_settings(store):
    save(store, 1)
    path = store.root / "step_00000001" / "manifest.json"
    path.write_text(path.read_text().replace('"settings"', '"recipe"'))
    assert CheckpointStore(store.root, {}, strict=False).changes("step_00000001") == {}


def test_a_full_disk_leaves_the_previous_checkpoint(store):
    save(store, 1)
    with small_disk(20_000), pytest.raises(CheckpointError, match="step_00000002.*Earlier checkpoints are untouched"):
        store.save(2, objects(2, size=100_000), {"next_step": 2})
    assert newest(store) == (1, [1.0] * 8)
    assert sorted(os.listdir(store.root)) == ["step_00000001"]
    save(store, 2)
    assert newest(store)[0] == 2


def test_a_disk_that_fails_on_flushing_leaves_the_previous_checkpoint(store, monkeypatch):
    save(store, 1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(store, 2)
    monkeypatch.undo()
    assert newest(store) == (1, [1.0] * 8)


def test_what_a_killed_writer_left_is_cleared_away(store):
    save(store, 1)
    (store.root / ".step_00000002.partial").mkdir()
    (store.root / ".step_00000002.partial" / "net.safetensors").write_bytes(b"half")
    assert newest(store) == (1, [1.0] * 8)
    save(store, 4)
    assert sorted(os.listdir(store.root)) == ["step_00000001", "step_00000004"]


def test_every_mth_is_kept_for_good(store):
    store.keep, store.keep_every = 1, 10
    save(store, 5, 10, 15, 20, 25)
    assert [folder.name for folder in store.folders()] == ["step_00000010", "step_00000020", "step_00000025"]


# ---- several writers


def test_parts_of_several_ranks_are_one_checkpoint(store):
    """Part 0 waits for the others; whoever reads takes the keys it needs."""
    writer = BackgroundWriter()
    first = {"net": {"a": np.zeros(3, np.float32)}, "ema": {"a": np.ones(3, np.float32)}}
    writer.start(lambda: store.save(4, first, {"next_step": 4}, part=0, parts=3, cancelled=writer.cancelled))
    for part, name in ((2, "c"), (1, "b")):
        assert store.newest() == "", "not whole yet"
        store.save(4, {"net": {name: np.full(3, part, np.float32)}}, {}, part=part, parts=3)
    writer.wait()
    assert sorted(os.listdir(store.root)) == ["step_00000004"] and store.newest() == "step_00000004"
    manifest, found = store.load("step_00000004", lambda kind, key: (kind, key) in (("net", "b"), ("net", "a")))
    assert manifest["progress"] == {"next_step": 4} and sorted(manifest["files"]) == [
        "ema-000.safetensors", "net-000.safetensors", "net-001.safetensors", "net-002.safetensors"]
    assert found["net"].keys() == {"a", "b"} and found["ema"] == {} and found["net"]["b"].tolist() == [1.0] * 3
    assert store.load_newest()[1]["net"].keys() == {"a", "b", "c"}


def test_a_part_that_never_comes_leaves_the_previous_checkpoint(store):
    save(store, 1)
    writer = BackgroundWriter()
    writer.start(lambda: store.save(2, objects(2), {}, part=0, parts=2, cancelled=writer.cancelled))
    writer.cancelled.set()
    with pytest.raises(CheckpointError, match="part 1 of 2 was not written"):
        writer.wait()
    assert newest(store) == (1, [1.0] * 8)
    store.clear_partial()
    assert sorted(os.listdir(store.root)) == ["step_00000001"]


# ---- beside training


def test_a_write_in_the_background_does_not_hold_up_training():
    going_on, writer, written = threading.Event(), BackgroundWriter(), []
    writer.start(lambda: going_on.wait(60) and written.append("first"))
    assert written == [], "start does not wait"
    going_on.set()
    writer.start(lambda: written.append("second"))  # but a second write waits for the first
    writer.wait()
    assert written == ["first", "second"]


def test_what_goes_wrong_in_the_background_is_raised_once():
    writer = BackgroundWriter()

    def full():
        raise CheckpointError("no room")

    writer.start(full)
    writer._thread.join()
    with pytest.raises(CheckpointError, match="no room"):
        writer.check()
    writer.check()
    writer.start(full)
    with pytest.raises(CheckpointError, match="no room"):
        writer.wait()
    writer.wait()


# ---- finished results


def test_a_result_takes_its_place_only_when_it_is_whole(tmp_path):
    folder = tmp_path / "result"
    for text in ("one", "two"):
        with replaced_folder(folder) as partial:
            (partial / "deep").mkdir()
            (partial / "deep" / "file").write_text(text)
            assert not folder.exists() or (folder / "deep" / "file").read_text() != text
        assert (folder / "deep" / "file").read_text() == text
    with pytest.raises(KeyboardInterrupt), replaced_folder(folder) as partial:
        (partial / "other").write_text("three")
        raise KeyboardInterrupt
    assert (folder / "deep" / "file").read_text() == "two"
    assert os.listdir(tmp_path) == ["result"]


def test_a_result_on_a_full_disk_leaves_the_old_one(tmp_path):
    folder = tmp_path / "result"
    with replaced_folder(folder) as partial:
        (partial / "file").write_text("one")
    with small_disk(1000), pytest.raises(CheckpointError, match="result.*make room"):
        with replaced_folder(folder) as partial:
            (partial / "file").write_bytes(b"0" * 10_000)
    assert (folder / "file").read_text() == "one" and os.listdir(tmp_path) == ["result"]


def test_an_export_is_current_until_it_or_the_checkpoint_changes(store, tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    (export / "weights").write_text("one")
    assert not store.export_is_current(export)  # no checkpoint at all
    save(store, 1)
    assert not store.export_is_current(export)
    store.note_export(export)
    assert store.export_is_current(export)
    (export / "weights").write_text("other")
    assert not store.export_is_current(export)
    store.note_export(export)
    save(store, 2)
    assert not store.export_is_current(export)
    store.note_export(export)
    shutil.rmtree(export)
    assert not store.export_is_current(export)


def test_the_hash_of_a_folder_is_of_names_and_contents_not_of_its_place(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "x").write_text("1")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert hash_folder(tmp_path / "a") == hash_folder(tmp_path / "b")
    (tmp_path / "b" / "deep" / "x").rename(tmp_path / "b" / "deep" / "y")
    assert hash_folder(tmp_path / "a") != hash_folder(tmp_path / "b")


# ---- one run per output


def test_two_runs_do_not_share_an_output(tmp_path):
    with claimed(tmp_path):
        with pytest.raises(RuntimeError, match=f"process {os.getpid()} is training into it"):
            with claimed(tmp_path, wait_seconds=0):
                pytest.fail("the folder was given twice")
    with claimed(tmp_path, wait_seconds=0):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
