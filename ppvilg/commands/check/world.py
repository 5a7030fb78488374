"""Coloured squares, and a recipe of some ten thousand weights that learns them in a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

COLOURS = {"红色": (220, 30, 30), "蓝色": (30, 60, 220), "绿色": (30, 180, 60), "黄色": (240, 220, 40)}
PROMPT = "红色背景上的蓝色方块"
SIDE = 32

_STAGE = {"steps": 4, "batch_size": 4, "learning_rate": 5e-4, "epsilon": 1e-3, "decay": "constant", "ema_decay": 0.9,
          "ema_every": 1, "log_every": 1, "checkpoint_every": 4, "validate_every": 4}  # fmt: skip
_MODEL = {
    "tokenizer": {"max_length": 16},
    "text_encoder": {"config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                                "intermediate_size": 64, "max_position_embeddings": 32, "hidden_dropout_prob": 0.0,
                                "attention_probs_dropout_prob": 0.0}},
    "vae": {"config": {"patch_size": 4, "in_channels": 48, "out_channels": 48, "block_out_channels": [16],
                       "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
                       "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4, "sample_size": SIDE}},
    "unet": {"config": {"sample_size": SIDE // 4, "in_channels": 4, "out_channels": 4,
                        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
                        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "block_out_channels": [16, 32],
                        "layers_per_block": 1, "cross_attention_dim": 32, "attention_head_dim": 2,
                        "norm_num_groups": 2}},
    "num_experts": 2,
    "scheduler": {"num_train_timesteps": 100, "prediction_type": "v_prediction", "clip_sample": False},
}  # fmt: skip


def recipe_text(training: Path, validation: Path) -> str:
    """The recipe, YAML."""
    recipe = {"output": "unset", "seed": 1, "model": _MODEL,
              "data": {"train": str(training), "validation": str(validation), "shapes": [[SIDE, SIDE]]},
              "train": {stage: dict(_STAGE) for stage in ("vae", "base", "experts")}}  # fmt: skip
    return yaml.safe_dump(recipe, allow_unicode=True)


def write_pictures(folder: Path, count: int) -> Path:
    """`count` pictures with captions and boxes; gives the folder."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        rng = np.random.default_rng(number)
        (ground, back), (name, front) = (list(COLOURS.items())[index] for index in rng.permutation(4)[:2])
        pixels = np.full((SIDE, SIDE, 3), back, np.uint8)
        x, y = (int(value) for value in rng.integers(0, SIDE // 2, 2))
        pixels[y : y + SIDE // 2, x : x + SIDE // 2] = front
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        box = [x, y, x + SIDE // 2, y + SIDE // 2]
        lines.append({"key": f"{number:03d}", "width": SIDE, "height": SIDE,
                      "captions": {"zh": f"{ground}背景上的{name}方块"},
                      "objects": [{"label": "方块", "box": box, "score": 1.0}]})  # fmt: skip
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "annotations.jsonl").write_text(text, encoding="utf-8")
    return folder
