"""Adapters of a pipeline: LoRA merged into its weights, new words in its tokenizer and text encoder."""

from .lora import LoadedAdapters, LoraAdapters, Scale
from .words import AddedWords, starting_rows

__all__ = ["AddedWords", "LoadedAdapters", "LoraAdapters", "Scale", "starting_rows"]
