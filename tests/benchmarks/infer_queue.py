"""`ppvilg infer` on thousands of prompts: flat memory, killed half-way, continued, experts read once per turn.

python tests/benchmarks/infer_queue.py [prompts, 2000]

Draws with a tiny pipeline of random weights, once with all experts in memory and once with one of four. Each run is
killed (kill -9) when half of the pictures are there and started again. Prints the memory (resident set) over the run,
what was found after the kill, and how often experts were read. Exit code 1 if anything is not as it should be.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
BATCH_SIZE, STEPS = 8, 4


def make_model(folder: Path) -> None:
    """A pipeline folder of the tests' components."""
    from ppvilg.pipelines import ErnieViLG2Pipeline

    spec = importlib.util.spec_from_file_location("components", ROOT / "tests" / "components.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.make_components(folder / "words")
    ErnieViLG2Pipeline(**made, max_length=16).save_pretrained(folder / "model")


def infer(arguments: list[str], reads: str) -> int:
    """The command, with a line in the file `reads` for every expert that is read."""
    from ppvilg.commands import main
    from ppvilg.inference.expert_sources import DygraphExperts

    load = DygraphExperts.load

    def noted(source, index, *rest):
        with open(reads, "a") as file:
            file.write(f"{index}\n")
        return load(source, index, *rest)

    DygraphExperts.load = noted
    return main(["infer", *arguments])


def memory_of(pid: int) -> float:
    """Resident set of a process in MB; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024
    except (OSError, IndexError):
        return 0.0


def pictures_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.png"))


def run(arguments: list[str], reads: Path, output: Path, kill_at: int | None) -> list[tuple[int, float]]:
    """(pictures there, memory) from the first new picture on; killed when `kill_at` are there."""
    command = [sys.executable, __file__, "--infer", str(reads), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    there, seen = len(pictures_in(output)), []
    while process.poll() is None:
        count = len(pictures_in(output))
        if count > there:
            seen.append((count, memory_of(process.pid)))
        if kill_at is not None and count >= kill_at:
            process.kill()
            process.wait()
            break
        time.sleep(0.2)
    if kill_at is None and process.returncode:
        raise SystemExit(f"the command failed with {process.returncode}: {' '.join(command)}")
    return [(count, memory) for count, memory in seen if memory]


def report(name: str, seen: list[tuple[int, float]]) -> bool:
    """Memory at some counts of pictures; whether the last tenth is within 5 % and 20 MB of that after the first."""
    first, last = seen[0][0], seen[-1][0]
    early = max(memory for count, memory in seen if count <= first + (last - first) / 10)
    late = max(memory for count, memory in seen if count >= last - (last - first) / 10)
    every = max(1, len(seen) // 6)
    print(f"{name}: " + ", ".join(f"{count}: {memory:.0f} MB" for count, memory in seen[::every]), flush=True)
    return late <= early * 1.05 + 20


def try_out(place: Path, count: int, streamed: bool) -> bool:
    """One run, killed and continued."""
    name = "streamed" if streamed else "in memory"
    output, reads, prompts = place / name, place / f"{name}.reads", place / "prompts.txt"
    prompts.write_text("".join(f"{i}只企鹅\n" for i in range(count)), encoding="utf-8")
    reads.touch()
    arguments = ["-m", str(place / "model"), "--prompt-file", str(prompts), "--batch-size", str(BATCH_SIZE)]
    arguments += ["--steps", str(STEPS), "--output", str(output)]
    arguments += ["--max-resident-experts", "1"] if streamed else []
    started = time.time()
    flat = report(f"{name}, first half", run(arguments, reads, output, count // 2))
    before = {path: path.stat().st_mtime_ns for path in pictures_in(output)}
    for path in before:
        with Image.open(path) as picture:
            picture.load()
    print(f"{name}, killed: {len(before)} of {count} pictures there, all whole", flush=True)
    reads_before = len(reads.read_text().split())
    flat &= report(f"{name}, second half", run(arguments, reads, output, None))
    after = {path: path.stat().st_mtime_ns for path in pictures_in(output)}
    kept = all(after.get(path) == moment for path, moment in before.items())
    print(f"{name}, continued: {len(after)} of {count}, the earlier ones {'kept' if kept else 'DRAWN AGAIN'}")
    print(f"{name}: {time.time() - started:.0f} s for both, memory {'flat' if flat else 'GROWS'}")
    good = flat and kept and len(after) == count and count // 2 <= len(before) < count
    if streamed:
        turns = -(-(count - len(before)) // (8 * BATCH_SIZE))
        counts = Counter(reads.read_text().split()[reads_before:])
        print(f"{name}, continued in {turns} turns of {8 * BATCH_SIZE} pictures: expert read {dict(counts)} times")
        good &= set(counts.values()) == {turns}
    return good


def main(count: int = 2000) -> int:
    with tempfile.TemporaryDirectory() as place:
        make_model(Path(place))
        results = [try_out(Path(place), count, streamed) for streamed in (False, True)]
    return 0 if all(results) else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1:2] == ["--infer"]:
        sys.exit(infer(sys.argv[3:], sys.argv[2]))
    sys.exit(main(*map(int, sys.argv[1:])))
