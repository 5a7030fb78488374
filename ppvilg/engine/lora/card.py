"""The card beside an adapter's file: what it changes, what it was trained on and how, and how to draw with it."""
from __future__ import annotations

from ppvilg.config import Recipe
from ppvilg.files import ADAPTER_NAMES
from ppvilg.models.lora import Adapter

_KEYS = ("steps", "batch_size", "learning_rate", "final_learning_rate", "warmup_steps", "decay", "weight_decay",
         "ema_decay", "caption_dropout", "rank", "alpha", "targets", "experts", "shared", "text_encoder")


def write_card(recipe: Recipe, adapter: Adapter, pictures: list[int]) -> str:
    """README.md of an adapter; pictures: how many were taught, and how many of the base's own came among them."""
    config, settings = recipe.train.lora, adapter.settings
    groups = {"all experts alike": adapter.shared, "the text encoder": adapter.text_encoder}
    groups |= {f"expert {k} (t = {settings.boundaries[k]} to {settings.boundaries[k + 1] - 1})": changes
               for k, changes in adapter.experts.items()}
    changed = "\n".join(f"- {name}: {len(changes)} layers" for name, changes in groups.items() if changes)
    numbers = sum(change.down.size + change.up.size for changes in groups.values() for change in changes.values())
    if adapter.words:
        changed += "\n- new words: " + ", ".join(f"{word.word} ({word.mark})" for word in adapter.words)
    table = "\n".join(f"| {key} | {config[key]} |" for key in _KEYS)
    prior = f" and {pictures[1]} that the base had drawn, weight {config.prior.weight:g}" if pictures[1:] else ""
    shapes = ", ".join(f"{width}x{height}" for width, height in recipe.data.shapes)
    prompt = next(iter(recipe.sample.prompts), "...")
    return f"""# Adapter (LoRA) of {config.base}

{numbers:,} numbers, which change of {settings.num_experts} experts:
{changed}

Base: `{config.base}`, SHA-256 of its files {settings.base_sha256}. An adapter of another base is refused.

## Training
{pictures[0]} pictures{prior}, cut to {shapes} pixels; seed {recipe.seed}; `ppvilg train`.

| train.lora | |
|---|---|
{table}

## Drawing
`ppvilg infer --model {config.base} --lora {ADAPTER_NAMES[0]} --prompt "{prompt}"`
"""
