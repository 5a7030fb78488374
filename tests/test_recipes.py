"""The one loader, on a schema of its own: what it takes as typed, and what it refuses by file or override and key."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import MISSING

from ppvilg.config import Checked, ConfigError, bounded, choice, load


@dataclass(frozen=True)
class Base(Checked):
    model: str = "emoji64"
    scale: Any = bounded(None, least=0)
    share: float | None = bounded(None, least=0, below=1)
    count: int = bounded(2, least=1)


@dataclass(frozen=True)
class Schema(Base):
    output: str = MISSING
    names: list[str] = choice(["a", "b"], ("a", "b", "no"))
    prompts: dict[str, int] = bounded({"single": 3}, least=0, keys=("single", "pair"))
    sizes: list[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output == self.model:
            raise ConfigError(f"output={self.output} is the model")


@pytest.fixture
def recipe(tmp_path):
    def write(text: str = "output: there\n", name: str = "recipe.yml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def refusal(path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(Schema, path, overrides)
    return str(error.value)


def test_defaults_then_bases_then_the_file_then_overrides(recipe):
    recipe("count: 5\nprompts: {pair: 2}\nsizes: [1, 2]\n", "base.yml")
    found = load(Schema, recipe("_base_: base.yml\noutput: there\nscale: 2\n"), ["scale=[1, 2.5]", "prompts.single=0"])
    assert found == Schema(
        output="there", count=5, scale=[1, 2.5], prompts={"single": 0, "pair": 2}, sizes=[1.0, 2.0]
    )
    with pytest.raises(FrozenInstanceError):
        found.count = 3
    assert load(Schema, None, ["output=x"]).count == 2


@pytest.mark.parametrize("text", ["0012", "on", "1_000", "a: {b", "a # b", "a=b", "2024-01-01"])
def test_texts_stay_as_they_were_typed(recipe, text):
    assert load(Schema, recipe(), [f"output={text}"]).output == text
    assert load(Schema, recipe(f"output: '{text}'\n")).output == text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cout=3", "unknown key cout; did you mean count?"),
        ("count.x=3", "count: Value"),
        ("count=0", "count=0: must be at least 1"),
        ("count=2.5", "count: Value '2.5'"),
        ("count=true", "count: Value 'True'"),
        ("share=1.0", "share=1.0: must be at least 0 and less than 1"),
        ("share=1e400", "share=inf: must be a finite number"),
        ("sizes=[1, .nan]", "sizes[1]=nan: must be a finite number"),
        ("sizes=[1, x]", "sizes[1]: Value 'x'"),
        ("sizes=[1, 2", "not readable as YAML"),
        ("scale=high", "scale='high': must be a number"),
        ("scale={a: .inf}", "scale.a=inf: must be a finite number"),
        ("names=[a, no]", "names: False is no text; put it in quotes"),
        ("names=[a, c]", "names[1]='c': use a, b or no"),
        ("prompts.singel=1", "unknown key prompts.singel; did you mean prompts.single?"),
        ("prompts.pair=-1", "prompts.pair=-1: must be at least 0"),
        ("output=", "there is no value behind the =; write null for none"),
        ("output=???", "there is no value behind the ="),
    ],
)
def test_what_overrides_may_not_say(recipe, override, message):
    text = refusal(recipe(), override)
    assert text.startswith(f"-o {override}: ") and message in text and "\n" not in text


@pytest.mark.parametrize("override", ["count", "=3", "a..b=3", "sizes[0]=3", "a b=3", ".count=3"])
def test_what_is_no_override(recipe, override):
    assert "is not of the form a.b=value" in refusal(recipe(), override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: 0012\n", "output: 10 is no text; put it in quotes"),
        ("count: {a: 1}\n", "count: Value"),
        ("model: [\n", "not readable as YAML"),
        ("count: 1\ncount: 2\n", "duplicate key count"),
        ("count: !!python/object:os.system 1\n", "not readable as YAML"),
        ("a: &a [*a]\n", "not readable as YAML"),
        ("[" * 5000, "not readable as YAML"),
        ("- model\n", "a recipe is a mapping of keys"),
        ("_base_: 5\n", "_base_ is the name of a recipe"),
        ("count: 1\n", "no value for output"),
        ("output: emoji64\n", "output=emoji64 is the model"),
    ],
)
def test_what_files_may_not_say(recipe, text, message):
    found = refusal(recipe(text))
    assert "recipe.yml" in found and message in found and "\n" not in found


def test_a_value_is_blamed_on_the_file_that_gave_it(recipe):
    recipe("count: 0\nshare: 0.5\n", "base.yml")
    path = recipe("_base_: base.yml\noutput: there\n")
    assert "base.yml: count=0" in refusal(path) and load(Schema, path, ["count=1"]).count == 1
    (path.parent / "utf16.yml").write_bytes("output: there\n".encode("utf-16"))
    assert "utf16.yml is UTF-16" in refusal(path.parent / "utf16.yml")
    with pytest.raises(FileNotFoundError, match="no recipe at .*nowhere.yml"):
        load(Schema, path.parent / "nowhere.yml")


def test_what_comes_with_the_package_is_found_from_anywhere(recipe):
    found = load(Schema, recipe("output: '${ppvilg:zoo/emoji64/vae}'\n")).output
    assert (Path(found) / "config.json").is_file()


def test_limits_hold_however_a_recipe_is_made():
    with pytest.raises(ConfigError, match="count=0: must be at least 1"):
        Schema(output="x", count=0)
    with pytest.raises(ConfigError, match="share=nan"):
        replace(Schema(output="x"), share=float("nan"))
