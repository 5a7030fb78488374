"""Ranks are SIGKILLed at random moments; the supervisor brings the run back, and it must end as if nothing had been.

    python tests/benchmarks/faults.py [--kills 20] [--seed 0] [--folder /tmp/faults] [--again] [--launcher]

Two gloo ranks (`distributed.expert=2`: base is data parallel, then each rank trains experts of its own and writes its
own part of every checkpoint) train a tiny recipe undisturbed, then under ppvilg.supervise while one rank after another
is killed: every other kill while a checkpoint is being written. Then weights, averages, moments and finished folders
are compared bit for bit, and processes that are left are counted. Ranks are forked from one process that has imported
the libraries; --launcher has the supervisor run paddle.distributed.launch instead.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from parallel import ROOT, STAGES, World, fork_rank, free_ports, same_bits

AXES = {"expert": 2}
STEPS, EVERY = 30, 3


class Killer(threading.Thread):
    """Kills a random rank of the attempt that is running, `kills` times, each attempt once it has made progress."""

    def __init__(self, supervisor, output: Path, kills: int, seed: int):
        super().__init__(daemon=True)
        self.supervisor, self.output, self.kills, self.rng = supervisor, output, kills, random.Random(seed)
        self.done: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        attempt = None
        while len(self.done) < self.kills and not self.over.is_set():
            if self.supervisor.process != attempt and self._has_begun():
                attempt = self.supervisor.process
                self._kill("writing" if len(self.done) % 2 else "anywhere")
            time.sleep(0.01)

    def _has_begun(self) -> bool:
        """Whether a stage is running in the attempt: its ranks hold their step counters in the logs."""
        logs = [self.output / "logs" / f"{stage}.jsonl" for stage in STAGES]
        newest = max((log.stat().st_mtime for log in logs if log.exists()), default=0.0)
        return newest > self.supervisor.started

    def _kill(self, kind: str) -> None:
        deadline = time.monotonic() + 60
        while kind == "writing" and not self._writing() and time.monotonic() < deadline and not self.over.is_set():
            time.sleep(0.0005)
        time.sleep(self.rng.random() * (0.003 if kind == "writing" else 2.0))
        chosen = self.supervisor.ranks()
        if not chosen:
            return
        rank = self.rng.randrange(len(chosen))
        half = self._writing()
        os.kill(chosen[rank], signal.SIGKILL)
        self.done.append(f"rank {rank}" + (f", {half} half-written" if half else ""))
        print(f"  kill {len(self.done):2d}: {self.done[-1]}", flush=True)

    def _writing(self) -> str:
        return ", ".join(path.name for path in (self.output / "checkpoints").glob("*/.step_*.partial"))


def supervised(world: World, output: Path, arguments: list[str], kills: int, seed: int) -> tuple[int, Killer]:
    """(exit code, killer) of a run under the supervisor."""
    from ppvilg import supervise

    def start() -> int:
        supervisor.started = time.time()
        if world.launcher:
            return subprocess.Popen(world.command(output, 2, arguments), start_new_session=True,
                                    stdout=open(f"{output}.log", "a"), stderr=subprocess.STDOUT,  # noqa: SIM115
                                    env=world.environment(), cwd=world.folder).pid
        process = os.fork()
        if process == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os._exit(max(map(abs, world.wait_for(fork_ranks(output, arguments)))))
        return process

    supervisor = supervise.Supervisor(start, restarts=10 * kills, wait=0.0)
    supervisor.started = time.time()
    find = supervise.ranks if world.launcher else supervise.descendants
    supervisor.ranks = lambda: find(supervisor.process) if supervisor.process else []
    killer = Killer(supervisor, output, kills, seed)
    killer.start()
    code = supervisor.run()
    killer.over.set()
    killer.join()
    return code, killer


def fork_ranks(output: Path, arguments: list[str]) -> list[int]:
    endpoints = [f"127.0.0.1:{port}" for port in free_ports(2)]
    return [fork_rank(rank, endpoints, f"{output}-{rank}.log", arguments) for rank in range(2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to run; a temporary folder if not given")
    parser.add_argument("--again", action="store_true", help="keep the undisturbed run that is in the folder")
    parser.add_argument("--launcher", action="store_true", help="run paddle.distributed.launch under the supervisor")
    arguments = parser.parse_args()
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="faults-"))).resolve()
    if folder.exists() and any(folder.iterdir()) and not arguments.again:
        raise SystemExit(f"error: {folder} is not empty; choose another folder")
    sys.path.insert(0, str(ROOT))
    from ppvilg.engine.checkpoint import hash_folder
    from ppvilg.supervise import descendants

    world = World(folder, STEPS, arguments.launcher)
    world.settings += [f"train.{stage}.checkpoint_every={EVERY}" for stage in STAGES]
    world.settings += [f"train.{stage}.keep_checkpoints=2" for stage in STAGES]
    print(f"undisturbed: {STEPS} steps of base and experts, a checkpoint every {EVERY}; logs in {folder}", flush=True)
    whole = world.run("undisturbed", AXES)
    print(f"the same with {arguments.kills} SIGKILLs:", flush=True)
    killed = folder / "killed"
    shutil.rmtree(killed, ignore_errors=True)
    code, killer = supervised(world, killed, world.arguments(killed, AXES), arguments.kills, arguments.seed)
    left = descendants(os.getpid())
    different = [stage for stage in STAGES if not same_bits(killed, whole, stage)
                 or hash_folder(killed / stage) != hash_folder(whole / stage)]
    half = sum("half-written" in line for line in killer.done)
    print(f"exit code {code}; {len(killer.done)} kills, {half} of them while a checkpoint was half-written; stages "
          f"that differ from the undisturbed run in any bit: {different or 'none'}; processes left behind: {len(left)}")
    sys.exit(bool(code or different or left or len(killer.done) < arguments.kills))


if __name__ == "__main__":
    main()
