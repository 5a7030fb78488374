import numpy as np
import pytest
from PIL import Image

from ppvilg.data import BadSample, ImageTransform, ObjectBox

SHAPES = [(64, 64), (64, 96), (96, 64)]


def picture_with(box, size):
    """A white picture with the whole pixels of `box` in black."""
    image = Image.new("RGB", size, (255, 255, 255))
    image.paste((0, 0, 0), box)
    return image


def bounds_of_black(pixels):
    """(x0, y0, x1, y1) of the pixels that are more black than white, or None."""
    rows, columns = np.nonzero(pixels[..., 0] < 128)
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None


def test_nearest_aspect_ratio():
    transform = ImageTransform(SHAPES)
    assert [
        transform.bucket_of(*size) for size in [(640, 640), (1024, 1536), (1536, 1024), (300, 290), (10, 90), (90, 10)]
    ] == [
        0,
        1,
        2,
        0,
        1,
        2,
    ]
    sizes = np.random.default_rng(0).integers(1, 500, (200, 2))
    assert transform.buckets_of(sizes).tolist() == [transform.bucket_of(*size) for size in sizes]
    for width, height in sizes:
        distances = [abs(np.log(width / height) - np.log(w / h)) for w, h in SHAPES]
        assert distances[transform.bucket_of(width, height)] == min(distances)


def test_equal_ratios_go_to_the_nearest_area():
    transform = ImageTransform([(128, 128), (64, 64), (192, 128), (96, 64)])
    assert [transform.bucket_of(*size) for size in [(60, 60), (500, 500), (90, 60), (300, 200)]] == [1, 0, 3, 2]


def test_a_picture_of_bucket_size_is_untouched():
    pixels = np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8)
    box = ObjectBox("猫", (3.0, 4.0, 30.5, 90.0), 0.7)
    for crop in ("center", "random"):
        result, objects = ImageTransform(SHAPES, crop)(Image.fromarray(pixels), [box], 1, np.random.default_rng(0))
        assert result.dtype == np.uint8 and np.array_equal(result, pixels) and objects == [box]


def test_crop_at_scale_one_copies_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 90, 3), dtype=np.uint8)
    result, _ = ImageTransform(SHAPES)(Image.fromarray(pixels), [], 0, np.random.default_rng(0))
    assert np.array_equal(result, pixels[:, 13:77])


def test_flip_mirrors_picture_and_box():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    transform = ImageTransform(SHAPES, horizontal_flip=1.0)
    result, objects = transform(Image.fromarray(pixels), [ObjectBox("猫", (0, 8, 10, 20))], 0, np.random.default_rng(0))
    assert np.array_equal(result, pixels[:, ::-1]) and objects == [ObjectBox("猫", (54.0, 8.0, 64.0, 20.0))]


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("horizontal_flip", [0.0, 0.5])
def test_the_box_still_bounds_the_coloured_pixels(crop, horizontal_flip):
    transform = ImageTransform(SHAPES, crop, horizontal_flip, min_visible=0.0)
    rng = np.random.default_rng(5)
    compared = gone = 0
    for _ in range(150):
        width, height = (int(value) for value in rng.integers(40, 260, 2))
        x0, y0 = int(rng.integers(0, width - 12)), int(rng.integers(0, height - 12))
        x1, y1 = int(rng.integers(x0 + 10, width + 1)), int(rng.integers(y0 + 10, height + 1))
        bucket = int(rng.integers(len(SHAPES)))
        image = picture_with((x0, y0, x1, y1), (width, height))
        pixels, objects = transform(image, [ObjectBox("块", (x0, y0, x1, y1))], bucket, rng)
        assert pixels.shape == (SHAPES[bucket][1], SHAPES[bucket][0], 3)
        found = bounds_of_black(pixels)
        if not objects:
            assert found is None
            gone += 1
        elif min(objects[0].box[2] - objects[0].box[0], objects[0].box[3] - objects[0].box[1]) >= 2:
            assert np.abs(np.subtract(found, objects[0].box)).max() <= 1.0
            compared += 1
    assert compared > 90 and gone > 0


