"""Adapter files: our own form, and those of kohya's scripts, diffusers (old and PEFT) and ppdiffusers for all experts.

Our form: safetensors in PyTorch's layout with unet.shared.<layer>, unet.experts.<k>.<layer> and text_encoder.<layer>,
each with .lora_A.weight (r, in) and .lora_B.weight (out, r), text_encoder.words.weight (k, D) with the rows of new
words, and an entry of metadata with AdapterSettings, alphas and the words.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from paddle import nn
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save_file

from ppvilg.files import ADAPTER_ENTRY, adapter_file, damage_of, whole_file

from .lora import Adapter, AdapterSettings, LowRank, TaughtWord, adaptable_layers, torch_shape

METADATA = ADAPTER_ENTRY
WORD_ROWS = "text_encoder.words.weight"
_WORD = ("word", "mark", "key_token_weight")
_PARTS = {"A": "down", "B": "up", "down": "down", "up": "up", "alpha": "alpha"}
_FORMS = (
    re.compile(r"lora_unet_(?P<flat>.+)\.(?:lora_)?(?P<part>down|up|alpha)(?:\.weight)?"),  # kohya
    re.compile(r"(?:unet\.)?(?P<path>.+)\.processor\.(?P<name>to_(?:q|k|v|out))_lora\.(?P<part>down|up)\.weight"),
    re.compile(r"(?:base_model\.model\.)?(?:unet\.)?(?P<path>.+)\.lora\.(?P<part>down|up)\.weight"),
    re.compile(r"(?:base_model\.model\.)?(?:unet\.)?(?P<path>.+)\.lora_(?P<part>A|B)(?:\.default)?\.weight"),
    re.compile(r"(?:base_model\.model\.)?(?:unet\.)?(?P<path>.+)\.(?P<part>alpha)"),
)
_OWN = re.compile(r"(?:unet\.shared|unet\.experts\.\d+|text_encoder)\.(?P<path>.+)\.lora_(?P<part>A|B)\.weight")
_TEXT_ENCODER = re.compile(r"(?:base_model\.model\.)?(?:lora_te\d?_|text_encoder(?:_2)?\.|text_model\.)")
_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "oft_": "OFT",
    "lora_mid": "LoCon with a middle convolution",
    "diff": "whole differences of weights",
}


def read_adapter(
    path: str | os.PathLike, expert: nn.Layer, text_encoder: nn.Layer, ignore_text_encoder: bool = False
) -> Adapter:
    """The adapter in a safetensors file, or in a folder with one file under a usual name.

    expert, text_encoder: networks that it has to fit. ignore_text_encoder: leave out what a plain file holds for CLIP.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is damaged, a pickle, of another kind, has tensors that
            no layer takes, half a pair, shapes that do not fit, a rank of 0 or numbers that are not finite.
    """
    file = adapter_file(path)
    tensors, metadata = _read(file)
    if METADATA in metadata:
        return _own(file, tensors, metadata, expert, text_encoder)
    return Adapter(shared=_plain(file, tensors, metadata, expert, ignore_text_encoder))


def write_adapter(adapter: Adapter, path: str | os.PathLike) -> None:
    """Writes our form; the file appears whole or not at all. FileExistsError: the name is taken."""
    tensors, alphas = {}, {}
    groups = {"unet.shared": adapter.shared, "text_encoder": adapter.text_encoder}
    groups |= {f"unet.experts.{index}": changes for index, changes in adapter.experts.items()}
    for group, changes in groups.items():
        for layer, change in changes.items():
            tensors[f"{group}.{layer}.lora_A.weight"] = np.ascontiguousarray(change.down)
            tensors[f"{group}.{layer}.lora_B.weight"] = np.ascontiguousarray(change.up)
            if change.alpha is not None:
                alphas[f"{group}.{layer}"] = change.alpha
    told = {"settings": asdict(adapter.settings), "alphas": alphas}
    if adapter.words:
        tensors[WORD_ROWS] = np.stack([word.row for word in adapter.words]).astype(np.float32)
        told["words"] = [{key: getattr(word, key) for key in _WORD} for word in adapter.words]
    told = json.dumps(told, sort_keys=True, ensure_ascii=False)
    with whole_file(path, replace=False) as partial:
        # one entry alone: several would stand in an order that is another in every process
        save_file(tensors, str(partial), metadata={METADATA: told})


def _read(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    tensors = {}
    try:
        with safe_open(str(file), framework="np") as content:
            metadata = content.metadata() or {}
            for name in content.keys():
                if content.get_slice(name).get_dtype() != "BF16":
                    tensors[name] = content.get_tensor(name).astype(np.float32)
            if len(tensors) < len(content.keys()):
                tensors |= _bfloat16_tensors(file)
    except SafetensorError:
        raise ValueError(damage_of(file)) from None
    if not tensors:
        raise ValueError(f"{file} holds no tensors")
    broken = next((name for name, value in tensors.items() if not np.isfinite(value).all()), None)
    if broken:
        raise ValueError(f"{file}: {broken} has numbers that are not finite, the training that made it went wrong")
    return tensors, metadata


def _bfloat16_tensors(file: Path) -> dict[str, np.ndarray]:
    """Those tensors of a file, which NumPy has no dtype for, as float32: their bits are its upper half."""
    return {
        name: (np.frombuffer(entry["data"], np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
        for name, entry in deserialize(file.read_bytes())
        if entry["dtype"] == "BF16"
    }


def _own(file: Path, tensors: dict, metadata: dict, expert: nn.Layer, text_encoder: nn.Layer) -> Adapter:
    try:
        told = json.loads(metadata[METADATA])
        settings, alphas = AdapterSettings(**told["settings"]), dict(told["alphas"])
        experts = {index: {} for index in range(settings.num_experts)}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: its entry {METADATA!r} cannot be read ({error}): copy the file again") from None
    words = _words(file, told.get("words", []), tensors.pop(WORD_ROWS, None), text_encoder)
    pairs: dict[tuple[str, str], dict] = {}
    for name, value in tensors.items():
        match = _OWN.fullmatch(name)
        if not match:
            raise ValueError(f"{file} has a tensor {name!r}, which no adapter of this form has")
        group = name.removesuffix(f".{match['path']}.lora_{match['part']}.weight")
        pairs.setdefault((group, match["path"]), {})[_PARTS[match["part"]]] = value
        pairs[group, match["path"]]["alpha"] = alphas.get(f"{group}.{match['path']}")
    missing = [name for name in alphas if not any(f"{group}.{path}" == name for group, path in pairs)]
    if missing:
        raise ValueError(f"{file} lacks the tensors of {missing[0]}, of which it tells: copy the file again")
    layers = {"text_encoder": adaptable_layers(text_encoder), "unet": adaptable_layers(expert)}
    groups = {"unet.shared": {}, "text_encoder": {}} | {f"unet.experts.{k}": each for k, each in experts.items()}
    for (group, path), pair in pairs.items():
        if group not in groups:
            raise ValueError(f"{file} has {group}, but says that it was made for {settings.num_experts} experts")
        groups[group][path] = _checked(file, f"{group}.{path}", pair, layers[group.partition(".")[0]].get(path))
    experts = {index: changes for index, changes in experts.items() if changes}
    return Adapter(groups["unet.shared"], experts, groups["text_encoder"], settings, words)


def _words(file: Path, told: list, rows: np.ndarray | None, text_encoder: nn.Layer) -> list[TaughtWord]:
    """New words with their rows."""
    shape = (len(told), text_encoder.config.hidden_size)
    if (rows is None) != (not told) or (told and rows.shape != shape):
        found = "none" if rows is None else tuple(rows.shape)
        raise ValueError(
            f"{file} tells of {len(told)} new words, for which this model needs rows {shape}: it has {found}"
        )
    try:
        return [TaughtWord(*(word[key] for key in _WORD), row) for word, row in zip(told, rows if told else ())]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: its new words cannot be read ({error!r}): copy the file again") from None


def _plain(file: Path, tensors: dict, metadata: dict, expert: nn.Layer, ignore_text_encoder: bool) -> dict:
    """What a file of another program changes in every expert."""
    layers = adaptable_layers(expert)
    flat = {path.replace(".", "_"): path for path in layers}
    pairs: dict[str, dict] = {}
    for name, value in tensors.items():
        if _TEXT_ENCODER.match(name):
            if not ignore_text_encoder:
                raise ValueError(
                    f"{file} also changes a CLIP text encoder ({name}), this model's is ERNIE: leave that part out "
                    "with ignore_text_encoder=True"
                )
            continue
        path, part = _place(file, name, flat)
        if metadata.get("format") == "pd" and part != "alpha" and value.ndim == 2:
            value = value.T
        pairs.setdefault(path, {})[part] = value
    alpha = _default_alpha(file, metadata)
    changes = {}
    for path, pair in pairs.items():
        given = pair.get("alpha")
        pair["alpha"] = alpha if given is None else float(np.ravel(given)[0])
        changes[path] = _checked(file, path, pair, layers.get(path))
    if not changes:
        raise ValueError(f"{file} changes no denoiser")
    return changes


def _place(file: Path, name: str, flat: Mapping[str, str]) -> tuple[str, str]:
    """(path of the layer, "down", "up" or "alpha") of a tensor's name."""
    for form in _FORMS:
        match = form.fullmatch(name)
        if not match:
            continue
        parts = match.groupdict()
        if parts.get("flat"):
            return flat.get(parts["flat"], parts["flat"]), _PARTS[parts["part"]]
        path = parts["path"]
        if parts.get("name"):
            path += f".{parts['name']}" + (".0" if parts["name"] == "to_out" else "")
        return path, _PARTS[parts["part"]]
    kind = next((kind for mark, kind in _OTHER_KINDS.items() if f".{mark}" in name), None)
    if kind:
        raise ValueError(f"{file} is {kind} ({name}), adapters are LoRA: merge it into a model where it was made")
    raise ValueError(f"{file} has a tensor {name!r}, which no known form of LoRA has")


