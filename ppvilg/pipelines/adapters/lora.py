"""Adapters (LoRA) of a pipeline: loaded under names, weighed per expert, merged into weights, taken out bit for bit."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ppvilg.files import adapter_file, file_sha256
from ppvilg.knowledge import check_new_words
from ppvilg.models.lora import Adapter, Changes, Originals, TaughtWord, merge_into, remapped
from ppvilg.models.lora_files import read_adapter

from .words import AddedWords, word_of

Scale = float | Sequence[float]  # one number, or one per expert from low to high noise as in guidance_scale


@dataclass
class LoadedAdapters:
    """The adapters of a pipeline and how much of each is merged into its weights."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of each
    scales: dict[str, list[float]] = field(default_factory=dict)  # of those that are on, per expert
    text_scales: dict[str, float] = field(default_factory=dict)
    experts: dict[int, Originals] = field(default_factory=dict)
    text_encoder: Originals = field(default_factory=Originals)
    words: AddedWords | None = None  # of those that are on
    taught_now: list[TaughtWord] = field(default_factory=list)  # the same, as their adapters hold them
    fused_scale: float | None = None  # None: not fused

    def of_expert(self, index: int) -> list[tuple[float, Changes]]:
        """What is to be merged into expert `index`, and how much of it."""
        return [
            (scales[index] * self._factor, changes)
            for name, scales in self.scales.items()
            for changes in self.adapters[name].of_expert(index)
        ]

    def of_text_encoder(self) -> list[tuple[float, Changes]]:
        """What is to be merged into the text encoder, and how much of it."""
        return [(self.text_scales[name] * self._factor, self.adapters[name].text_encoder) for name in self.scales]

    def taught(self) -> list[TaughtWord]:
        """The words of the adapters that are on, and not at scales of zero alone."""
        on = [name for name in self.scales if self._factor and self.is_heard(self.scales[name], self.text_scales[name])]
        return [word for name in on for word in self.adapters[name].words]

    @staticmethod
    def is_heard(scales: Sequence[float], text_scale: float) -> bool:
        """Whether an adapter of these scales does anything: at zero its words are unknown, as without it."""
        return any(scales) or bool(text_scale)

    @property
    def _factor(self) -> float:
        return 1.0 if self.fused_scale is None else self.fused_scale


