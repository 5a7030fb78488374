"""The monitor: every rank's numbers arrive exactly, stragglers are found, one VisualDL log survives kills."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from ppvilg.engine import distributed, monitor
from ppvilg.engine.monitor import KINDS, Monitor, RankRow, find_stragglers, gather
from ppvilg.engine.parallel.traffic import Amount


def row(own: float, steps: int = 10, **fields) -> RankRow:
    return RankRow(steps=steps, samples=40, seconds=2.0, own_seconds=own, **fields)


def test_rows_survive_float32():
    sent = dict.fromkeys(KINDS, 0) | {"gradients": 2**40 + 123_457, "log": 7}
    packed = np.array(row(1.5, communication_bytes=sent).pack()).astype(np.float32).astype(np.float64)
    assert RankRow.unpack(packed) == row(1.5, communication_bytes=sent)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_gather_gives_every_rank_every_row(monkeypatch, world):
    """The reduction is played by its definition: the mean over what all ranks would send."""
    rows = [row(float(rank), memory_mib=100.0 + rank) for rank in range(world)]
    tables = []
    for rank in range(world):
        table = np.zeros((world, len(rows[rank].pack())))
        table[rank] = rows[rank].pack()
        tables.append(table.reshape(-1))
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    monkeypatch.setattr(distributed, "mean_over_ranks", lambda values: np.mean(tables, axis=0))
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        assert gather(rows[rank]) == rows


def test_stragglers_are_those_who_need_longer_themselves():
    assert find_stragglers([row(1.0)]) == []
    assert find_stragglers([row(1.0), row(1.2), row(1.1)]) == []
    assert find_stragglers([row(1.0), row(2.0)]) == [(1, 2.0)]
    assert find_stragglers([row(1.0), row(1.0), row(0.5, reader_seconds=2.5)]) == [(2, pytest.approx(3.0))]
    # a rank of another expert group took fewer steps, or none
    assert find_stragglers([row(1.0), row(0.5, steps=5), row(0.0, steps=0)]) == []


@pytest.fixture
def two_ranks(monkeypatch):
    """This process as the main one of two ranks; the other is slow."""
    slow = row(9.0, memory_mib=5.0, communication_bytes=dict.fromkeys(KINDS, 3))
    monkeypatch.setattr(monitor, "gather", lambda mine: [mine, slow])
    monkeypatch.setenv("PADDLE_TRAINER_ENDPOINTS", "10.0.0.1:6170,10.0.0.2:6170")


def test_log_says_how_every_rank_does(tmp_path, two_ranks, caplog):
    watched = Monitor(tmp_path, "base", 10, 0, 8, enabled=True)
    counted = distributed.traffic.amounts.setdefault(("gradients", "data"), Amount())
    for _ in range(4):
        counted.bytes, counted.seconds = counted.bytes + 1000, counted.seconds + 0.05
        watched.step(0.01, 4, 0.1)
    with caplog.at_level(logging.WARNING):
        watched.log(4, {"loss": 0.5, "loss/expert_00": 0.4})
    watched.close()
    (line,) = [json.loads(text) for text in (tmp_path / "base.jsonl").read_text().splitlines()]
    main, other = line["ranks"]
    assert line["step"] == 4 and line["loss/expert_00"] == 0.4 and main["steps"] == 4 and main["samples"] == 16
    assert main["communication_bytes"]["gradients"] == 4000 and main["communication_bytes"]["weights"] == 0
    assert main["communication_seconds"] == pytest.approx(0.2) and main["reader_seconds"] == pytest.approx(0.04)
    assert main["own_seconds"] == pytest.approx(4 * 0.09 - 0.2) and main["memory_mib"] > 10
    assert line["samples_per_second"] == pytest.approx(56 / main["seconds"])
    assert other["rank"] == 1 and other["communication_bytes"] == dict.fromkeys(KINDS, 3)
    assert [(slow["rank"], slow["address"]) for slow in line["stragglers"]] == [(1, "10.0.0.2:6170")]
    assert "rank 1 (10.0.0.2:6170)" in caplog.text
    assert line["ranks/own_seconds/001"] == 9.0 and line["ranks/stragglers"] == 1.0


def test_windows_do_not_overlap(tmp_path):
    watched = Monitor(tmp_path, "base", 10, 0, 8, enabled=True)
    for step in range(4):
        watched.step(0.0, 8, 0.1)
        if step % 2:
            watched.log(step + 1, {"loss": 1.0})
    watched.close()
    lines = [json.loads(text) for text in (tmp_path / "base.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4] and "ranks" not in lines[0]
    assert all(line["samples_per_second"] > 0 and line["memory_mib"] > 0 for line in lines)


def scalars_of(path, tag):
    from visualdl import LogReader

    return [(item.id, item.value) for item in LogReader(file_path=str(path)).get_data("scalar", tag)]


@pytest.mark.parametrize("torn", [b"", b"\x07", b"\x40\0\0\0\0\0\0\0half a record"])
def test_one_visualdl_log_for_all_stages_and_restarts(tmp_path, torn):
    path = tmp_path / "visualdl" / "vdlrecords.run.log"
    for stage, step in (("base", 1), ("base", 2), ("experts", 1)):
        watched = Monitor(tmp_path, stage, 10, step, 8, enabled=True)
        watched.record(step, {"loss": float(step)})
        watched.close()
        with open(path, "ab") as file:  # as a kill in the middle of writing would leave it
            file.write(torn)
    monitor._cut_torn_end(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert scalars_of(path, "base/loss") == [(1, 1.0), (2, 2.0)] and scalars_of(path, "experts/loss") == [(1, 1.0)]


def test_other_ranks_write_nothing(tmp_path):
    watched = Monitor(tmp_path / "logs", "base", 10, 0, 8, enabled=False)
    watched.step(0.0, 8, 0.1)
    watched.log(1, {"loss": 1.0})
    watched.close()
    assert not (tmp_path / "logs").exists()
