"""Drawings of many people share steps, and each picture is the one that it is alone, byte for byte."""

from __future__ import annotations

import time

import pytest
from PIL import Image

from ppvilg.serving.store import claims, jobs
from tests.serving.desk import Desk
from tests.serving.running import until


@pytest.fixture(scope="module")
def painter(model_folder):
    from ppvilg.pipelines import open_pipeline
    from ppvilg.serving.worker.painter import PipelinePainter

    return PipelinePainter(open_pipeline(model_folder))


@pytest.fixture
def desk(model_folder, painter, tmp_path):
    return Desk(model_folder, painter, tmp_path)


MIXED = [
    {"prompt": prompt, "sampler": sampler, "seed": seed, "num_inference_steps": steps, "guidance_scale": scale, **size}
    for seed, (prompt, sampler, steps, scale, size) in enumerate(
        [
            ("三只企鹅", "ddim", 4, 2.0, {}),
            ("一辆红色出租车", "ddim", 7, 1.0, {"eta": 1.0}),
            ("三只企鹅", "ddpm", 6, 3.0, {"width": 24}),
            ("猫和树", "pndm", 5, [1.0, 4.0], {}),
            ("猫", "dpmsolver++", 8, 2.5, {"height": 24}),
            ("水彩", "unipc", 6, 2.0, {"style": "水彩"}),
            ("企鹅", "euler", 5, 2.0, {"negative_prompt": "红色"}),
            ("企鹅", "euler_ancestral", 9, 1.0, {}),
            ("企鹅", "euler_ancestral", 4, 2.0, {"word_weights": {"企鹅": 3.0}}),
            ("企鹅", "ddim", 1, 1.0, {}),
        ]
    )
]


def test_mixed_requests_equal_their_solo_pictures(desk):
    alone = []
    for asked in MIXED:
        job = desk.submit(**asked)
        desk.finish(job)
        assert desk.state(job).state == "done", desk.state(job)
        alone.append(desk.hashes(job))
    together = []
    for number, asked in enumerate(MIXED):
        together.append(desk.submit(f"owner {number % 3}", **asked))
        desk.turn()  # the next one joins those that are under way
    desk.finish(*together)
    assert [desk.hashes(job) for job in together] == alone
    assert len({hash for hashes in alone for hash in hashes}) == len(MIXED)


def test_streamed_experts_draw_the_same_and_are_read_once_a_sweep(desk, model_folder, tmp_path):
    from ppvilg.pipelines import open_pipeline
    from ppvilg.serving.worker.painter import PipelinePainter

    streaming = PipelinePainter(open_pipeline(model_folder, max_resident_experts=1), streams_experts=True)
    other = Desk(model_folder, streaming, tmp_path / "streamed")
    seen = []
    step = streaming.step
    streaming.step = lambda drawings: (seen.append(drawings[0].expert), step(drawings))[1]
    mine = [desk.submit(**asked) for asked in MIXED[:4]]
    theirs = [other.submit(f"owner {number}", **asked) for number, asked in enumerate(MIXED[:4])]
    desk.finish(*mine)
    other.finish(*theirs)
    assert [other.hashes(job) for job in theirs] == [desk.hashes(job) for job in mine]
    changes = [expert for number, expert in enumerate(seen) if not number or seen[number - 1] != expert]
    assert changes == [1, 0]


def test_one_picture_is_not_behind_many(desk):
    many = desk.submit("many", num_images=20, num_inference_steps=2)
    for _ in range(3):
        desk.turn()
    one = desk.submit("one", num_inference_steps=2)
    desk.finish(one, turns=3)  # a sweep to join in, and its steps
    assert desk.state(many).state == "running"
    done = len(desk.hashes(many))
    desk.finish(many)
    assert done < 15 and len(set(desk.hashes(many))) == 20


def test_cancel_ends_between_steps_and_keeps_what_is_finished(desk):
    job = desk.submit(num_images=6, num_inference_steps=5)
    other = desk.submit("b", num_inference_steps=30)
    until(lambda: desk.turn() or len(desk.hashes(job)) >= 3, "three pictures", pause=0)
    jobs.cancel(desk.store, "a", [job.id])
    time.sleep(0.11)
    desk.turn()
    assert desk.state(job).state == "cancelled" and 3 <= len(desk.hashes(job)) < 6
    desk.finish(other)
    assert desk.state(other).state == "done"


def test_progress_and_the_strip(desk):
    job = desk.submit("browser:x", num_images=2, num_inference_steps=10)
    shown = []

    def turn():
        desk.turn()
        desk.worker._reported = 0.0
        state = desk.state(job)
        shown.append(state.progress)
        return state.is_final

    until(turn, "the end of the job", pause=0)
    shown = [progress for progress in shown if progress]
    assert {each["expert"] for each in shown if each.get("expert") is not None} == {0, 1}
    assert [each["steps_done"] for each in shown] == sorted(each["steps_done"] for each in shown)
    strip = desk.state(job).progress["previews"]
    blocks = [
        {"expert": 1, "first_step": 0, "steps": 5, "from": 50, "to": 100},
        {"expert": 0, "first_step": 5, "steps": 5, "from": 0, "to": 50},
    ]
    assert shown[-1]["blocks"] == desk.state(job).progress["blocks"] == blocks
    assert [(each["picture"], each["expert"], each["step"]) for each in strip] == [
        (0, 1, 5), (0, 0, 10), (1, 1, 5), (1, 0, 10),
    ]  # fmt: skip
    for each in strip:
        assert Image.open(desk.folder.preview(job.id, f"{each['picture']}-{each['step']}.webp")).size == (16, 16)


def test_a_step_that_breaks_ends_its_job_alone(desk, painter, monkeypatch):
    bad, good = desk.submit("a", prompt="坏"), desk.submit("b")
    step = painter.step

    def breaking(drawings):
        if any(drawing.drawing.arguments.prompt in ("坏", ["坏"], ("坏",)) for drawing in drawings):
            raise RuntimeError("out of memory")
        step(drawings)

    monkeypatch.setattr(painter, "step", breaking)
    desk.finish(bad, good)
    assert (desk.state(bad).error_code, desk.state(good).state) == ("internal", "done")


def test_a_filter_answers_a_reason(model_folder, painter, tmp_path):
    desk = Desk(model_folder, painter, tmp_path, picture_filter=lambda settings, picture: "not for children")
    job = desk.submit()
    desk.finish(job)
    assert (desk.state(job).error_code, desk.state(job).error_message) == ("filtered", "not for children")
    assert desk.hashes(job) == []


def test_stopping_drains_or_hands_back(desk):
    short, long = desk.submit(num_inference_steps=3), desk.submit("b", num_inference_steps=99)
    desk.turn()
    desk.worker.stop(0.0)
    desk.worker.run()
    assert [desk.state(job).state for job in (short, long)] == ["queued", "queued"]
    assert desk.state(long).attempts == 0


def test_two_workers_on_postgresql_draw_each_picture_once(model_folder, painter, tmp_path, postgres_url):
    first = Desk(model_folder, painter, tmp_path, postgres_url)
    second = Desk(model_folder, painter, tmp_path, postgres_url)
    second.worker.name = "v"
    handed_in = [first.submit(f"owner {number % 3}", seed=number, num_inference_steps=2) for number in range(6)]

    def turn():
        first.turn()
        second.turn()
        return all(first.state(job).is_final for job in handed_in)

    until(turn, "all jobs", pause=0)
    assert [first.state(job).attempts for job in handed_in] == [1] * 6
    assert len({hash for job in handed_in for hash in first.hashes(job)}) == 6
    assert claims.claim(first.store, "w", 5, True) == []
