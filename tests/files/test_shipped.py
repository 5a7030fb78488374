"""Files that come with ppvilg, found by name; a file of the user's wins."""

from __future__ import annotations

import pytest

from ppvilg.config import load_config
from ppvilg.files import find_shipped, shipped_folder, shipped_recipes


@pytest.mark.parametrize("name", ["emoji64", "emoji64.yml", "configs/emoji64", "configs/emoji64.yml"])
def test_one_recipe_by_every_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_shipped(name) == shipped_folder() / "emoji64.yml"
    assert load_config(name).output == "output/emoji64"


def test_what_the_user_has_wins_and_a_missing_name_stays_as_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji64").mkdir()  # a folder is no recipe
    assert find_shipped("emoji64").is_file()
    (tmp_path / "emoji64.yml").touch()
    assert find_shipped("emoji64.yml").samefile(tmp_path / "emoji64.yml")
    assert find_shipped("prompts/quickstart.txt") == shipped_folder() / "prompts" / "quickstart.txt"
    for missing in ("emoji65", "../configs/emoji64.yml", "/configs/emoji64.yml"):
        assert not find_shipped(missing).exists()


def test_bases_may_be_shipped_recipes_and_a_typo_lists_them(tmp_path, monkeypatch):
    (tmp_path / "my.yml").write_text("_base_: emoji64\noutput: output/my\n", encoding="utf-8")
    recipe = load_config(tmp_path / "my.yml")
    assert recipe.output == "output/my" and recipe.model == load_config("emoji64").model
    assert {"emoji64", "quickstart", "evaluation/objects"} <= set(shipped_recipes())
    (tmp_path / "my.yml").write_text("_base_: emoji65\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"emoji65 \(named as _base_ in .*my.yml\); with ppvilg come .*emoji64"):
        load_config(tmp_path / "my.yml")
