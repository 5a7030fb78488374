"""Export a model as static graphs for Paddle Inference, proven against the model itself before anything is kept.

python tools/export.py --model emoji64 --output output/export/emoji64
python tools/infer.py -m output/export/emoji64 --prompt 蓝色背景上的一辆红色出租车
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .arguments import new_parser

PROMPTS = Path(__file__).resolve().parents[2] / "configs" / "prompts" / "quickstart.txt"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line -> arguments."""
    parser = new_parser("export", __doc__)
    parser.add_argument(
        "-m", "--model", required=True, help="zoo name, pipeline folder, or a folder with a stock UNet or experts alone"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the bundle, must not exist")
    parser.add_argument(
        "--backends",
        nargs="+",
        default=["cpu", "onednn"],
        metavar="BACKEND",
        help="what to prove it on: cpu, onednn, onednn_bfloat16, gpu (cpu onednn)",
    )
    parser.add_argument(
        "--weights",
        default="float32",
        choices=["float32", "float16", "int8"],
        help="how weights are stored; graphs compute in float32 (%(default)s)",
    )
    parser.add_argument(
        "--prompt-file", type=Path, default=PROMPTS, help="prompts whose pictures are compared, one per line"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of those pictures; of latents for experts"
    )
    parser.add_argument("--from-diffusers", action="store_true", help="a stock UNet folder in PyTorch's layout")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    from paddlenlp.utils.log import logger

    from ppvilg._runtime import prepare_cpu
    from ppvilg.export import export_model

    prepare_cpu()
    logger.set_level("WARNING")  # it tells the story of every file it opens
    try:
        prompts = [line.strip() for line in arguments.prompt_file.read_text(encoding="utf-8").splitlines()]
        manifest = export_model(
            arguments.model,
            arguments.output,
            backends=arguments.backends,
            prompts=[prompt for prompt in prompts if prompt],
            size=arguments.size,
            weights=arguments.weights,
            from_diffusers=arguments.from_diffusers,
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(manifest.report())
    print(f"bundle: {arguments.output.resolve()}")
    return 0
