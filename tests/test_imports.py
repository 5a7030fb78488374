"""The import direction between the rooms, what `import ppvilg` does and does not load, and how large a part may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ppvilg"
ALLOWED = {
    "config": set(),
    "files": set(),
    "data": set(),
    "knowledge": set(),
    "models": set(),
    "diffusion": set(),
    "inference": {"models"},
    "pipelines": {"knowledge", "models", "inference"},
    "export": {"pipelines", "inference", "models"},
    "engine": {"config", "data", "knowledge", "models", "diffusion", "pipelines"},
    "emoji": {"data"},
    "annotate": {"data", "knowledge", "inference", "_versions"},
    "evaluation": {"pipelines", "data", "emoji", "config", "_runtime"},
    "serving": {"pipelines", "knowledge", "config", "_runtime"},
    # The package itself: the public names, by strings that are imported on first use.
    "__init__": {"_registration", "_runtime", "_versions", "data", "diffusion", "knowledge", "models", "pipelines"},
    "_registration": {"pipelines"},
    "_runtime": set(),
    "_versions": set(),
    "_needs_paddle": {"_versions"},
    "supervise": set(),
}
EVERYWHERE = {"files", "_needs_paddle"}
FREE = {"__main__", "commands"}  # may import anything
ROOMS = sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")})


def imported_modules(source: str, module: str) -> set[str]:
    """Dotted names that `source`, the text of `module`, imports anywhere: `from a.b import c` gives a.b.c.

    Modules imported by name count too: every text that reads like a dotted name of the package.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= {node.value} if re.fullmatch(r"ppvilg(\.\w+)+", node.value) else set()
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                base = module.split(".")[: -node.level] + base
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names


def files_of(room: str) -> list[Path]:
    """The files of a room but for `python -m`'s door into it, which leads to its command."""
    folder = PACKAGE / room
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]
    return [file for file in files if file.relative_to(folder.parent).parts[1:] != ("__main__.py",)]


def imports_of(path: Path) -> set[str]:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return imported_modules(path.read_text(encoding="utf-8"), module)


def rooms_imported_by(path: Path) -> set[str]:
    """First part after `ppvilg.` of every import; `__version__` is no room."""
    parts = [name.split(".") for name in imports_of(path)]
    own = {each[1] if len(each) > 1 else "__init__" for each in parts if each[0] == "ppvilg"}
    return own - {"__version__"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import ppvilg.data.records as r", {"ppvilg.data.records"}),
        ("from ..data import open_source", {"ppvilg.data.open_source"}),
        ("from . import unet", {"ppvilg.models.unet"}),
        ("from .routing import expert_index", {"ppvilg.models.routing.expert_index"}),
        ("def f():\n    from ppvilg import engine", {"ppvilg.engine"}),
        ('importlib.import_module("ppvilg.engine.run")', {"ppvilg.engine.run"}),
        ('NAMES = {"a": "ppvilg.serving"}\n__import__(NAMES["a"])', {"ppvilg.serving"}),
    ],
)
def test_imports_are_read_in_every_form(source, expected):
    assert imported_modules(source, "ppvilg.models.attention") == expected


@pytest.mark.parametrize("room", ROOMS)
def test_import_direction(room):
    if room in FREE:
        return
    assert room in ALLOWED, f"ppvilg/{room} is new: say in ALLOWED what it may import"
    for path in files_of(room):
        forbidden = rooms_imported_by(path) - ALLOWED[room] - EVERYWHERE - {room}
        assert not forbidden, f"{path.relative_to(ROOT)} imports {sorted(forbidden)}; {room} may import {ALLOWED[room]}"


@pytest.mark.parametrize("form", ["from ppvilg import engine", "import_module('ppvilg.engine')"])
def test_a_planted_import_is_found(form, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path, *_, **__: form)
    with pytest.raises(AssertionError, match="imports .'engine'."):
        test_import_direction("data")


def test_no_circle():
    """No room imports another that, by whatever way, imports it."""
    imported = {room: set() for room in ROOMS}
    for room in ROOMS:
        if room not in {"__init__", "_registration"} | FREE:
            imported[room] = {name for path in files_of(room) for name in rooms_imported_by(path)} - {room, "__init__"}
    while True:
        leaves = {room for room, others in imported.items() if not others & imported.keys()}
        if not leaves:
            break
        imported = {room: others for room, others in imported.items() if room not in leaves}
    assert not imported, f"these import each other: {imported}"


