"""Streamed experts over resident ones, and n experts over one: time per picture and memory, from one run.

python tests/benchmarks/bench_residency.py [--model FOLDER] [--max-resident-experts 2] [--experts 10 --width 128]

--model is a pipeline folder, a bundle of tools/export.py (then everything runs under --backend) or a zoo name; without
it `--experts` random experts of the zoo's shape and `--width` channels are written to a temporary folder, stored as
--weights. Three processes take turns (see turns.py): `resident` has all experts in memory, `streamed` at most
--max-resident-experts, `one` the first expert alone, for all timesteps. Resident and streamed must draw the same
picture bit for bit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from turns import Side, answer_requests, measure, outputs, report

SIDES = ("one", "resident", "streamed")
SERVE = "--serve"


# ---- a side, in its own process ----


class ResidencySide:
    """Draws pictures; `notes` has the number of bytes of one expert and the record of the last trajectory."""

    def __init__(self, options: argparse.Namespace) -> None:
        import paddle
        from paddlenlp.utils.log import logger

        from ppvilg._runtime import prepare_cpu

        prepare_cpu()
        logger.set_level("WARNING")
        paddle.set_grad_enabled(False)
        self.steps = options.steps
        self.pipeline = load_pipeline(options)
        self.pipeline.set_progress_bar_config(disable=True)

    @property
    def notes(self) -> dict | None:
        """The record of a streamed side."""
        record = getattr(self.pipeline.unet.experts, "record", None)
        return record and asdict(record)

    def picture(self):
        """Pixels (1, 3, H, W) in [0, 1]."""
        return self.pipeline("三只企鹅", num_inference_steps=self.steps, generator=0, output_type="pd").images


def load_pipeline(options: argparse.Namespace):
    """The pipeline of one side: from a folder or a bundle."""
    from ppvilg.inference import exported_components, exported_unet
    from ppvilg.inference.manifest import is_bundle
    from ppvilg.models import MoDEUNet2DConditionModel
    from ppvilg.pipelines import ErnieViLG2Pipeline, resolve

    count = options.max_resident_experts if options.serve == "streamed" else None
    if is_bundle(options.model):
        if options.serve != "one":
            return ErnieViLG2Pipeline.from_exported(options.model, options.backend, count)
        unet = only_expert(exported_unet(options.model, options.backend, experts=[0]))
        return ErnieViLG2Pipeline(**exported_components(options.model, options.backend, unet))
    if options.serve != "one":
        return ErnieViLG2Pipeline.from_pretrained(options.model, max_resident_experts=count)
    unet = MoDEUNet2DConditionModel.from_pretrained(resolve(options.model) / "unet", experts=[0])
    return ErnieViLG2Pipeline.from_pretrained(options.model, unet=only_expert(unet))


def only_expert(unet):
    """A mixture of one: its expert 0 for all timesteps."""
    model = type(unet)(1, None, unet.num_train_timesteps, unet.config.unet, experts=[])
    model.experts[0] = unet.experts[0]
    model.eval()
    return model


def write_model(folder: str, experts: int, width: int, weights: str) -> None:
    """The zoo's pipeline with random experts of this width, stored as float16 or float32."""
    import paddle
    from paddlenlp.utils.log import logger

    from ppvilg.models import MoDEUNet2DConditionModel
    from ppvilg.pipelines import ErnieViLG2Pipeline, save_fp16, zoo_folder

    logger.set_level("WARNING")
    paddle.seed(0)
    config = MoDEUNet2DConditionModel.without_experts(zoo_folder("emoji64") / "unet").config.unet
    unet = MoDEUNet2DConditionModel(experts, unet={**config, "block_out_channels": [width, width]})
    pipeline = ErnieViLG2Pipeline.from_pretrained("emoji64", unet=unet)
    save_fp16(pipeline, folder) if weights == "float16" else pipeline.save_pretrained(folder)


# ---- the comparison ----


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="pipeline folder, export bundle or zoo name (random experts)")
    parser.add_argument("--backend", default="onednn", help="of a bundle (%(default)s)")
    parser.add_argument("--max-resident-experts", type=int, default=2)
    parser.add_argument("--experts", type=int, default=10, help="how many random experts (%(default)s)")
    parser.add_argument("--width", type=int, default=128, help="their channels, a multiple of 32 (%(default)s)")
    parser.add_argument("--weights", default="float16", choices=("float16", "float32"), help="on disk (%(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side (all cores)")
    parser.add_argument("--steps", type=int, default=25, help="of a picture (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(SERVE, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_sides(options: argparse.Namespace, folder: Path) -> list[Side]:
    command = [sys.executable, __file__, "--model", options.model, "--backend", options.backend]
    command += ["--max-resident-experts", str(options.max_resident_experts), "--steps", str(options.steps), SERVE]
    return [Side(name, [*command, name], options.threads, folder) for name in SIDES]


def main() -> None:
    options = parse()
    if options.serve:
        answer_requests(lambda: ResidencySide(options))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.model is None:
            options.model = str(folder / "model")
            write_model(options.model, options.experts, options.width, options.weights)
        sides = make_sides(options, folder)
        pictures = outputs(sides, ("picture",), folder)
        if (pictures["resident"] != pictures["streamed"]).any():
            raise SystemExit("resident and streamed draw different pictures: there is nothing to compare")
        seconds = measure(sides, ("picture",), options.rounds, 1, options.threads)
        report("picture", seconds, [("streamed", "resident"), ("resident", "one")])
        last = {side.name: side.run(("picture",), 1) for side in sides}
        for side in sides:
            peak = last[side.name]["memory"]["peak"]
            print(f"{side.name:10s} peak {peak:.0f} MiB, {side.loaded['now']:.0f} MiB when loaded")
            side.close()
        record = last["streamed"]["notes"]
        print("record:", ", ".join(f"{name} {value}" for name, value in record.items()))
        expert = record["peak_bytes"] / record["peak_experts"] / 2**20
        more = (last["streamed"]["memory"]["peak"] - last["one"]["memory"]["peak"]) / expert
        print(f"an expert takes {expert:.1f} MiB; streamed peaks {more:.2f} experts above one expert alone")


if __name__ == "__main__":
    main()
