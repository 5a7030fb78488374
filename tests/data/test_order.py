"""The order of samples is computed: one-to-one, well mixed, near itself on disk, in memory that does not grow."""

import math
import pickle
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from ppvilg.data import BatchOrder, ImageTransform, RangeBuckets
from ppvilg.data import order as order_module
from ppvilg.data.buckets import ShapeBuckets, shape_buckets, write_buckets
from ppvilg.data.order import ArrayBuckets, BlockPermutation, Permutation, key_of


@pytest.fixture(params=["sorted", "enciphered"])
def method(request, monkeypatch):
    """Permutations of both kinds, whatever their size."""
    if request.param == "enciphered":
        monkeypatch.setattr(order_module, "_SORTED", 1)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 100, 1023, 4097])
def test_permutation_is_one_to_one(n, method):
    for key in range(3):
        assert sorted(Permutation(n, key)(np.arange(n)).tolist()) == list(range(n))


def test_every_permutation_is_equally_likely():
    found = Counter(tuple(Permutation(4, key)(np.arange(4)).tolist()) for key in range(2400))
    chi_square = sum((count - 100) ** 2 / 100 for count in found.values())
    assert len(found) == math.factorial(4) and chi_square < 49.7  # 23 degrees of freedom, one in a thousand


def test_enciphered_order_is_as_good_as_a_random_one():
    n = 170_000_000
    values = Permutation(n, 3)(np.arange(20_000))
    assert len(set(values.tolist())) == 20_000 and values.min() >= 0 and values.max() < n
    share = np.bincount(values * 16 // n, minlength=16)
    assert ((share - 1250) ** 2 / 1250).sum() < 37.7  # 15 degrees of freedom, one in a thousand
    for other in (np.arange(20_000), np.roll(values, 1), Permutation(n, 4)(np.arange(20_000))):
        assert abs(np.corrcoef(values, other)[0, 1]) < 0.03


def test_permutations_are_pinned():
    """They must be the same on every machine, in every version of every library."""
    assert Permutation(10, 1)(np.arange(10)).tolist() == [1, 8, 7, 0, 2, 9, 3, 4, 6, 5]
    assert Permutation(10**9, 1)(np.arange(4)).tolist() == [785104499, 955824086, 82952895, 540830045]


@pytest.mark.parametrize("n", [1, 7, 255, 256, 257, 1000, 16384, 16385, 50_000])
@pytest.mark.parametrize("block, window", [(256, 16384), (7, 20), (1, 1), (100, 1000)])
def test_block_permutation_is_one_to_one(n, block, window):
    values = BlockPermutation(n, 5, block, window)(np.arange(n))
    assert np.array_equal(np.sort(values), np.arange(n))


def test_a_window_of_positions_touches_few_blocks():
    n, block, window = 1_000_000, 256, 16384
    shuffled = BlockPermutation(n, 0, block, window)
    seen = []
    for start in range(0, 5 * window, window):
        values = shuffled(np.arange(start, start + window))
        blocks = np.unique(values // block)
        assert len(blocks) <= window // block + 1  # one more where the short block was walked over
        seen.append(blocks)
        assert abs(np.corrcoef(values, np.roll(values, 1))[0, 1]) < 0.05  # but within them it is well mixed
    assert np.ptp(np.concatenate(seen)) > 0.9 * n / block  # and they lie all over the data


def test_memory_does_not_grow_with_the_number_of_samples():
    """170 million samples in two shapes: what is kept is as large as for a hundred times fewer."""
    peaks = {}
    for count in (1_700_000, 170_000_000):
        tracemalloc.start()
        order = BatchOrder(RangeBuckets({0: count * 8 // 10, 1: count * 2 // 10}), 1024, seed=0)
        last = order.epoch_start(1) - 1
        for step in (0, 1, last // 2, last, last + 1, 10 * last):
            bucket, indices = order.batch(step)
            assert len(set(indices.tolist())) == 1024 and indices.max() < count
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[170_000_000] < 8 * 2**20 and peaks[170_000_000] < 1.5 * peaks[1_700_000] + 2**20


def test_whole_epoch_of_many_chunks_reads_everything_once(monkeypatch):
    monkeypatch.setattr(order_module, "_CHUNK", 16)  # so that an epoch has many
    counts = {0: 4000, 1: 1000, 3: 37}
    order = BatchOrder(RangeBuckets(counts), 8, seed=2, block=16, window=128)
    read = np.concatenate([order.batch(step)[1] for step in range(order.epoch_start(1))])
    assert len(np.unique(read)) == len(read) and len(read) > 5037 - 3 * 8
    quarter = [order.batch(step)[0] for step in range(order.epoch_start(1) // 4)]
    assert abs(np.mean(np.array(quarter) == 1) - 1000 / 5037) < 0.03  # shapes keep their proportion all along


@pytest.mark.parametrize("world", [1, 2, 4, 8, 32])
def test_any_number_of_ranks_reads_the_same_and_nothing_twice(world):
    """Resuming with another number of ranks: the union of the ranks' parts is the global batch, slot by slot."""
    buckets = np.random.default_rng(0).integers(0, 3, 5000)
    order, share = BatchOrder(buckets, 32, seed=1), 32 // world
    for step in (0, 3, 77, 156, 157, 1000):
        bucket, whole = order.batch(step)
        parts = [BatchOrder(buckets, 32, seed=1).part(step, r * share, (r + 1) * share) for r in range(world)]
        assert [part[0] for part in parts] == [bucket] * world
        assert np.concatenate([part[1] for part in parts]).tolist() == whole.tolist()


def test_shape_buckets_on_disk_equal_those_in_memory(tmp_path):
    sizes = np.random.default_rng(0).integers(10, 40, (1000, 2)).astype(np.int32)
    transform = ImageTransform([(16, 16), (16, 24), (24, 16)])
    kept = shape_buckets(tmp_path, sizes, transform, chunk=77)
    held = ArrayBuckets(transform.buckets_of(sizes))
    assert list(kept.numbers) == list(held.numbers) and list(kept.counts) == list(held.counts)
    for bucket, count in zip(held.numbers, held.counts):
        assert np.array_equal(kept.members(bucket, np.arange(count)), held.members(bucket, np.arange(count)))
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    assert shape_buckets(tmp_path, sizes, transform).counts == kept.counts and file.stat().st_mtime_ns == before
    orders = [BatchOrder(buckets, 8, 3) for buckets in (kept, held, pickle.loads(pickle.dumps(kept)))]
    orders.append(pickle.loads(pickle.dumps(orders[0])))
    for step in range(0, 300, 7):
        assert len({(bucket, tuple(indices)) for bucket, indices in (o.batch(step) for o in orders)}) == 1


def test_buckets_without_samples_are_left_out(tmp_path):
    write_buckets(tmp_path / "b.npy", 4, 3, lambda a, b: np.array([2, 0, 2, 2])[a:b], chunk=3)
    buckets = ShapeBuckets(tmp_path / "b.npy")
    assert buckets.numbers == [0, 2] and buckets.counts == [1, 3]
    assert buckets.members(2, np.arange(3)).tolist() == [0, 2, 3]
    ranges = RangeBuckets({0: 2, 1: 0, 4: 3})
    assert ranges.numbers == [0, 4] and ranges.members(4, np.arange(3)).tolist() == [2, 3, 4]


def test_what_cannot_work_is_refused():
    for make in (lambda: Permutation(0, 1), lambda: BlockPermutation(5, 1, 4, 3), lambda: RangeBuckets({0: 0}),
                 lambda: key_of(-1), lambda: key_of(2**64)):  # fmt: skip
        with pytest.raises(ValueError):
            make()
    assert len({key_of(0), key_of(0, 0), key_of(1), key_of(0, 1), key_of(1, 0)}) == 5
