"""Axes, layouts and experts per group: plain numbers; and recipes whose axes cannot be."""

from __future__ import annotations

import itertools

import pytest

from ppvilg.config import ConfigError
from ppvilg.engine import distributed
from ppvilg.engine.parallel.layout import Axes, experts_of, layout_of, resolve_axes

SIZES = list(itertools.product((1, 2, 3), (1, 2, 4), (1, 2, 5)))


@pytest.mark.parametrize("sizes", SIZES)
def test_every_rank_has_one_place(sizes):
    axes = Axes(*sizes)
    for grouped in (False, True):
        places = [layout_of(rank, axes, grouped) for rank in range(axes.world)]
        groups = sorted({place.ranks for place in places})
        assert sum(groups, ()) == tuple(range(axes.world)) and len(groups) == (axes.expert if grouped else 1)
        for rank, place in enumerate(places):
            assert place.ranks[place.share] == rank and place.shares * place.groups == axes.world
            assert rank in place.data_ranks and rank in place.sharding_ranks
            # the two axes meet in this rank alone, and together they reach every rank of the group
            assert set(place.data_ranks) & set(place.sharding_ranks) == {rank}
            assert len(place.data_ranks) * len(place.sharding_ranks) == place.shares
            for other in place.data_ranks:
                assert places[other].data_ranks == place.data_ranks
            for other in place.sharding_ranks:
                assert places[other].sharding_ranks == place.sharding_ranks
        writers = [place.writer for place in places if place.writer is not None]
        assert writers == list(range(places[0].writers)) and places[0].writer == 0


def test_fleet_has_the_same_order():
    """Fleet's own topology, data outside and sharding inside, against ours."""
    from paddle.distributed.fleet.base.topology import CommunicateTopology

    fleet = CommunicateTopology(["data", "pipe", "sharding", "sep", "context", "model"], [3, 1, 4, 1, 1, 1])
    places = [layout_of(rank, Axes(3, 4, 1), False) for rank in range(12)]
    assert sorted({place.data_ranks for place in places}) == sorted(map(tuple, fleet.get_comm_list("data")))
    assert sorted({place.sharding_ranks for place in places}) == sorted(map(tuple, fleet.get_comm_list("sharding")))


def test_what_is_left_is_data():
    assert resolve_axes(None, 2, 3, 12) == Axes(2, 2, 3)
    assert resolve_axes(4, 1, 1, 4) == Axes(4, 1, 1)
    assert resolve_axes(None, 1, 1, 1) == Axes()


@pytest.mark.parametrize("sizes, world, message", [
    ((None, 3, 1), 4, "distributed.sharding=3 times distributed.expert=1 does not divide the world: 4 ranks"),
    ((None, 1, 2), 1, "distributed.expert=2 does not divide the world: 1 rank was started"),
    ((2, 1, 1), 4, "distributed.data=2 x sharding=1 x expert=1 needs 2 ranks, and 4 ranks were started"),
    ((None, 0, 1), 4, "distributed.sharding=0: must be at least 1"),
])
def test_sizes_that_do_not_divide_the_world(sizes, world, message):
    with pytest.raises(ConfigError, match=message):
        resolve_axes(*sizes, world)


def test_wrong_axes_are_found_before_ranks_meet(make_recipe, tmp_path, monkeypatch):
    from paddle.distributed import fleet

    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "4")
    monkeypatch.setattr(fleet, "init", lambda *_, **__: pytest.fail("ranks met"))
    for override in ("distributed.sharding=3", "distributed.data=3"):
        with pytest.raises(ConfigError, match=override.partition("=")[0]):
            distributed.start(make_recipe(tmp_path / "out", override).distributed)


def test_experts_are_dealt_out_in_turn():
    assert [experts_of(group, 2, range(10)) for group in range(2)] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert experts_of(0, 1, [7, 3]) == [3, 7]
    with pytest.raises(ConfigError, match="distributed.expert=4 groups cannot share 10 experts"):
        experts_of(0, 4, range(10))


@pytest.mark.parametrize("override, message", [
    ("train.experts.only=[3]", r"train.experts.only=\[3\]: different numbers from 0 to 2"),
    ("train.experts=[1,1]", r"train.experts.only=\[1, 1\]"),
    ("precision.level=O3", "precision.level='O3': use O0, O1 or O2"),
    ("precision.dtype=float8", "precision.dtype='float8'"),
    ("distributed.sharding_stage=3", "distributed.sharding_stage=3: use 1 or 2"),
    ("distributed.bucket_megabytes=0", "distributed.bucket_megabytes=0.0: must be more than 0"),
])
def test_wrong_settings(make_recipe, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        make_recipe(tmp_path / "out", override)


def test_a_list_of_experts_is_short_for_only(make_recipe, tmp_path):
    assert list(make_recipe(tmp_path / "out", "train.experts=[2,0]").train.experts.only) == [2, 0]


def test_experts_that_are_trained_apart_share_their_text_encoder(make_recipe, tmp_path):
    with pytest.raises(ConfigError, match="train.experts.train_text_encoder=true"):
        make_recipe(tmp_path / "out", "train.experts=[2]", "train.experts.train_text_encoder=true")