def _default_alpha(file: Path, metadata: dict) -> float | None:
    """alpha of a file whose tensors do not tell it: in PEFT's settings beside it or in its metadata."""
    beside = file.with_name("adapter_config.json")
    try:
        if "lora_adapter_metadata" in metadata:
            told = json.loads(metadata["lora_adapter_metadata"])
            alpha = told.get("unet.lora_alpha", told.get("lora_alpha"))
        else:
            alpha = json.loads(beside.read_text(encoding="utf-8"))["lora_alpha"] if beside.is_file() else None
        return None if alpha is None else float(alpha)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        where = beside if beside.is_file() else file
        raise ValueError(f"{where}: its lora_alpha cannot be read ({error})") from None


def _checked(file: Path, name: str, pair: Mapping, layer: nn.Layer | None) -> LowRank:
    """A pair of matrices that fits its layer."""
    if layer is None:
        raise ValueError(f"{file} changes {name}, a layer that this model has not: it was made for another network")
    lacking = [part for part in ("down", "up") if part not in pair]
    if lacking:
        raise ValueError(f"{file}: {name} lacks its {lacking[0]} matrix: copy the file again")
    down, up, shape = pair["down"], pair["up"], torch_shape(layer)
    rank = down.shape[0] if down.ndim else 0
    if rank == 0:
        raise ValueError(f"{file}: {name} has rank 0, it changes nothing")
    down = down.reshape(down.shape + (1, 1)) if down.ndim == 2 and len(shape) == 4 else down
    fits = down.shape[1:] == shape[1:] and up.ndim in (2, 4) and up.shape[:2] == (shape[0], rank)
    if not fits or up.size != shape[0] * rank:
        raise ValueError(
            f"{file}: {name} has matrices of {tuple(up.shape)} and {tuple(down.shape)}, its layer is {shape}: the "
            "adapter was made for another network"
        )
    return LowRank(down, up, pair.get("alpha"))
