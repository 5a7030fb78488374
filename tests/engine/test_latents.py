"""Latents of a data set: interrupted and gone on with, shared by ranks, kept in files and not in memory."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from ppvilg.data import ImageTransform, open_source
from ppvilg.engine import builder, distributed
from ppvilg.engine.caches import latents
from ppvilg.engine.caches.latents import cache_latents


@pytest.fixture(scope="module")
def vae(finished, make_recipe, tmp_path_factory):
    recipe = make_recipe(tmp_path_factory.mktemp("recipe") / "out")
    model = builder.build_vae(recipe, finished / "vae")
    model.eval()
    return model


@pytest.fixture
def encode(vae, world, monkeypatch):
    """encode(folder) -> LatentCache of the tiny world's sixteen pictures, in chunks of four."""
    monkeypatch.setattr(latents, "CHUNK", 4)
    source, transform = open_source(world[0]), ImageTransform([(16, 16), (16, 32)])
    return lambda folder: cache_latents(vae, "hash", source, transform, folder, "training", 0.0, batch_size=3)


def everything(cache):
    return [cache.latents(int(cache.buckets[i]), np.array([i]))[0] for i in range(len(cache))]


def equal(one, other):
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(everything(one), everything(other)))


def test_what_was_encoded_before_an_interruption_is_kept(encode, tmp_path, monkeypatch):
    whole, original, seen = encode(tmp_path / "whole"), latents.encode, []

    def stop(vae, pixels):
        if pixels.any():  # not the trial that finds the shape
            seen.append(len(pixels))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return original(vae, pixels)

    monkeypatch.setattr(latents, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path / "stopped")
    before = sum(seen[:-1])
    cache = encode(tmp_path / "stopped")
    assert before >= 4 and sum(seen[4:]) <= 16 - before + 4  # at most one chunk again
    assert equal(cache, whole) and [path.name for path in (tmp_path / "stopped").iterdir() if path.is_dir()]
    assert not list((tmp_path / "stopped").rglob(".*partial*"))


def test_what_is_cut_off_is_named_and_made_again(encode, tmp_path, caplog):
    whole = [latent.copy() for latent in everything(encode(tmp_path))]
    for pattern in ("bucket_0/chunk_000000.npy", "kept.npy", "members.npy", "whole.json"):
        (file,) = tmp_path.glob(f"training_*/{pattern}")
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert all(np.array_equal(a, b) for a, b in zip(everything(encode(tmp_path)), whole, strict=True))
        assert f"({pattern})" in caplog.text and "is made again" in caplog.text


def test_another_number_of_ranks_goes_on(encode, tmp_path, monkeypatch):
    """Rank 1 of three did its share and the run ended; one rank does the rest, with the same bits."""
    whole, finish = encode(tmp_path / "whole"), latents._finish
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(latents, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path / "ranks")  # as rank 0
    assert 0 < len(list((tmp_path / "ranks").glob("training_*/bucket_*/chunk_*.npy"))) < 4
    monkeypatch.setattr(latents, "_finish", finish)
    monkeypatch.setattr(distributed, "world_size", lambda: 1)
    assert equal(encode(tmp_path / "ranks"), whole)


def test_a_cache_is_found_and_says_what_became_of_every_sample(encode, tmp_path, monkeypatch):
    cache = encode(tmp_path)
    monkeypatch.setattr(latents._Encoder, "encode_share", lambda *_: pytest.fail("encoded again"))
    assert equal(encode(tmp_path), cache)
    data, row = [json.loads(line) for line in (tmp_path / "data_report_training.jsonl").read_text().splitlines()]
    assert data["samples"] == row["read"] == row["used"] == 16 and row["what"] == "latents" and row["skipped"] == 0


def test_an_open_cache_keeps_little(encode, tmp_path):
    encode(tmp_path)
    tracemalloc.start()
    cache = encode(tmp_path)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 100_000 and isinstance(cache.kept, np.memmap) and isinstance(cache.rows, np.memmap)
    assert cache.records[3].key == "003" and cache.records[3].image is None
