"""Samples per second of stage base of emoji64's recipe over PyTorch's with the same network, batch and optimizer.

    python tests/benchmarks/bench_training.py [--ranks 1 2] [--rounds 9] [--times 3] [--recipe configs/emoji64.yml]
    python tests/benchmarks/bench_training.py --profile [--steps 4]

A step is forward, backward, gradients over the ranks, clipping by the global norm, AdamW and the average of the
weights; batches are made beforehand. Our side runs the trainer's own `run_step` on a DenoiserStage of the recipe.
PyTorch's side is written as one would: diffusers' UNet, transformers' ERNIE, DistributedDataParallel, clip_grad_norm_
and AdamW as PyTorch chooses them (both with foreach), an average by torch._foreach_lerp_. Every rank has one thread.
Sides take turns in one run (see turns.py). --profile prints our step operator by operator instead.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LENGTH, VOCABULARY = 48, 400


def batch(step: int, recipe) -> dict[str, np.ndarray]:
    """A global batch of random numbers in the shapes of the recipe."""
    rng, count = np.random.default_rng(step), recipe.train.base.batch_size
    side = recipe.model.unet.config.sample_size
    shape = (count, recipe.model.unet.config.in_channels, side, side)
    return {"latents": rng.standard_normal(shape, np.float32), "noise": rng.standard_normal(shape, np.float32),
            "timesteps": rng.integers(0, 1000, count), "input_ids": rng.integers(3, VOCABULARY, (count, LENGTH)),
            "loss_weights": rng.uniform(1, 1.1, (count, 1, side, side)).astype(np.float32),
            "key_token_weights": rng.uniform(1, 1.01, (count, LENGTH)).astype(np.float32)}  # fmt: skip


class PaddleSide:
    """The trainer on batches that are there."""

    def __init__(self, recipe, rank: int, ranks: int, port: int):
        if ranks > 1:
            endpoints = [f"127.0.0.1:{port + number}" for number in range(ranks)]
            os.environ.update(PADDLE_TRAINER_ID=str(rank), PADDLE_TRAINERS_NUM=str(ranks),
                              PADDLE_CURRENT_ENDPOINT=endpoints[rank], PADDLE_TRAINER_ENDPOINTS=",".join(endpoints),
                              PADDLE_MASTER=endpoints[0], PADDLE_DISTRI_BACKEND="gloo")  # fmt: skip
        from ppvilg._runtime import prepare_cpu

        prepare_cpu()
        import paddle

        from ppvilg.data import Batch
        from ppvilg.engine import CheckpointStore, Trainer, distributed
        from ppvilg.engine.stages.denoiser import DenoiserBatch, DenoiserStage

        distributed.start(recipe.distributed)
        mine = distributed.rank_slice(recipe.train.base.batch_size)

        class Stage(DenoiserStage):
            """Its networks and losses; random batches of the right shapes."""

            def _build_networks(self, base) -> None:
                from paddlenlp.transformers import ErnieConfig, ErnieModel

                from ppvilg.engine import builder

                self.unet = builder.build_base_unet(recipe)
                settings = dict(builder.plain(recipe.model.text_encoder.config), vocab_size=VOCABULARY)
                self.text_encoder = ErnieModel(ErnieConfig(**settings))
                self.networks = {"unet": self.unet, "text_encoder": self.text_encoder}
                self._set_training(True)

            def batches(self, first_step):
                for step in range(first_step, 10**9):
                    made = {name: value[mine] for name, value in batch(step % 8, recipe).items()}
                    loaded = Batch(step, 0, 0, (64, 64), np.arange(len(made["latents"])), [],
                                   latents=made.pop("latents"), finished=made)  # fmt: skip
                    yield DenoiserBatch(loaded, made.pop("timesteps"))

        from types import SimpleNamespace

        data = SimpleNamespace(conditioning=None)
        folder = Path(tempfile.mkdtemp(prefix="bench-training-"))
        stage = Stage(recipe, data, "base", folder / "base")
        self.trainer = Trainer(stage, CheckpointStore(folder / "checkpoints"), folder / "logs", 0, recipe.distributed)
        self.passes, self.done, self.paddle = stage.batches(0), 0, paddle

    def steps(self, count: int):
        """So many steps; the last gradient norm."""
        for _ in range(count):
            self.trainer.run_step(self.passes, self.done)
            self.done += 1
            if self.done % self.trainer.config.log_every == 0:
                self.trainer.window.scalars()
                self.trainer.window.reset()
        return self.paddle.to_tensor([float(self.done)])


class TorchSide:
    """The same step in PyTorch."""

    def __init__(self, recipe, rank: int, ranks: int, port: int):
        import torch

        sys.path.insert(0, str(Path(__file__).parent))
        from deploy_torch import KeyWeightedProcessor
        from diffusers import DDIMScheduler, UNet2DConditionModel
        from transformers import ErnieConfig, ErnieModel

        from ppvilg.engine.builder import plain

        self.torch, self.recipe, self.done = torch, recipe, 0
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**plain(recipe.model.unet.config))
        unet.set_attn_processor(KeyWeightedProcessor())
        text_encoder = ErnieModel(ErnieConfig(**plain(recipe.model.text_encoder.config), vocab_size=VOCABULARY))
        text_encoder.eval()
        scheduler = DDIMScheduler(**plain(recipe.model.scheduler))
        self.signal, self.spoil = scheduler.alphas_cumprod.sqrt(), (1 - scheduler.alphas_cumprod).sqrt()
        text_encoder.pooler = None
        self.model = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
        self.model.forward = self._forward
        if ranks > 1:
            store = torch.distributed.TCPStore("127.0.0.1", port, ranks, rank == 0)
            torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
            self.run = torch.nn.parallel.DistributedDataParallel(self.model)
        else:
            self.run = self.model
        self.parameters = list(self.model.parameters())
        config = recipe.train.base
        self.optimizer = torch.optim.AdamW(self.parameters, config.learning_rate, weight_decay=config.weight_decay)
        self.average = [p.detach().clone() for p in self.parameters]
        share = config.batch_size // ranks
        self.mine = slice(rank * share, (rank + 1) * share)

    def _forward(self, made):
        at = made["timesteps"]
        unet, text_encoder = self.model["unet"], self.model["text_encoder"]
        hidden = text_encoder(made["input_ids"])[0]
        signal, spoil = (table[at].reshape(-1, 1, 1, 1) for table in (self.signal, self.spoil))
        noisy = signal * made["latents"] + spoil * made["noise"]
        weights = {"key_token_weights": made["key_token_weights"]}
        prediction = unet(noisy, at, hidden, cross_attention_kwargs=weights, return_dict=False)[0]
        error = (prediction - (signal * made["noise"] - spoil * made["latents"])).square()
        return (error * made["loss_weights"]).mean(dim=(1, 2, 3)).mean()

    def steps(self, count: int):
        """So many steps; their number."""
        torch, config = self.torch, self.recipe.train.base
        for _ in range(count):
            made = batch(self.done % 8, self.recipe)
            made = {name: torch.from_numpy(value[self.mine]) for name, value in made.items()}
            loss = self.run(made)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, config.gradient_clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.done += 1
            if self.done % config.ema_every == 0:
                torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 0.005)
            if self.done % config.log_every == 0:
                loss.item()
        return torch.tensor([float(self.done)])


def serve(name: str, path: str, rank: int, ranks: int, port: int) -> None:
    """One rank of a side: the first passes what it is asked on to the others."""
    import turns

    from ppvilg.config import load_config

    recipe = load_config(path)
    others = []
    if rank == 0:
        command = [sys.executable, __file__, "--recipe", path, "--serve", name]
        others = [subprocess.Popen([*command, str(number), str(ranks), str(port)], stdin=subprocess.PIPE, text=True,
                                   stdout=subprocess.DEVNULL) for number in range(1, ranks)]  # fmt: skip
    side = {"paddle": PaddleSide, "torch": TorchSide}[name](recipe, rank, ranks, port)
    if rank:
        for line in sys.stdin:
            side.steps(int(line))
        return
    real = side.steps

    def steps(count: int):
        for other in others:
            print(count, file=other.stdin, flush=True)
        return real(count)

    side.steps = steps
    turns.answer_requests(lambda: side)
    for other in others:
        other.stdin.close()
        other.wait()


def free_port() -> int:
    """A port with free ones after it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def compare(options) -> None:
    """Prints the ratios."""
    import turns

    sides_of = ("paddle", "torch")
    for ranks in options.ranks:
        folder = Path(tempfile.mkdtemp(prefix="bench-training-"))
        command = [sys.executable, __file__, "--recipe", options.recipe, "--serve"]
        sides = [turns.Side(name, [*command, name, "0", str(ranks), str(free_port())], 1, folder) for name in sides_of]
        for side in sides:
            side.run(("steps", 4), 1)  # the first ones are slower
        seconds = turns.measure(sides, ("steps", 2), options.rounds, options.times, 1)
        turns.report(f"{ranks} rank(s)", seconds, [("torch", "paddle")])
        for side in sides:
            side.close()


def profile(options) -> None:
    """Prints operators by their time in a step of one rank."""
    from ppvilg.config import load_config

    side = PaddleSide(load_config(options.recipe), 0, 1, 0)
    side.steps(3)
    import paddle.profiler as profiler

    # Without a handler of its own it would leave a trace of megabytes in the working folder.
    tracer = profiler.Profiler(targets=[profiler.ProfilerTarget.CPU], on_trace_ready=lambda _: None)
    tracer.start()
    side.steps(options.steps)
    tracer.stop()
    tracer.summary(sorted_by=profiler.SortedKeys.CPUTotal, op_detail=False, time_unit="ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(ROOT / "configs" / "emoji64.yml"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="that are profiled")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    os.environ["PYTHONPATH"] = str(ROOT)
    if options.serve:
        name, rank, ranks, port = options.serve
        serve(name, options.recipe, int(rank), int(ranks), int(port))
    elif options.profile:
        profile(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
