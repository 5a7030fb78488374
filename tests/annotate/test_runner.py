"""Sidecars: whole or not there, the same whoever makes them, and what training reads of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ppvilg.annotate import DetectionStage, Rejection, Runner, find_units, open_detector, report_on, share_of
from ppvilg.commands import main
from ppvilg.data import open_source

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "annotate"))
from annotation_shards import encode, noise, write_shards, write_tar  # noqa: E402

DETECTOR = "annotation_shards:brightest"


class Odd:
    """A stage that leaves out every sample whose key is odd, and says of others that they were seen."""

    name, identity = "odd", {"kind": "test"}

    def start(self):
        """Nothing is kept."""

    def close(self):
        """Nothing is held."""

    def process(self, batch):
        return [Rejection("is odd") if int(each.key) % 2 else {"captions": {"generated": "一颗星"}} for each in batch]


def sidecars(folder: Path) -> dict[str, bytes]:
    """What is in a folder of sidecars, reports left out."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith("report")}


def annotate(data, output, *more) -> int:
    return main(["annotate", "--data", str(data), "--output", str(output), "--detector", DETECTOR, *map(str, more)])


def test_training_reads_what_is_written(tmp_path):
    data = write_shards(tmp_path / "data", shards=2, samples=5)
    units = find_units(data, tmp_path / "out")
    Runner([DetectionStage(open_detector(DETECTOR)), Odd()], batch_size=3).run(units)
    source = open_source(data, tmp_path / "out")
    assert list(source.keys) == [f"{number:06d}" for number in (0, 2, 4, 6, 8)]
    assert not source.bad and source.index.manifest["left_out"] == 5
    assert "5 samples left out as the annotations say: 000001 (annotations: odd: is odd)" in source.summary()
    record = source.read(0)
    assert record.captions == {"zh": "第0张图", "generated": "一颗星"}
    assert [item.label for item in record.objects] == ["star"]  # the ghost's score is too low
    report = report_on(units)
    assert (report.kept, report.captioned, report.left_out[("odd", "is odd")]) == (5, 5, 5)


def test_several_processes_make_what_one_makes(tmp_path):
    data = write_shards(tmp_path / "data", shards=3, samples=4)
    assert annotate(data, tmp_path / "one", "--batch-size", 3) == 0
    for number in range(2):
        assert annotate(data, tmp_path / "two", "--shard-index", number, "--num-shards", 2) == 0
    assert sidecars(tmp_path / "one") == sidecars(tmp_path / "two")


def test_what_is_done_is_not_done_again_unless_its_shard_changed(tmp_path):
    data, out = write_shards(tmp_path / "data", shards=2, samples=2), tmp_path / "out"
    annotate(data, out)
    before = {path: path.stat().st_ino for path in out.glob("*.jsonl")}
    write_tar(data / "00001.tar", {"000002.jpg": encode(noise(99)), "000002.txt": b"a star"})
    (out / "00001.annotations.jsonl.part").write_text("left by a killed process")
    annotate(data, out)
    again = {path: path.stat().st_ino for path in out.glob("*.jsonl")}
    assert before[out / "00000.annotations.jsonl"] == again[out / "00000.annotations.jsonl"]
    assert before[out / "00001.annotations.jsonl"] != again[out / "00001.annotations.jsonl"]
    assert len((out / "00001.annotations.jsonl").read_text().splitlines()) == 2
    assert not list(out.glob("*.part"))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--min-score", "0.4"], "another detector: threshold was 0.2 and is 0.4 now"),
        (["--captioner", "command:echo '{}'"], "first line must say"),
        (["--captioner", "command:echo hello"], "echo hello answered 'hello', which is no JSON object"),
        (["--shard-index", "2", "--num-shards", "2"], "--shard-index 2 must be from 0 to 1"),
        (["--detector", "annotation_shards:nobody"], "module annotation_shards has no nobody"),
        (["--detector", "nowhere"], "no such detector: nowhere"),
        (["--detector", "command:no-such-program"], "no such program: no-such-program"),
        (["--data", "nowhere.tar"], "no such shard: nowhere.tar"),
    ],
)
def test_mistakes_are_named_and_nothing_changes(tmp_path, capsys, more, sentence):
    data, out = write_shards(tmp_path / "data", shards=1, samples=2), tmp_path / "out"
    annotate(data, out)
    before = sidecars(out)
    assert annotate(data, out, *more) == 1
    assert sentence in capsys.readouterr().err
    assert sidecars(out) == before


