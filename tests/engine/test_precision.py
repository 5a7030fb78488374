"""Low precision where this machine has none: what is computed, validated, drawn and exported is what it should be."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from engine_tiny import newest
from safetensors.numpy import load_file

from ppvilg.engine import builder
from ppvilg.engine.training.precision import Precision

_specification = importlib.util.spec_from_file_location("low_precision", Path(__file__).with_name("low_precision.py"))
low_precision = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(low_precision)
ONLY_BASE = ("train.vae.steps=0", "train.vae.warmup_steps=0", "train.experts.steps=0", "train.experts.warmup_steps=0",
             "train.base.validate_every=2", "sample.prompts=[红色背景]", "train.base.log_every=1")


@pytest.fixture
def low(monkeypatch):
    monkeypatch.setattr(Precision, "supported", staticmethod(lambda: True))
    return low_precision.emulate(monkeypatch)


@pytest.fixture
def train(make_run, finished, tmp_path):
    """train(name, "a.b=value", ...) -> output of a base stage over the finished autoencoder."""

    def run(name, *overrides):
        output = tmp_path / name
        make_run(output, *ONLY_BASE, f"model.vae.pretrained={finished / 'vae'}", *overrides).run()
        return output

    return run


@pytest.mark.parametrize("encoder", ["trained", "frozen"])
def test_a_run_in_low_precision_ends_near_float32(train, low, encoder, make_run):
    """Validated before step 1, drawn, exported: the export is float32, of the masters' averages, and loads anywhere."""
    settings = (f"train.base.train_text_encoder={encoder == 'trained'}",)
    output = train("low", *settings, "precision.level=O2")
    assert set(low) == {("O2", "bfloat16")}
    whole = train("whole", *settings)
    averages = newest(output, "base")["ema"]
    files = {"unet.experts.0": "unet/expert_00/diffusion_paddle_model.safetensors"}
    if encoder == "trained":
        files["text_encoder"] = "text_encoder/model.safetensors"
    for prefix, file in files.items():
        exported = load_file(output / "base" / file)
        compared = 0
        for name, value in exported.items():
            key = f"{prefix}.{name.removeprefix('ernie.')}"
            assert value.dtype == np.float32
            if key in averages:
                assert value.tobytes() == averages[key].tobytes(), name
                compared += 1
        assert compared > 10
    state, reference = newest(output, "base"), newest(whole, "base")
    assert state["net"].keys() == reference["net"].keys()
    assert all(value.dtype == np.float32 for name in ("net", "ema", "optimizer") for value in state[name].values())
    far = max(np.abs(value - reference["net"][name]).max() for name, value in state["net"].items())
    assert 0 < far < 0.02  # four steps of at most 0.002 each
    one, other = losses(output), losses(whole)
    assert len(one) == len(other) == 7
    np.testing.assert_allclose(one, other, rtol=0.05)
    assert one != other, "low precision was emulated"
    assert list((output / "logs" / "samples").glob("base_*.png"))


def losses(output) -> list[float]:
    lines = map(json.loads, (output / "logs" / "base.jsonl").read_text(encoding="utf-8").splitlines())
    return [line[key] for line in lines for key in ("loss", "validation/loss") if key in line]


def test_published_weights_reach_the_masters_unrounded(train, low, finished):
    """Without a learning rate what goes in comes out, though bfloat16 holds none of it."""
    place = finished / "base" / "unet" / "expert_00"
    output = train("still", f"model.unet.pretrained={place}", "precision.level=O2", "train.base.learning_rate=0.0",
                   "train.base.weight_decay=0.0")
    before = load_file(place / "diffusion_paddle_model.safetensors")
    net = newest(output, "base")["net"]
    for name, value in before.items():
        assert net[f"unet.experts.0.{name}"].tobytes() == value.tobytes(), name


def test_passes_are_added_up_in_float32(low):
    precision = Precision()
    precision.level = "O2"
    layer = paddle.nn.Linear(2, 1, bias_attr=False)
    precision.dtype = "bfloat16"
    precision.lower([layer])
    for number in range(300):
        layer.weight.grad = paddle.full([2, 1], 1.0, "bfloat16")  # in bfloat16 256 + 1 is 256
        precision.gather(layer.parameters(), last=number == 299)
    assert layer.weight.grad.dtype == paddle.float32 and layer.weight.grad.numpy().tolist() == [[300.0]] * 2


def test_a_frozen_text_encoder_keeps_its_precision(train, low, finished, make_recipe, tmp_path):
    place = finished / "base" / "text_encoder"
    output = train("frozen", f"model.text_encoder.pretrained={place}",
                   f"model.tokenizer.pretrained={finished}/tokenizer", "train.base.train_text_encoder=false",
                   "precision.level=O2")
    before = load_file(place / "model.safetensors")
    after = load_file(output / "base" / "text_encoder" / "model.safetensors")
    assert all(after[name].tobytes() == value.tobytes() for name, value in before.items())
    recipe = make_recipe(tmp_path / "x", f"model.text_encoder.pretrained={output}/base/text_encoder")
    assert builder.read_text_encoder(recipe).parameters()[0].dtype == paddle.float32
