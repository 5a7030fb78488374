"""Names that other programs have for samplers."""

from __future__ import annotations

from ..errors import ServiceError
from .info import SAMPLERS

# As A1111 shows them; qianfan and others have taken these names over.
NAMES = {
    "Euler a": "euler_ancestral",
    "Euler": "euler",
    "DDIM": "ddim",
    "DDPM": "ddpm",
    "PLMS": "pndm",
    "DPM++ 2M": "dpmsolver++",
    "UniPC": "unipc",
}
_ALSO = {"dpm++ 2m karras": "dpmsolver++", "k_euler": "euler", "k_euler_a": "euler_ancestral", "pndm": "pndm"}


def sampler_of(name: object) -> str:
    """Our name of a sampler. ServiceError invalid names those that are known."""
    text = str(name).strip().lower()
    known = {**{theirs.lower(): ours for theirs, ours in NAMES.items()}, **_ALSO, **{name: name for name in SAMPLERS}}
    if text not in known:
        message = f"sampler {str(name)[:40]!r} is not known; there are {', '.join(NAMES)}"
        raise ServiceError("invalid", message, "sampler")
    return known[text]


def shown_name(sampler: str) -> str:
    """The name that other programs have for a sampler of ours."""
    return next(theirs for theirs, ours in NAMES.items() if ours == sampler)
