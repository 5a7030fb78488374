"""Experts as folders: `ppvilg experts split|assemble|status|merge|validate ...`.

split base pipeline10 --experts 10           ten copies of one denoiser; 10 -> 20 halves every block
assemble job0/experts_00 job1/experts_01 ... --output pipeline
assemble pipeline job7/experts_07 --replace 7 --output pipeline_new
status job0/experts_00 job1/experts_01 ...
merge pipeline base_again                    one denoiser, the mean of the experts: to train on from
validate -c recipe.yml --pipeline pipeline --replace 7=job7/experts_07 --output judged
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_device, add_recipe, new_parser, use_device, whole


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = new_parser("experts", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    split = commands.add_parser("split", help="a base, or n experts, into more experts")
    split.add_argument("source", type=Path)
    split.add_argument("output", type=Path)
    split.add_argument("--experts", type=whole(1), required=True)
    split.add_argument("--boundaries", type=whole(0), nargs="+", help="timesteps from 0 to T; uniform if not given")
    assemble = commands.add_parser("assemble", help="experts of several folders into one pipeline")
    assemble.add_argument("folders", type=Path, nargs="+")
    assemble.add_argument("--output", type=Path, required=True)
    assemble.add_argument(
        "--replace", type=whole(0), nargs="+", default=[], help="experts that the last folder may replace"
    )
    commands.add_parser("status", help="which experts are where").add_argument("folders", type=Path, nargs="+")
    merge = commands.add_parser("merge", help="the mean of all experts as one denoiser")
    merge.add_argument("source", type=Path)
    merge.add_argument("output", type=Path)
    validate = commands.add_parser("validate", help="a retrained expert among the others")
    add_recipe(validate, "recipe (YAML): its validation data and prompts are used")
    add_device(validate)
    validate.add_argument("--pipeline", type=Path, required=True)
    validate.add_argument("--replace", action="append", required=True, metavar="K=FOLDER", help="may be repeated")
    validate.add_argument("--output", type=Path, required=True, help="for latents, and pictures of the prompts")
    return parser.parse_args(argv)


def validate(arguments: argparse.Namespace) -> str:
    from PIL import Image

    from ppvilg.config import ConfigError, load_config

    use_device(arguments.device)
    from ppvilg.engine import experts

    replacements = {}
    for each in arguments.replace:
        number, separator, folder = each.partition("=")
        if not separator or not number.isdigit():
            raise ConfigError(f"--replace {each}: give K=FOLDER, for example 7=output/job7/experts_07")
        replacements[int(number)] = Path(folder)
    overrides = [*arguments.override, *experts.validation_overrides(arguments.pipeline, arguments.output)]
    recipe = load_config(arguments.config, overrides)
    found = experts.compare_replacement(recipe, arguments.pipeline, replacements)
    lines = [f"{'validation':<20}{'before':>10}{'after':>10}"]
    lines += [f"{name:<20}{value:>10.5f}{found['after'][name]:>10.5f}" for name, value in found["before"].items()]
    for name, picture in zip(("before", "after"), found["pictures"]):
        if picture is not None:
            Image.fromarray(picture).save(arguments.output / f"{name}.png")
            lines.append(f"pictures: {arguments.output / f'{name}.png'}")
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> str:
    if arguments.command == "validate":
        return validate(arguments)
    from ppvilg.engine import experts

    if arguments.command == "split":
        origins = experts.split(arguments.source, arguments.output, arguments.experts, arguments.boundaries)
        return f"{arguments.output}: experts are copies of {origins}"
    if arguments.command == "assemble":
        chosen = experts.assemble(arguments.folders, arguments.output, arguments.replace)
        return "\n".join([f"{arguments.output}:", *(f"  expert {k}: {path}" for k, path in chosen.items())])
    if arguments.command == "merge":
        experts.merge(arguments.source, arguments.output)
        return f"{arguments.output}: one denoiser, the mean of the experts of {arguments.source}"
    return experts.status(arguments.folders)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    from ppvilg.engine import CheckpointError

    try:
        print(run(arguments))
    except CheckpointError as error:  # a full disk, say
        raise OSError(str(error)) from error
    return 0
