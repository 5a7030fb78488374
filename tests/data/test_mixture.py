"""Several data sets in their proportions, and shapes that fit the data."""

import itertools
import pickle

import numpy as np
import pytest

from ppvilg.data import (
    BadSample,
    BatchOrder,
    ImageTransform,
    LatentLoader,
    MixedSource,
    SampleLoader,
    encode_latents,
    fit_shapes,
    open_source,
    repeats_of,
)
from ppvilg.data.fitting import candidate_shapes
from ppvilg.data.mixture import MixedBuckets
from ppvilg.data.order import ArrayBuckets
from tests.data.test_latents import SHAPES, encode
from tests.data.test_loader import build_shard

SIZES = (60, 25, 7)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return [open_source(build_shard(folder / f"{n}.tar", n, (3,) if n == 25 else ())) for n in SIZES]


def set_of(indices) -> np.ndarray:
    return np.searchsorted(np.cumsum(SIZES), indices, side="right")


def test_samples_are_those_of_their_sets(sources):
    mixed = MixedSource(sources, [1, 2, 3])
    assert len(mixed) == len(mixed.keys) == len(mixed.sizes) == 92
    for index, source, place in ((0, 0, 0), (59, 0, 59), (60, 1, 0), (84, 1, 24), (85, 2, 0), (91, 2, 6)):
        one, other = mixed.read(index), sources[source].read(place)
        assert one.key == other.key == mixed.keys[index] and one.image.tobytes() == other.image.tobytes()
        assert mixed.read_text(index).source == other.source
        assert (mixed.sizes[index] == sources[source].sizes[place]).all()
    assert (mixed.sizes[55:65] == np.concatenate([sources[0].sizes[55:], sources[1].sizes[:5]])).all()
    with pytest.raises(BadSample):
        mixed.read(63)
    with pytest.raises(IndexError):
        mixed.read(92)
    assert list(mixed.captions()) == [each for source in sources for each in source.captions()]
    again = pickle.loads(pickle.dumps(mixed))
    assert again.fingerprint() == mixed.fingerprint() == MixedSource(sources, [1, 1, 1]).fingerprint()
    assert mixed.fingerprint() != MixedSource(sources[::-1], [1, 2, 3]).fingerprint()


@pytest.mark.parametrize("repeats", [[1, 3, 10], repeats_of(SIZES, [5, 3, 2]), [1, 1, 1]])
def test_every_epoch_holds_each_set_as_often_as_asked(sources, repeats):
    """Exactly, over all buckets; the samples of a set come equally often, also where an epoch holds 2.5 of each."""
    transform, mixed = ImageTransform(SHAPES), MixedSource(sources, repeats)
    order = BatchOrder(mixed.mixed(mixed.buckets(transform)), 4, seed=3)
    total = order.num_samples
    assert order.num_different == 92 and abs(total - np.dot(SIZES, repeats)) <= 1.5 * len(SHAPES)
    drawn = np.concatenate([order.batch(step)[1] for step in range(order.epoch_start(10))])
    shares = np.bincount(set_of(drawn), minlength=3) / len(drawn)
    np.testing.assert_allclose(shares, np.multiply(SIZES, repeats) / np.dot(SIZES, repeats), atol=0.01)
    counts = np.bincount(drawn, minlength=92)
    for number in range(3):
        members = counts[set_of(np.arange(92)) == number]
        assert members.max() - members.min() <= 4 + 0.2 * members.mean(), "rounding by bucket"


def test_weights_are_shares_of_the_samples():
    assert repeats_of([100, 10], [1, 1]) == [1.0, 10.0] and repeats_of([10, 100], [3, 1]) == [30.0, 1.0]
    with pytest.raises(ValueError, match="weights above 0"):
        repeats_of([10, 10], [1, 0])


def test_proportions_hold_from_the_first_batches_on(sources):
    mixed = MixedSource(sources, repeats_of(SIZES, [1, 1, 2]))
    order = BatchOrder(mixed.mixed(mixed.buckets(ImageTransform([(16, 16)]))), 32, seed=0)
    for first in (0, 400):
        drawn = np.concatenate([order.batch(step)[1] for step in range(first, first + 60)])
        np.testing.assert_allclose(np.bincount(set_of(drawn), minlength=3) / len(drawn), [0.25, 0.25, 0.5], atol=0.05)


