import gc
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from functools import partial
from itertools import islice
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ppvilg.data import (
    BadSample,
    BadSampleLimit,
    BatchOrder,
    ImageTransform,
    SampleLoader,
    TooManyBadSamples,
    open_source,
    sample_rng,
)
from ppvilg.data.loading import WorkerPool, shared

sys.path.insert(0, str(Path(__file__).parent))  # workers search where their parent does
from data_finish import caption_lengths  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [(16, 16), (16, 24), (24, 16)]
BAD = (3, 11, 20)


def build_shard(path, count, bad=()):
    """Pictures with noise in three shapes, number i in the caption; `bad` ones are cut off inside the PNG."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            width, height = [(20, 20), (16, 24), (30, 20)][number % 7 % 3]
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
            data = buffer.getvalue()[: 200 if number in bad else None]
            for name, content in ((f"{number:04d}.png", data), (f"{number:04d}.txt", f"图{number}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return open_source(build_shard(tmp_path_factory.mktemp("clean") / "0.tar", 60))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return open_source(build_shard(tmp_path_factory.mktemp("damaged") / "0.tar", 60, BAD))


def make_loader(source, batch_size=6, **options):
    transform = ImageTransform(SHAPES, crop="random", horizontal_flip=0.5)
    order = BatchOrder(transform.buckets_of(source.sizes), batch_size, seed=3)
    return SampleLoader(source, transform, order, seed=4, **options)


def take(loader, count, start=0):
    return list(islice(loader.iterate_from(start), count))


def same(one, other):
    (step, batch), (other_step, other_batch) = one, other
    return (
        step == other_step
        and batch.bucket == other_batch.bucket
        and np.array_equal(batch.indices, other_batch.indices)
        and np.array_equal(batch.pixel_values, other_batch.pixel_values)
        and batch.records == other_batch.records
    )


# ---- order


@pytest.mark.parametrize(
    "counts, batch_size", [((70, 15, 15), 8), ((100,), 7), ((3, 200, 1), 16), ((5,), 16), ((2, 2), 3)]
)
def test_every_sample_once_per_permutation_and_buckets_in_proportion(counts, batch_size):
    bucket_of = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    order = BatchOrder(bucket_of, batch_size, seed=1)
    epochs = 12
    streams = {bucket: [] for bucket in range(len(counts))}
    for step in range(order.epoch_start(epochs)):
        bucket, indices = order.batch(step)
        assert indices.shape == (batch_size,) and (bucket_of[indices] == bucket).all()
        streams[bucket].extend(indices.tolist())
    for bucket, count in enumerate(counts):
        stream = streams[bucket]
        assert epochs * count - batch_size < len(stream) <= epochs * count
        members = np.flatnonzero(bucket_of == bucket).tolist()
        for start in range(0, len(stream) - count + 1, count):
            assert sorted(stream[start : start + count]) == members
        times = Counter(stream)
        assert max(times.values(), default=0) - min((times[member] for member in members), default=0) <= 1


def test_epochs_join_without_gap_and_differ_by_few_steps():
    order = BatchOrder(np.repeat([0, 1, 2], [70, 15, 16]), 8, seed=1)
    starts = [order.epoch_start(epoch) for epoch in range(30)]
    lengths = np.diff(starts)
    assert starts[0] == 0 and order.steps_per_epoch == 12 and abs(lengths - 101 / 8).max() < 3
    assert [order.epoch_of(step) for step in range(starts[-1])] == np.repeat(np.arange(29), lengths).tolist()


def test_any_order_of_asking_gives_the_same_batches():
    bucket_of = np.random.default_rng(0).integers(0, 3, 200)
    forward = [BatchOrder(bucket_of, 8, 5).batch(step) for step in range(120)]
    order = BatchOrder(bucket_of, 8, 5)
    for step in np.random.default_rng(1).permutation(120):
        bucket, indices = order.batch(int(step))
        assert bucket == forward[step][0] and np.array_equal(indices, forward[step][1])
    far = 10**9 + 7
    assert np.array_equal(order.batch(far)[1], BatchOrder(bucket_of, 8, 5).batch(far)[1])


def test_order_is_pinned():
    """A changed order would make every running training resume on other data: these numbers must not move."""
    order = BatchOrder(np.array([0, 0, 0, 1, 1, 0, 0, 1]), 2, seed=7)
    listed = [(bucket, indices.tolist()) for bucket, indices in map(order.batch, range(8))]
    assert listed == [
        (0, [1, 2]),
        (1, [3, 7]),
        (0, [6, 5]),
        (0, [0, 2]),
        (0, [0, 1]),
        (1, [4, 7]),
        (1, [3, 4]),
        (0, [6, 5]),
    ]


def test_seed_and_epoch_change_the_order():
    bucket_of = np.zeros(64, dtype=int)
    first, second = (BatchOrder(bucket_of, 64, seed).batch(0)[1] for seed in (0, 1))
    assert not np.array_equal(first, second)
    order = BatchOrder(bucket_of, 64, 0)
    assert not np.array_equal(order.batch(0)[1], order.batch(1)[1])


def test_buckets_are_mixed_within_an_epoch():
    order = BatchOrder(np.repeat([0, 1], [800, 800]), 8, seed=0)
    buckets = [order.batch(step)[0] for step in range(200)]
    assert 70 < sum(a != b for a, b in zip(buckets, buckets[1:])) < 130


@pytest.mark.parametrize("arguments", [([], 4, 0), ([[0]], 4, 0), ([-1], 4, 0), ([0], 0, 0), ([0], 4, -1)])
def test_order_refuses_what_cannot_work(arguments):
    with pytest.raises(ValueError):
        BatchOrder(np.array(arguments[0]), *arguments[1:])
    with pytest.raises(ValueError, match="-1"):
        BatchOrder(np.array([0]), 1, 0).batch(-1)


# ---- loader


def test_batch_holds_what_its_records_say(clean):
    loader = make_loader(clean)
    for _, batch in take(loader, 8):
        width, height = SHAPES[batch.bucket]
        assert batch.pixel_values.shape == (6, 3, height, width) and batch.pixel_values.dtype == np.float32
        assert -1.0 <= batch.pixel_values.min() < -0.9 and 0.9 < batch.pixel_values.max() <= 1.0
        assert [record.captions["zh"] for record in batch.records] == [f"图{index}" for index in batch.indices]
        assert all(record.image is None for record in batch.records)
    assert (loader.report.read, loader.report.used, loader.report.skipped) == (48, 48, 0)


def test_pixels_are_the_transformed_picture(clean):
    loader = make_loader(clean)
    step, batch = take(loader, 1, start=5)[0]
    for row, index in enumerate(batch.indices):
        record = clean.read(int(index))
        pixels, _ = loader.transform(record.image, [], batch.bucket, sample_rng(4, step, int(index)))
        back = np.round((batch.pixel_values[row].transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
        assert np.array_equal(back, pixels)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(damaged, workers):
    inline, threaded = make_loader(damaged), make_loader(damaged, workers=workers)
    for one, other in zip(take(inline, 25), take(threaded, 25)):
        assert same(one, other)
    assert inline.report.skipped > 0
    assert str(inline.report) == str(threaded.report)


def test_resuming_is_starting_at_a_step(damaged):
    whole = take(make_loader(damaged), 20)
    for one, other in zip(whole[13:], take(make_loader(damaged, workers=2), 7, start=13)):
        assert same(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_only_wanted_steps_are_read(damaged, workers):
    """As a group of experts reads: every third step from the second on."""
    loader = make_loader(damaged, workers=workers)
    whole = {step: (step, batch) for step, batch in take(make_loader(damaged), 14)}
    batches = loader.iterate_from(5, lambda step: step % 3 == 1)
    got = list(islice(batches, 3))
    batches.close()
    assert [step for step, _ in got] == [7, 10, 13] and loader.report.used == 18
    assert all(same(one, whole[one[0]]) for one in got)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_are_the_global_batch(damaged, world_size):
    alone = take(make_loader(damaged), 20)
    parts = [take(make_loader(damaged, rank=rank, world_size=world_size), 20) for rank in range(world_size)]
    for step, whole in alone:
        mine = [part[step][1] for part in parts]
        assert np.array_equal(np.concatenate([batch.pixel_values for batch in mine]), whole.pixel_values)
        assert np.concatenate([batch.indices for batch in mine]).tolist() == whole.indices.tolist()


def test_bad_samples_are_named_counted_and_replaced(damaged, tmp_path):
    seen = []
    listing = tmp_path / "bad.jsonl"
    loader = make_loader(damaged, on_bad_sample=seen.append, bad_sample_list=listing)
    batches = take(loader, 40)
    keys = {f"{number:04d}" for number in BAD}
    assert {problem.key for problem in loader.report.bad} == keys and len(loader.report.bad) == 3
    assert seen == loader.report.bad and all(isinstance(problem, BadSample) for problem in seen)
    lines = [json.loads(line) for line in listing.read_text("utf-8").splitlines()]
    assert {line["key"] for line in lines} == keys and "0.tar:" in lines[0]["source"] and lines[0]["reason"]
    report = loader.report
    assert report.used == 240 and report.read == report.used + report.skipped and report.skipped > 3
    for step, batch in batches:
        bucket, planned = loader.order.batch(step)
        for slot, (index, plan) in enumerate(zip(batch.indices, planned)):
            assert index not in BAD
            if plan not in BAD:
                assert index == plan
            elif loader.order.replacement(step, slot, 1) not in BAD:
                assert index == loader.order.replacement(step, slot, 1)
        assert (loader.transform.buckets_of(damaged.sizes)[batch.indices] == bucket).all()


def test_over_the_limit_raises_and_names(damaged, tmp_path):
    listing = tmp_path / "bad.jsonl"
    loader = make_loader(damaged, bad_sample_share=0.03, bad_sample_list=listing)  # 2 of 60
    with pytest.raises(TooManyBadSamples) as caught:
        take(loader, 40)
    text = str(caught.value)
    assert "3 bad samples of 60" in text and "data.bad_sample_share=0.03" in text
    assert str(listing) in text and all(f"{number:04d}" in text for number in BAD)
    with pytest.raises(TooManyBadSamples, match="bad samples of 60"):
        take(make_loader(damaged, bad_sample_share=0.0, workers=2), 40)
    take(make_loader(damaged, bad_sample_share=0.05), 40)  # 3 of 60


def test_a_limit_is_a_share_rounded_up():
    assert [BadSampleLimit(samples, 0.1).count for samples in (5, 16, 20_000, 10**7)] == [1, 2, 2000, 10**6]
    assert BadSampleLimit(10, 0.3).count == 3 and BadSampleLimit(10, 0.0).count == 0 and BadSampleLimit(9, 1).count == 9
    BadSampleLimit(10, 0.1).check(1)
    with pytest.raises(ValueError, match="bad_sample_share=1.5"):
        BadSampleLimit(10, 1.5)


def test_a_bucket_without_a_good_sample_takes_others(tmp_path):
    """Only the shape 20 x 20 is good: the places of others in a batch are filled from it, in every bucket."""
    bad = [number for number in range(14) if number % 7 % 3]
    loader = make_loader(open_source(build_shard(tmp_path / "0.tar", 14, bad)), batch_size=2, bad_sample_share=0.7)
    batches = take(loader, 20)
    assert {batch.bucket for _, batch in batches} == {0, 1, 2}
    assert {int(index) for _, batch in batches for index in batch.indices}.isdisjoint(bad)
    workers = make_loader(loader.source, batch_size=2, bad_sample_share=0.7, workers=2)
    assert all(same(one, other) for one, other in zip(batches, take(workers, 20)))


def test_a_set_without_a_good_sample_ends_in_an_error(tmp_path):
    source = open_source(build_shard(tmp_path / "0.tar", 4, bad=(0, 1, 2, 3)))
    with pytest.raises(TooManyBadSamples, match="no good sample was found in 64 tries"):
        take(make_loader(source, batch_size=2, bad_sample_share=1.0), 10)


def test_a_loader_left_early_lets_go_of_its_processes(clean):
    iterator = make_loader(clean, workers=2).iterate_from(0)
    next(iterator)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    assert len(children.read_text().split()) >= 2
    iterator.close()
    assert not [pid for pid in children.read_text().split() if b"ppvilg.data.loading.worker" in cmdline(pid)]
    with pytest.raises(StopIteration):
        next(iterator)


def cmdline(pid) -> bytes:
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_bytes() if path.exists() else b""


def test_workers_end_with_the_process_that_made_them(clean, tmp_path):
    """A run that is killed leaves no worker behind."""
    script = f"""
