"""The plan for the paper's scale, and its arithmetic checked against ranks that really run.

    python tests/benchmarks/plan.py [-c configs/ernie_vilg2_24b.yml]     tables: memory, traffic, time, checkpoints
    python tests/benchmarks/plan.py --check [--steps 8] [--folder /tmp/plan]     1, 2 and 4 gloo ranks of a small model

--check trains stages base and experts of a small model through tools/train.py and compares, per step and rank, the
bytes that ranks hand to collectives (counted by engine/traffic.py) and the bytes that their sockets really sent (the
kernel's TCP_INFO of every connection of every rank) with the simulator's; it fails where they differ by over 5 %.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import socket
import stat
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FORMS = {"1 rank": {}, "data 2": {"data": 2}, "data 4": {"data": 4}, "sharding 2": {"sharding": 2},
         "data 2 x sharding 2": {"data": 2, "sharding": 2}, "expert 2 x data 2": {"expert": 2, "data": 2}}  # fmt: skip
LAYOUTS = {8: ((1, 1), (1, 1)), 80: ((10, 1), (1, 10)), 320: ((40, 1), (4, 10))}  # gpus: (data, expert) by stage
FEW_GPUS = ["train.base.accumulation=40"]  # what the recipe needs besides on 8
# Large enough that messages are data rather than headers.
WIDER = ["model.unet.config.block_out_channels=[32,64]", "model.text_encoder.config.hidden_size=64",
         "model.unet.config.cross_attention_dim=64"]  # fmt: skip


def load(name: str):
    """A benchmark beside this one as a module."""
    specification = importlib.util.spec_from_file_location(f"benchmark_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# ---- tables


def print_tables(recipe_file: Path) -> None:
    """Markdown tables of docs/en/scale.md."""
    from ppvilg.config import load_config
    from ppvilg.engine.parallel.layout import Axes
    from ppvilg.engine.planning.cluster import Planner
    from ppvilg.engine.planning.plan import count

    planner = Planner.of(load_config(recipe_file))
    print("| part | parameters | tensors | forward, TFLOP per sample | kept for backward, GB per sample (recompute) |")
    print("|---|---|---|---|---|")
    for part, shapes in planner.shapes.items():
        work = planner.work[part]
        print(f"| {part} | {count(shapes) / 1e9:.3f} B | {len(shapes)} | {work.flops / 1e12:.2f} | "
              f"{2e-9 * work.kept:.2f} ({2e-9 * work.kept_with_recompute:.2f}) |")  # fmt: skip
    numbers = {"unet": planner.recipe.model.num_experts}
    whole = sum(numbers.get(part, 1) * count(shapes) for part, shapes in planner.shapes.items())
    print(f"\nwhole model: {whole / 1e9:.2f} B\n")
    few = Planner(load_config(recipe_file, FEW_GPUS), planner.shapes, planner.work)
    estimates = [each for gpus in LAYOUTS for each in estimates_for(few if gpus == 8 else planner, gpus, Axes)]
    print_memory(estimates)
    print_traffic(estimates)
    print_time(estimates)


def estimates_for(planner, gpus: int, axes_of) -> list:
    """Stages base and experts on a number of GPUs; on 8 one expert at a time, as a job of its own."""
    from ppvilg.engine.planning.cluster import Cluster

    (base, _), (data, expert) = LAYOUTS[gpus]
    return [planner.estimate("base", Cluster(gpus), axes_of(data=base, sharding=8)),
            planner.estimate("experts", Cluster(gpus), axes_of(data=data, sharding=8, expert=expert),
                             experts=1 if expert == 1 else None)]  # fmt: skip


def title(estimate) -> str:
    """First cells of a row."""
    axes = estimate.axes
    return f"{estimate.cluster.gpus} | {estimate.stage} | {axes.expert} x {axes.data} x {axes.sharding}"


def print_memory(estimates: list) -> None:
    names = list(estimates[0].memory)
    print("| GPUs | stage | expert x data x sharding | samples per pass | " + " | ".join(names) + " | sum, GB |")
    print("|---" * (len(names) + 5) + "|")
    for e in estimates:
        cells = " | ".join(f"{value / 1e9:.1f}" for value in e.memory.values())
        print(f"| {title(e)} | {e.samples_per_pass} | {cells} | {sum(e.memory.values()) / 1e9:.1f} |")


def print_traffic(estimates: list) -> None:
    print("\n| GPUs | stage | expert x data x sharding | kind | group of | handed over, GB | sent per rank, GB | link |"
          )  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for e in estimates:
        for sent in sorted(e.traffic, key=lambda sent: -sent.wire):
            if sent.kind != "agreement":
                span = sent.n * (e.axes.sharding if sent.group == "data" else 1)
                link = "inside" if span <= e.cluster.gpus_per_machine else "between"
                print(f"| {title(e)} | {sent.kind} | {sent.n} ({sent.group}) | {sent.handed / 1e9:.3f} | "
                      f"{sent.wire / 1e9:.3f} | {link} |")  # fmt: skip


def print_time(estimates: list) -> None:
    print("\n| GPUs | stage | samples per step and rank | computation, s | inside machines, s | between machines, s | "
          "step, s | samples/s, all GPUs | checkpoint, GB |")  # fmt: skip
    print("|---" * 9 + "|")
    for e in estimates:
        speed = e.samples_per_rank * e.axes.world / e.step_seconds  # expert groups work at the same time
        seconds = " | ".join(f"{value:.2f}" for value in e.seconds.values())
        print(f"| {e.cluster.gpus} | {e.stage} | {e.samples_per_rank} | {seconds} | {e.step_seconds:.1f} | {speed:.0f}"
              f" | {e.checkpoint / 1e9:.0f} |")  # fmt: skip


# ---- check


def bytes_sent() -> int:
    """Payload that all TCP connections of this process have sent (tcpi_bytes_sent, Linux 4.19 and later)."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                    information = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += struct.unpack_from("<Q", information, 200)[0] if len(information) >= 208 else 0
        except OSError:  # closed meanwhile, or a socket that listens
            continue
    return total


