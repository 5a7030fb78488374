"""ppvilg annotate under kill -9, by several processes, over damaged shards; its speed and memory without a detector.

    python tests/benchmarks/annotation.py [--kills 20] [--samples 100000] [--folder /tmp/annotation]

Kills: a run over shards of noise is killed at random moments and started again, until it ends by itself after so many
kills; its sidecars must be those of an undisturbed run, byte by byte, and two processes must make the same. Damaged:
every shard that tests/data/mutate.py damages must be named in a sidecar. Speed: the detector is a sleep that lasts as
long as decoding by two threads. Memory: so many samples of 32 x 32 pixels, of the same shards under other names.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "annotate"))
from annotation_shards import encode, noise, write_shards, write_tar  # noqa: E402

from ppvilg.annotate import Runner, find_units  # noqa: E402
from ppvilg.files import read_picture  # noqa: E402

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent / "annotate")])}


class Sleep:
    """A stage that takes its time and finds nothing."""

    name = "sleep"

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.identity, self.peaks = seconds, {"kind": "sleep"}, []

    def start(self):
        """Memory so far, in MiB."""
        self.peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    def close(self):
        """Nothing is held."""

    def process(self, batch):
        time.sleep(self.seconds * len(batch))
        return [{}] * len(batch)


def command(data: Path, output: Path, *more: str) -> list[str]:
    """A run of the command line."""
    return [sys.executable, "-m", "ppvilg", "annotate", "--data", str(data), "--output", str(output), "--detector",
            "annotation_shards:slowly", "--batch-size", "4", *more]  # fmt: skip


def run(*arguments) -> None:
    """Runs to the end."""
    subprocess.run(command(*arguments), env=ENVIRONMENT, check=True, capture_output=True)


def sidecars(folder: Path) -> dict[str, bytes]:
    """What is in a folder, reports left out."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith("report")}


def kills(folder: Path, count: int) -> None:
    """Killed `count` times, and shared by two."""
    data, chance, killed = write_shards(folder / "data", shards=8, samples=60), random.Random(0), 0
    run(data, folder / "whole")
    while killed < count:
        process = subprocess.Popen(command(data, folder / "killed"), env=ENVIRONMENT, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        while not list((folder / "killed").glob("*.part")) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.35))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:  # it was done before it could be killed
            for path in sorted((folder / "killed").glob("*.jsonl"))[4:]:
                path.unlink()
            continue
        killed += 1
    run(data, folder / "killed")
    for number in ("0", "1"):
        run(data, folder / "two", "--shard-index", number, "--num-shards", "2")
    whole = sidecars(folder / "whole")
    same = [whole == sidecars(folder / name) for name in ("killed", "two")]
    print(f"killed {killed} times: {'the same' if same[0] else 'OTHER'} bytes in {len(whole)} sidecars; two processes: "
          f"{'the same' if same[1] else 'OTHER'}")  # fmt: skip
    if not all(same):
        raise SystemExit("sidecars differ")


def damaged(folder: Path) -> None:
    """Fifty damaged shards of sixty."""
    specification = importlib.util.spec_from_file_location("data_mutate", HERE.parent / "data" / "mutate.py")
    mutate = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(mutate)
    expected = mutate.write_damaged(folder / "data", 60, 20, 50, seed=0)
    now = {name: kind for name, kind in expected.items() if not kind.endswith("later")}
    units = find_units(folder / "data", folder / "out")
    Runner([Sleep()]).run(units)
    named = {unit.output.name.split(".")[0] + ".tar" for unit in units if '"reason"' in unit.output.read_text()}
    print(f"{len(named & now.keys())} of {len(now)} damaged shards named in their sidecars; sound ones named: "
          f"{len(named - now.keys())}")  # fmt: skip
    if named != now.keys():
        raise SystemExit(f"forgotten: {now.keys() - named}; named without cause: {named - now.keys()}")


def speed(folder: Path) -> None:
    """Pictures of 640 x 480 per second, with a detector that only waits."""
    folder.mkdir()
    pictures = [encode(noise(number, (640, 480)).resize((640, 480)), quality=90) for number in range(8)]
    write_tar(folder / "00000.tar", {f"{n:05d}.jpg": pictures[n % 8] for n in range(400)})
    started, worked = time.perf_counter(), time.process_time()
    for number in range(40):
        read_picture(pictures[number % 8])
    decode, alone = (time.perf_counter() - started) / 40, (time.process_time() - worked) / 40
    units = find_units(folder, folder / "out")
    started, worked = time.perf_counter(), time.process_time()
    Runner([Sleep(decode / 2)], batch_size=8, workers=2).run(units)
    rate, spent = 400 / (time.perf_counter() - started), (time.process_time() - worked) / 400
    print(f"{rate:.0f} pictures/s with two threads; one decodes {1 / decode:.0f}/s alone, and the sleep alone would "
          f"allow {2 / decode:.0f}/s; a picture takes {1000 * spent:.1f} ms of the processor, {1000 * alone:.1f} of "
          "them to decode it")  # fmt: skip


def memory(folder: Path, samples: int) -> None:
    """The largest memory so far, when each tenth of the shards begins."""
    folder.mkdir()
    tile = encode(noise(0, (32, 32)))
    first = write_tar(folder / "00000.tar", {f"{n:05d}.jpg": tile for n in range(1000)})
    shards = max(1, samples // 1000)
    for number in range(1, shards):
        os.link(first, folder / f"{number:05d}.tar")
    stage, started = Sleep(), time.perf_counter()
    Runner([stage], batch_size=32, workers=2).run(find_units(folder, folder / "out"))
    seconds = time.perf_counter() - started
    peaks = [f"{peak:.0f}" for peak in stage.peaks[:: max(1, shards // 10)]]
    print(f"{shards * 1000} samples in {seconds:.0f} s; peak memory in MiB as they go: {', '.join(peaks)}")
    if stage.peaks[-1] > 1.1 * stage.peaks[shards // 10]:
        raise SystemExit("memory grows")


def main() -> None:
    """Prints what each part found; exit code 1 where it is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--samples", type=int, default=100000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="ppvilg-annotation-"))
    folder.mkdir(parents=True, exist_ok=True)
    damaged(folder / "damaged")
    speed(folder / "speed")
    kills(folder / "kills", options.kills)
    memory(folder / "memory", options.samples)


if __name__ == "__main__":
    main()