import os, signal, sys
from ppvilg.data import BatchOrder, ImageTransform, SampleLoader, open_source
source = open_source({str(clean.index.base)!r})
loader = SampleLoader(source, ImageTransform([(16, 16)]), BatchOrder([0] * len(source), 4, 0), 0, workers=2)
batches = loader.iterate_from(0)
next(batches)
print(open(f"/proc/self/task/{{os.getpid()}}/children").read(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=300)
    workers = done.stdout.split()
    assert done.returncode == -9 and len(workers) == 2, done.stderr
    for _ in range(300):
        left = [pid for pid in workers if b"ppvilg.data.loading.worker" in cmdline(pid)]
        if not left:
            break
        time.sleep(0.1)
    assert not left


def test_an_unexpected_error_is_not_taken_for_a_bad_sample(clean):
    for workers in (0, 1):
        loader = make_loader(clean, workers=workers)
        loader.transform = SimpleNamespace(shapes=SHAPES)  # cannot be called: a fault of the program
        with pytest.raises(TypeError, match="not callable"):
            take(loader, 1)


def test_a_worker_that_dies_is_reported(clean):
    iterator = make_loader(clean, workers=1).iterate_from(0)
    next(iterator)
    (worker,) = [
        int(pid)
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if b"ppvilg.data.loading.worker" in cmdline(pid)
    ]
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="data worker ended by itself"):
        for _ in range(20):  # what was ready still comes
            next(iterator)


