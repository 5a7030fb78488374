"""Memory of a step over accumulation, without a cache of latents: pictures are encoded pass by pass.

    python tests/benchmarks/accumulation.py [--batch 32] [--size 64] [--passes 1 2 4 8]

One step of stage base on the pictures of a small world, each number of passes in a process of its own, forked from one
that has imported the libraries; the peak is the kernel's high-water mark of resident memory above what was there before
the step.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def load_tiny():
    """The tiny world of the engine's tests."""
    specification = importlib.util.spec_from_file_location("engine_tiny", ROOT / "tests" / "engine" / "tiny.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def memory(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def step(recipe: Path, overrides: list[str], results) -> None:
    """Puts (peak MiB above the start of the step, seconds, loss) of the first step: later ones reuse its memory."""
    from ppvilg.config import load_config
    from ppvilg.engine import CheckpointStore, Run, Trainer
    from ppvilg.engine.stages.denoiser import DenoiserStage

    run = Run(load_config(recipe, overrides))
    stage = DenoiserStage(run.recipe, run.prepare_denoising(), "base", run.output / "base")
    trainer = Trainer(stage, CheckpointStore(run.output / "checkpoints"), run.output / "logs", 0)
    batches = stage.batches(0)
    before, started = memory("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    trainer.run_step(batches, 0)
    seconds = time.perf_counter() - started
    results.put((memory("VmHWM") - before, seconds, trainer.window.scalars()["loss"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=64, help="of the pictures")
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    import paddlenlp.transformers  # noqa: F401
    import ppdiffusers  # noqa: F401
    import visualdl  # noqa: F401

    tiny = load_tiny()
    with tempfile.TemporaryDirectory() as folder:
        training, validation = tiny.write_world(Path(folder) / "world")
        recipe, size = tiny.write_recipe(Path(folder) / "recipe.yml"), arguments.size
        common = [f"data.train={training}", f"data.validation={validation}", "train.vae.steps=1",
                  "train.vae.warmup_steps=0", f"data.shapes=[[{size},{size}]]", "data.cache_latents=false",
                  f"train.base.batch_size={arguments.batch}", "model.vae.config.block_out_channels=[64,64]",
                  "model.unet.config.block_out_channels=[64,128]", "model.unet.config.norm_num_groups=8"]  # fmt: skip
        first, context = f"output={folder}/first", multiprocessing.get_context("fork")
        only_vae = [f"train.{stage}.{key}=0" for stage in ("base", "experts") for key in ("steps", "warmup_steps")]
        prepare = context.Process(target=_train, args=(recipe, [first, *common, *only_vae]))
        prepare.start()
        prepare.join()
        published = [f"model.vae.pretrained={folder}/first/vae", "train.vae.steps=0"]
        print("| passes | peak, MiB | seconds | loss |\n|---|---|---|---|")
        for passes in arguments.passes:
            results = context.Queue()
            overrides = [f"output={folder}/{passes}", *common, *published, f"train.base.accumulation={passes}"]
            process = context.Process(target=step, args=(recipe, overrides, results))
            process.start()
            peak, seconds, loss = results.get()
            process.join()
            print(f"| {passes} | {peak:.0f} | {seconds:.2f} | {loss:.6f} |", flush=True)


def _train(recipe: Path, overrides: list[str]) -> None:
    from ppvilg.config import load_config
    from ppvilg.engine import Run

    Run(load_config(recipe, overrides)).run()


if __name__ == "__main__":
    main()
