"""Requests that no client sends: known names with values of every kind, JSON that breaks off, and bad pictures."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib

from PIL import Image

NUMBERS = (True, -1, 0, 2, 2**70, 1.5, 1e308, float("inf"), float("nan"))
VALUES = (None, *NUMBERS, "", "猫", "\ud800", "\0", "x" * 5000, [], {}, [[[]]], {"a": {}})
NAMES = tuple(
    "prompt negative_prompt style width height num_images seed num_inference_steps guidance_scale sampler eta image "
    "mask strength word_weights expect text resolution num inputs parameters n size stream partial_images model steps "
    "cfg_scale styles batch_size n_iter init_images text_prompts topk taskId task_id access_token key "
    "output_format response_format background quality user negative target_size scheduler denoising_strength "
    "sampler_name sampler_index inpainting_mask_invert script_name send_images sd_model_checkpoint image_num version "
    "grant_type client_id client_secret".split()
)
PATHS = (
    "/v1/jobs",
    "/v1/knowledge",
    "/v1/session",
    "/v1/images/generations",
    "/sdapi/v1/txt2img",
    "/sdapi/v1/img2img",
    "/sdapi/v1/options",
    "/sdapi/v1/png-info",
    "/models/tiny",
    "/rpc/2.0/ernievilg/v1/txt2img",
    "/rpc/2.0/ernievilg/v1/txt2imgv2",
    "/rpc/2.0/ernievilg/v1/getImg",
    "/rpc/2.0/ernievilg/v1/getImgv2",
    "/rpc/2.0/ai_custom/v1/wenxinworkshop/text2image/sd_xl",
    "/predict/ernie_vilg",
    "/moduleApi/portal/api/oauth/token",
    "/moduleApi/portal/api/rest/1.0/ernievilg/v1/txt2img",
    "/younger/portal/api/rest/1.0/ernievilg/v1/getImg",
)


def mutated(chance: random.Random) -> tuple[str, str]:
    """(path, body) of a request; every third would be a good one without two of its fields."""
    bad, good = (2, {"prompt": "猫", "text": "猫", "inputs": "猫"}) if chance.random() < 1 / 3 else (6, {})
    text = json.dumps({**good, **{name: chance.choice(VALUES) for name in chance.sample(NAMES, bad)}})
    if chance.random() < 0.2:
        text = text[: chance.randrange(len(text))] + chance.choice(["", "]", "\\u", '"', "1" * 5000, "1e999}"])
    return chance.choice(PATHS), text


def bomb(side: int = 30000) -> bytes:
    """A PNG of a few hundred kilobytes whose pixels would take gigabytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 10**7)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def noise(side: int, number: int = 0) -> bytes:
    packed = io.BytesIO()
    Image.effect_noise((side, side), 50 + number).convert("RGB").save(packed, format="PNG")
    return packed.getvalue()


BAD_PICTURES = {
    "bomb": bomb(),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>' * 3,
    "gif": base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"),
    "cut off": noise(64)[:2000],
    "nothing": b"",
}
