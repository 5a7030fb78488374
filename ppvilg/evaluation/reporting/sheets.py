"""Pictures for people: contact sheets with verdicts, and numbered sheets for a viewer who must not know the prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ppvilg.emoji.judging import Verdict
from ppvilg.files import write_whole

from ..drawing.folder import write_png

RIGHT, WRONG = (30, 160, 60), (210, 40, 40)
BLIND_SCALE = 6
BLIND_PER_PAGE = 10


def contact_sheet(
    pictures: Sequence[Image.Image], verdicts: Sequence[Verdict], numbers: Sequence[int], columns: int = 16
) -> Image.Image:
    """Pictures at twice their size in green frames where all is right and red ones elsewhere, prompt numbers below."""
    width, height = (2 * max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    cell = (width + 12, height + 24)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (picture, verdict, number) in enumerate(zip(pictures, verdicts, numbers)):
        left, top = i % columns * cell[0] + 6, i // columns * cell[1] + 6
        large = picture.resize((2 * picture.width, 2 * picture.height), Image.BICUBIC)
        frame = (left - 4, top - 4, left + large.width + 3, top + large.height + 3)
        draw.rectangle(frame, fill=RIGHT if verdict.right else WRONG)
        sheet.paste(large, (left, top))
        draw.text((left, top + large.height + 4), f"{number:05d}", fill="black", font=font)
    return sheet


def write_blind_sheets(
    folder: Path, key: Path, pictures: Sequence[Image.Image], answers: Sequence[dict], seed: int
) -> int:
    """Write pictures, enlarged and in random order, as numbered pages into `folder`, and what they are into `key`.

    answers[i] says what picture i should show. Returns the number of pages.
    """
    order = np.random.default_rng(seed).permutation(len(pictures))
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("page_*.png"):
        old.unlink()
    starts = range(0, len(order), BLIND_PER_PAGE)
    for page, start in enumerate(starts):
        chosen = [pictures[i] for i in order[start : start + BLIND_PER_PAGE]]
        write_png(_blind_page(chosen, start + 1), folder / f"page_{page + 1:02d}.png")
    entries = {str(number + 1): answers[i] for number, i in enumerate(order)}
    write_whole(key, json.dumps(entries, ensure_ascii=False, indent=1) + "\n")
    return len(starts)


def _blind_page(pictures: Sequence[Image.Image], first_number: int, columns: int = 5) -> Image.Image:
    large = [picture.resize([BLIND_SCALE * side for side in picture.size], Image.BICUBIC) for picture in pictures]
    width, height = (max(picture.size[axis] for picture in large) for axis in (0, 1))
    cell = (width + 20, height + 50)
    rows = -(-len(large) // columns)
    sheet = Image.new("RGB", (min(columns, len(large)) * cell[0], rows * cell[1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(28)
    for i, picture in enumerate(large):
        left, top = i % columns * cell[0] + 10, i // columns * cell[1]
        draw.text((left, top + 4), str(first_number + i), fill="black", font=font)
        sheet.paste(picture, (left, top + 42))
    return sheet