def watch_steps(folder: Path) -> None:
    """Every rank notes what its sockets have sent, before and after the traffic of a log."""
    from ppvilg.engine import distributed, monitor

    original = monitor.Monitor.log

    def log(self, step, scalars):
        before, handed = bytes_sent(), {kind: distributed.traffic.total(kind).bytes for kind in monitor.IN_STEP}
        original(self, step, scalars)
        row = {"step": step, "before": before, "after": bytes_sent(), "handed": handed, "steps": 0}
        with open(self.folder / f"wire_{self.stage}_{distributed.rank()}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    monitor.Monitor.log = log


def measured(output: Path, stage: str, ranks: int, turns: int) -> tuple[float, float]:
    """(bytes handed over, bytes on the wire) per step that a rank takes, mean over ranks; first and last step apart."""
    handed, wire = [], []
    for rank in range(ranks):
        lines = (output / "logs" / f"wire_{stage}_{rank}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        whole = len(rows) - 2 - (len(rows) - 2) % turns  # whole rounds of experts' turns
        used = rows[: whole + 1]
        handed.append((sum(used[-1]["handed"].values()) - sum(used[0]["handed"].values())) / whole * turns)
        wire.append(sum(b["before"] - a["after"] for a, b in zip(used, used[1:])) / whole * turns)
    return float(np.mean(handed)), float(np.mean(wire))


def check(folder: Path, steps: int) -> bool:
    """One line per form and stage; whether all are within 5 %."""
    from ppvilg.config import load_config
    from ppvilg.engine.parallel.layout import Axes
    from ppvilg.engine.planning.plan import layer_shapes, step_traffic

    parallel = load("parallel")
    world, good = parallel.World(folder, steps), True
    watch_steps(folder)
    print("| form | stage | handed over: simulated | measured | difference | wire: simulated | measured | difference |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    sizes = None
    for number, (form, axes) in enumerate(FORMS.items()):
        name = form.replace(" ", "")
        if number:
            world.begin_from(name, folder / "1rank", "vae", "cache", "tokenizer", "checkpoints/vae")
        start = f"train.experts.start={folder / '1rank' / 'base' if number else 'null'}"
        rare = (f"train.{stage}.checkpoint_every={steps}" for stage in parallel.STAGES)
        output = world.run(name, axes, *WIDER, start, *rare)
        sizes = sizes or sizes_of(layer_shapes(load_config(output / "recipe.yml")), output)
        ranks = int(np.prod(list(axes.values()) or [1]))
        for stage in parallel.STAGES:
            groups = axes.get("expert", 1) if stage == "experts" else 1
            sent = step_traffic(*sizes[stage], Axes(**axes), stage == "experts")
            # a rank of one of two groups takes every second step
            simulated = sum(s.handed for s in sent), sum(s.wire for s in sent)
            found = [value / (4 / groups) for value in measured(output, stage, ranks, 4)]
            differences = [abs(a - b) / b if b else float(a > 2000) for a, b in zip(found, simulated)]
            good &= max(differences) <= 0.05
            cells = " | ".join(f"{s:,.0f} | {m:,.0f} | {100 * d:.2f} %" for s, m, d in
                               zip(simulated, found, differences))  # fmt: skip
            print(f"| {form} | {stage} | {cells} |", flush=True)
    return good


def sizes_of(shapes: dict, output: Path) -> dict[str, tuple[int, int]]:
    """(elements, tensors) that have gradients by stage: the embedding as large as the vocabulary that was made."""
    from ppvilg.engine.planning.plan import count

    words = json.loads((output / "base" / "text_encoder" / "config.json").read_text())["vocab_size"]
    text = {name: (words, *shape[1:]) if "word_embeddings" in name else shape
            for name, shape in shapes["text_encoder"].items() if "pooler" not in name}  # fmt: skip
    unet = shapes["unet"]
    return {"base": (count(unet) + count(text), len(unet) + len(text)), "experts": (count(unet), len(unet))}


def main() -> None:
    """Prints tables, or checks the simulator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", type=Path, default=ROOT / "configs" / "ernie_vilg2_24b.yml")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if not options.check:
        print_tables(options.config)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    import paddlenlp.transformers  # noqa: F401
    import ppdiffusers  # noqa: F401
    import visualdl  # noqa: F401

    folder = (options.folder or Path(tempfile.mkdtemp(prefix="ppvilg-plan-"))).resolve()
    good = check(folder, options.steps)
    print("all within 5 %" if good else "NOT within 5 %")
    sys.exit(not good)


if __name__ == "__main__":
    main()
