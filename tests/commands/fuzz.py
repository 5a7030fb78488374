"""Odd command lines, one a call: a command is run up to the point where its heavy work begins.

A generator is a function (rng, folder) as in tests/data/fuzz.py. The options come from the command's own parser, so a
new one is tried too. Whatever is typed ends in one sentence and an exit code, or reaches the work.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import importlib
import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from ppvilg.commands import COMMANDS, main
from ppvilg.evaluation.drawing.prompts import read_prompts as read_evaluation_prompts
from ppvilg.evaluation.suite import SUITES
from ppvilg.files import read_lines
from tests.config.fuzz import COLLECTIONS, ENCODINGS, SCALARS
from tests.data.fuzz import TEXTS, mutated, picture

LONGEST = 2000  # characters of what is said about a mistake
# What a process cannot be given: a zero byte.
MORE = ("\U0001f600", "a\nb", " ", "-", "--", "\udcff", "%s", "$HOME", "*")
WORDS = tuple(text for text in (*TEXTS, *MORE) if "\0" not in text and len(text) < LONGEST)
WHOLE = (
    "0",
    "1",
    "2",
    "3",
    "-1",
    "7",
    "64",
    "1.5",
    "1e3",
    "nan",
    "inf",
    "",
    " 5 ",
    "1_0",
    "0x10",
    "9" * 25,
    "-" + "9" * 25,
    "2147483647",
    "2147483648",
    "4294967296",
    "x",
    "None",
)
REAL = (
    "0",
    "1",
    "0.5",
    "-1",
    "2",
    "7.5",
    "1e-320",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "",
    "x",
    "1_0",
    "1,5",
    "True",
    "9" * 400,
)


class Heavy(Exception):
    """The work would begin."""


def _begin(*_, **__):
    raise Heavy


# Where the heavy work of a command begins.
WORK = (
    "ppvilg.pipelines.pipeline.prepare_canvas",
    "ppvilg.engine.run.Run.run",
    "ppvilg.export.export._write_parts",
    "ppvilg.export.prove._prove",
    "ppvilg.serving.server.run",
    "ppvilg.serving.server.run_workers",
    "ppvilg.engine.run.Run.prepare_denoising",
    "ppvilg.emoji.prepare._write_samples",
    "ppvilg.emoji.detector_training.train_detector",
    "ppvilg.emoji.detector_accuracy.measure_detector",
    *(f"{each.module}.{each.suite}.run" for each in SUITES.values()),
)


def prompt_files(rng: random.Random, folder: Path) -> None:
    """Files of prompts for drawing and for evaluation: every line is a prompt, or the file is refused by its name."""
    lines = [
        rng.choice((*TEXTS, "三只企鹅", "a red car", "\ufeff猫", "猫\u2028狗", "\t")) for _ in range(rng.randint(0, 6))
    ]
    suffix = rng.choice((".txt", ".jsonl", ".json", ".csv", ""))
    if suffix in (".jsonl", ".json"):
        odd = (None, 1, [], {}, "", "猫", 1e999, float("nan"), "\ud800")
        rows = [{"prompt": line, "caption": line, "id": rng.choice(odd), "image_id": 3} for line in lines]
        for row in rows:
            if rng.random() < 0.2:
                row[rng.choice(("prompt", "caption"))] = rng.choice(odd)
        lines = [json.dumps(row, ensure_ascii=rng.random() < 0.5) for row in rows]
        if suffix == ".json":
            lines = [json.dumps(rng.choice(({"annotations": rows}, rows, {"annotations": odd}, 3, None)))]
    text = rng.choice(("\n", "\r\n", "\r")).join(lines)
    data = (
        text.encode(rng.choice(ENCODINGS), "replace") if rng.random() < 0.3 else text.encode("utf-8", "surrogatepass")
    )
    data = mutated(rng, data) if rng.random() < 0.3 else data
    path = folder / f"p{suffix}"
    path.write_bytes(data)
    for read in (read_lines, read_evaluation_prompts):
        try:
            found = read(path)
        except (ValueError, OSError) as error:
            text = str(error)
            assert str(folder) in text and path.name in text and "\n" not in text and len(text) < LONGEST, text
            continue
        held = [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]
        assert suffix == ".json" or len(found) >= min(len(held), len(data.split(b"\n"))), "a prompt was lost"


def arguments(rng: random.Random, folder: Path) -> None:
    """A command line whose options have values of any kind."""
    name = rng.choice(
        (
            "infer",
            "infer",
            "infer",
            "train",
            "evaluate",
            "export",
            "prove",
            "serve",
            "experts",
            "prepare",
            "train-detector",
        )
    )
    _run(rng, folder, name)


GENERATORS = {"prompt files": prompt_files, "arguments": arguments}


# ---- what is typed ----


def _run(rng: random.Random, folder: Path, name: str) -> None:
    places = _furnish(rng, folder)
    argv = _line(rng, _parser_of(name), places)
    if name == "train" and rng.random() < 0.7:  # else no data are there, as a rule
        world = _tiny_world()
        argv = [
            "-c",
            str(world / "recipe.yml"),
            "-o",
            f"output={folder / 'out'}",
            "-o",
            f"data.train={world}/world/train",
            "-o",
            f"data.validation={world}/world/validation",
            *argv[2:],
        ]
    said = io.StringIO()
    before = set(folder.rglob("*"))
    with _in(folder), contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), _without_work():
        try:
            code = main([name, *argv])
        except Heavy:
            return
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else f"error: {end.code}"
    lines = [line for line in said.getvalue().splitlines() if line.strip()]
    assert code in (0, 1, 2, 130) or str(code).startswith("error:"), f"exit code {code}"
    assert "Traceback" not in said.getvalue(), said.getvalue()[-1000:]
    if code not in (0, None):
        last = str(code) if isinstance(code, str) else _last_error(said.getvalue())
        assert last and len(last) < LONGEST, f"nothing said, or too much: {said.getvalue()[-300:]!r} {lines[-1:]}"
        left = [path for path in folder.rglob("*") if path not in before and path.is_file() and not path.stat().st_size]
        assert not left or name == "serve", f"empty files stay: {left}"


def _last_error(text: str) -> str:
    """From the last `error:` on."""
    return text[text.rfind("error:") :].strip() if "error:" in text else ""


def _line(rng: random.Random, parser: argparse.ArgumentParser, places: dict) -> list[str]:
    argv = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            name = rng.choice(sorted(action.choices))
            return [*argv, name, *_line(rng, action.choices[name], places)]
        if isinstance(action, (argparse._HelpAction, argparse._VersionAction)):
            continue
        wanted = action.required or not action.option_strings or action.dest in ("model", "prompt", "output", "data")
        if rng.random() > (0.97 if wanted else 0.15):
            continue
        if action.nargs == 0:
            argv.append(action.option_strings[0])
            continue
        many = action.nargs in ("+", "*") or isinstance(action.nargs, int)
        values = [_value(rng, action, places) for _ in range(rng.choice((1, 2, 3)) if many else 1)]
        if action.option_strings and not many and rng.random() < 0.5:
            argv.append(f"{action.option_strings[-1]}={values[0]}")
        else:
            argv += [*action.option_strings[-1:], *values]
    if rng.random() < 0.05:
        argv.insert(rng.randint(0, len(argv)), rng.choice(WORDS))
    return argv


def _value(rng: random.Random, action: argparse.Action, places: dict) -> str:
    if action.choices:
        return rng.choice((*map(str, action.choices), "x"))
    if action.type in (int, float):
        return rng.choice(WHOLE if action.type is int else REAL)
    if callable(action.type) and action.type is not Path:  # numbers within limits
        return rng.choice(("1", "2", "8", "0.5")) if rng.random() < 0.7 else rng.choice(WHOLE + REAL)
    if action.dest in ("config", "override"):
        return _recipe_value(rng, action.dest, places)
    known = {
        "model": ("model",) * 8 + ("torn",) * 4 + ("file", "missing", "empty", "bundle"),
        "bundle": ("bundle",) * 3 + ("model", "missing", "file"),
        "image": ("picture",) * 4 + ("file", "missing", "model"),
        "mask_image": ("picture", "file", "missing"),
        "prompt_file": ("prompts",) * 3 + ("picture", "missing", "model", "gbk"),
        "output": ("new",) * 6 + ("file", "empty", "model", "long", "under_file", "odd"),
        "data": ("new",) * 6 + ("file", "long", "under_file"),
        "source": ("model",) * 4 + ("torn", "torn", "missing", "file", "empty"),
        "folders": ("model",) * 4 + ("torn", "torn", "missing", "file", "empty"),
        "pipeline": ("model",) * 4 + ("torn", "torn", "missing", "file"),
    }
    if action.dest in known and rng.random() < 0.9:
        return str(places[rng.choice(known[action.dest])])
    words = {
        "scheduler": ("ddim", "euler", "unipc", "dpmsolver++", "DDIM", "x"),
        "device": ("cpu", "cpu", "gpu", "gpu:7", "x", "gpu:x"),
        "style": ("水彩", "油画", "x"),
        "backend": ("cpu", "onednn", "x"),
        "backends": ("cpu", "onednn", "openvino", "x"),
        "host": ("127.0.0.1", "localhost", "0.0.0.0", "::1", "x y"),
        "replace": ("0=model", "1", "x", "7=", "-1=model"),
        "database": ("postgresql://a:b@127.0.0.1:1/x", "sqlite:///x.db", "mysql://x", "postgresql://", "x"),
        "filter": ("os:getcwd", "nowhere:f", "os", ":", "os:nothing"),
        "new_key": ("class 7b",),
        "revoke_key": ("nobody",),
        "shape_range": ("sample=1x4x8x8:1x4x8x8:2x4x8x8", "sample", "a=b", "a=1:2:3:4", "=::", "a=0:0:0", "a=3:2:1"),
    }
    if action.dest in words and rng.random() < 0.8:
        return rng.choice(words[action.dest])
    return rng.choice(WORDS)


def _recipe_value(rng: random.Random, dest: str, places: dict) -> str:
    if dest == "config":
        shipped = ("emoji64", "quickstart", "evaluation/objects", "evaluation/fid", "evaluation/detector", "emoji")
        odd = [str(places[name]) for name in ("file", "missing", "empty")]
        return rng.choice((*shipped, *odd)) if rng.random() < 0.7 else str(_tiny_world() / "recipe.yml")
    key = rng.choice(
        (
            "output",
            "model",
            "seed",
            "data.train",
            "data.validation",
            "train.base.steps",
            "suite",
            "prompts",
            "images_per_prompt",
            "batch_size",
            "sample.prompts",
            "model.unet.pretrained",
        )
    )
    paths = [str(path) for path in (*places.values(), *_tiny_world().glob("world/*"))]
    value = rng.choice((*SCALARS, *COLLECTIONS, *paths))
    return f"{key}={value}".replace("\0", "")


# ---- where it is typed ----


def _furnish(rng: random.Random, folder: Path) -> dict[str, Path]:
    """Files and folders that options may name, those that are written to below `folder`."""
    places = {
        "model": tiny_model(),
        "missing": folder / "missing",
        "new": folder / "new" / "in it",
        "file": folder / "file",
        "under_file": folder / "file" / "x",
        "empty": folder / "empty",
        "long": folder / ("长" * 200),
        "odd": folder / "a\n\U0001f600 b",
    }
    places["empty"].mkdir()
    places["file"].write_bytes(rng.choice((b"", b"a: 1\n", b"{}", b"\x89PNG\r\n", b"\xff\xfea\0", b"[1]")))
    content = picture(rng, 48)
    for name, data in (
        ("picture", content if rng.random() < 0.7 else mutated(rng, content)),
        ("gbk", "一只猫".encode("gbk")),
        ("prompts", "三只企鹅\n\n猫\r\n".encode()),
    ):
        places[name] = folder / name
        places[name].write_bytes(data)
    places["torn"] = _torn_model(rng, folder / "torn")
    places["bundle"] = folder / "bundle"
    places["bundle"].mkdir()
    manifest = rng.choice(({}, [], {"format": 1}, {"files": {"a": 1}}, {"parts": 3, "files": {}}, None))
    (places["bundle"] / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return places


def _torn_model(rng: random.Random, folder: Path) -> Path:
    """The tiny model with one file as downloads, clones and full disks leave it."""
    shutil.copytree(tiny_model(), folder)
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data, kind = path.read_bytes(), rng.choice(("gone", "empty", "cut", "pointer", "mutated", "null", "list"))
    contents = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "mutated": mutated(rng, data),
        "null": b"null",
        "list": b"[1]",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
    }
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(contents[kind])
    return folder


@functools.lru_cache
def _tiny_world() -> Path:
    """A recipe with data that training takes; it stays for this process."""
    from tests.engine.tiny import write_recipe, write_world

    folder = Path(tempfile.mkdtemp(prefix="tiny"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_world(folder / "world")
    write_recipe(folder / "recipe.yml")
    return folder


@functools.lru_cache
def tiny_model() -> Path:
    """The folder of a pipeline of a few thousand weights; it stays for this process."""
    from ppvilg.pipelines import ErnieViLG2Pipeline
    from tests.components import make_components

    folder = Path(tempfile.mkdtemp(prefix="tiny"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    built = ErnieViLG2Pipeline(**make_components(folder / "vocabulary"), max_length=16, default_num_inference_steps=2)
    built.save_pretrained(folder / "model")
    return folder / "model"


@functools.lru_cache
def _parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command, caught when it is to parse."""
    found = []

    def catch(self, *_, **__):
        found.append(self)
        raise Heavy

    with patch.object(argparse.ArgumentParser, "parse_args", catch), contextlib.suppress(Heavy):
        importlib.import_module(COMMANDS[name].module).main([])
    return found[0]


