"""Two small folders of pictures for the same prompts, and a headless browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from ppvilg.evaluation.drawing.folder import PictureFolder

SECRETS = ("wenxin-large", "rival-model-9000")
CLASSES = ("颜色", "计数")


def write_pictures(folder: Path, count: int, shade: int, images_per_prompt: int = 1, size: int = 16) -> Path:
    """GenEval's layout: `count` prompts in two classes; the pictures of a folder all have one shade."""
    prompts = [
        {"prompt": f"第{i}句<描述>", "prompt_en": f"text {i}", "class": CLASSES[i % 2], "width": size, "height": size}
        for i in range(count)
    ]
    pictures = PictureFolder(folder, prompts, images_per_prompt, {"source": folder.name})
    for key in pictures.missing():
        pixels = np.full((size, size, 3), shade, np.uint8)
        pixels[:, : 1 + key[0] % (size - 1)] = (key[0], key[1], 0)
        pictures.write(*key, Image.fromarray(pixels), {"model": folder.name})
    return folder


def overrides(place: Path, output: Path, **others) -> list[str]:
    """Overrides of configs/evaluation/side_by_side.yml."""
    named = {"first": place / SECRETS[0], "second": place / SECRETS[1], "output": output, **others}
    return [f"{key}={value}" for key, value in named.items()]


def write_votes(folder: Path, key: dict, voter: str, choose, finished: bool = True) -> Path:
    """A file as the page writes it; choose(entry, criterion) -> "first", "second", "tie" or None."""
    votes = []
    for entry in key["pairs"]:
        for criterion in ("alignment", "fidelity"):
            outcome = choose(entry, criterion)
            if outcome is not None:
                choice = "tie" if outcome == "tie" else "A" if entry["A"] == outcome else "B"
                votes.append(
                    {"pair": entry["id"], "criterion": criterion, "choice": choice, "left": "B", "seconds": 1.5}
                )
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": "ppvilg side-by-side votes 1", "study": key["study"], "voter": voter, "finished": finished}
    path = folder / f"votes_{voter}.json"
    path.write_text(json.dumps({**content, "votes": votes}, ensure_ascii=False), encoding="utf-8")
    return path


def browser_or_reason(downloads: Path, profile: Path):
    """(driver, None), or (None, why there is none)."""
    try:
        from selenium import webdriver
    except ImportError:
        return None, "selenium is not installed"
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        return None, "chromium and chromedriver (Debian: chromium chromium-driver) are not installed"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for flag in f"{flags} disable-component-update disable-sync disable-dev-shm-usage".split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={profile}")
    options.add_argument("--window-size=1280,800")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver)), None
