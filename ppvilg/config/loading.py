"""The one loader of recipes, whatever their schema."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import MISSING, DictConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.nodes import StringNode

from ppvilg.files import find_shipped, read_text, shipped_recipes

from .limits import ConfigError, check_values, unknown_key

with warnings.catch_warnings():  # its newer name meant something else in 2.3
    warnings.simplefilter("ignore")
    # ${ppvilg:zoo/emoji64/vae} in a recipe: what comes with this package, wherever it is installed.
    OmegaConf.register_new_resolver("ppvilg", lambda path: str(Path(__file__).parents[1] / path), replace=True)

Schema = TypeVar("Schema")
Origin = tuple[str, Any]  # what a file or override is called in messages, and what it says


def load(schema: type[Schema], path: str | Path | None, overrides: Sequence[str] = ()) -> Schema:
    """An instance of the dataclass `schema`: its defaults, then a recipe's ``_base_`` files, the recipe, the overrides.

    Raises:
        ConfigError: unknown key, no value, one of the wrong type, out of its limits, or refused by the dataclass.
        FileNotFoundError: the recipe or one of its bases is not there.
    """
    config = read(schema, path, overrides)
    try:
        return OmegaConf.to_object(config)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def read(schema: type, path: str | Path | None, overrides: Sequence[str] = ()) -> DictConfig:
    """What `load` reads, as OmegaConf's read-only configuration; errors as `load` but for those of the dataclass."""
    origins = [] if path is None else read_with_bases(Path(path))
    config = OmegaConf.structured(schema)
    for origin in origins:
        config = _merge(config, *origin)
    for override in overrides:
        origin = _parse_override(config, override)
        config = _merge(config, *origin)
        origins.append(origin)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"{path}: no value for {', '.join(missing)}; set it in the recipe or by -o {missing[0]}=...")
    try:
        _let_write(config)  # frozen dataclasses do not
        OmegaConf.resolve(config)
        check_values(config)
    except ConfigError as error:
        raise ConfigError(f"{_giver(error.key, origins) or path}: {error}", error.key) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from error
    OmegaConf.set_readonly(config, True)
    return config


def read_with_bases(path: Path, above: tuple[Path, ...] = ()) -> list[Origin]:
    """The files of a recipe in the order in which they are merged: bases first, later ones over earlier ones."""
    path = find_shipped(path, above[-1].parent if above else ".").resolve()
    if path in above:
        raise ConfigError(f"{path}: _base_ files refer to each other in a circle")
    if not path.is_file():
        by = f" (named as _base_ in {above[-1]})" if above else ""
        raise FileNotFoundError(f"no recipe at {path}{by}; with ppvilg come {', '.join(shipped_recipes())}")
    node = _parse_file(path)
    bases = node.pop("_base_", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not (OmegaConf.is_list(bases) or isinstance(bases, list)) or not all(isinstance(each, str) for each in bases):
        raise ConfigError(f"{path}: _base_ is the name of a recipe or a list of names, found {bases}")
    files = []
    for base in bases:
        files += read_with_bases(Path(base), above + (path,))
    return files + [(str(path), node)]


def _let_write(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for key in node if OmegaConf.is_dict(node) else ():
        child = node._get_node(key)
        if OmegaConf.is_config(child):
            _let_write(child)


def _parse_file(path: Path) -> DictConfig:
    try:
        node = OmegaConf.load(io.StringIO(read_text(path)))
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, OSError, ValueError, TypeError) as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise ConfigError(f"{where}not readable as YAML: {' '.join(str(error).split())}") from error
    if not OmegaConf.is_dict(node):
        raise ConfigError(f"{path}: a recipe is a mapping of keys, found {type(node).__name__}")
    return node


def _parse_override(config: DictConfig, override: str) -> Origin:
    """``a.b=value``; a value that is declared as text is taken as it was typed, any other as YAML."""
    key, separator, text = override.partition("=")
    if not separator or not re.fullmatch(r"[^.\s\[\]]+(\.[^.\s\[\]]+)*", key):
        raise ConfigError(f"override {override!r} is not of the form a.b=value")
    origin = f"-o {override}"
    if text in ("", MISSING):
        raise ConfigError(f"{origin}: there is no value behind the =; write null for none")
    if _is_text(config, key) and text not in ("null", "~") and text[0] not in "'\"":
        node = OmegaConf.create()
        OmegaConf.update(node, key, text)
        return origin, node
    try:
        return origin, OmegaConf.from_dotlist([override])
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
        raise ConfigError(f"{origin}: not readable as YAML: {_first_line(error)}") from error


def _is_text(config: DictConfig, key: str) -> bool:
    """Whether a key is declared as a text."""
    node = config
    for part in key.split("."):
        if not OmegaConf.is_dict(node) or OmegaConf.is_missing(node, part) and part != key.split(".")[-1]:
            return False
        node = node._get_node(part) if part in node.keys() else None
    return isinstance(node, StringNode)


def _merge(config: DictConfig, origin: str, node: DictConfig) -> DictConfig:
    _check_keys(config, node, "", origin)
    try:
        return OmegaConf.merge(config, node)
    except (OmegaConfBaseException, TypeError, ValueError) as error:  # TypeError: a mapping where a list is declared
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{origin}: {f'{key}: ' if key else ''}{_first_line(error)}") from error


def _check_keys(declared: DictConfig, given: Any, prefix: str, origin: str) -> None:
    """Every given key must be declared, and texts be texts; free-form dictionaries (a component's) end the search."""
    if not OmegaConf.is_dict(given) or not OmegaConf.is_dict(declared):
        return
    free = OmegaConf.get_type(declared) is dict
    known = declared.keys()  # `in declared` would deny keys that have no value yet
    for key in given:
        name = f"{prefix}{key}"
        if key not in known:
            if free:
                continue
            raise ConfigError(f"{origin}: {unknown_key(prefix, key, known)}")
        node = declared._get_node(key)
        value = None if OmegaConf.is_missing(given, key) else given._get_node(key)
        _check_text(node, value, name, origin)
        if node is not None and value is not None and not OmegaConf.is_missing(declared, key):
            _check_keys(node, value, f"{name}.", origin)


def _check_text(declared: Any, given: Any, name: str, origin: str) -> None:
    """What is declared as text is text: YAML reads on, 0012 and 1_0 as something else, and nobody would see it."""
    if isinstance(declared, StringNode):
        values = [given]
    elif OmegaConf.is_list(declared) and OmegaConf.is_list(given) and declared._metadata.element_type is str:
        values = [] if given._is_none() else list(given._iter_ex(resolve=False))
    else:
        return
    for value in values:
        value = value._value() if OmegaConf.is_config(value) or isinstance(value, Node) else value
        if isinstance(value, (bool, int, float)):
            raise ConfigError(f"{origin}: {name}: {value} is no text; put it in quotes")


def _giver(key: str | None, origins: Sequence[Origin]) -> str | None:
    """Which file or override gave a key its value."""
    while key:
        for origin, node in reversed(origins):
            if OmegaConf.select(node, key, throw_on_missing=False) is not None:
                return origin
        key = re.sub(r"(\.[^.\[]*|\[\d+\])$", "", key) if re.search(r"[.\[]", key) else None
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
