"""ppvilg: ERNIE-ViLG 2.0 (arXiv 2210.15257) for PaddlePaddle, text to image with knowledge and denoising experts.

Importing the package loads nothing heavy; each public name is imported on first use, and what it needs is checked then.
"""

from __future__ import annotations

import importlib

from ppvilg._registration import register as _register
from ppvilg._runtime import find_home as _find_home
from ppvilg._runtime import make_matrix_products_exact as _make_matrix_products_exact
from ppvilg._runtime import use_avx2_on_amd as _use_avx2_on_amd
from ppvilg._versions import VERSION as __version__

_PUBLIC = {
    "ErnieViLG2Pipeline": "ppvilg.pipelines",
    "MoDEUNet2DConditionModel": "ppvilg.models",
    "DenoisingLoss": "ppvilg.diffusion",
    "TimestepSampler": "ppvilg.diffusion",
    "TextKnowledge": "ppvilg.knowledge",
    "VisualKnowledge": "ppvilg.knowledge",
    "STYLES": "ppvilg.knowledge",
    "open_source": "ppvilg.data",
}

__all__ = [*_PUBLIC, "__version__"]  # noqa: PLE0604


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ppvilg' has no attribute {name!r}; public names: {', '.join(_PUBLIC)}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_find_home()
_use_avx2_on_amd()
_make_matrix_products_exact()
_register()