# unet -> what is merged into it and its text encoder: pipelines that share networks share their adapters
_loaded: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class LoraAdapters:
    """The LoRA part of ErnieViLG2Pipeline, with the names that diffusers gives it."""

    @property
    def _lora(self) -> LoadedAdapters:
        return _loaded.setdefault(self.unet, LoadedAdapters())

    def __deepcopy__(self, memo: dict):
        copied = super().__deepcopy__(memo)
        if self.unet in _loaded:
            _loaded[copied.unet] = copy.deepcopy(_loaded[self.unet], memo)
        return copied

    def load_lora_weights(
        self,
        pretrained_model_name_or_path: str | os.PathLike,
        adapter_name: str | None = None,
        scale: Scale = 1.0,
        *,
        text_encoder_scale: float | None = None,
        remap: bool = False,
        any_base: bool = False,
        ignore_text_encoder: bool = False,
    ) -> None:
        """Loads an adapter's safetensors file, or a folder that holds one, and merges it beside those that are on.

        adapter_name: None is the file's name. scale: a number, or one per expert from low to high noise. A plain file
        of kohya's scripts, diffusers, PEFT or ppdiffusers changes every expert; one of this package knows its experts.
        text_encoder_scale: None is `scale`, which must then be one number if the file changes the text encoder.
        remap: take an adapter of other boundaries, each expert what was made for most of its timesteps.
        any_base: take one that was trained on another model of the same shape.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it does not fit this model, is damaged, or its name is taken; a bundle (export with --lora).
        """
        self._check_lora("load_lora_weights")
        file = adapter_file(pretrained_model_name_or_path)
        name = file.stem if adapter_name is None else adapter_name
        if name in self._lora.adapters:
            raise ValueError(f"an adapter {name!r} is loaded already: give another adapter_name, or unload it")
        adapter = read_adapter(file, self._any_expert(), self.text_encoder, ignore_text_encoder)
        adapter = self._fitting(file, adapter, remap, any_base)
        self._check_words(file, adapter)
        scales = self._scales(name, adapter, scale, text_encoder_scale)
        self._lora.adapters[name], self._lora.files[name] = adapter, file_sha256(file)
        on = {other: (self._lora.scales[other], self._lora.text_scales[other]) for other in self._lora.scales}
        try:
            self._turn_on({**on, name: scales})
        except ValueError:
            del self._lora.adapters[name], self._lora.files[name]
            raise

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Scale | Sequence[Scale] = 1.0) -> None:
        """These adapters are on, no others; adapter_weights: one for all, or one per name, each as `scale` above."""
        self._check_lora("set_adapters")
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        unknown = [name for name in names if name not in self._lora.adapters]
        if unknown:
            there = ", ".join(self._lora.adapters) or "none"
            raise ValueError(f"there is no adapter {unknown[0]!r}; loaded: {there}")
        weights = [adapter_weights] if isinstance(adapter_names, str) else adapter_weights
        weights = [weights] * len(names) if isinstance(weights, (int, float)) else list(weights)
        if len(weights) != len(names):
            raise ValueError(f"adapter_weights has {len(weights)} entries for {len(names)} adapters")
        resolved = {
            name: self._scales(name, self._lora.adapters[name], weight, None) for name, weight in zip(names, weights)
        }
        self._turn_on(resolved)

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that are on."""
        return list(self._lora.scales)

    def describe_adapters(self) -> list[dict]:
        """Name, SHA-256 of the file and scales of each adapter that is on: what a picture's settings say of them."""
        loaded = self._lora
        return [
            {"name": name, "sha256": loaded.files[name], "scale": scale, "text_encoder_scale": loaded.text_scales[name]}
            for name, scale in loaded.scales.items()
        ]

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of the loaded adapters by the component that they change."""
        found = {}
        for component, changed in (("unet", ("shared", "experts")), ("text_encoder", ("text_encoder", "words"))):
            names = [name for name, each in self._lora.adapters.items() if any(getattr(each, key) for key in changed)]
            found |= {component: names} if names else {}
        return found

    def disable_lora(self) -> None:
        """All adapters off; they stay loaded."""
        self.set_adapters([])

    def enable_lora(self) -> None:
        """All loaded adapters on, with a scale of 1."""
        self.set_adapters(list(self._lora.adapters))

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Takes these adapters out, bit for bit, and forgets them."""
        self._check_lora("delete_adapters")
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for name in names:
            if name not in self._lora.adapters:
                raise ValueError(f"there is no adapter {name!r}; loaded: {', '.join(self._lora.adapters) or 'none'}")
        for name in names:
            self._lora.scales.pop(name, None)
            self._lora.text_scales.pop(name, None)
        self._merge()
        for name in names:
            del self._lora.adapters[name], self._lora.files[name]

    def unload_lora_weights(self) -> None:
        """Takes all adapters out, bit for bit, and forgets them; fused ones stay in the weights for good."""
        self._check_lora("unload_lora_weights")
        if self._lora.fused_scale is None:
            self.delete_adapters(list(self._lora.adapters))
        _loaded.pop(self.unet, None)

    def fuse_lora(self, lora_scale: float = 1.0) -> None:
        """What is on, times lora_scale, counts as the model's own weights: it is saved with them, until `unfuse_lora`.

        `unload_lora_weights` leaves fused weights as they are.
        """
        self._check_lora("fuse_lora")
        if self.is_streamed:
            raise ValueError("fuse_lora: not all experts are in memory; open the model without max_resident_experts")
        self._lora.fused_scale = float(lora_scale)
        self._merge()

    def unfuse_lora(self) -> None:
        """Ends `fuse_lora`: what is on is an adapter again, at its own scale."""
        self._check_lora("unfuse_lora")
        self._lora.fused_scale = None
        self._merge()

    # ---- inside ----

    def _check_lora(self, what: str) -> None:
        if self.is_exported:
            raise ValueError(f"{what}: the graphs of a bundle are as they were exported; export with --lora")
        if self._lora.fused_scale is not None and what not in ("fuse_lora", "unfuse_lora", "unload_lora_weights"):
            raise ValueError(f"{what}: adapters are fused; unfuse_lora or unload_lora_weights first")
        if self.is_drawing:
            raise ValueError(f"{what}: a picture is being drawn, wait for its end")

    def _any_expert(self):
        return self.unet.experts.source.template if self.is_streamed else self.unet.experts[self.unet.loaded_experts[0]]

    def _fitting(self, file: Path, adapter: Adapter, remap: bool, any_base: bool) -> Adapter:
        """The adapter as it is for this mixture."""
        settings = adapter.settings
        if settings is None:
            return adapter
        base = self.__dict__.get("_base_sha256")
        if settings.base_sha256 and base and settings.base_sha256 != base() and not any_base:
            raise ValueError(
                f"{file} was trained on another model than this one: load that model, or give any_base=True to try"
            )
        if settings.boundaries == list(self.unet.boundaries):
            return adapter
        if not remap:
            raise ValueError(
                f"{file} was made for experts with the boundaries {settings.boundaries}, this model's are "
                f"{list(self.unet.boundaries)}: load it with remap=True to give each expert what overlaps most"
            )
        return remapped(adapter, self.unet.boundaries)

    def _scales(
        self, name: str, adapter: Adapter, scale: Scale, text_encoder_scale: float | None
    ) -> tuple[list[float], float]:
        """One scale per expert, and that of the text encoder."""
        count = self.unet.num_experts
        scales = [scale] * count if isinstance(scale, (int, float)) else list(scale)
        if len(scales) != count or not all(isinstance(each, (int, float)) and abs(each) < 1e3 for each in scales):
            raise ValueError(f"scale of adapter {name!r} must be a number or {count} of them, one per expert: {scale}")
        if text_encoder_scale is None and len(set(scales)) > 1:
            if adapter.text_encoder:
                raise ValueError(
                    f"adapter {name!r} changes the text encoder too, which all experts share: with a scale per expert "
                    "also give text_encoder_scale"
                )
            text_encoder_scale = 0.0
        return [float(each) for each in scales], scales[0] if text_encoder_scale is None else text_encoder_scale

    def _check_words(self, file: Path, adapter: Adapter) -> None:
        """ValueError, naming the file, if its words cannot be, or the model without adapters knows one."""
        try:
            words = [word_of(taught) for taught in adapter.words]
            check_new_words(self.tokenizer, words, () if self._lora.words is None else self._lora.words.words)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def _turn_on(self, scales: Mapping[str, tuple[list[float], float]]) -> None:
        """These adapters and no others, with scales of experts and text encoder. ValueError: two teach one word."""
        teachers: dict[str, str] = {}
        for name in (name for name, each in scales.items() if self._lora.is_heard(*each)):
            for word in map(word_of, self._lora.adapters[name].words):
                other = teachers.setdefault(word.key, name)
                if other != name:
                    raise ValueError(f"adapters {other!r} and {name!r} both teach {word.word!r}: turn one of them off")
        self._lora.scales = {name: each for name, (each, _) in scales.items()}
        self._lora.text_scales = {name: text for name, (_, text) in scales.items()}
        self._merge()

    def _merge(self) -> None:
        """Brings weights and words in line with what is on."""
        loaded = self._lora
        taught = loaded.taught()
        if [id(word) for word in taught] != [id(word) for word in loaded.taught_now]:
            if loaded.words is not None:
                loaded.words.take_out()
                loaded.words = None
            if taught:
                rows = np.stack([word.row for word in taught])
                loaded.words = AddedWords(self.tokenizer, self.text_encoder, list(map(word_of, taught)), rows)
            loaded.taught_now = taught
        if self.is_streamed:
            self.unet.experts.source.change = lambda index, expert: merge_into(expert, loaded.of_expert(index))
            self.unet.experts.reload()
        else:
            for index in self.unet.loaded_experts:
                originals = loaded.experts.setdefault(index, Originals())
                originals.merge(self.unet.experts[index], loaded.of_expert(index))
        loaded.text_encoder.merge(self.text_encoder, loaded.of_text_encoder())