@pytest.mark.parametrize("room", ["models", "diffusion"])
def test_models_and_diffusion_see_no_logger_and_no_other_process(room):
    for path in files_of(room):
        names = imports_of(path)
        names |= {ast.unparse(n) for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Attribute)}
        wrong = {name for name in names if name.startswith(("logging", "visualdl", "paddle.distributed"))}
        assert not wrong, f"{path.relative_to(ROOT)} uses {sorted(wrong)}"


@pytest.mark.parametrize("room", ["config", "data", "files", "_registration", "_versions"])
def test_rooms_that_never_need_paddle(room):
    for path in files_of(room):
        names = imports_of(path)
        wrong = {name for name in names if name.split(".")[0] in ("paddle", "paddlenlp", "ppdiffusers")}
        assert not wrong | names & {"ppvilg._needs_paddle"}, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


LIGHT = """
import sys, ppvilg, ppvilg.config, ppvilg.data, ppvilg.knowledge
heavy = {"paddle", "paddlenlp", "ppdiffusers"} & set(sys.modules)
assert not heavy, heavy
assert "ErnieViLG2Pipeline" in dir(ppvilg)
try:
    ppvilg.ErnieViLG3Pipeline
except AttributeError as error:
    assert "ErnieViLG2Pipeline" in str(error)
else:
    raise AssertionError("an unknown name was found")
"""
# The harder form of "ppvilg first": ppdiffusers is imported from the middle of one of our own modules.
OURS_FIRST = "import ppvilg.models, ppdiffusers, ppvilg"
THEIRS_FIRST = "import ppdiffusers, ppvilg"
LAZY = """
assert "ppvilg.pipelines" not in sys.modules, "found before it was asked for"
"""
# What a stranger writes: nothing of ours is named but the folder.
AUTO = """
assert ppdiffusers.AutoPipelineForText2Image
from ppdiffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
assert "ErnieViLG2Pipeline" in {cls.__name__ for cls in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
"""
FOUND = """
assert ppdiffusers.ErnieViLG2Pipeline is ppvilg.ErnieViLG2Pipeline
assert all(hasattr(ppvilg, name) for name in ppvilg.__all__)
assert ppdiffusers.DDIMScheduler.__name__ == "DDIMScheduler"
assert not hasattr(ppdiffusers, "ErnieViLG3Pipeline")
"""


def test_import_in_fresh_processes():
    """Light imports stay light; ppdiffusers knows our pipeline in either order of import."""
    sources = {"light": LIGHT, "ours first": OURS_FIRST + "\nimport sys" + LAZY + FOUND}
    sources["theirs first"] = THEIRS_FIRST + "\nimport sys" + LAZY + AUTO + FOUND
    started = {
        name: subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for name, source in sources.items()
    }
    for name, process in started.items():
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, f"{name}: {errors[-2000:]}"


# ---- how large a part may be ----

MAX_FILE, MAX_FUNCTION, MAX_MODULES = 400, 60, 12  # lines, lines, modules of a folder


def long_functions(source: str, limit: int) -> list[str]:
    """Functions and methods with more lines than `limit`, decorators and docstring counted."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lines = node.end_lineno - first + 1
            found += [f"{node.name}: {lines} lines"] if lines > limit else []
    return found


def test_no_file_and_no_function_is_too_long():
    faults = []
    for path in sorted(PACKAGE.rglob("*.py")):
        source, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        lines = len(source.splitlines())
        limit = 250 if name == "ppvilg/pipelines/pipeline.py" else 500 if "/engine/" in name else MAX_FILE
        faults += [f"{name}: {lines} lines, {limit} are allowed"] if lines > limit else []
        faults += [f"{name}, {fault}, {MAX_FUNCTION} are allowed" for fault in long_functions(source, MAX_FUNCTION)]
    assert not faults, f"move what belongs together into a module of its own: {faults}"


def test_no_folder_is_a_list_of_files():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    counts = {folder: len([p for p in folder.glob("*.py") if p.name != "__init__.py"]) for folder in folders}
    faults = {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > MAX_MODULES}
    assert not faults, f"at most {MAX_MODULES} modules in a folder, make a room inside it: {faults}"


def test_a_planted_long_function_is_found():
    source = "class A:\n    @property\n    def f(self):\n" + "        x = 1\n" * 4
    assert long_functions(source, 6) == [] and long_functions(source, 5) == ["f: 6 lines"]
