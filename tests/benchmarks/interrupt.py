"""Interrupt test: random SIGKILLs spread over the three stages must not change one bit of the result.

    python tests/benchmarks/interrupt.py [--kills 20] [--seed 0] [--folder /tmp/interrupt] [--fresh]

Trains a tiny recipe undisturbed, then again with kills at random moments: between any two instructions of a step, while
a checkpoint is being written, while latents are encoded, while a finished stage is saved. After each kill the same
command is run again. Then weights, averages, optimizer moments, the order of samples and the finished folders of every
stage are compared bit for bit. Processes are forked from one that has imported the libraries; --fresh starts
`python tools/train.py` each time instead.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"vae": 40, "base": 40, "experts": 40}
EVERY = 4  # steps between checkpoints


def load_tiny():
    """The tiny world of the engine's tests."""
    specification = importlib.util.spec_from_file_location("engine_tiny", ROOT / "tests" / "engine" / "tiny.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@dataclass
class Kill:
    """One SIGKILL: in stage `stage` once `step` steps are logged, then at a moment of kind `kind`."""

    stage: str
    step: int
    kind: str  # "step", "checkpoint", "latents", "export"


def plan_kills(count: int, rng: random.Random) -> list[Kill]:
    """Kills in the order in which a run meets them: a third per stage, half of them while something is written."""
    stages = list(STEPS)
    kills = [Kill("vae", STEPS["vae"], "export"), Kill("base", 0, "latents"), Kill("base", STEPS["base"], "export"),
             Kill("experts", STEPS["experts"], "export")]
    while len(kills) < count:
        stage = stages[len(kills) % 3]
        kind = "checkpoint" if len(kills) % 2 else "step"
        kills.append(Kill(stage, rng.randrange(1, STEPS[stage] - EVERY), kind))
    rank = {"latents": 0, "step": 1, "checkpoint": 1, "export": 2}
    return sorted(kills[:count], key=lambda kill: (stages.index(kill.stage), rank[kill.kind], kill.step))


class Training:
    """The command: `python tools/train.py -c recipe -o output=...`."""

    def __init__(self, arguments: list[str], log: Path, fresh: bool):
        self.arguments, self.log, self.fresh = [str(ROOT / "tools" / "train.py"), *arguments], log, fresh

    def start(self) -> int:
        """Process id of a new run."""
        if self.fresh:
            with open(self.log, "ab") as log:
                return subprocess.Popen([sys.executable, *self.arguments], stdout=log, stderr=log, cwd=ROOT).pid
        process = os.fork()
        if process:
            return process
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = self.arguments
        code = 1
        try:
            load_tiny().load_tool("train").main()
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)


def ended(process: int) -> bool:
    """Whether it has ended by itself; RuntimeError if with an error."""
    done, status = os.waitpid(process, os.WNOHANG)
    if done and status:
        raise RuntimeError(f"a run ended by itself with status {status}; its log says why")
    return bool(done)


def logged_step(output: Path, stage: str) -> int:
    """Steps of a stage that its log speaks of, 0 where there is none."""
    try:
        lines = (output / "logs" / f"{stage}.jsonl").read_text(encoding="utf-8").splitlines()
        return max((json.loads(line)["step"] for line in lines[-2:] if line.endswith("}")), default=0)
    except FileNotFoundError:
        return 0


def writing(output: Path, kill: Kill) -> bool:
    """Whether what the kill waits for is being written right now."""
    if kill.kind == "latents":
        return any(not (folder / "manifest.json").exists() for folder in (output / "cache").glob("*_*/"))
    places = {"checkpoint": output / "checkpoints" / kill.stage, "export": output}
    pattern = {"checkpoint": ".step_*.partial", "export": f".{kill.stage}.partial"}
    return any(places[kill.kind].glob(pattern[kill.kind]))


def reached(output: Path, kill: Kill) -> bool:
    return kill.step == 0 or logged_step(output, kill.stage) >= kill.step


def wait_and_kill(process: int, output: Path, kill: Kill, rng: random.Random) -> str:
    """Kill the run at the planned moment; says what it was doing, "" if it finished first."""
    while not reached(output, kill):
        if ended(process):
            return ""
        time.sleep(0.005)
    started = time.monotonic()
    if kill.kind == "step":
        time.sleep(rng.random() * 0.3)
    else:
        while not writing(output, kill):
            if ended(process):
                return ""
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.002)
    if ended(process):
        return ""
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    half = sorted(path.relative_to(output) for path in output.rglob(".*partial*"))
    place = f"half-written: {', '.join(map(str, half))}" if half else f"{time.monotonic() - started:.3f} s into it"
    return f"{kill.kind:<10} {kill.stage} after step {logged_step(output, kill.stage)}, {place}"


def run_to_the_end(training: Training) -> float:
    """Seconds of an undisturbed run."""
    started, process = time.monotonic(), training.start()
    while not ended(process):
        time.sleep(0.01)
    return time.monotonic() - started


def run_with_kills(training: Training, output: Path, kills: list[Kill], rng: random.Random) -> tuple[int, int]:
    """(kills, kills that left something half-written); the run is finished afterwards."""
    done, half = 0, 0
    for kill in kills:
        said = wait_and_kill(training.start(), output, kill, rng)
        if not said:
            break
        done, half = done + 1, half + ("half-written" in said)
        print(f"  kill {done:2d}: {said}", flush=True)
    run_to_the_end(training)
    return done, half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to run; a temporary folder if not given")
    parser.add_argument("--fresh", action="store_true", help="start a new Python process after each kill")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = str(ROOT)
    tiny, rng = load_tiny(), random.Random(arguments.seed)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="interrupt-"))
    for name in ("world", "undisturbed", "killed"):
        shutil.rmtree(folder / name, ignore_errors=True)
    training_data, validation_data = tiny.write_world(folder / "world")
    recipe = tiny.write_recipe(folder / "world" / "recipe.yml")
    if not arguments.fresh:
        import paddlenlp.transformers  # noqa: F401
        import ppdiffusers  # noqa: F401
        import visualdl  # noqa: F401

    def command(output: Path) -> Training:
        settings = [f"output={output}", f"data.train={training_data}", f"data.validation={validation_data}"]
        for stage, steps in STEPS.items():
            every = {"steps": steps, "checkpoint_every": EVERY, "log_every": 1}
            settings += [f"train.{stage}.{key}={value}" for key, value in every.items()]
        options = [part for setting in settings for part in ("-o", setting)]
        return Training(["-c", str(recipe), *options], folder / f"{output.name}.log", arguments.fresh)

    print(f"undisturbed: {STEPS}, a checkpoint every {EVERY} steps; logs in {folder}", flush=True)
    seconds = run_to_the_end(command(folder / "undisturbed"))
    print(f"  {seconds:.1f} s", flush=True)
    kills = plan_kills(arguments.kills, rng)
    print(f"the same with {len(kills)} SIGKILLs, each followed by the same command:", flush=True)
    done, half = run_with_kills(command(folder / "killed"), folder / "killed", kills, rng)
    found = tiny.differences(folder / "undisturbed", folder / "killed")
    ends = [tiny.newest(folder / "killed", stage) for stage in STEPS]
    arrays = sum(len(end[part]) for end in ends for part in ("net", "ema", "optimizer"))
    print(f"{done} kills, {half} of them in the middle of writing; {arrays} arrays of weights, averages and moments, "
          f"3 sample orders and 3 finished folders compared: {len(found)} differences")
    for difference in found[:20]:
        print(f"  {difference}")
    sys.exit(bool(found) or done < len(kills))


if __name__ == "__main__":
    main()
