"""Export a model as static graphs, proven against the model itself before anything is kept.

ppvilg export --model emoji64 --output output/export/emoji64
ppvilg infer -m output/export/emoji64 --prompt 蓝色背景上的一辆红色出租车
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ppvilg.files import read_lines, shipped_folder

from .arguments import add_device, add_lora, new_parser, use_device, whole
from .backend_arguments import add_backend_settings, backend_options


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
        help="what to prove it on: cpu, onednn, onnxruntime, openvino, with _bfloat16 where they have it; gpu... (cpu "
        "onednn). Paddle's own graphs are written for cpu, onednn and gpu, ONNX for the others",
    )
    parser.add_argument(
        "--weights",
        default="float32",
        choices=["float32", "float16", "int8"],
        help="how weights are stored; graphs compute in float32 (%(default)s)",
    )
    parser.add_argument(
        "--prompt-file", type=Path, help="prompts whose pictures are compared, one per line (sixteen for emoji64)"
    )
    parser.add_argument(
        "--size", type=whole(1), nargs=2, metavar=("WIDTH", "HEIGHT"), help="of those pictures; of latents for experts"
    )
    parser.add_argument("--from-diffusers", action="store_true", help="a stock UNet folder in PyTorch's layout")
    add_lora(parser)
    add_device(parser)
    add_backend_settings(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    use_device(arguments.device)
    from ppvilg.export import export_model, report
    from ppvilg.inference import machine_name, read_proofs

    manifest = export_model(
        arguments.model,
        arguments.output,
        backends=[backend_options(name, arguments) for name in arguments.backends],
        prompts=read_lines(arguments.prompt_file or shipped_folder() / "prompts" / "quickstart.txt"),
        size=arguments.size and arguments.size[::-1],
        weights=arguments.weights,
        from_diffusers=arguments.from_diffusers,
        adapters=arguments.lora,
    )
    print(report(manifest, read_proofs(arguments.output)[machine_name()]))
    print(f"bundle: {arguments.output.resolve()}")
    return 0
