"""Captions by BLIP (Li et al., arXiv 2201.12086) or BLIP-2 (arXiv 2301.12597), as paddlenlp has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ppvilg.files import check_model_files, digest_of, file_sha256, read_json

from ..detectors import Detection
from ..weights import whole

_CLASSES = {"blip": "Blip", "blip-2": "Blip2"}
_MAX_TOKENS = 40
_WEIGHTS = ("*.pdparams", "*.safetensors")


class BlipCaptioner:
    """A folder of `BlipForConditionalGeneration` or `Blip2ForConditionalGeneration` with its processor.

    Words are chosen greedily, so that a picture always gets the same caption. prompt: how every caption begins.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or the folder holds another model.
    """

    def __init__(self, folder: Path, prompt: str | None = None, device: str = "cpu"):
        kind = read_json(folder / "config.json").get("model_type")
        if kind not in _CLASSES:
            raise ValueError(f"{folder / 'config.json'}: model_type is {kind!r}, a captioner's is one of "
                             f"{', '.join(_CLASSES)}")  # fmt: skip
        import ppvilg._needs_paddle  # noqa: F401

        check_model_files(folder)
        files = [whole(path) for pattern in _WEIGHTS for path in sorted(folder.glob(pattern))]
        import paddle
        from paddlenlp import transformers
        from paddlenlp.utils.log import logger

        logger.set_level("WARNING")  # it tells the story of every file it opens
        paddle.set_device(device)
        self.prompt = prompt
        self.processor = getattr(transformers, f"{_CLASSES[kind]}Processor").from_pretrained(str(folder))
        model = getattr(transformers, f"{_CLASSES[kind]}ForConditionalGeneration")
        self.model = model.from_pretrained(str(folder))
        self.model.eval()
        self.identity = {
            "kind": kind, "model": digest_of([file_sha256(path) for path in (folder / "config.json", *files)]),
            "preprocessing": {name: value for name, value in self.processor.image_processor.to_dict().items()
                              if isinstance(value, str | int | float | list | dict | None)},
            "prompt": prompt, "max_tokens": _MAX_TOKENS,
        }  # fmt: skip

    def caption(self, pictures: Sequence[Image.Image], detections: Sequence[Sequence[Detection]]) -> list[str]:
        """A caption for each picture; what was detected plays no part."""
        import paddle

        text = {} if self.prompt is None else {"text": [self.prompt] * len(pictures)}
        inputs = self.processor(images=list(pictures), return_tensors="pd", **text)
        inputs = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask") if name in inputs}
        with paddle.no_grad():
            tokens, _ = self.model.generate(**inputs, max_new_tokens=_MAX_TOKENS, decode_strategy="greedy_search")
        said = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [f"{self.prompt} {each}".strip() if self.prompt else each.strip() for each in said]

    def close(self) -> None:
        """The model goes with the object."""
