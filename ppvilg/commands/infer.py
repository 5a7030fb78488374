"""Draw pictures of prompts with a pipeline folder, a model of the zoo, or an export bundle (tools/export.py).

python tools/infer.py -m emoji64 --prompt 蓝色背景上的一辆红色出租车 --prompt 三只企鹅 --seed 7
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from .arguments import new_parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line -> arguments."""
    parser = new_parser("infer", __doc__)
    parser.add_argument("-m", "--model", default="emoji64", help="folder or zoo name (%(default)s)")
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument("--prompt-file", type=Path, help="one prompt per line, UTF-8")
    parser.add_argument("--style", help="for example 水彩; the message for an unknown one lists all")
    parser.add_argument("--negative-prompt")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture, the next has seed + 1 (0)")
    parser.add_argument("--num-images", type=int, default=1, help="pictures per prompt (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures drawn at once (%(default)s)")
    parser.add_argument("--steps", type=int, help="denoising steps (the model's own)")
    parser.add_argument("--guidance-scale", type=float, nargs="+", help="one, or one per expert (the model's own)")
    parser.add_argument("--eta", type=float, help="DDIM's share of fresh noise in every step, 0 to 1 (the model's own)")
    parser.add_argument("--width", type=int, help="pixels (the model's own)")
    parser.add_argument("--height", type=int, help="pixels (the model's own)")
    parser.add_argument("--scheduler", help="ddim, ddpm, pndm, dpmsolver++, unipc, euler, euler_ancestral")
    parser.add_argument("--image", type=Path, help="start from this picture")
    parser.add_argument("--mask-image", type=Path, help="repaint --image where this is white")
    parser.add_argument("--strength", type=float, help="how far --image is taken back to noise, 0 to 1")
    parser.add_argument("--backend", help="of an export bundle: cpu, onednn, onednn_bfloat16, gpu (onednn)")
    parser.add_argument("--max-resident-experts", type=int, help="experts in memory at once (all)")
    parser.add_argument("--output", type=Path, default=Path("output/infer"), help="folder for the PNGs (%(default)s)")
    arguments = parser.parse_args(argv)
    arguments.prompts = list(arguments.prompt)
    if arguments.prompt_file:
        lines = arguments.prompt_file.read_text(encoding="utf-8").splitlines()
        arguments.prompts += [line.strip() for line in lines if line.strip()]
    if not arguments.prompts:
        parser.error("give --prompt or --prompt-file")
    for name in ("num_images", "batch_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.guidance_scale and len(arguments.guidance_scale) == 1:
        arguments.guidance_scale = arguments.guidance_scale[0]
    return arguments


def load(arguments: argparse.Namespace):
    """The pipeline of either kind of folder."""
    from ppvilg.inference import is_bundle
    from ppvilg.pipelines import ErnieViLG2Pipeline

    resident = arguments.max_resident_experts
    if is_bundle(arguments.model):
        arguments.backend = arguments.backend or "onednn"
        return ErnieViLG2Pipeline.from_exported(arguments.model, arguments.backend, resident)
    if arguments.backend:
        raise ValueError(f"--backend is for export bundles, which {arguments.model} is not: export it first")
    return ErnieViLG2Pipeline.from_pretrained(arguments.model, max_resident_experts=resident)


def draw(arguments: argparse.Namespace) -> tuple[list, list[dict]]:
    """Pictures in the order of the prompts, and the metadata of each."""
    from paddlenlp.utils.log import logger
    from PIL import Image

    import ppvilg
    from ppvilg._runtime import prepare_cpu
    from ppvilg.pipelines import build_scheduler

    prepare_cpu()
    logger.set_level("WARNING")  # it tells the story of every file it opens
    pipeline = load(arguments)
    if arguments.scheduler:
        pipeline.scheduler = build_scheduler(arguments.scheduler, pipeline.scheduler.config)
    steps, scale = arguments.steps, arguments.guidance_scale
    settings = {
        "style": arguments.style,
        "negative_prompt": arguments.negative_prompt,
        "num_inference_steps": pipeline.config.default_num_inference_steps if steps is None else steps,
        "guidance_scale": pipeline.config.default_guidance_scale if scale is None else scale,
        "eta": pipeline.resolve_eta(arguments.eta),
        "strength": arguments.strength,
    }
    about = {
        "model": arguments.model,
        "backend": arguments.backend,
        "scheduler": type(pipeline.scheduler).__name__,
        "ppvilg": ppvilg.__version__,
        "image": arguments.image,
        "mask_image": arguments.mask_image,
    }
    inputs = {
        name: Image.open(path)
        for name, path in (("image", arguments.image), ("mask_image", arguments.mask_image))
        if path is not None
    }
    jobs = [prompt for prompt in arguments.prompts for _ in range(arguments.num_images)]
    images, metadata = [], []
    for start in range(0, len(jobs), arguments.batch_size):
        prompts = jobs[start : start + arguments.batch_size]
        pipeline.set_progress_bar_config(desc=f"pictures {start + 1} to {start + len(prompts)} of {len(jobs)}")
        images += pipeline(
            prompts,
            height=arguments.height,
            width=arguments.width,
            generator=arguments.seed + start,
            **settings,
            **inputs,
        ).images
        metadata += [
            {"prompt": prompt, "seed": arguments.seed + start + i, **settings, **about}
            for i, prompt in enumerate(prompts)
        ]
    return images, metadata


def write(images: list, metadata: list[dict], folder: Path, columns: int) -> tuple[list[Path], Path]:
    """Numbered PNGs and a grid, after those already in the folder: (paths, path of the grid)."""
    from ppvilg.pipelines import make_grid, save_png

    folder.mkdir(parents=True, exist_ok=True)
    first = 1 + max((int(path.stem) for path in folder.glob("*.png") if re.fullmatch(r"\d+", path.stem)), default=-1)
    paths = [folder / f"{first + i:05d}.png" for i in range(len(images))]
    for image, path, about in zip(images, paths, metadata):
        save_png(image, path, about)
    grid, number = folder / "grid.png", 1
    while grid.exists():
        number += 1
        grid = folder / f"grid_{number}.png"
    shared = {key: value for key, value in metadata[0].items() if all(about[key] == value for about in metadata)}
    save_png(make_grid(images, columns), grid, {**shared, "prompts": "\n".join(about["prompt"] for about in metadata)})
    return paths, grid


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        images, metadata = draw(arguments)
        columns = arguments.num_images if arguments.num_images > 1 else min(4, len(images))
        paths, grid = write(images, metadata, arguments.output, columns)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(paths)} pictures: {paths[0]} to {paths[-1].name}, together in {grid}")
    return 0
