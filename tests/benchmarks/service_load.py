"""The service under load: pictures a second, who waits for whom, and whether sharing steps changes a picture.

    python tests/benchmarks/service_load.py [-m emoji64] [--jobs 64] [--steps 20] [--mixed 32] [--parts mixed ...]

Jobs at once against one after another run over a server of its own on loopback, in one run, so that the ratio holds on
a machine that is busy; the rest counts sweeps and reads of experts in this process.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import httpx
import own_tests  # noqa: F401

from ppvilg.serving.model.info import find_model, read_model
from ppvilg.serving.store import Store, sqlite_url
from ppvilg.serving.store.keys import new_key
from tests.serving.desk import Desk
from tests.serving.processes import ServerProcess
from tests.serving.running import until

OWNERS = 8
PARTS = ["mixed", "fairness", "previews", "throughput"]
PROMPTS = ("三只企鹅", "蓝色背景上的一辆红色出租车", "左边是一只猫，右边是一棵树", "黄色背景上的一只熊猫", "一只狗")
SAMPLERS = ("ddim", "ddpm", "pndm", "dpmsolver++", "unipc", "euler", "euler_ancestral")


def throughput(model: str, folder: Path, count: int, steps: int, slots: int) -> None:
    """Pictures a second one after another and all at once."""
    with ServerProcess(model, folder / "data", "--slots", str(slots)) as server:
        store = Store(sqlite_url(folder / "data" / "service.sqlite"))
        secrets = [new_key(store, f"owner {number}")[1] for number in range(OWNERS)]
        store.close()
        clients = [
            httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {each}"}, trust_env=False, timeout=60)
            for each in secrets
        ]

        def draw(numbers: range) -> None:
            asked = [
                {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "num_inference_steps": steps}
                for number in numbers
            ]
            ids = [
                (clients[number % OWNERS], clients[number % OWNERS].post("/v1/jobs", json=each).json()["id"])
                for number, each in zip(numbers, asked)
            ]
            for client, id in ids:
                address = f"/v1/jobs/{id}"
                until(lambda c=client, a=address: c.get(a).json()["state"] == "done", address, 3600, pause=0.01)

        def timed(numbers: range, together: bool) -> float:
            start = time.perf_counter()
            for part in [numbers] if together else [range(each, each + 1) for each in numbers]:
                draw(part)
            return time.perf_counter() - start

        half = count // 2  # before and after, so that a machine that slows down counts for both
        alone = timed(range(half), False)
        at_once = timed(range(count), True)
        alone += timed(range(half, count), False)
    print(f"{count} jobs of {steps} steps: {count / alone:.2f} pictures/s one after another, ", end="")
    print(f"{count / at_once:.2f} at once from {OWNERS} owners: {alone / at_once:.2f} times", flush=True)


def painter_of(model: str, **options):
    from ppvilg.pipelines import open_pipeline
    from ppvilg.serving.worker.painter import PipelinePainter

    return PipelinePainter(open_pipeline(model, **options), streams_experts=bool(options))


def fairness(model: str, painter, folder: Path, steps: int, slots: int) -> None:
    """How many sweeps an owner with one job waits behind one with fifty."""
    desk = Desk(find_model(model), painter, folder, slots=slots)
    for seed in range(50):
        desk.submit("many", seed=seed, num_inference_steps=steps)
    for _ in range(3):
        desk.turn()
    one = desk.submit("one", num_inference_steps=steps)
    desk.turn()
    begun = any(task.job.id == one.id and task.drawing.step == 1 for task in desk.worker.engine.drawn)
    assert begun, "the job did not join the next sweep"
    turns = 1
    while not desk.state(one).is_final:
        desk.turn()
        turns += 1
    left = sum(not desk.state(job).is_final for job in jobs_of(desk, "many"))
    print(f"one job behind fifty: in the next sweep, drawn after {turns} sweeps of {steps} steps; {left} of 50 to do")
    assert turns <= steps + 1


def jobs_of(desk: Desk, owner: str):
    from ppvilg.serving.store import jobs

    return jobs.newest(desk.store, owner, limit=200)


def mixed_requests(model: str, count: int) -> list[dict]:
    """Requests that differ in everything that a request has."""
    info = read_model(model)
    asked = []
    for number, (prompt, sampler) in zip(range(count), itertools.cycle(itertools.product(PROMPTS, SAMPLERS))):
        width, height = list(info.shapes.values())[number % 3]
        scale = (1.0, 2.0, [1.0 + each / 2 for each in range(info.num_experts)])[number // 3 % 3]
        asked.append(
            {
                "prompt": prompt,
                "sampler": sampler,
                "seed": number,
                "width": width,
                "height": height,
                "num_inference_steps": 4 + number % 9,
                "guidance_scale": scale,
                "negative_prompt": "红色" if number % 4 == 1 else "",
                "style": "水彩" if number % 5 == 2 else None,
                "word_weights": {"企鹅": 2.0} if number % 10 == 0 else {},
            }
        )
    return asked


def sameness(model: str, painter, folder: Path, count: int, slots: int) -> list[list[str]]:
    """Draws mixed requests alone and together; AssertionError unless the pictures are the same to the byte."""
    desk = Desk(find_model(model), painter, folder, slots=slots)
    asked = mixed_requests(model, count)
    alone = []
    for each in asked:
        job = desk.submit(**each)
        desk.finish(job)
        alone.append(desk.hashes(job))
    together = []
    for number, each in enumerate(asked):
        together.append(desk.submit(f"owner {number % OWNERS}", **each))
        desk.turn()
    desk.finish(*together)
    same = sum(desk.hashes(job) == hashes for job, hashes in zip(together, alone))
    print(f"{same} of {count} mixed requests equal their pictures drawn alone, byte for byte")
    assert same == count and all(alone)
    return alone


def streaming(model: str, folder: Path, alone: list[list[str]], slots: int) -> None:
    """Reads of experts while they are streamed: each once a sweep, however many pictures share it."""
    painter = painter_of(model, max_resident_experts=1)
    desk = Desk(find_model(model), painter, folder, slots=slots)
    asked = mixed_requests(model, slots)
    handed_in = [desk.submit(f"owner {number}", **each) for number, each in enumerate(asked)]
    loads = painter.pipeline.unet.experts.record.loads
    before, sweeps = len(loads), 0
    while not all(desk.state(job).is_final for job in handed_in):
        desk.turn()
        sweeps += 1
    read = loads[before:]
    assert [desk.hashes(job) for job in handed_in] == alone[:slots], "a picture is another one"
    print(f"{slots} mixed pictures over one resident expert: {sweeps} sweeps, experts read in the order {read}")
    assert len(read) <= read_model(model).num_experts * sweeps


def previews(model: str, painter, folder: Path, steps: int, slots: int) -> None:
    """What part of the time it takes that somebody watches."""
    desk = Desk(find_model(model), painter, folder, slots=slots)
    made: list[float] = []
    preview = desk.worker.previews._preview

    def timed(drawing):
        start = time.perf_counter()
        picture = preview(drawing)
        made.append(time.perf_counter() - start)
        return picture

    def draw(owner: str) -> float:
        start = time.perf_counter()
        desk.finish(desk.submit(owner, num_images=slots, num_inference_steps=steps))
        return time.perf_counter() - start

    desk.worker.previews._preview = timed
    draw("nobody")
    assert not made
    spent = sum(draw("browser:watching") for _ in range(3))
    print(f"previews: {len(made)} of {3 * slots * steps} steps shown in {100 * sum(made) / spent:.1f} % of the time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="emoji64")
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--mixed", type=int, default=32)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        painter = painter_of(given.model)
        if "mixed" in given.parts:
            alone = sameness(given.model, painter, folder / "mixed", given.mixed, given.slots)
            streaming(given.model, folder / "streamed", alone, given.slots)
        if "fairness" in given.parts:
            fairness(given.model, painter, folder / "fair", given.steps, given.slots)
        if "previews" in given.parts:
            previews(given.model, painter, folder / "previews", given.steps, given.slots)
        if "throughput" in given.parts:
            throughput(given.model, folder, given.jobs, given.steps, given.slots)


if __name__ == "__main__":
    main()
