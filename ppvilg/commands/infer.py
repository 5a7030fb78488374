"""Draw pictures of prompts with a pipeline folder, a model of the zoo, or an export bundle (ppvilg export).

ppvilg infer -m emoji64 --prompt 蓝色背景上的一辆红色出租车 --prompt 三只企鹅 --seed 7

Every picture is written as soon as it is drawn. Stopped half-way, the same command goes on with those that are missing;
with anything changed that decides the pictures, new ones are numbered behind those in the folder.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from ppvilg.files import digest_of, file_sha256, find_shipped, read_lines, read_picture

from .album import Run, columns_of, open_run, small_copies
from .arguments import add_device, add_lora, new_parser, real, use_device, whole

MOST_IMAGES = 100_000  # of one prompt; more are a slip
MOST_TOLD = 20  # prompts with words that cannot be read
BATCHES_PER_TURN = 8  # that each expert is read once for where not all are in memory; their pictures come together


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line -> arguments."""
    parser = new_parser("infer", __doc__)
    parser.add_argument("-m", "--model", default="emoji64", help="folder or zoo name (%(default)s)")
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument("--prompt-file", type=Path, help="one prompt per line, UTF-8")
    parser.add_argument("--style", help="for example 水彩; the message for an unknown one lists all")
    parser.add_argument("--negative-prompt")
    parser.add_argument(
        "--seed", type=whole(0, 2**63 - 1), default=0, help="seed of the first picture, the next has seed + 1 (0)"
    )
    parser.add_argument("--num-images", type=whole(1, MOST_IMAGES), default=1, help="pictures per prompt (%(default)s)")
    parser.add_argument("--batch-size", type=whole(1), default=8, help="pictures drawn at once (%(default)s)")
    parser.add_argument("--steps", type=whole(1), help="denoising steps (the model's own)")
    parser.add_argument(
        "--guidance-scale", type=real(-math.inf), nargs="+", help="one, or one per expert (the model's own)"
    )
    parser.add_argument(
        "--eta", type=real(0, 1), help="DDIM's share of fresh noise in every step, 0 to 1 (the model's own)"
    )
    parser.add_argument("--width", type=whole(1), help="pixels (the model's own)")
    parser.add_argument("--height", type=whole(1), help="pixels (the model's own)")
    parser.add_argument("--scheduler", help="ddim, ddpm, pndm, dpmsolver++, unipc, euler, euler_ancestral")
    parser.add_argument("--image", type=Path, help="start from this picture (PNG, JPEG, WebP)")
    parser.add_argument("--mask-image", type=Path, help="repaint --image where this is white")
    parser.add_argument("--strength", type=real(0, 1), help="how far --image is taken back to noise, 0 to 1")
    parser.add_argument("--backend", help="of an export bundle (the fastest that is proven on this machine)")
    parser.add_argument("--max-resident-experts", type=whole(1), help="experts in memory at once (all)")
    add_lora(parser)
    add_device(parser)
    parser.add_argument("--output", type=Path, default=Path("output/infer"), help="folder for the PNGs (%(default)s)")
    arguments = parser.parse_args(argv)
    if not arguments.prompt and not arguments.prompt_file:
        parser.error("give --prompt or --prompt-file")
    if arguments.guidance_scale and len(arguments.guidance_scale) == 1:
        arguments.guidance_scale = arguments.guidance_scale[0]
    return arguments


def read_prompts(arguments: argparse.Namespace) -> list[str]:
    """Those of the command line, then those of the file."""
    prompts = list(arguments.prompt)
    if arguments.prompt_file:
        prompts += read_lines(find_shipped(arguments.prompt_file))
        if len(prompts) == len(arguments.prompt):
            raise ValueError(f"{arguments.prompt_file} holds no prompt")
    return prompts


def read_inputs(arguments: argparse.Namespace) -> dict:
    """The pictures to start from and to repaint by, as arguments of the pipeline."""
    inputs = {}
    if arguments.image is not None:
        inputs["image"] = read_picture(arguments.image)
    if arguments.mask_image is not None:
        inputs["mask_image"] = read_picture(arguments.mask_image).convert("L")
    return inputs


def open_model(arguments: argparse.Namespace):
    """The pipeline, with the scheduler that was asked for."""
    from ppvilg.pipelines import build_scheduler
    from ppvilg.pipelines.opening import open_pipeline

    pipeline = open_pipeline(
        arguments.model,
        arguments.backend,
        arguments.max_resident_experts,
        device=arguments.device,
        adapters=arguments.lora,
    )
    if arguments.scheduler:
        pipeline.scheduler = build_scheduler(arguments.scheduler, pipeline.scheduler.config)
    return pipeline


def settings_of(arguments: argparse.Namespace, pipeline) -> dict:
    """What a call is given besides prompts and seeds, defaults of the model filled in."""
    steps, scale = arguments.steps, arguments.guidance_scale
    return {
        "style": arguments.style,
        "negative_prompt": arguments.negative_prompt,
        "num_inference_steps": pipeline.config.default_num_inference_steps if steps is None else steps,
        "guidance_scale": pipeline.config.default_guidance_scale if scale is None else scale,
        "eta": pipeline.resolve_eta(arguments.eta),
        "strength": arguments.strength,
        "height": arguments.height,
        "width": arguments.width,
    }


