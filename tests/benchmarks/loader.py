"""Samples per second of CPU against the `webdataset` library on the same shards, interleaved in one run.

    python tests/benchmarks/loader.py [--samples 1000] [--turns 16] [--sizes 64 256] [--folder /tmp/loader]

Shards of rendered scenes (64 pixels PNG, 256 pixels JPEG), each sample with caption, .json, boxes and tags in the
sidecar. Both loaders shuffle, decode, and apply the same transform; batches of 32 float32 pictures and their captions
come out. Then our loader again with token ids, once without knowledge and once with marks, key-token weights, caption
completion and loss weights. All runs in one process without workers, so that what is compared is the work itself;
time is that of the process (other programs on the machine do not count), the table also shows wall time.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ppvilg.data import BatchOrder, ImageTransform, SampleLoader, open_source, sample_rng
from ppvilg.emoji.prepare import make_sample
from ppvilg.engine.caches.tags import cache_tags
from ppvilg.knowledge import TextKnowledge, VisualKnowledge, build_tokenizer
from ppvilg.knowledge.text import tag

BATCH, TURN = 32, 4  # samples per batch, batches per turn


def write_shards(folder: Path, size: int, samples: int, per_shard: int = 250) -> None:
    """Square scenes of `size` pixels; larger ones are enlarged, grained and saved as JPEG, as photographs are."""
    folder.mkdir(parents=True)
    rng, lines, index = np.random.default_rng(0), [{"tool": "tests/benchmarks/loader.py", "version": "1"}], 0
    for shard in range(-(-samples // per_shard)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for _ in range(min(per_shard, samples - shard * per_shard)):
                png, annotation, index = next_square(index)
                data, kind = (png, "png") if size == 64 else (photograph(png, size, rng), "jpg")
                scale = size / annotation["width"]
                boxes = [{**o, "box": [value * scale for value in o["box"]]} for o in annotation["objects"]]
                key, caption = annotation["key"], annotation["captions"]["zh"]
                lines.append({"key": key, "width": size, "height": size, "captions": annotation["captions"],
                              "objects": boxes, "tags": tag(caption)})  # fmt: skip
                details = {"key": key, "caption": caption, "width": size, "height": size}
                for name, content in ((kind, data), ("txt", caption.encode()), ("json", json.dumps(details).encode())):
                    info = tarfile.TarInfo(f"{key}.{name}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "annotations.jsonl").write_text(text, encoding="utf-8")


def next_square(index: int) -> tuple[bytes, dict, int]:
    """The next square scene from `index` on: picture, annotation, index after it."""
    while True:
        png, annotation = make_sample(0, index)
        index += 1
        if annotation["width"] == annotation["height"]:
            return png, annotation, index


def photograph(png: bytes, size: int, rng: np.random.Generator) -> bytes:
    """JPEG of an enlarged picture with grain."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    grained = (pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grained).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def webdataset_batches(folder: Path, transform: ImageTransform):
    """Batches as a user of webdataset would build them."""
    import webdataset

    shards = sorted(map(str, folder.glob("*.tar")))
    rng = np.random.default_rng(0)

    def picture(image):
        return transform(image, [], 0, rng)[0]

    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0)
        .shuffle(1000)
        .decode("pilrgb")
        .to_tuple("png;jpg", "txt")
        .map_tuple(picture, str)
        .batched(BATCH, partial=False)
    )
    while True:
        for pictures, captions in dataset:
            pixels = np.stack(pictures) if isinstance(pictures, list) else pictures
            values = pixels.transpose(0, 3, 1, 2).astype(np.float32)
            values /= 127.5
            values -= 1.0
            yield values, captions


def our_batches(folder: Path, transform: ImageTransform):
    """Batches of SampleLoader."""
    source = open_source(folder)
    order = BatchOrder(source.buckets(transform), BATCH, seed=0)
    for step, batch in SampleLoader(source, transform, order, seed=0).iterate_from(0):
        yield batch.pixel_values, batch.records, step, batch.indices


def knowing_batches(folder: Path, transform: ImageTransform, text: TextKnowledge, vision: VisualKnowledge, size: int):
    """Ours with what the denoiser is conditioned on, as the trainer makes it."""
    for values, records, step, indices in our_batches(folder, transform):
        captions, apply, maps = [], [], []
        for record, index in zip(records, indices):
            rng = sample_rng(0, step, int(index))
            drop, use = rng.random() < 0.1, bool(rng.random() < 0.5) and text.mark
            caption, _ = vision.choose_caption(record.captions, record.objects, rng, marks=use)
            maps.append(vision.weight_map(record.objects, caption, (size, size), (size // 8, size // 8), rng))
            captions.append("" if drop else caption)
            apply.append(use)
        encoded = text.encode(captions, apply, [record.tags for record in records])
        yield values, encoded.input_ids, np.stack(maps)


def consume(batches, count: int) -> tuple[float, float]:
    """(process seconds, wall seconds) of `count` batches."""
    process, wall = time.process_time(), time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    return time.process_time() - process, time.perf_counter() - wall


def measure(folder: Path, size: int, turns: int) -> dict[str, np.ndarray]:
    """{loader: (turns, 2) process and wall seconds per sample}; all take turns of a few batches, in changing order."""
    transform = ImageTransform([(size, size)])
    source = open_source(folder)
    tokenizer = build_tokenizer([source.read_text(i).captions["zh"] for i in range(200)], folder / "tokenizer")
    off = TextKnowledge(tokenizer, 48, 0.0, mark=False), VisualKnowledge(0.0, completion=False)
    on = TextKnowledge(tokenizer, 48, 0.01), VisualKnowledge(0.1, replacement_probability=0.1)
    on[0].tagger = cache_tags(source, folder).tag  # as data.cache_tags=true does
    streams = {
        "webdataset": webdataset_batches(folder, transform),
        "ours": our_batches(folder, transform),
        "knowledge off": knowing_batches(folder, transform, *off, size),
        "knowledge on": knowing_batches(folder, transform, *on, size),
    }
    seconds = {name: [] for name in streams}
    for number in range(turns + 2):
        for name in list(streams)[:: 1 if number % 2 else -1]:
            for text in (off[0], on[0]):
                text._encode_text.cache_clear()  # captions of a large data set do not come again soon
            taken = consume(streams[name], TURN)
            if number > 1:  # the first turns warm up
                seconds[name].append(taken)
    return {name: np.array(values) / (TURN * BATCH) for name, values in seconds.items()}


def ratio_of(one: np.ndarray, other: np.ndarray) -> str:
    """How many times as fast `one` is, by process time of all turns, with its 95 % interval by bootstrap over turns."""
    picks = np.random.default_rng(0).integers(0, len(one), (2000, len(one)))
    low, high = np.percentile(other[picks, 0].sum(1) / one[picks, 0].sum(1), [2.5, 97.5])
    return f"{other[:, 0].sum() / one[:, 0].sum():.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=16)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="ppvilg-loader-"))
    print("| pixels | loader | samples per CPU second | wall | ratio (95 % interval) |")
    print("|---|---|---|---|---|")
    for size in options.sizes:
        if not (folder / str(size)).exists():
            write_shards(folder / str(size), size, options.samples)
        results = measure(folder / str(size), size, options.turns)
        for name, against in (("webdataset", None), ("ours", "webdataset"), ("knowledge off", None),
                              ("knowledge on", "knowledge off")):  # fmt: skip
            speed = 1 / results[name].mean(axis=0)
            ratio = f"{ratio_of(results[name], results[against])} x {against}" if against else ""
            print(f"| {size} | {name} | {speed[0]:.0f} | {speed[1]:.0f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
