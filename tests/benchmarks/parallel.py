"""Every form of parallelism against one process, and checkpoints carried from one to another.

    python tests/benchmarks/parallel.py [--steps 50] [--folder /tmp/parallel] [--only forms|resume] [--again]
                                        [--form "sharding 4" ...]

forms: a tiny model on four gloo ranks, stage base laid out as data 4, sharding 4 (stage 1, and stage 2 with buckets of
50 KiB) and data 2 x sharding 2, stage experts as expert 2 x data 2 (from the one process's base), each against one
process with the same batches; prints the largest relative difference of the losses of every step, the largest
difference of any final weight, and the bytes that gradients and weights took inside groups and between them.
resume: a checkpoint of expert 2 x data 2 from the middle of stage experts goes on in one process, on data 2 and on
expert 2 x data 2 again; prints how far each end is from never having stopped (the last must be equal bit for bit).

Ranks are forked from one process that has imported the libraries; --launcher starts paddle.distributed.launch instead.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
AXES = ("data", "sharding", "expert")
FORMS = {"data 4": {"data": 4}, "sharding 4": {"sharding": 4},
         "sharding 4 stage 2": {"sharding": 4, "sharding_stage": 2, "bucket_megabytes": 0.05},
         "data 2 x sharding 2": {"data": 2, "sharding": 2}, "expert 2 x data 2": {"expert": 2, "data": 2}}
STAGES = ("base", "experts")
BASE_ONLY = ("train.experts.steps=0", "train.experts.warmup_steps=0")
EXPERTS_ONLY = ("train.base.steps=0", "train.base.warmup_steps=0")
# Nothing random inside the networks, Adam's sign-like first steps made smooth, and norms over many values: a group of
# two channels on two pixels multiplies the rounding of another batch size by a hundred at every step.
SETTINGS = ["model.num_experts=4", "data.shapes=[[64,64],[64,128]]", "model.unet.config.sample_size=8",
            "model.unet.config.norm_num_groups=1", "model.vae.config.norm_num_groups=1",
            "model.text_encoder.config.hidden_dropout_prob=0.0",
            "model.text_encoder.config.attention_probs_dropout_prob=0.0", "train.vae.steps=4", "train.vae.batch_size=8"]


def load_tiny():
    """The tiny world of the engine's tests."""
    specification = importlib.util.spec_from_file_location("engine_tiny", ROOT / "tests" / "engine" / "tiny.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class World:
    """The tiny world in a folder, and runs of tools/train.py in it."""

    def __init__(self, folder: Path, steps: int, launcher: bool = False):
        self.tiny, self.folder, self.launcher = load_tiny(), folder, launcher
        sys.path.insert(0, str(ROOT))
        if not launcher:
            os.environ["OMP_NUM_THREADS"] = "1"
            import paddlenlp.transformers  # noqa: F401
            import ppdiffusers  # noqa: F401
            import visualdl  # noqa: F401
        shutil.rmtree(folder / "world", ignore_errors=True)
        data = self.tiny.write_world(folder / "world")
        self.recipe = self.tiny.write_recipe(folder / "world" / "recipe.yml")
        self.settings = [*SETTINGS, f"data.train={data[0]}", f"data.validation={data[1]}"]
        for stage in STAGES:
            every = {"steps": steps, "batch_size": 8, "log_every": 1, "checkpoint_every": max(1, steps // 2),
                     "decay": "constant", "epsilon": 1e-3, "learning_rate": 2e-4, "keep_checkpoints": 9}
            self.settings += [f"train.{stage}.{key}={value}" for key, value in every.items()]

    def run(self, name: str, axes: dict | None = None, *settings: str) -> Path:
        """Train into `<folder>/<name>`, on as many ranks as the axes need."""
        output, axes = self.folder / name, axes or {}
        ranks = math.prod(size for key, size in axes.items() if key in AXES)
        arguments = self.arguments(output, axes, *settings)
        done, started = Path(f"{output}.done"), time.monotonic()
        if done.exists():
            return output
        codes = self._launch(output, ranks, arguments) if self.launcher else self._fork(output, ranks, arguments)
        if any(codes):
            raise RuntimeError(f"{name} ended with {codes}; see {output}*.log")
        done.touch()
        print(f"  ({name}: {time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)
        return output

    def arguments(self, output: Path, axes: dict, *settings: str) -> list[str]:
        """Of tools/train.py."""
        options = [*self.settings, f"output={output}", *(f"distributed.{k}={v}" for k, v in axes.items()), *settings]
        return ["-c", str(self.recipe), *(part for option in options for part in ("-o", option))]

    def command(self, output: Path, ranks: int, arguments: list[str]) -> list[str]:
        """With paddle.distributed.launch where there are several ranks."""
        launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks), "--log_dir", f"{output}-ranks"]
        return [sys.executable, *(launcher if ranks > 1 else []), str(ROOT / "tools" / "train.py"), *arguments]

    @staticmethod
    def environment() -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}

    def _launch(self, output: Path, ranks: int, arguments: list[str]) -> list[int]:
        with open(f"{output}.log", "a") as log:
            return [subprocess.run(self.command(output, ranks, arguments), stdout=log, stderr=log, cwd=self.folder,
                                   env=self.environment()).returncode]

    def _fork(self, output: Path, ranks: int, arguments: list[str]) -> list[int]:
        endpoints = [f"127.0.0.1:{port}" for port in free_ports(ranks)]
        return self.wait_for([fork_rank(rank, endpoints, f"{output}-{rank}.log", arguments) for rank in range(ranks)])

    @staticmethod
    def wait_for(processes: list[int]) -> list[int]:
        """Exit codes of forked ranks; as the launcher does, one that failed ends all."""
        left, codes = set(processes), []
        while left:
            process, status = os.wait()
            left.discard(process)
            codes.append(os.waitstatus_to_exitcode(status))
            if codes[-1]:
                for other in left:
                    os.kill(other, signal.SIGKILL)
        return codes

    def begin_from(self, name: str, source: Path, *parts: str) -> None:
        """Make `<folder>/<name>` of parts of another output, unless it is finished."""
        if (self.folder / f"{name}.done").exists():
            return
        shutil.rmtree(self.folder / name, ignore_errors=True)
        for part in parts:
            shutil.copytree(source / part, self.folder / name / part)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def fork_rank(rank: int, endpoints: list[str], log: str, arguments: list[str]) -> int:
    """Process id of tools/train.py as one rank, with the environment that the launcher would give it."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(PADDLE_TRAINER_ID=str(rank), PADDLE_TRAINERS_NUM=str(len(endpoints)),
                          PADDLE_CURRENT_ENDPOINT=endpoints[rank], PADDLE_TRAINER_ENDPOINTS=",".join(endpoints),
                          PADDLE_MASTER=endpoints[0], PADDLE_DISTRI_BACKEND="gloo")
        from ppvilg.commands import main

        code = main(["train", *arguments])
    except SystemExit as left:
        print(left, file=sys.stderr)
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def losses(output: Path, stage: str) -> dict[int, float]:
    """Training loss by step."""
    lines = map(json.loads, (output / "logs" / f"{stage}.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def state(output: Path, stage: str) -> dict[str, np.ndarray]:
    """Weights, averages and moments of the newest checkpoint by name, whatever parts it was written in."""
    from safetensors.numpy import load_file

    folder = sorted((output / "checkpoints" / stage).glob("step_*"))[-1]
    found = {}
    for file in folder.glob("*.safetensors"):
        kind = file.name.removesuffix(".safetensors").partition("-")[0]
        found |= {f"{kind}/{name}": value for name, value in load_file(file).items()}
    return found


def weight_difference(one: Path, other: Path, stage: str) -> float:
    """Largest absolute difference of any weight or average."""
    left, right = state(one, stage), state(other, stage)
    assert left.keys() == right.keys(), left.keys() ^ right.keys()
    return max(float(np.abs(left[key] - right[key]).max()) for key in left if not key.startswith("optimizer"))


def same_bits(one: Path, other: Path, stage: str) -> bool:
    """Whether weights, averages and moments are equal bit for bit."""
    left, right = state(one, stage), state(other, stage)
    return left.keys() == right.keys() and all(left[key].tobytes() == right[key].tobytes() for key in left)


def gradient_bytes(output: Path, stage: str) -> tuple[int, int]:
    """(inside groups of ranks that train the same weights, between them), summed over ranks and steps."""
    inside = between = 0
    for file in sorted((output / "logs").glob(f"traffic_{stage}_*.json")):
        note = json.loads(file.read_text(encoding="utf-8"))
        for name, amount in note["traffic"].items():
            if name.startswith(("gradients/", "weights/")):
                if set(amount["ranks"]) <= set(note["layout"]["ranks"]):
                    inside += amount["bytes"]
                else:
                    between += amount["bytes"]
    return inside, between


def compare_forms(world: World, chosen: list[str]) -> bool:
    """One line per form and stage; whether all are within 1e-5."""
    single, good = world.run("one"), True
    print(f"{'form':<22}{'stage':<9}{'losses (rel.)':>14}{'weights (abs.)':>16}{'MB inside':>11}{'between':>9}")
    for form in chosen:
        axes = FORMS[form]
        name, stage = form.replace(" ", ""), "experts" if "expert" in axes else "base"
        world.begin_from(name, single, "vae", "cache", "tokenizer", "checkpoints/vae")
        only = BASE_ONLY if stage == "base" else (*EXPERTS_ONLY, f"train.experts.start={single}/base")
        output = world.run(name, axes, *only)
        ours, theirs = losses(output, stage), losses(single, stage)
        assert ours.keys() == theirs.keys(), (form, stage, sorted(ours.keys() ^ theirs.keys()))
        loss = max(abs(ours[step] - theirs[step]) / abs(theirs[step]) for step in ours)
        weight = weight_difference(output, single, stage)
        inside, between = gradient_bytes(output, stage)
        print(f"{form:<22}{stage:<9}{loss:>14.1e}{weight:>16.1e}{inside / 1e6:>11.2f}{between:>9d}", flush=True)
        good &= loss <= 1e-5 and weight <= 1e-5 and between == 0
    return good


def compare_resumes(world: World, steps: int) -> bool:
    """One line per way to go on; whether all are as they should be."""
    form, good = FORMS["expert 2 x data 2"], True
    parts = ("vae", "cache", "tokenizer", "checkpoints/vae")
    single, whole = world.folder / "one", world.folder / "expert2xdata2"
    start = (*EXPERTS_ONLY, f"train.experts.start={single}/base")
    if not whole.is_dir():
        world.run("one")
        world.begin_from(whole.name, single, *parts)
        world.run(whole.name, form, *start)
    world.begin_from("half", whole, *parts)
    half = world.run("half", form, *start, f"train.experts.steps={steps // 2}")
    print("checkpoint of expert 2 x data 2 goes on as ...")
    for name, axes in {"one process": {}, "data 2": {"data": 2}, "expert 2 x data 2": form}.items():
        place = f"half-{name.replace(' ', '')}"
        world.begin_from(place, half, *parts, "checkpoints/experts")
        output = world.run(place, axes, *start)
        difference, equal = weight_difference(output, whole, "experts"), same_bits(output, whole, "experts")
        print(f"  {name:<20} largest difference of a weight {difference:.1e}, bit for bit: {equal}", flush=True)
        good &= equal if axes == form else difference <= 1e-5
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--folder", type=Path, help="where to run; a temporary folder if not given")
    parser.add_argument("--only", choices=("forms", "resume"))
    parser.add_argument("--form", nargs="+", choices=FORMS, default=list(FORMS), help="which forms; all if not given")
    parser.add_argument("--again", action="store_true", help="go on in a folder after a stop; finished runs are kept")
    parser.add_argument("--launcher", action="store_true", help="start ranks with paddle.distributed.launch")
    arguments = parser.parse_args()
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="parallel-"))).resolve()
    if folder.exists() and any(folder.iterdir()) and not arguments.again:
        raise SystemExit(f"error: {folder} is not empty; choose another folder")
    world = World(folder, arguments.steps, arguments.launcher)
    print(f"{arguments.steps} steps of base and experts; outputs and logs in {folder}", flush=True)
    good = arguments.only == "resume" or compare_forms(world, arguments.form)
    good = (arguments.only == "forms" or compare_resumes(world, arguments.steps)) and good
    print("all within bounds" if good else "NOT within bounds")
    sys.exit(not good)


if __name__ == "__main__":
    main()
