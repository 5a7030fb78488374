"""tools/export.py and tools/infer.py, called as functions."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ppvilg.commands import main
from ppvilg.inference import fastest_proven
from ppvilg.pipelines import read_metadata


def infer(arguments: list[str]) -> int:
    return main(["infer", *arguments])


def export(arguments: list[str]) -> int:
    return main(["export", *arguments])


def test_pictures_of_a_bundle_are_those_of_its_pipeline(tiny, bundle, tmp_path):
    arguments = ["-m", str(bundle), "--prompt", "三只企鹅", "--seed", "4", "--output", str(tmp_path)]
    fastest = fastest_proven(bundle)[0]
    other = "onednn" if fastest == "cpu" else "cpu"  # the same again would be the same run
    assert infer([*arguments, "--backend", other]) == 0
    assert infer([*arguments, "--max-resident-experts", "1"]) == 0
    expected = np.asarray(tiny("三只企鹅", generator=4).images[0], int)
    for name in ("00000.png", "00001.png"):
        assert np.abs(np.asarray(Image.open(tmp_path / name), int) - expected).max() <= 1
    assert [read_metadata(tmp_path / f"0000{i}.png")["backend"] for i in range(2)] == [other, fastest]


def test_mistakes_are_one_line(bundle, tmp_path, capsys):
    assert infer(["-m", str(bundle), "--backend", "gpu", "--prompt", "猫", "--output", str(tmp_path / "a")]) == 1
    assert "error: backend 'gpu' needs" in capsys.readouterr().err
    assert infer(["-m", "emoji64", "--backend", "cpu", "--prompt", "猫", "--output", str(tmp_path / "a")]) == 1
    assert "is for bundles, and emoji64 is no bundle: export it" in capsys.readouterr().err
    assert export(["--model", "emoji64", "--output", str(bundle)]) == 1
    assert f"error: {bundle} is there already" in capsys.readouterr().err
    assert export(["--model", "emoji65", "--output", str(tmp_path / "a")]) == 1
    assert "neither a folder nor a model of the zoo" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
