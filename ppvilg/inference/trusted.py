"""What a folder may name and hold: fixed lists of classes and files, so that reading a model runs nobody's code.

Hashes in a manifest find damage, not malice: who changes a file can change its hash. These lists are what keeps a
folder from choosing what is imported and read.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from paddlenlp.transformers import ErnieTokenizer

from ppvilg.files import read_json, refuse_pickles

SCHEDULER_CLASSES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
)
COMPONENT_CLASSES = {
    "vae": ("AutoencoderKL", "PatchAutoencoderKL"),
    "text_encoder": ("ErnieModel",),
    "tokenizer": ("ErnieTokenizer",),
    "unet": ("MoDEUNet2DConditionModel",),
    "scheduler": SCHEDULER_CLASSES,
}
LIBRARIES = ("ppdiffusers", "paddlenlp", "ppvilg")
SCHEDULER_FILES = ("scheduler_config.json",)
TOKENIZER_FILES = ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
INDEX = "model_index.json"


def load_scheduler(folder: str | os.PathLike):
    """The scheduler of a folder, built from its config alone.

    Raises:
        FileNotFoundError: no scheduler_config.json.
        ValueError: it is damaged, or names a class that is not in SCHEDULER_CLASSES.
    """
    file = Path(folder) / SCHEDULER_FILES[0]
    config = read_json(file)
    name = config.get("_class_name")
    if name not in SCHEDULER_CLASSES:
        raise ValueError(f"{file} names the scheduler class {name!r}, known are {', '.join(SCHEDULER_CLASSES)}")
    return getattr(importlib.import_module("ppdiffusers"), name).from_config(config)


def load_tokenizer(folder: str | os.PathLike) -> ErnieTokenizer:
    """The tokenizer of a folder.

    Raises:
        FileNotFoundError: no tokenizer_config.json.
        ValueError: it is damaged, names another class than ErnieTokenizer, or files elsewhere.
    """
    file = Path(folder) / "tokenizer_config.json"
    config = read_json(file)
    name = config.get("tokenizer_class", ErnieTokenizer.__name__)
    if name != ErnieTokenizer.__name__:
        raise ValueError(f"{file} names the tokenizer class {name!r}, known is {ErnieTokenizer.__name__}")
    elsewhere = [key for key, value in config.items() if key.endswith("_file") and value is not None]
    if elsewhere:
        raise ValueError(f"{file} names a file of its own as {elsewhere[0]!r}: remove that entry")
    return ErnieTokenizer.from_pretrained(os.fspath(folder))


def check_pipeline_folder(folder: str | os.PathLike) -> None:
    """ValueError if a pipeline folder names a class that is not known here, or holds code or weights as a pickle."""
    folder = Path(folder)
    code = next(folder.rglob("*.py"), None)  # ppdiffusers takes a component's class from such a file
    if code is not None:
        raise ValueError(f"{code} is code, which no pipeline folder needs: remove it")
    for name, entry in read_json(folder / INDEX).items():
        if not isinstance(entry, list) or name.startswith("_") or name not in COMPONENT_CLASSES:
            continue
        library, cls = [*entry, None, None][:2]
        known = COMPONENT_CLASSES[name]
        if str(library).partition(".")[0] not in LIBRARIES or cls not in known:
            raise ValueError(f"{folder / INDEX} names {library}.{cls} as {name}, known are {', '.join(known)}")
    refuse_pickles(folder)