@contextlib.contextmanager
def _without_work() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for target in WORK:
            stack.enter_context(patch(target, _begin))
        stack.enter_context(patch("ppvilg.pipelines.opening.ErnieViLG2Pipeline", _OpenedOnce))
        stack.enter_context(patch("ppvilg.commands.train.stop_by_signal", lambda: None))
        yield


class _OpenedOnce:
    """Stands for the pipeline's class where it is opened: the tiny model is read once, all others as ever."""

    @staticmethod
    def from_pretrained(name, **options):
        from ppvilg.pipelines import ErnieViLG2Pipeline

        if os.fspath(name) != str(tiny_model()) or any(options.values()):
            return ErnieViLG2Pipeline.from_pretrained(name, **options)
        pipeline, scheduler = _tiny_pipeline()
        pipeline.scheduler = scheduler
        return pipeline

    @staticmethod
    def from_exported(*arguments):
        from ppvilg.pipelines import ErnieViLG2Pipeline

        return ErnieViLG2Pipeline.from_exported(*arguments)


@functools.lru_cache
def _tiny_pipeline() -> tuple:
    from ppvilg.pipelines import ErnieViLG2Pipeline

    pipeline = ErnieViLG2Pipeline.from_pretrained(tiny_model())
    return pipeline, pipeline.scheduler


@contextlib.contextmanager
def _in(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