def test_fractions_go_round_with_the_epochs():
    buckets = MixedBuckets(ArrayBuckets(np.zeros(10, int)), [0, 4, 10], [2.5, 1.0])
    assert buckets.counts == [16]
    for epochs in (1, 2, 10):
        drawn = [buckets.members(0, np.arange(16), epoch) for epoch in range(epochs)]
        counts = np.bincount(np.concatenate(drawn), minlength=10)
        assert np.ptp(counts[:4]) <= 1 and (counts[4:] == epochs).all() and counts[:4].sum() == 10 * epochs


def test_a_mixture_is_loaded_the_same_from_any_step_by_any_ranks_and_workers(sources, tmp_path):
    """Pictures and latents; the bad sample is left out of the latents, whose sets begin elsewhere then."""
    transform, mixed = ImageTransform(SHAPES), MixedSource(sources, repeats_of(SIZES, [1, 1, 1]))
    store = encode_latents(encode, mixed, transform, tmp_path / "latents", "training", chunk=8)
    assert len(store) == 91
    orders = {kind: BatchOrder(pickle.loads(pickle.dumps(buckets)), 8, 1) for kind, buckets in (
        ("pictures", mixed.mixed(mixed.buckets(transform))), ("latents", mixed.mixed(store.members, store.kept)))}

    def load(kind, first, ranks, workers):
        batches = []
        for rank in range(ranks):
            loader = (LatentLoader(store, orders[kind], rank, ranks, workers) if kind == "latents"
                      else SampleLoader(mixed, transform, orders[kind], 5, rank, ranks, workers))
            iterator = loader.iterate_from(first)
            batches.append([next(iterator)[1].indices for _ in range(12 - first)])
            iterator.close()
        return [np.concatenate(parts) for parts in zip(*batches)]

    for kind in orders:
        whole = load(kind, 0, 1, 0)
        for one, other in zip(whole[5:], load(kind, 5, 2, 1)):
            np.testing.assert_array_equal(one, other)
    for indices in load("latents", 0, 1, 0):
        for index in indices:
            assert store.records[index].key == mixed.keys[int(store.kept[index])]
    drawn = np.concatenate([orders["latents"].batch(step)[1] for step in range(200)])
    shares = np.bincount(set_of(np.array(store.kept)[drawn]), minlength=3) / len(drawn)
    np.testing.assert_allclose(shares, [1 / 3] * 3, atol=0.03)


# ---- shapes that fit


def loss_of(shapes, sizes) -> float:
    """What is cropped away on average."""
    logs = [np.log(w / h) for w, h in shapes]
    return float(np.mean([1 - np.exp(-min(abs(np.log(w / h) - log) for log in logs)) for w, h in sizes]))


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_other_shapes_lose_less(most):
    rng = np.random.default_rng(most)
    sizes = np.stack([rng.integers(300, 900, 300), rng.integers(200, 1200, 300)], 1)
    candidates = candidate_shapes(256 * 256, 64)
    best = min(loss_of(shapes, sizes) for shapes in itertools.combinations(candidates, most))
    found = fit_shapes(sizes, 256 * 256, 64, most)
    assert loss_of([each.shape for each in found], sizes) == pytest.approx(best, abs=0.01)
    assert sum(each.share for each in found) == pytest.approx(1.0)
    expected = np.average([each.cropped for each in found], weights=[each.share for each in found])
    assert expected == pytest.approx(loss_of([each.shape for each in found], sizes), abs=0.003)


def test_found_shapes_are_those_of_the_data():
    sizes = np.array([[640, 640]] * 50 + [[640, 960]] * 30 + [[1600, 900]] * 20)
    found = fit_shapes(sizes, 512 * 512, 64, 8)
    assert {each.shape for each in found} == {(512, 512), (384, 640), (640, 384)} or len(found) == 3
    assert [round(each.share, 2) for each in found] == [0.5, 0.3, 0.2] and max(e.cropped for e in found) < 0.12
    assert all(w * h <= 512 * 512 and not w % 64 and not h % 64 for w, h in (each.shape for each in found))
    assert [each.shape for each in fit_shapes(sizes[:50], 512 * 512, 64, 8)] == [(512, 512)]
    with pytest.raises(ValueError, match="too few"):
        fit_shapes(sizes, 100, 64, 8)