def test_random_crop_reaches_both_ends_and_is_decided_by_the_generator():
    transform = ImageTransform(SHAPES, crop="random")
    boxes = [transform.plan(128, 64, 0, np.random.default_rng(seed)).source_box for seed in range(400)]
    lefts = [box[0] for box in boxes]
    assert min(lefts) == 0.0 and max(lefts) == 64.0 and all(box[1] == 0.0 and box[3] == 64.0 for box in boxes)
    assert boxes == [transform.plan(128, 64, 0, np.random.default_rng(seed)).source_box for seed in range(400)]


def test_flip_happens_with_its_probability():
    transform = ImageTransform(SHAPES, horizontal_flip=0.25)
    rng = np.random.default_rng(0)
    flips = sum(transform.plan(64, 64, 0, rng).flip for _ in range(2000))
    assert 430 < flips < 570


def test_objects_mostly_cut_away_are_dropped():
    image = Image.new("RGB", (128, 64))  # the centre crop keeps x from 32 to 96
    objects = [ObjectBox("半", (22, 0, 42, 10)), ObjectBox("少", (14, 0, 36, 10)), ObjectBox("无", (0, 0, 32, 10))]
    _, kept = ImageTransform(SHAPES, min_visible=0.25)(image, objects, 0, np.random.default_rng(0))
    assert kept == [ObjectBox("半", (0.0, 0.0, 10.0, 10.0))]
    _, kept = ImageTransform(SHAPES, min_visible=0.0)(image, objects, 0, np.random.default_rng(0))
    assert [item.label for item in kept] == ["半", "少"]


def test_extreme_pictures_fill_the_bucket():
    transform = ImageTransform(SHAPES, crop="random")
    for size in [(1, 1), (1, 500), (500, 1), (63, 65), (3001, 7)]:
        pixels, _ = transform(Image.new("RGB", size, (10, 20, 30)), [], 2, np.random.default_rng(0))
        assert pixels.shape == (64, 96, 3) and np.array_equal(pixels, np.broadcast_to([10, 20, 30], (64, 96, 3)))


@pytest.mark.parametrize(
    "box",
    [
        (float("nan"), 0, 4, 4),
        (-0.5, 0, 4, 4),
        (4, 0, 4, 4),
        (5, 0, 4, 4),
        (0, 6, 4, 5),
        (0, 0, 65, 4),
        (0, 0, 4, 64.5),
    ],
)
def test_wrong_box_is_a_bad_sample(box):
    with pytest.raises(BadSample, match="猫"):
        ImageTransform(SHAPES)(Image.new("RGB", (64, 64)), [ObjectBox("猫", box)], 0, np.random.default_rng(0))


@pytest.mark.parametrize(
    "arguments, part",
    [
        ({"shapes": []}, "none given"),
        ({"shapes": [(64, 60)]}, r"\(64, 60\)"),
        ({"shapes": [(0, 64)]}, r"\(0, 64\)"),
        ({"shapes": [(64, 64), (64, 64)]}, "repeat"),
        ({"shapes": SHAPES, "crop": "middle"}, "middle"),
        ({"shapes": SHAPES, "horizontal_flip": 1.5}, "1.5"),
    ],
)
def test_settings_that_cannot_work(arguments, part):
    with pytest.raises(ValueError, match=part):
        ImageTransform(**arguments)


def test_a_picture_that_is_not_rgb_or_not_of_the_planned_size():
    transform = ImageTransform(SHAPES)
    with pytest.raises(ValueError, match="RGB"):
        transform(Image.new("L", (64, 64)), [], 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"\(64, 64\)"):
        transform.plan(64, 64, 0, np.random.default_rng(0)).image(Image.new("RGB", (32, 32)))
