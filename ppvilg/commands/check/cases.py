"""The lines of the table: what is run in another process, and what its numbers are compared with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import ppvilg

from .machine import last_line
from .world import PROMPT, recipe_text, write_pictures

LOSS_TOLERANCE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.05}  # relative, of a few steps
ROOT = Path(ppvilg.__file__).resolve().parents[1]


@dataclass(frozen=True)
class Outcome:
    """verdict: good, refused or wrong; reason: what was measured, or why not."""

    verdict: str
    reason: str


@dataclass
class Workshop:
    """A folder with pictures and a recipe, and what was trained there so far."""

    folder: Path
    machine: dict
    seconds: float
    losses: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {"train": 16, "validation": 4}
        data = [write_pictures(self.folder / "data" / name, count) for name, count in sizes.items()]
        self.recipe = self.folder / "recipe.yml"
        self.recipe.write_text(recipe_text(*data), encoding="utf-8")

    def run(self, name: str, *command: str) -> str | None:
        """Run a command in another process, its words in `<folder>/<name>.txt`; what went wrong, None where nothing."""
        log = self.folder / f"{name}.txt"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=file,
                                       stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
            try:
                code = process.wait(self.seconds)
            except subprocess.TimeoutExpired:
                return f"was not done after {self.seconds:g} seconds"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if code == 0:
            return None
        said = last_line(log.read_text(encoding="utf-8", errors="replace"))
        return f"{signal.Signals(-code).name}, {said}" if code < 0 else said or f"exit code {code}"

    def train(self, name: str, *settings: str, ranks: int = 1) -> Outcome:
        """The small model; the first one, with its stage vae, is what the others are compared with."""
        output = self.folder / name
        launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks), "--log_dir", f"{output}-ranks",
                    str(Path(ppvilg.__file__).with_name("__main__.py"))]  # fmt: skip
        started = [sys.executable, *(launcher if ranks > 1 else ["-m", "ppvilg"]), "train", "-c", str(self.recipe)]
        device = [] if ranks > 1 else ["--device", self.machine["device"]]
        if name != "float32":  # its autoencoder, whose own noise depends on the number of ranks
            settings = (*settings, f"model.vae.pretrained={self.folder / 'float32' / 'vae'}", "train.vae.steps=0")
        overrides = [part for setting in (f"output={output}", *settings) for part in ("-o", setting)]
        wrong = self.run(name, *started, *device, *overrides)
        if wrong is not None:
            return Outcome("wrong", wrong)
        self.losses[name] = read_losses(output)
        reference, kind = self.losses.get("float32"), settings_precision(settings)
        if name == "float32":
            return Outcome("good", f"{len(reference)} losses, the last {reference[-1]:.4f}, to compare others with")
        if reference is None:
            return Outcome("wrong", "there are no losses in float32 to compare with")
        return compare(self.losses[name], reference, LOSS_TOLERANCE[kind])


def settings_precision(settings: tuple[str, ...]) -> str:
    """What overrides of a recipe compute in."""
    return next((each.partition("=")[2] for each in settings if each.startswith("precision.dtype=")), "float32")


def read_losses(output: Path) -> list[float]:
    """Every logged loss of stages base and experts, in order, in training and validation."""
    lines = [json.loads(line) for stage in ("base", "experts")
             for line in (output / "logs" / f"{stage}.jsonl").read_text(encoding="utf-8").splitlines()]  # fmt: skip
    return [line[key] for line in lines for key in ("loss", "validation/loss") if key in line]


def compare(found: list[float], expected: list[float], tolerance: float) -> Outcome:
    """Losses against those in float32."""
    if len(found) != len(expected) or not np.isfinite(found).all():
        numbers = int(np.isfinite(found).sum())
        return Outcome("wrong", f"{len(found)} losses for {len(expected)}, of which {numbers} are numbers")
    worst = float(np.max(np.abs(np.array(found) / np.array(expected) - 1.0)))
    reason = f"losses within {100 * worst:.2g} % of float32 (allowed: {100 * tolerance:g} %)"
    return Outcome("good" if worst <= tolerance else "wrong", reason)


Case = Callable[[Workshop], Outcome]


def cases(machine: dict) -> list[tuple[str, Case]]:
    """(name, what to do) of every line for a machine."""
    found: list[tuple[str, Case]] = [("train float32 (O0)", lambda shop: shop.train("float32"))]
    for level, dtype in (("O1", "bfloat16"), ("O1", "float16"), ("O2", "bfloat16"), ("O2", "float16")):
        found.append((f"train {level} {dtype}", _in_precision(level, dtype)))
    found.append(("train with recompute", lambda shop: shop.train("recompute", "recompute=true")))
    found += [("train on two ranks", _on_two_ranks()), ("train on two shards", _on_two_ranks("distributed.sharding=2")),
              ("draw", _draw), ("export", _export)]  # fmt: skip
    return found + [(f"run on {name}", _on_backend(name)) for name in machine["backends"]]


def _in_precision(level: str, dtype: str) -> Case:
    def case(shop: Workshop) -> Outcome:
        if shop.machine["device"] == "cpu":
            return Outcome("refused", "Paddle has no kernels of low precision for a CPU; all is computed in float32")
        if not shop.machine[dtype]:
            return Outcome("refused", f"Paddle says that this GPU has no {dtype}")
        return shop.train(f"{level}-{dtype}", f"precision.level={level}", f"precision.dtype={dtype}")

    return case


def _on_two_ranks(*settings: str) -> Case:
    def case(shop: Workshop) -> Outcome:
        if shop.machine["device"] != "cpu" and len(shop.machine["gpus"]) < 2:
            return Outcome("refused", f"two ranks need two GPUs, and here is {len(shop.machine['gpus'])}")
        return shop.train("shards" if settings else "ranks", *settings, ranks=2)

    return case


def _draw(shop: Workshop) -> Outcome:
    if "float32" not in shop.losses:
        return Outcome("refused", "nothing was trained")
    wrong = shop.run("draw", sys.executable, "-m", "ppvilg", "infer", "-m", str(shop.folder / "float32" / "experts"),
                     "--prompt", PROMPT, "--steps", "4", "--output", str(shop.folder / "drawn"),
                     "--device", shop.machine["device"])  # fmt: skip
    return Outcome("wrong", wrong) if wrong else Outcome("good", "one picture")


def _export(shop: Workshop) -> Outcome:
    if "float32" not in shop.losses:
        return Outcome("refused", "nothing was trained")
    backends = [name for name in ("cpu", "onednn", "gpu", "onnxruntime", "openvino")
                if shop.machine["backends"].get(name, "") is None]  # fmt: skip
    prompts = shop.folder / "prompts.txt"
    prompts.write_text(PROMPT + "\n", encoding="utf-8")
    model, bundle = str(shop.folder / "float32" / "experts"), str(shop.folder / "bundle")
    wrong = shop.run("export", sys.executable, "-m", "ppvilg", "export", "-m", model, "--output", bundle,
                     "--prompt-file", str(prompts), "--device", shop.machine["device"], "--backends", *backends)
    if wrong is not None:
        return Outcome("wrong", wrong)
    return Outcome("good", f"graphs for {', '.join(backends)}, equal to the model")


def _on_backend(name: str) -> Case:
    def case(shop: Workshop) -> Outcome:
        missing = shop.machine["backends"][name]
        if missing is not None:
            return Outcome("refused", missing)
        if not (shop.folder / "bundle" / "manifest.json").is_file():
            return Outcome("refused", "nothing was exported")
        proof = shop.folder / f"proof-{name}.json"
        wrong = shop.run(f"prove-{name}", sys.executable, "-m", "ppvilg", "prove", str(shop.folder / "bundle"),
                         "--backends", name, "--output", str(proof))  # fmt: skip
        if wrong is not None:
            return Outcome("wrong", wrong)
        errors = _errors_in(json.loads(proof.read_text(encoding="utf-8")))
        return Outcome("good", f"largest error of any part {max(errors):.1e} of its standard deviation")

    return case


def _errors_in(content: object) -> list[float]:
    """Every "max_error" in a file of proofs."""
    if isinstance(content, dict):
        own = [content["max_error"]] if isinstance(content.get("max_error"), float) else []
        return own + [error for value in content.values() for error in _errors_in(value)]
    return [error for value in content for error in _errors_in(value)] if isinstance(content, list) else []
