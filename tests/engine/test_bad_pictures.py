"""Damaged pictures: named, counted and left out up to the limit, on every way that pictures take into training."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from engine_tiny import newest, write_pictures

from ppvilg.config import ConfigError
from ppvilg.engine import Run

DAMAGED = (3, 7)
ONLY_VAE = ("train.base.steps=0", "train.base.warmup_steps=0", "train.experts.steps=0", "train.experts.warmup_steps=0")
NO_EXPERTS = ONLY_VAE[2:]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Sixteen pictures of which two are cut off and one has a box outside; five of which one is cut off."""
    folder = tmp_path_factory.mktemp("damaged")
    training = write_pictures(folder / "train", 16, damaged=DAMAGED)
    lines = (training / "annotations.jsonl").read_text(encoding="utf-8").splitlines()
    entry = json.loads(lines[9])
    entry["objects"][0]["box"] = [0, 0, 500, 8]
    lines[9] = json.dumps(entry, ensure_ascii=False)
    (training / "annotations.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    validation = write_pictures(folder / "validation", 5, first=100, damaged=(101,))
    return training, validation


@pytest.fixture
def start(make_recipe, damaged, tmp_path, finished):
    """start("a.b=value", ...) -> Run on the damaged data, into tmp_path/out."""

    def build(*overrides):
        places = (f"data.train={damaged[0]}", f"data.validation={damaged[1]}", "data.bad_sample_share=0.25")
        return Run(make_recipe(tmp_path / "out", *places, *overrides))

    return build


def named(path) -> set:
    """Keys in a list of bad samples, each of which has a reason."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(row["reason"] and row["source"] for row in rows)
    return {row["key"] for row in rows}


def test_the_autoencoder_trains_on_the_others(start, tmp_path, caplog):
    start(*ONLY_VAE, "train.vae.steps=8").run()
    output = tmp_path / "out"
    assert named(output / "bad_samples_vae_0.jsonl") == {"003", "007", "009"}
    assert "bad sample left out" in caplog.text and "500" in caplog.text
    assert newest(output, "vae")["progress"]["next_step"] == 8
    lines = [json.loads(line) for line in (output / "logs" / "vae.jsonl").read_text().splitlines()]
    measured = [line["validation/psnr_db"] for line in lines if "validation/psnr_db" in line]
    assert len(measured) == 2 and np.isfinite(measured).all()  # over the four good pictures
    assert "101" in caplog.text


def test_too_many_bad_samples_stop_the_autoencoder(start, tmp_path):
    with pytest.raises(RuntimeError, match="3 bad samples of 16") as error:
        start(*ONLY_VAE, "train.vae.steps=8", "data.bad_sample_share=0.125").run()
    assert "003.png" in str(error.value) and "bad_samples_vae_0.jsonl" in str(error.value)


def with_autoencoder(finished, tmp_path):
    """The finished autoencoder as published weights: the damaged data train the denoiser alone."""
    shutil.copytree(finished / "vae", tmp_path / "published")
    return ("train.vae.steps=0", "train.vae.warmup_steps=0", f"model.vae.pretrained={tmp_path / 'published'}")


@pytest.mark.parametrize("cached", [True, False])
def test_the_denoiser_trains_on_the_others(start, finished, tmp_path, cached, caplog):
    workers = 0 if cached else 1  # of which each imports Paddle's tokenizer
    settings = (f"data.cache_latents={cached}", "train.base.steps=8", f"data.workers={workers}", "data.cache_tags=true")
    start(*with_autoencoder(finished, tmp_path), *NO_EXPERTS, *settings).run()
    output = tmp_path / "out"
    listed = output / "cache" / "bad_samples_training.jsonl" if cached else output / "bad_samples_base_0.jsonl"
    assert named(listed) == {"003", "007", "009"}
    assert named(output / "cache" / "bad_samples_validation.jsonl") == {"101"}
    assert newest(output, "base")["progress"]["next_step"] == 8
    report = output / "cache" / "data_report_training.jsonl" if cached else output / "data_report_base_0.jsonl"
    data, *rows = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    assert data["samples"] == 16 and sum(row["skipped"] for row in rows) >= 3
    assert {name[-7:] for row in rows for name in row["skipped_by_file"]} == {"003.png", "007.png", "009.png"}
    assert sum(row["used"] for row in rows) == (13 if cached else 8 * 4)
    if cached:
        (kept,) = (output / "cache").glob("training_*/kept.npy")
        assert np.load(kept).tolist() == [i for i in range(16) if i not in (3, 7, 9)]


@pytest.mark.parametrize("cached", [True, False])
def test_too_many_bad_samples_stop_the_denoiser(start, finished, tmp_path, cached):
    settings = (f"data.cache_latents={cached}", "train.base.steps=8", "data.bad_sample_share=0.125")
    run = start(*with_autoencoder(finished, tmp_path), *NO_EXPERTS, *settings)
    with pytest.raises(RuntimeError, match="3 bad (samples|pictures)") as error:
        run.run()
    assert "003" in str(error.value) and "bad_samples_" in str(error.value)


def test_a_set_without_any_good_picture(make_recipe, tmp_path):
    data = write_pictures(tmp_path / "all", 4, damaged=(0, 1, 2, 3))
    with pytest.raises(ConfigError, match="data.train=.*none of its 4 samples can be read.*truncated"):
        Run(make_recipe(tmp_path / "out", f"data.train={data}")).run()
    assert not (tmp_path / "out").exists()


def test_a_set_without_any_picture(make_recipe, tmp_path):
    data = write_pictures(tmp_path / "none", 4)
    for path in data.glob("*.png"):
        path.unlink()
    with pytest.raises(ConfigError, match="no usable sample"):
        Run(make_recipe(tmp_path / "out", f"data.train={data}"))
    assert not (tmp_path / "out").exists()
