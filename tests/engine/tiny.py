"""A three-stage recipe small enough to run many times: 16 pictures, networks of some ten thousand weights."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [[16, 16], [16, 32]]  # (width, height)
STAGES = ("vae", "base", "experts")
STEPS = {"vae": 4, "base": 4, "experts": 7}

COLOURS = {"红色": (220, 30, 30), "蓝色": (30, 60, 220), "绿色": (30, 180, 60), "黄色": (240, 220, 40)}
STAGE = {
    "batch_size": 4,
    "learning_rate": 2.0e-3,
    "warmup_steps": 1,
    "ema_decay": 0.9,
    "ema_every": 1,
    "log_every": 2,
    "checkpoint_every": 2,
    "validate_every": 0,
}
RECIPE = {
    "seed": 3,
    "data": {"shapes": SHAPES, "max_validation_samples": 4},
    "model": {
        "tokenizer": {"max_length": 24},
        "text_encoder": {
            "config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 32,
                "hidden_dropout_prob": 0.1,  # so that resuming must bring Paddle's random numbers back too
            }
        },
        "vae": {
            "config": {
                "patch_size": 4,
                "in_channels": 48,
                "out_channels": 48,
                "block_out_channels": [8, 16],
                "layers_per_block": 1,
                "latent_channels": 4,
                "norm_num_groups": 4,
                "sample_size": 16,
            }
        },
        "unet": {
            "config": {
                "sample_size": 2,
                "in_channels": 4,
                "out_channels": 4,
                "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
                "block_out_channels": [8, 16],
                "layers_per_block": 1,
                "cross_attention_dim": 16,
                "attention_head_dim": 2,
                "norm_num_groups": 4,
            }
        },
        "num_experts": 3,
        "scheduler": {"num_train_timesteps": 90, "prediction_type": "v_prediction", "clip_sample": False},
    },
    "train": {name: {**STAGE, "steps": STEPS[name]} for name in STAGES},
    "sample": {"num_inference_steps": 2},
}


def write_pictures(folder: Path, count: int, first: int = 0, damaged: tuple = ()) -> Path:
    """A folder with `count` pictures of a coloured square on a ground and a JSONL; `damaged` ones are cut off."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        width, height = SHAPES[number % 3 // 2]
        (ground, back), (name, front) = (list(COLOURS.items())[i] for i in rng.permutation(4)[:2])
        pixels = np.full((height, width, 3), back, np.uint8)
        x, y = rng.integers(0, width // 2), rng.integers(0, height // 2)
        pixels[y : y + 8, x : x + 8] = front
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        if number in damaged:
            data = (folder / f"{number:03d}.png").read_bytes()
            (folder / f"{number:03d}.png").write_bytes(data[:60])
        captions = {"zh": f"{ground}背景上的{name}方块", "generated": f"一个{name}方块"}
        objects = [{"label": "方块", "box": [int(x), int(y), int(x) + 8, int(y) + 8], "score": 1.0}]
        if number % 4 == 0:
            captions["zh"] = f"{ground}背景"  # leaves the object out: something to complete
        size = {"width": width, "height": height}
        lines.append({"key": f"{number:03d}", **size, "captions": captions, "objects": objects})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "annotations.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_world(folder: Path) -> tuple[Path, Path]:
    """(training, validation) folders."""
    return write_pictures(folder / "train", 16), write_pictures(folder / "validation", 5, first=100)


def write_recipe(path: Path) -> Path:
    path.write_text(yaml.safe_dump(RECIPE, allow_unicode=True), encoding="utf-8")
    return path


def load_tool(name: str):
    """What tools/<name>.py runs."""
    return importlib.import_module(f"ppvilg.commands.{name}")


def start(arguments: list[str], log) -> subprocess.Popen:
    """Another Python with these arguments, in the folder of its log file."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment,
                            cwd=Path(log.name).parent)


def newest(output: Path, stage: str) -> dict:
    """{"net", "ema", "optimizer": arrays by name; "progress"} of a stage's newest checkpoint."""
    from safetensors.numpy import load_file

    folder = sorted((output / "checkpoints" / stage).glob("step_*"))[-1]
    state = {name: load_file(folder / f"{name}.safetensors") for name in ("net", "ema", "optimizer")}
    return {**state, "progress": json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["progress"]}


def differences(one: Path, other: Path, stages=STAGES) -> list[str]:
    """What differs between the ends of two runs: any bit of weights, averages, moments, sample order or exports."""
    found = []
    for stage in stages:
        left, right = newest(one, stage), newest(other, stage)
        for name in ("net", "ema", "optimizer"):
            found += [f"{stage} {name}: keys"] if left[name].keys() != right[name].keys() else []
            found += [
                f"{stage} {name} {key}"
                for key in left[name].keys() & right[name].keys()
                if left[name][key].tobytes() != right[name][key].tobytes()
            ]
        found += [f"{stage} progress"] if left["progress"] != right["progress"] else []
        files = [{p.relative_to(o / stage) for p in (o / stage).rglob("*") if p.is_file()} for o in (one, other)]
        found += [f"{stage} export: files {files[0] ^ files[1]}"] if files[0] != files[1] or not files[0] else []
        found += [
            f"{stage} export {file}"
            for file in files[0] & files[1]
            if (one / stage / file).read_bytes() != (other / stage / file).read_bytes()
        ]
    return sorted(found)
