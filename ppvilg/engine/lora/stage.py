"""Stage "lora": what a finished model learns from a few pictures is kept in low-rank layers beside it."""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from paddlenlp.transformers import ErnieModel

from ppvilg.config import Recipe
from ppvilg.engine import builder
from ppvilg.engine.checks.rehearsal import check_fit
from ppvilg.engine.lora.card import write_card
from ppvilg.engine.lora.layers import TEXT_TARGETS, LowRankLayers
from ppvilg.engine.lora.words import add_words
from ppvilg.engine.stages.conditioning import Conditioning
from ppvilg.engine.stages.denoiser import DenoiserData, DenoiserStage
from ppvilg.files import ADAPTER_NAMES, write_whole
from ppvilg.knowledge import NewWord
from ppvilg.models.lora import Adapter, AdapterSettings
from ppvilg.models.lora_files import write_adapter


class LoraStage(DenoiserStage):
    """An adapter of the pipeline folder `base`, for `experts` alone or for all alike; only these are in memory.

    The denoiser, the text encoder and the autoencoder are frozen: they have no gradients and no optimizer's state.
    base_sha256: of the base, for the adapter's file. words: new ones, and what they begin like (see words.py).
    """

    def __init__(self, recipe: Recipe, data: DenoiserData, folder: Path, base: Path, experts: list[int],
                 base_sha256: str | None = None, words: Sequence[tuple[NewWord, str | None]] = ()):
        self.base_sha256, self.new_words, self.words = base_sha256, list(words), None
        super().__init__(recipe, data, "lora", folder, base, experts)

    @staticmethod
    def kind_of(recipe: Recipe, name: str) -> str:
        """Shared changes learn from all timesteps in every step, those of one expert in its turn."""
        return "base" if recipe.train.lora.shared else "experts"

    @property
    def trains_text_encoder(self) -> bool:
        """Whether gradients reach the text encoder."""
        return self.config.text_encoder or self.words is not None

    def _build_networks(self, base: Path) -> None:
        self.unet = builder.build_experts(base / "unet", self.boundaries, self.experts)
        self.text_encoder = ErnieModel.from_pretrained(str(base / "text_encoder"))
        check_fit(self.recipe, self.data.vae, self.text_encoder, self.unet.config.unet)
        if self.recipe.recompute:
            self.unet.enable_gradient_checkpointing()
        config = self.config
        builder.seed_weights(self.recipe.seed, 4)
        self.lora = LowRankLayers(config.rank, config.alpha)
        experts = [self.unet.experts[expert] for expert in self.experts]
        if config.shared:
            self.lora.attach("unet.shared", experts, config.targets)
        for expert, network in zip(self.experts, experts if not config.shared else ()):
            self.lora.attach(f"unet.experts.{expert}", [network], config.targets)
        if config.text_encoder:
            self.lora.attach("text_encoder", [self.text_encoder], TEXT_TARGETS)
        for parameter in self.text_encoder.parameters():
            parameter.stop_gradient = True
        self.words = add_words(self.conditioning.tokenizer, self.text_encoder, self.new_words)
        if self.words is not None:
            self.lora.add_parameter("words", self.words.rows)
            self.conditioning = Conditioning.of(self.recipe, self.conditioning.tokenizer)  # which knows them now
        self.networks = {"lora": self.lora}
        self._set_training(True)

    def _set_training(self, training: bool) -> None:
        """The frozen denoiser computes again what `recompute` does not keep only while it trains."""
        self.text_encoder.eval()
        self.unet.train() if training else self.unet.eval()

    def turn_of(self, parameter: str) -> int | None:
        """The number of the expert that a parameter belongs to."""
        owner = re.match(r"lora\.unet\.experts\.(\d+)\.", parameter)
        return int(owner[1]) if owner else None

    def undecayed(self) -> set[str]:
        """New words alone: the layers have no biases."""
        return {"lora.words"}

    def adapter(self) -> Adapter:
        """What has been learnt."""
        groups = self.lora.changes()
        experts = {k: groups[f"unet.experts.{k}"] for k in self.experts if f"unet.experts.{k}" in groups}
        settings = AdapterSettings(len(self.groups), list(self.boundaries), self.base_sha256,
                                   self.conditioning.text.mark)
        words = () if self.words is None else self.words.taught()
        return Adapter(groups.get("unet.shared", {}), experts, groups.get("text_encoder", {}), settings, words)

    def export(self, folder: Path) -> None:
        """The adapter's file and its card."""
        adapter = self.adapter()
        write_adapter(adapter, folder / ADAPTER_NAMES[0])
        pictures = [len(source) for source in self.data.training.sources]
        write_whole(folder / "README.md", write_card(self.recipe, adapter, pictures))