def test_every_sample_is_accounted_for(damaged, tmp_path):
    path = tmp_path / "account.jsonl"
    loader = make_loader(damaged, account=path)
    epochs = [loader.order.epoch_start(epoch) for epoch in range(4)]
    take(loader, epochs[3] + 2)
    data, *rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert data["what"] == "data" and data["samples"] == 60 and data["problems"] == 0
    assert [row["what"] for row in rows] == ["epoch", "epoch", "epoch", "part of an epoch"]
    assert [row["first_step"] for row in rows] == epochs and rows[-1]["next_step"] == epochs[3] + 2
    for row in rows:
        assert row["used"] == 6 * (row["next_step"] - row["first_step"])
        assert row["read"] == row["used"] + row["skipped"]
        assert sum(row["skipped_by_reason"].values()) == sum(row["skipped_by_file"].values()) == row["skipped"]
    assert sum(row["skipped"] for row in rows) == loader.report.skipped > 0
    assert {file[-5:] for row in rows for file in row["skipped_by_file"]} == {"0.tar"}


@pytest.mark.parametrize(
    "options, part",
    [({"rank": 2, "world_size": 2}, "rank 2"), ({"world_size": 4}, "multiple"), ({"workers": -1}, "workers -1")],
)
def test_loader_refuses_what_cannot_work(clean, options, part):
    with pytest.raises(ValueError, match=part):
        make_loader(clean, **options)


