"""What a detector finds on real renders and what it refuses: the numbers on its card."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageFilter
from scipy.stats import binomtest

from .detector import Detector, Finding
from .objects import BACKGROUNDS, load_objects
from .render import draw_glyph, render
from .scenes import Scene, sample_scene
from .spoiling import REJECTED_BLUR, SPOILERS, can_spoil

SOFT_BLUR = 0.8  # sigma in pixels of a picture that still counts
BLURS = (0.8, 1.2, 1.6, 2.0, 2.5, 3.5, 5.0)


def accuracy_scenes(seed: int, count: int) -> list[Scene]:
    """Scenes that no training set of a denoiser holds, whatever its seed: held out or reserved."""
    return [sample_scene(seed, index, "validation") for index in range(count)]


def single_scenes(seed: int, count: int) -> list[Scene]:
    """Scenes of `accuracy_scenes` with one object and no style."""
    scenes: list[Scene] = []
    index = 0
    while len(scenes) < count:
        scene = sample_scene(seed, index, "validation")
        index += 1
        if scene.layout == "single" and scene.style is None:
            scenes.append(scene)
    return scenes


def is_right(finding: Finding, scene: Scene) -> bool:
    """All objects of the scene are found, each under its name, and no other."""
    return finding.labels == sorted(placement.name for placement in scene.objects)


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared)


def share(outcomes: Sequence[bool]) -> dict:
    """{"mean", "interval", "count"}: share of True with Wilson's 95 % interval; both None without outcomes."""
    if not outcomes:
        return {"mean": None, "interval": None, "count": 0}
    right, count = sum(outcomes), len(outcomes)
    interval = binomtest(right, count).proportion_ci(method="wilson")
    return {"mean": right / count, "interval": [float(bound) for bound in interval], "count": count}


def measure_detector(detector: Detector, scenes: int, seed: int) -> dict:
    """Accuracy on `scenes` real renders, and what is refused among a quarter as many pictures of each spoiled kind."""
    singles = single_scenes(seed + 1, max(1, scenes // 4))
    return {
        "renders": measure_renders(detector, accuracy_scenes(seed, scenes)),
        "soft": share([is_right(*pair) for pair in zip(detector.detect(_blurred(singles, SOFT_BLUR)), singles)]),
        "found_by_blur": {
            f"{size} px": {
                str(sigma): found_share(detector, _blurred(_of_size(singles, size), sigma)) for sigma in BLURS
            }
            for size in REJECTED_BLUR
        },
        "refused": {"picture_blurred": refused(detector, _rejected_blurs(singles)), **refused_kinds(detector, singles)},
        "outlines_left_out": flat_objects(),
    }


def measure_renders(detector: Detector, scenes: Sequence[Scene]) -> dict:
    """Shares of real renders that are right, by style and by object; background; overlap of boxes."""
    images, boxes = zip(*map(render, scenes))
    findings = detector.detect(images)
    by_style, by_label, overlaps = defaultdict(list), defaultdict(list), []
    for scene, finding, drawn in zip(scenes, findings, boxes):
        by_style[scene.style or "none"].append(is_right(finding, scene))
        for placement, box in zip(scene.objects, drawn):
            best = max(
                (overlap(item.box, box) for item in finding.objects if item.label == placement.name), default=0.0
            )
            by_label[placement.name].append(best >= 0.5)
            overlaps.append(best)
    background = [finding.background == scene.background for finding, scene in zip(findings, scenes)]
    return {
        "right": share([is_right(*pair) for pair in zip(findings, scenes)]),
        "right_by_style": {style: share(values) for style, values in by_style.items()},
        "background": share(background),
        "mean_overlap": float(np.mean(overlaps)),
        "found_by_object": {label: share(values) for label, values in sorted(by_label.items())},
    }


def found_share(detector: Detector, images: Sequence[Image.Image]) -> float | None:
    """Share of pictures in which any object is found; None without pictures."""
    return float(np.mean([bool(finding.objects) for finding in detector.detect(images)])) if images else None


def refused(detector: Detector, images: Sequence[Image.Image]) -> dict:
    """Share of pictures in which nothing at all is found."""
    return share([not finding.objects for finding in detector.detect(images)])


def refused_kinds(detector: Detector, scenes: Sequence[Scene]) -> dict:
    """`refused` for each kind of spoiled object, on the data's own backgrounds."""
    results = {}
    for kind in SPOILERS:
        possible = [scene for scene in scenes if can_spoil(kind, _glyph(scene))]
        images = [spoiled_picture(scene, kind, np.random.default_rng(index)) for index, scene in enumerate(possible)]
        results[kind] = refused(detector, images)
    return results


def spoiled_picture(scene: Scene, kind: str, rng: np.random.Generator) -> Image.Image:
    """A scene of one object with that object spoiled."""
    placement = scene.objects[0]
    rgb = next(background.rgb for background in BACKGROUNDS if background.name == scene.background)
    image = Image.new("RGB", (scene.width, scene.height), rgb)
    glyph = SPOILERS[kind](_glyph(scene), rng)
    corner = (
        placement.x + (placement.size - glyph.width) // 2,
        placement.y + (placement.size - glyph.height) // 2,
    )
    image.paste(glyph, corner, glyph)
    return image


def flat_objects(size: int = 48) -> list[str]:
    """Objects whose filled outline is left out of what must be refused: the outline is nearly all there is."""
    return [item.name for item in load_objects() if not can_spoil("outline_plain", draw_glyph(item.name, size))]


def _glyph(scene: Scene) -> Image.Image:
    return draw_glyph(scene.objects[0].name, scene.objects[0].size)


def _of_size(scenes: Iterable[Scene], size: int) -> list[Scene]:
    return [scene for scene in scenes if scene.objects[0].size == size]


def _blurred(scenes: Iterable[Scene], sigma: float) -> list[Image.Image]:
    return [render(scene)[0].filter(ImageFilter.GaussianBlur(sigma)) for scene in scenes]


def _rejected_blurs(scenes: Iterable[Scene]) -> list[Image.Image]:
    """Whole pictures, blurred just as far as must be refused."""
    return [render(scene)[0].filter(ImageFilter.GaussianBlur(REJECTED_BLUR[scene.objects[0].size])) for scene in scenes]
