"""Grids and PNG metadata."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ppvilg.pipelines.images import make_grid, read_metadata, save_png


def test_grid_shows_every_picture_in_rows():
    colours = ["red", "green", "blue"]
    images = [Image.new("RGB", size, colour) for size, colour in zip([(8, 8), (12, 8), (8, 12)], colours)]
    sheet = make_grid(images, columns=2, gap=2)
    assert sheet.size == (2 * 14 + 2, 2 * 14 + 2)
    pixels = np.asarray(sheet)
    assert pixels[8, 8].tolist() == [255, 0, 0] and pixels[8, 22].tolist() == [0, 128, 0]
    assert pixels[22, 8].tolist() == [0, 0, 255] and pixels[22, 22].tolist() == [255, 255, 255]
    assert make_grid(images[:1], columns=4, gap=0).size == (8, 8)


def test_grid_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 pictures and 3 columns"):
        make_grid([], 3)


def test_metadata_comes_back_and_files_are_not_overwritten(tmp_path):
    image = Image.new("RGB", (4, 4), "blue")
    save_png(image, tmp_path / "a.png", {"prompt": "三只企鹅，水彩", "seed": 7, "style": None})
    assert read_metadata(tmp_path / "a.png") == {"prompt": "三只企鹅，水彩", "seed": "7"}
    with pytest.raises(FileExistsError):
        save_png(Image.new("RGB", (4, 4), "red"), tmp_path / "a.png", {})
    assert Image.open(tmp_path / "a.png").getpixel((0, 0)) == (0, 0, 255)
