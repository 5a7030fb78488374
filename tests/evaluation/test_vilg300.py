"""ViLG-300: the published list where it is there, a list of the same form everywhere; a run that is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppvilg.evaluation.suite import open_suite
from ppvilg.evaluation.suites.vilg300 import HEADER, read_vilg300

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "evaluation" / "vilg300.yml"
PUBLISHED = Path(os.environ.get("VILG300_CSV", ROOT.parent / "shared" / "data" / "ViLG-300.csv"))
published = pytest.mark.skipif(
    not PUBLISHED.is_file(), reason=f"the published list is not at {PUBLISHED}; VILG300_CSV may name another place"
)
ROWS = [
    ("A red\ncar.", "一辆红色的\n汽车。", "颜色", "DrawBench"),
    ('Two "cats", one dog.', "两只猫，一只狗", "计数/多物", "ERNIE-VILG"),
]
LONG = "很长的句子" * 30


def write_list(path: Path, rows=ROWS, header=HEADER, encoding="utf-8-sig") -> Path:
    import csv

    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def overrides(prompts: Path, model: str, output: Path, **others) -> list[str]:
    named = dict(prompts=prompts, model=model, output=output, num_inference_steps=1, guidance_scale=1.0)
    return [f"{key}={value}" for key, value in {**named, **others}.items()]


@published
def test_the_published_list():
    prompts = read_vilg300(PUBLISHED)
    assert len(prompts) == 300 and len({prompt["class"] for prompt in prompts}) == 16
    assert Counter(prompt["source"] for prompt in prompts) == {"DrawBench": 150, "ERNIE-VILG": 150}
    first = {"prompt_zh": "一辆红色的汽车。", "prompt_en": "A red colored car.", "class": "颜色", "source": "DrawBench"}
    assert prompts[0] == first
    assert Counter(prompt["class"] for prompt in prompts)["Reddit论坛"] == 36
    broken = [prompt for prompt in prompts if "\n" in prompt["prompt_en"] + prompt["prompt_zh"]]
    assert len(broken) == 36 and all(prompt["prompt_zh"] and prompt["prompt_en"] for prompt in broken)


def test_line_breaks_quotes_and_the_byte_order_mark(tmp_path):
    prompts = read_vilg300(write_list(tmp_path / "list.csv"), 2, 2)
    assert prompts[0]["prompt_en"] == "A red\ncar." and prompts[0]["prompt_zh"] == "一辆红色的\n汽车。"
    assert prompts[1]["prompt_en"] == 'Two "cats", one dog.' and prompts[1]["class"] == "计数/多物"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"header": ("Prompt", "Text", "类别", "来源")}, "begins with Prompt,Text,类别,来源, not with Prompt,文本,"),
        ({"encoding": "gb18030"}, "is not in UTF-8"),
        ({"rows": [*ROWS, ("x", "", "颜色", "y")]}, "row 3: needs 4 fields that are not empty"),
        ({"rows": [*ROWS, ROWS[0]]}, "has the prompt '一辆红色的\\n汽车。' twice"),
        ({"rows": ROWS[:1]}, "has 1 prompts, expected_prompts is 2"),
        ({"rows": [ROWS[0], (*ROWS[1][:2], "颜色", "x")]}, "has 1 classes, expected_classes is 2"),
    ],
)
def test_lists_that_are_refused(tmp_path, options, message):
    path = write_list(tmp_path / "list.csv", **options)
    expected = len(options["rows"]) if "twice" in message or "row 3" in message else 2
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_vilg300(path, expected, 2)
    assert str(path) in str(caught.value)
    path.write_text(path.read_text(encoding=options.get("encoding", "utf-8")) + '"left open', encoding="utf-8")
    with pytest.raises(ValueError, match="list.csv is not readable as CSV"):
        read_vilg300(path, None, None)
    with pytest.raises(FileNotFoundError, match="ViLG-300 is not part of this package; give its CSV"):
        read_vilg300(tmp_path / "nowhere.csv")


def test_both_languages_sheets_and_what_the_encoder_does_not_see(model, tmp_path):
    rows = [("A cat.", "左边是一只猫", "颜色", "x"), ("\u9f98 " + LONG, LONG, "计数/多物", "x")]
    prompts = write_list(tmp_path / "list.csv", rows)
    options = dict(languages="[zh,en]", images_per_prompt=3, expected_prompts=2, expected_classes=2)
    suite = open_suite(CONFIG, overrides(prompts, model, tmp_path / "out", **options))
    report = suite.run()
    for language in ("zh", "en"):
        folder, result = tmp_path / "out" / language, report["results"][language]
        assert len(list(folder.glob("*/samples/*.png"))) == 6 and result["all"]["pictures"] == 6
        lines = [json.loads(t) for t in (folder / "evaluation_metadata.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [line["prompt"] for line in lines] == [row[language == "zh"] for row in rows]
        assert result["classes"]["计数/多物"]["cut"] == 1 and result["classes"]["颜色"]["cut"] == 0
        sheets = sorted(path.name for path in (tmp_path / "out" / "sheets" / language).glob("*.png"))
        assert sheets == ["01_颜色.png", "02_计数_多物.png"]
        with Image.open(tmp_path / "out" / "sheets" / language / sheets[0]) as sheet:
            assert sheet.width >= 3 * 128 and len(sheet.convert("RGB").getcolors(1 << 24)) > 50
    assert report["results"]["en"]["classes"]["计数/多物"]["unknown"] == 1
    assert report["results"]["zh"]["classes"]["颜色"] == {"prompts": 1, "pictures": 3, "cut": 0, "unknown": 0}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 12 and "左边是一只猫" in page
    assert "does not see the end of 1 prompts" in suite.summary(report)
    with pytest.raises(ValueError, match="holds pictures of another protocol .guidance_scale 1.0, not 2.0."):
        open_suite(CONFIG, [*overrides(prompts, model, tmp_path / "out", **options), "guidance_scale=2.0"]).run()
    with pytest.raises(ValueError, match=re.escape("languages[0]='fr': use zh or en")):
        open_suite(CONFIG, [*overrides(prompts, model, tmp_path / "out"), "languages=[fr]"])


def test_scores_belong_to_their_prompts(model, tmp_path, monkeypatch):
    """Scores of a scorer whose answer is known (the real ones have tests of their own) reach their class."""
    from ppvilg.evaluation.suites import vilg300

    class KnownScorer:
        sha256 = "known"

        def __init__(self, kind, weights, allow_pickle=False):
            assert (kind, weights) == ("ernie_vil", "some folder")

        def similarities(self, images, texts, description):
            for image in (images[i] for i in range(len(images))):
                assert image.size == (64, 64)
            assert texts == [row[1] for row in ROWS for _ in range(2)]
            return np.array([0.2, 0.4, -0.3, 0.1])

    monkeypatch.setattr(vilg300, "ImageTextScorer", KnownScorer)
    prompts = write_list(tmp_path / "list.csv")
    options = dict(images_per_prompt=2, expected_prompts=2, expected_classes=2, scorer_zh="ernie_vil")
    suite = open_suite(CONFIG, overrides(prompts, model, tmp_path / "out", weights_zh="some folder", **options))
    report = suite.run()
    result = report["results"]["zh"]
    assert result["classes"]["颜色"]["clip_score"]["mean"] == pytest.approx(2.5 * 0.3)
    assert result["classes"]["计数/多物"]["clip_score"]["mean"] == pytest.approx(2.5 * 0.05)
    assert result["all"]["clip_score"]["count"] == 2 and report["hashes"]["scorer_zh"] == "known"
    assert "| 颜色 | 1 | 2 | 0 |" in suite.summary(report) and "0.75" in suite.summary(report)


def test_killed_twice_every_picture_is_drawn_once(model, tmp_path):
    """The list, or a shorter one of its form where it is not there: no picture is written a second time."""
    if PUBLISHED.is_file():
        prompts = PUBLISHED
    else:
        rows = [(f"text {i}", f"第{i}句", f"类{i % 16}", "x") for i in range(112)]
        prompts = write_list(tmp_path / "list.csv", rows)
    output, total = tmp_path / "out", 300 if PUBLISHED.is_file() else len(rows)
    options = overrides(prompts, model, output, expected_prompts=total, images_per_prompt=1, batch_size=8)
    command = [sys.executable, str(ROOT / "tools" / "evaluate.py"), "-c", str(CONFIG)]
    command += [part for option in options for part in ("-o", option)]
    seen: dict[Path, tuple[int, int]] = {}

    def look() -> None:
        for path in output.glob("zh/*/samples/[0-9]*.png"):
            state = path.stat().st_ino, path.stat().st_mtime_ns
            assert seen.setdefault(path, state) == state, f"{path} was drawn twice"

    with open(tmp_path / "log.txt", "w+", encoding="utf-8") as log:
        for kill in (1, 2):
            wanted = len(seen) + 16 + 8 * kill
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            while process.poll() is None and len(list(output.glob("zh/*/samples/[0-9]*.png"))) < wanted:
                time.sleep(0.02)
            process.kill()
            assert process.wait() == -signal.SIGKILL, (tmp_path / "log.txt").read_text(encoding="utf-8")[-2000:]
            look()
            assert wanted <= len(seen) < total
        report = open_suite(CONFIG, options).run()
    look()
    assert len(seen) == total == report["results"]["zh"]["all"]["pictures"]
    assert all(Image.open(path).size == (64, 64) for path in seen)
