"""Kills workers and servers at random while jobs are drawn: each job ends once, with the picture it has undisturbed.

A job that kills its worker fails after its attempts, and a server that is asked to end loses nothing.

    python tests/benchmarks/service_kills.py [--jobs 100] [--kills 20] [--steps 8] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import own_tests  # noqa: F401
from sqlalchemy import select

from ppvilg.serving.store import Store, gallery, jobs, sqlite_url, tables, workers
from ppvilg.serving.store.claims import MAX_ATTEMPTS
from tests.serving.processes import ServerProcess
from tests.serving.running import until

POISON = "毒"
HOURS = 3600.0


def poisoned(settings: dict, picture) -> None:
    """A filter, of --filter: whoever has drawn the poisoned prompt dies of it."""
    if picture is not None and settings["prompt"] == POISON:
        os.kill(os.getpid(), signal.SIGKILL)


class Trial:
    """A server over a folder of data that is started again after it was killed."""

    def __init__(self, model: str, data: Path, steps: int) -> None:
        self.model, self.data, self.steps = model, data, steps
        self.store = Store(sqlite_url(data.parent / "jobs.sqlite"))
        self.server = self._started()

    def _started(self) -> ServerProcess:
        database = sqlite_url(self.data.parent / "jobs.sqlite")
        hook = f"{Path(__file__).stem}:poisoned"
        return ServerProcess(self.model, self.data, "--database", database, "--filter", hook).__enter__()

    def submit(self, count: int, first_seed: int = 0) -> list[str]:
        return [self.server.submit(seed=first_seed + each, num_inference_steps=self.steps) for each in range(count)]

    def is_at_work(self) -> bool:
        """Whether a worker that lives holds a job; those of the killed are held until their leases end."""
        alive = {each.id for each in workers.present(self.store) if each.state == "ready"}
        with self.store.reading() as connection:
            held = select(tables.jobs.c.worker).where(tables.jobs.c.state == "running")
            return not alive.isdisjoint(connection.execute(held).scalars())

    def finished(self, ids: list[str]) -> dict[str, float]:
        """When each of the jobs that have ended did so."""
        found = {id: jobs.find(self.store, None, id) for id in ids}
        return {id: job.finished for id, job in found.items() if job.is_final}

    def pictures(self, ids: list[str]) -> list[list[str]]:
        found = gallery.of_jobs(self.store, ids)
        return [[picture.sha256 for picture in found[id]] for id in ids]

    def kill_worker(self) -> None:
        for worker in self.server.workers():
            os.kill(worker, signal.SIGKILL)

    def kill_server(self) -> None:
        self.server.process.kill()
        self.server.process.wait(30)
        self.server = self._started()

    def restart(self) -> int:
        """Exit code of a server that was asked to end."""
        code = self.server.end()
        self.server = self._started()
        return code


def disturb(trial: Trial, ids: list[str], kills: int, chance: random.Random) -> tuple[int, dict[str, float]]:
    """Kills at random until all jobs have ended; (kills of servers, when each job was first seen to have ended)."""
    ended: dict[str, float] = {}
    servers = 0
    for number in range(kills):
        until(trial.is_at_work, "work", HOURS, 0.1)
        time.sleep(chance.uniform(0, 4))
        kind = "server" if chance.random() < 0.3 else "worker"
        servers += kind == "server"
        trial.kill_server() if kind == "server" else trial.kill_worker()
        ended = {**trial.finished(ids), **ended}
        print(f"kill {number + 1}: a {kind}; {len(ended)} of {len(ids)} jobs have ended", flush=True)
        if len(ended) == len(ids):
            raise AssertionError(f"all jobs ended after {number + 1} kills: give more --jobs")
    until(lambda: len(trial.finished(ids)) == len(ids), "all jobs", HOURS, 0.5)
    return servers, {**trial.finished(ids), **ended}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="emoji64")
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(arguments.model, Path(folder) / "data", arguments.steps)
        try:
            run(trial, arguments)
        finally:
            trial.server.kill()
            trial.store.close()


def run(trial: Trial, arguments: argparse.Namespace) -> None:
    calm = trial.submit(arguments.jobs)
    until(lambda: len(trial.finished(calm)) == len(calm), "the undisturbed jobs", HOURS, 0.5)
    disturbed = trial.submit(arguments.jobs)
    servers, ended = disturb(trial, disturbed, arguments.kills, random.Random(arguments.seed))
    print(f"{arguments.kills} kills, {servers} of them of the server")
    report(trial, calm, disturbed, ended)

    bad, [good] = trial.server.submit(prompt=POISON, num_inference_steps=1), trial.submit(1)
    until(lambda: len(trial.finished([bad, good])) == 2, "the poisoned job", HOURS, 0.5)
    found = jobs.find(trial.store, None, bad)
    assert (found.state, found.error_code, found.attempts) == ("failed", "attempts", MAX_ATTEMPTS), found
    assert trial.pictures([good]) == trial.pictures(calm[:1])
    print(f"the poisoned job failed after {found.attempts} attempts; the one beside it was drawn")

    last = trial.submit(arguments.jobs)
    until(lambda: any(trial.pictures(last)), "the first picture", HOURS)
    assert trial.restart() == 0
    until(lambda: len(trial.finished(last)) == len(last), "the jobs of the server that ended", HOURS, 0.5)
    report(trial, calm, last, trial.finished(last))


def report(trial: Trial, calm: list[str], disturbed: list[str], ended: dict[str, float]) -> None:
    """AssertionError unless every job ended well, once, with the picture that it has undisturbed."""
    states = [jobs.find(trial.store, None, id).state for id in disturbed]
    assert states == ["done"] * len(disturbed), states
    assert trial.finished(disturbed) == ended, "a job has ended twice"
    assert trial.pictures(disturbed) == trial.pictures(calm), "a picture is another one"
    attempts = [jobs.find(trial.store, None, id).attempts for id in disturbed]
    print(f"{len(disturbed)} jobs done, each once, with the same pictures; most attempts of one job: {max(attempts)}")


if __name__ == "__main__":
    main()
