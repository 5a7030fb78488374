"""Recipes of evaluations: a flat YAML file and `key=value` overrides -> one typed dataclass; a typo is an error."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

Recipe = TypeVar("Recipe")


def load_recipe(schema: type[Recipe], path: str | os.PathLike | None, overrides: Sequence[str] = ()) -> Recipe:
    """An instance of the dataclass `schema`, from its defaults, a YAML file and overrides, in this order.

    ValueError names the file or override and the key: not declared in `schema`, of the wrong type, without a value, or
    refused by the dataclass itself. FileNotFoundError: no such file.
    """
    config = OmegaConf.structured(schema)
    if path is not None:
        config = _merge(config, _read(path), str(path))
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator or not key:
            raise ValueError(f"override {override!r} is not of the form key=value")
        config = _merge(config, OmegaConf.from_dotlist([override]), f"-o {override}")
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{path}: no value for {', '.join(missing)}; set it in the file or with -o {missing[0]}=...")
    return schema(**{field.name: OmegaConf.to_container(config)[field.name] for field in fields(schema)})


def _read(path: str | os.PathLike) -> Any:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no recipe at {path}")
    try:
        node = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from error
    if not OmegaConf.is_dict(node):
        raise ValueError(f"{path}: a recipe is a mapping of keys")
    return node


def _merge(config: Any, node: Any, origin: str) -> Any:
    _check_keys(config, node, origin, "")
    try:
        return OmegaConf.merge(config, node)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        raise ValueError(f"{origin}: {key}: {str(error).splitlines()[0]}") from error


def _check_keys(declared: Any, given: Any, origin: str, prefix: str) -> None:
    known = list(declared.keys())
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(known)}"
            raise ValueError(f"{origin}: unknown key {prefix + str(key)!r}; {hint}")
        children = [config._get_node(key) for config in (declared, given)]
        if all(OmegaConf.is_dict(child) for child in children):
            _check_keys(*children, origin, f"{prefix}{key}.")
