"""Latents: encoded once, in whole files that are never deleted; interrupted, shared by ranks, with bad pictures."""

import json
import os
import pickle
from functools import partial
from itertools import islice

import numpy as np
import pytest

from ppvilg.data import (
    BadSample,
    BatchOrder,
    ImageTransform,
    LatentLoader,
    LatentStore,
    TooManyBadSamples,
    encode_latents,
    open_source,
)
from tests.data.test_loader import build_shard, caption_lengths

SHAPES = [(16, 16), (16, 24), (24, 16)]
BAD = (3, 11, 20)


def encode(pixels: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) -> means of 8 x 8 pixels (N, 3, H / 8, W / 8)."""
    count, height, width, _ = pixels.shape
    blocks = pixels.reshape(count, height // 8, 8, width // 8, 8, 3).mean((2, 4)) / 255
    return blocks.transpose(0, 3, 1, 2).astype(np.float32)


class Counted:
    """`encode` that counts pictures and is interrupted after so many calls."""

    def __init__(self, stop_after=None):
        self.pictures, self.calls, self.stop_after = 0, 0, stop_after

    def __call__(self, pixels):
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        self.pictures += len(pixels)
        return encode(pixels)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return open_source(build_shard(tmp_path_factory.mktemp("clean") / "0.tar", 60))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return open_source(build_shard(tmp_path_factory.mktemp("damaged") / "0.tar", 60, BAD))


def make(source, folder, encode=encode, **options) -> LatentStore:
    options = {"batch_size": 3, "chunk": 8, **options}
    return encode_latents(encode, source, ImageTransform(SHAPES), folder, "training", **options)


def everything(store) -> list[np.ndarray]:
    return [store.latents(int(store.buckets[i]), np.array([i]))[0] for i in range(len(store))]


def test_latents_are_those_of_each_picture(clean, tmp_path):
    store, transform = make(clean, tmp_path / "a"), ImageTransform(SHAPES)
    assert len(store) == 60 and store.kept.tolist() == list(range(60))
    for i in range(60):
        record, bucket = clean.read(i), int(store.buckets[i])
        pixels, _ = transform(record.image, [], bucket, np.random.default_rng(0))
        (found,) = store.latents(bucket, np.array([i]))
        assert found.dtype == np.float16 and np.allclose(found, encode(pixels[None])[0], atol=1e-3)
        assert store.records[i].key == record.key and store.records[i].image is None
    wide = np.flatnonzero(np.asarray(store.buckets) == 2)[::-1]
    assert np.array_equal(store.latents(2, wide), [everything(store)[i] for i in wide])
    assert make(clean, tmp_path / "b", dtype="float32").latents(0, store.members.members(0, [0])).dtype == np.float32


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_time_nothing_is_encoded(clean, tmp_path, workers):
    first, again = Counted(), Counted()
    one, two = make(clean, tmp_path, first, workers=workers), make(clean, tmp_path, again)
    assert (first.pictures, again.pictures) == (60, 0)
    assert all(np.array_equal(a, b) for a, b in zip(everything(one), everything(two)))


def test_an_interruption_loses_one_chunk_at_most(clean, tmp_path):
    whole = make(clean, tmp_path / "whole")
    stopped, rest = Counted(stop_after=10), Counted()
    with pytest.raises(KeyboardInterrupt):
        make(clean, tmp_path / "stopped", stopped)
    with pytest.raises(ValueError, match="latents are not complete"):
        LatentStore(tmp_path / "stopped", clean, ImageTransform(SHAPES))
    store = make(clean, tmp_path / "stopped", rest)
    assert stopped.pictures > 16 and rest.pictures <= 60 - stopped.pictures + 8
    assert all(np.array_equal(a, b) for a, b in zip(everything(store), everything(whole)))
    left = [name for _, _, names in os.walk(tmp_path / "stopped") for name in names if "partial" in name]
    assert not left


def test_ranks_share_the_chunks_and_another_number_goes_on(clean, tmp_path):
    whole, counts = make(clean, tmp_path / "whole"), [Counted() for _ in range(3)]
    for rank in (2, 1):
        with pytest.raises(TooManyBadSamples, match="could not be made"):  # nobody was rank 0
            make(clean, tmp_path / "shared", counts[rank], rank=rank, world_size=3)
    store = make(clean, tmp_path / "shared", counts[0], rank=0, world_size=1)
    assert sum(each.pictures for each in counts) == 60 and all(each.pictures for each in counts)
    assert all(np.array_equal(a, b) for a, b in zip(everything(store), everything(whole)))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_pictures_are_left_out_and_named(damaged, tmp_path, workers):
    store = make(damaged, tmp_path / "a", workers=workers)
    assert store.kept.tolist() == [i for i in range(60) if i not in BAD]
    rows = [json.loads(line) for line in (tmp_path / "bad_samples_training.jsonl").read_text("utf-8").splitlines()]
    assert {row["key"] for row in rows} == {f"{i:04d}" for i in BAD} and all(row["source"] for row in rows)
    report = [json.loads(line) for line in (tmp_path / "data_report_training.jsonl").read_text().splitlines()]
    assert report[1]["used"] == 57 and sum(report[1]["skipped_by_reason"].values()) == 3
    for i, index in enumerate(store.kept[:5]):
        assert store.records[i].key == damaged.keys[int(index)]
    order = BatchOrder(store.members, 19, 0)
    assert sorted(i for step in range(3) for i in order.batch(step)[1] if order.num_samples == 57)


def test_too_many_bad_pictures_stop_the_encoding_and_delete_nothing(damaged, tmp_path):
    counted = Counted()
    with pytest.raises(TooManyBadSamples, match="(?s)2 bad samples of 60.*bad_samples_training.jsonl.*truncated"):
        make(damaged, tmp_path / "a", counted, bad_sample_share=0.01)
    assert 0 < counted.pictures < 57  # while encoding, not after it
    kept = sorted(path.name for path in (tmp_path / "a").rglob("*.npy"))
    assert kept and len((tmp_path / "bad_samples_training.jsonl").read_text("utf-8").splitlines()) == 2
    rest = Counted()
    store = make(damaged, tmp_path / "a", rest, bad_sample_share=0.05)
    assert len(store) == 57 and rest.pictures < 57 and counted.pictures + rest.pictures <= 57 + 8


def test_bad_pictures_are_tried_again_before_the_latents_are_finished(tmp_path):
    """As when a disk was away for a while: the file is as the index knows it, and can be read again."""
    path = build_shard(tmp_path / "0.tar", 20, ())
    source, whole = open_source(path), path.read_bytes()
    offset, length = (int(source.index.column(name)[4]) for name in ("offsets", "lengths"))
    path.write_bytes(whole[: offset + 60] + bytes(length - 60) + whole[offset + length :])
    with pytest.raises(TooManyBadSamples):
        make(source, tmp_path / "a", bad_sample_share=0.0, batch_size=8)
    path.write_bytes(whole)
    store = make(source, tmp_path / "a", bad_sample_share=0.0)
    assert len(store) == 20 and np.abs(everything(store)[4]).max() > 0


@pytest.mark.parametrize("name", ["bucket_*/*.npy", "bucket_*/*.bad.jsonl", "kept.npy", "members.npy", "manifest.json"])
def test_what_is_cut_off_is_named_and_made_again(damaged, tmp_path, caplog, name):
    before = everything(make(damaged, tmp_path))
    path = sorted(tmp_path.glob(name))[0]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    if name.endswith(".jsonl"):
        (tmp_path / "manifest.json").unlink()  # such a list is read again only where latents are not complete
    with pytest.raises(ValueError, match="not complete"):
        LatentStore(tmp_path, damaged, ImageTransform(SHAPES))
    assert all(map(np.array_equal, everything(make(damaged, tmp_path)), before))
    assert path.read_bytes() == data
    if name.startswith("bucket"):
        assert "cut off or damaged" in caplog.text


def test_a_chunk_without_any_good_picture(tmp_path):
    source = open_source(build_shard(tmp_path / "0.tar", 21, range(7)))
    store = make(source, tmp_path / "a", chunk=1, bad_sample_share=0.5)
    assert store.kept.tolist() == list(range(7, 21)) and len(everything(store)) == 14
    nothing = open_source(build_shard(tmp_path / "1.tar", 3, range(3)))
    with pytest.raises(TooManyBadSamples, match="no picture of training could be encoded"):
        make(nothing, tmp_path / "b", bad_sample_share=1.0)


def test_only_as_many_as_are_used(clean, tmp_path):
    counted = Counted()
    store = make(clean, tmp_path / "a", counted, count=10)
    assert len(store) == counted.pictures == 10 and store.kept.tolist() == list(range(10))
    assert len(make(clean, tmp_path / "b", count=1000)) == 60


@pytest.mark.parametrize("options, part", [({"dtype": "int8"}, "int8"), ({"dtype": "bfloat16"}, "bfloat16")])
def test_what_cannot_be_stored(clean, tmp_path, options, part):
    with pytest.raises(ValueError, match=part):
        make(clean, tmp_path, **options)
    with pytest.raises(ValueError, match="deterministic"):
        encode_latents(encode, clean, ImageTransform(SHAPES, "random"), tmp_path, "training")
    transform = ImageTransform(SHAPES, "random", 0.5, min_visible=0.5).deterministic()
    assert (transform.crop, transform.horizontal_flip, transform.min_visible) == ("center", 0.0, 0.5)


# ---- the loader


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("passes", [1, 3])
def test_batches_of_latents(damaged, tmp_path, workers, passes):
    store = make(damaged, tmp_path)
    order = BatchOrder(store.members, 6, 1)
    loader = LatentLoader(store, order, workers=workers, passes=passes, finish=partial(caption_lengths, factor=10))
    for count, (step, batch) in enumerate(islice(loader.iterate_from(4), 4 * passes)):
        assert (step, batch.number) == (4 + count // passes, count % passes) and len(batch) == 6 // passes
        bucket, indices = order.part(step, batch.number * len(batch), (batch.number + 1) * len(batch))
        assert batch.bucket == bucket and batch.size == SHAPES[bucket] and batch.indices.tolist() == indices.tolist()
        assert np.array_equal(batch.latents, store.latents(bucket, indices)) and batch.pixels is None
        expected = [10 * len(store.records[int(i)].captions["zh"]) for i in indices]
        assert batch.finished["lengths"].tolist() == expected and batch.records == []
        assert set(batch.finished) == {"lengths", "steps"} and set(batch.finished["steps"]) == {step}


def test_a_store_can_be_sent(damaged, tmp_path):
    store = make(damaged, tmp_path)
    sent = pickle.dumps(store)
    assert len(sent) < 3000 and all(map(np.array_equal, everything(pickle.loads(sent)), everything(store)))
    with pytest.raises(ValueError, match="57"):
        LatentLoader(store, BatchOrder(np.zeros(60, int), 2, 0))
    with pytest.raises(BadSample):
        damaged.read(BAD[0])