def test_a_sidecar_of_somebody_else_is_not_written_over(tmp_path, capsys):
    data, out = write_shards(tmp_path / "data", shards=1, samples=1), tmp_path / "out"
    out.mkdir()
    (out / "00000.annotations.jsonl").write_text('{"tool": "by hand"}\n')
    assert annotate(data, out) == 1
    assert "was not made by ppvilg annotate" in capsys.readouterr().err


def test_two_processes_do_not_write_one_sidecar(tmp_path):
    from ppvilg.annotate.sidecar import new_sidecar

    with new_sidecar(tmp_path / "a.jsonl") as file:
        file.write("one\n")
        with pytest.raises(BlockingIOError, match="another process"), new_sidecar(tmp_path / "a.jsonl"):
            pass
    assert (tmp_path / "a.jsonl").read_text() == "one\n"


def test_bad_samples_get_a_line_with_the_reason(tmp_path):
    whole = encode(noise(1, (200, 200)))
    write_tar(tmp_path / "00000.tar", {
        "0.jpg": whole, "1.jpg": whole[: len(whole) // 2], "2.txt": b"no picture", "3.png": b"GIF89a", "0.png": b"?",
    })  # fmt: skip
    (tmp_path / "00001.tar").write_bytes((tmp_path / "00000.tar").read_bytes()[:1000])
    units = find_units(tmp_path, tmp_path / "out")
    Runner([DetectionStage(open_detector(DETECTOR))]).run(units)
    header, *lines = map(json.loads, units[0].output.read_text().splitlines())
    reasons = {line["key"]: line.get("rejected", {}).get("reason", "") for line in lines}
    assert reasons["2"].startswith("image is missing") and "cannot be decoded" in reasons["1"]
    assert "it is a GIF" in reasons["3"] and "has 2 images" in reasons["0"] and len(lines) == 4
    assert not header["problems"]
    assert "cut off inside member '0.jpg'" in units[1].output.read_text()


def test_a_folder_of_pictures_becomes_what_training_reads(tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    (folder / "a").mkdir(parents=True)
    for number in range(3):
        noise(number).save(folder / "a" / f"{number}.png")
    (folder / "a" / "0.txt").write_text("第一颗星", encoding="utf-8")
    Runner([DetectionStage(open_detector(DETECTOR)), Named()]).run(find_units(folder, out))
    source = open_source(folder, out)
    assert list(source.keys) == ["a/0", "a/1", "a/2"] and not source.bad
    assert source.read(0).captions == {"zh": "第一颗星", "generated": "a/0"} and source.read(2).objects
    with pytest.raises(ValueError, match="pack it as .tar shards"):
        share_of(find_units(folder, out), 0, 2)


class Named(Odd):
    """A stage whose captions are the keys."""

    def process(self, batch):
        return [{"captions": {"generated": each.key}} for each in batch]


def test_killed_and_started_again_gives_the_same(tmp_path):
    data = write_shards(tmp_path / "data", shards=4, samples=30)
    annotate(data, tmp_path / "whole")
    command = [sys.executable, "-m", "ppvilg", "annotate", "--data", data, "--output", tmp_path / "out", "--detector",
               "annotation_shards:slowly", "--batch-size", "4"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "annotate")])}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("out/00001*.part")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob("out/*.part")) and len(list(tmp_path.glob("out/*.jsonl"))) < 4
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    one, two = sidecars(tmp_path / "whole"), sidecars(tmp_path / "out")
    assert {name: data.replace(b"brightest", b"slowly") for name, data in one.items()} == two