def describe(arguments: argparse.Namespace, pipeline) -> dict:
    """What a picture says of its making besides the settings."""
    import ppvilg

    return {
        "model": arguments.model,
        "backend": getattr(pipeline.vae, "backend", None),
        "scheduler": type(pipeline.scheduler).__name__,
        "ppvilg": ppvilg.__version__,
        "image": arguments.image and str(arguments.image),
        "mask_image": arguments.mask_image and str(arguments.mask_image),
        **({"lora": pipeline.describe_adapters()} if arguments.lora else {}),
    }


def contents_of(arguments: argparse.Namespace) -> dict:
    """What tells other files under the same names: digests of pictures, names, sizes and times of the model's files."""
    from ppvilg.inference import is_bundle
    from ppvilg.pipelines import resolve

    folder = Path(arguments.model) if is_bundle(arguments.model) else resolve(arguments.model)
    files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        "model": digest_of([[path.as_posix(), stat.st_size, stat.st_mtime_ns] for path, stat in files]),
        "image": arguments.image and file_sha256(arguments.image),
        "mask_image": arguments.mask_image and file_sha256(arguments.mask_image),
    }


def draw(pipeline, run: Run, prompts: list[str], arguments: argparse.Namespace, settings: dict) -> Iterator[tuple]:
    """(index, picture) of every picture of the run that is missing, batch by batch as they are drawn.

    The seeds count on from picture to picture. Memory does not grow with the number of pictures.
    """
    missing = run.missing()
    if not missing:
        return
    say_unread(pipeline, prompts, arguments.style)
    batches = pipeline.stream_queue(
        [prompts[index] for index in missing],
        batch_size=arguments.batch_size,
        batches_per_turn=None if arguments.max_resident_experts is None else BATCHES_PER_TURN,
        generator=[arguments.seed + index for index in missing],
        **settings,
    )
    indices = iter(missing)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="prompt has words")  # said before, and not by places in a batch
        for batch in batches:
            for picture in batch.images:
                yield next(indices), picture


def say_unread(pipeline, prompts: list[str], style: str | None) -> None:
    """Tells before anything is drawn which prompts have words that the model cannot read."""
    from tqdm import tqdm

    from ppvilg.knowledge import apply_style

    knowledge = pipeline.text_knowledge
    unread = {prompt: knowledge.unknown_words(apply_style(prompt, style)) for prompt in dict.fromkeys(prompts)}
    lines = [
        f"warning: the model cannot read, and will not draw: {' '.join(words)} (in {prompt})"
        for prompt, words in unread.items()
        if words
    ]
    more = [f"warning: and so in {len(lines) - MOST_TOLD} more prompts"] if len(lines) > MOST_TOLD else []
    for line in [*lines[:MOST_TOLD], *more]:
        tqdm.write(line, sys.stderr)


def save_grid(run: Run, about: dict, prompts: list[str], columns: int) -> None:
    """All pictures of the run on one sheet."""
    from ppvilg.pipelines import make_grid, save_png

    sheet = make_grid(small_copies([run.path(index) for index in range(run.count)]), columns)
    save_png(sheet, run.grid, {**about, "prompts": "\n".join(prompts)}, replace=True)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    prompts = [prompt for prompt in read_prompts(arguments) for _ in range(arguments.num_images)]
    inputs = read_inputs(arguments)
    use_device(arguments.device)
    from tqdm import tqdm

    from ppvilg.pipelines import save_png

    pipeline = open_model(arguments)
    settings = settings_of(arguments, pipeline)
    about = {**settings, **describe(arguments, pipeline)}
    decides = {"seed": arguments.seed, **about, "contents": contents_of(arguments), "prompts": prompts}
    run = open_run(arguments.output, len(prompts), decides)
    done = run.count - len(run.missing())
    pipeline.set_progress_bar_config(desc="steps", leave=False, position=1)
    try:
        with tqdm(total=run.count, initial=done, unit=" pictures", desc=str(run.folder)) as progress:
            for index, picture in draw(pipeline, run, prompts, arguments, {**settings, **inputs}):
                save_png(picture, run.path(index), {"prompt": prompts[index], "seed": arguments.seed + index, **about})
                progress.update()
    except BaseException:
        left = run.missing()
        if run.is_new and len(left) == run.count:
            run.forget()
        elif left:
            print(f"{run.count - len(left)} of {run.count} pictures are in {run.folder}", file=sys.stderr)
            print("run the same command again to draw the others", file=sys.stderr)
        raise
    if done < run.count or not run.grid.exists():
        save_grid(run, about, prompts, columns_of(run.count, arguments.num_images))
    drawn = "" if done < run.count else ", all drawn before"
    print(f"{run.count} pictures: {run.path(0)} to {run.path(run.count - 1).name}, together in {run.grid}{drawn}")
    return 0
