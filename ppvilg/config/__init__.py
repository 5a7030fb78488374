"""Recipes: YAML with ``_base_`` files and ``-o a.b=value`` overrides -> one typed, read-only result.

Every key of a recipe is declared in a dataclass with its type, default and limits; a key that is not declared, a value
of another type or out of its limits is an error that names the file or override, the key and what would be accepted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from ppvilg.files import digest_of

from .adapters import parse_adapter, parse_adapters
from .limits import Checked, ConfigError, bounded, choice, unknown_key
from .loading import load, read, read_with_bases
from .training import (
    STAGES,
    DistributedConfig,
    PrecisionConfig,
    Recipe,
    SampleConfig,
    StageConfig,
)
from .training_checks import validate, validate_stage

__all__ = [
    "STAGES",
    "Checked",
    "ConfigError",
    "DistributedConfig",
    "PrecisionConfig",
    "Recipe",
    "SampleConfig",
    "StageConfig",
    "choice",
    "fingerprint",
    "load",
    "load_config",
    "parse_adapter",
    "parse_adapters",
    "bounded",
    "read",
    "read_with_bases",
    "unknown_key",
    "validate",
    "validate_stage",
]


def load_config(path: str | Path, overrides: Sequence[str] | None = None) -> Recipe:
    """A training recipe, as `read`, and its settings checked against each other.

    Raises:
        ConfigError: unknown key, value of the wrong type, or settings that do not fit together.
        FileNotFoundError: the recipe or one of its bases is not there.
    """
    short = [re.sub(r"^train\.experts=(?=\[.*\]\s*$)", "train.experts.only=", each) for each in overrides or ()]
    recipe = read(Recipe, path, short)
    validate(recipe)
    return recipe


def fingerprint(node: object) -> str:
    """SHA-256 of a configuration node's resolved content, independent of the order of its keys."""
    return digest_of(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)
