"""`ppvilg annotate --show`: the contact sheet by a recipe's knowledge, or by the defaults of recipes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ppvilg.annotate import Unit
from ppvilg.annotate.sheet import Settings, show
from ppvilg.config import Recipe, load_config
from ppvilg.files import find_shipped
from ppvilg.knowledge import open_names

from ..arguments import whole


def add_looking(parser: argparse.ArgumentParser) -> None:
    """Options of the contact sheet and of names."""
    group = parser.add_argument_group("look at it")
    group.add_argument("--show", type=whole(1, 1000), metavar="N", help="write OUTPUT/sheet/index.html: boxes, weights "
                       "and captions of N samples, as training will see them; with --data and --output alone nothing "
                       "is annotated")  # fmt: skip
    group.add_argument("--recipe", type=Path, help="whose knowledge, names and shapes the sheet goes by (default: the "
                       "defaults of recipes, pictures of 256x256)")  # fmt: skip
    group.add_argument("--show-seed", type=whole(0), default=0, help="which samples are drawn (default: 0)")


def tables_of(arguments: argparse.Namespace) -> list[str]:
    """The tables of names that the options give, else the recipe, else that of COCO."""
    if arguments.names:
        return arguments.names
    return list(load_config(find_shipped(arguments.recipe)).knowledge.vision.names) if arguments.recipe else ["coco"]


def show_sheet(arguments: argparse.Namespace, units: Sequence[Unit]) -> Path:
    """Write the sheet; gives its path."""
    settings = _settings_of(load_config(find_shipped(arguments.recipe))) if arguments.recipe else Settings()
    if arguments.names:
        knowledge = replace(settings.knowledge, names=open_names(arguments.names))
        settings = replace(settings, knowledge=knowledge)
    return show(arguments.data, units, arguments.show, settings, arguments.show_seed)


def _settings_of(recipe: Recipe) -> Settings:
    """As training builds them."""
    from ppvilg.engine import builder

    part = recipe.knowledge
    return Settings(
        knowledge=builder.build_visual_knowledge(recipe),
        transform=builder.build_transform(recipe),
        factor=_latent_factor(recipe),
        key_token_weight=part.text.key_token_weight if part.text.enabled else 0.0,
        replacement=part.vision.replacement.probability if part.vision.replacement.enabled else 0.0,
    )


def _latent_factor(recipe: Recipe) -> int:
    """Pixels of a latent cell's side: each level of the autoencoder but one halves the picture; 8 of published ones."""
    config = recipe.model.vae.config
    if recipe.model.vae.pretrained or not config:
        return Settings.factor
    return config.get("patch_size", 1) * 2 ** (len(config.get("block_out_channels", [64])) - 1)