def test_order_of_another_source_is_refused(clean):
    transform = ImageTransform(SHAPES)
    with pytest.raises(ValueError, match="59 samples"):
        SampleLoader(clean, transform, BatchOrder(np.zeros(59, dtype=int), 2, 0), seed=0)
    with pytest.raises(ValueError, match="bucket 7"):
        SampleLoader(clean, transform, BatchOrder(np.full(60, 7), 2, 0), seed=0)


# ---- passes and shared memory


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_in_passes_is_the_same_step(damaged, workers):
    whole = take(make_loader(damaged), 8)
    loader = make_loader(damaged, passes=3, workers=workers, finish=caption_lengths)
    parts = take(loader, 24)
    for step, batch in whole:
        mine = [part for number, part in parts if number == step]
        assert [part.number for part in mine] == [0, 1, 2] and all(len(part) == 2 for part in mine)
        assert np.array_equal(np.concatenate([part.pixels for part in mine]), batch.pixels)
        assert np.concatenate([part.indices for part in mine]).tolist() == batch.indices.tolist()
        made = np.concatenate([part.finished["lengths"] for part in mine])
        assert made.tolist() == [len(record.captions["zh"]) for record in batch.records]
        assert all(part.records == [] for part in mine)
    assert loader.report.used == 48 and loader.report.skipped > 0
    with pytest.raises(ValueError, match="passes 4"):
        make_loader(damaged, passes=4)


def test_arrays_lie_in_memory_of_both_processes_until_nobody_needs_them():
    gc.collect()  # what earlier tests left
    before = mapped()
    ours, theirs = Pipe()
    large = np.arange(2**20, dtype=np.int64)
    sender = threading.Thread(target=shared.send, args=(theirs, {"large": large, "none": None, "empty": large[:0]}))
    sender.start()
    found = shared.receive(ours)
    sender.join()
    assert np.array_equal(found["large"], large) and found["none"] is None and len(found["empty"]) == 0
    found["large"][0] = 7  # ours alone by now
    assert mapped() == before + 1
    part = found["large"][5:6]
    del found
    assert mapped() == before + 1 and part[0] == 5
    del part
    assert mapped() == before


def mapped() -> int:
    return sum("ppvilg-batch" in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_a_pool_ends_with_its_work(count):
    pool = WorkerPool(partial(np.full, 3), 3, 2, ((i,) for i in range(count)))
    try:
        assert [int(result[0]) for result in pool] == list(range(count))
    finally:
        pool.close()


def test_work_that_cannot_be_named_is_an_error():
    def arguments():
        yield (1,)
        raise KeyError("lost")

    pool = WorkerPool(partial(np.full, 3), 2, 2, arguments())
    try:
        with pytest.raises(KeyError, match="lost"):
            list(pool)
    finally:
        pool.close()


def test_work_that_a_worker_cannot_import_is_an_error():
    pool = WorkerPool(FarAway(), 2, 2, iter([(1,), (2,), (3,)]))
    try:
        with pytest.raises(ModuleNotFoundError, match="nowhere"):
            list(pool)
    finally:
        pool.close()


class FarAway:
    def __reduce__(self):
        return importlib.import_module, ("nowhere",)
