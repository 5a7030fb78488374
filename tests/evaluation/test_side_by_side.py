"""The voters' page: what pairs up, what it must not tell, and a whole vote by keyboard in a headless browser."""

from __future__ import annotations

import base64
import io
import json
import re
import runpy
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ppvilg.evaluation.human.pairs import pair_up, read_pictures
from ppvilg.evaluation.suite import open_suite

HERE = Path(__file__).resolve()
CONFIG = HERE.parents[2] / "configs" / "evaluation" / "side_by_side.yml"
world = runpy.run_path(str(HERE.with_name("side_by_side_world.py")))
SECRETS, overrides = world["SECRETS"], world["overrides"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two folders of twenty prompts with two pictures each: dark ones and light ones."""
    place = tmp_path_factory.mktemp("pictures")
    for name, shade in zip(SECRETS, (40, 220)):
        world["write_pictures"](place / name, 20, shade, images_per_prompt=2)
    return place


def study_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="study">(.*?)</script>', text, re.DOTALL)[1])


def shade_of(uri: str) -> int:
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as picture:
        assert not picture.info, "the picture's file says something of its origin"
        return int(np.asarray(picture)[0, -1, 2])


def test_page_is_blind_and_whole(place, tmp_path):
    suite = open_suite(CONFIG, overrides(place, tmp_path))
    report = suite.run()
    assert report["results"] is None and report["pairs"] == 20 and str(suite.page) in suite.summary(report)
    text = suite.page.read_text(encoding="utf-8")
    assert not any(secret in text for secret in (*SECRETS, "颜色", str(place)))
    assert not re.search(r"""(src|href)=["']|https?://|@import|url\(""", text.replace('src="data:', ""))
    assert [path.name for path in suite.page.parent.iterdir()] == ["vote.html"]
    study, key = study_of(suite.page), json.loads(suite.key_path.read_text(encoding="utf-8"))
    assert sorted(pair["prompt"] for pair in study["pairs"]) == sorted(f"第{i}句<描述>" for i in range(20))
    for pair, entry in zip(study["pairs"], key["pairs"]):
        assert pair.keys() == {"id", "prompt", "A", "B"} and pair["id"] == entry["id"]
        shades = {slot: {shade_of(uri) for uri in pair[slot]} for slot in "AB"}
        assert shades == {slot: {40 if entry[slot] == "first" else 220} for slot in "AB"}
    assert sum(entry["A"] == "first" for entry in key["pairs"]) == 10
    assert [entry["prompt"] for entry in key["pairs"]] != sorted(entry["prompt"] for entry in key["pairs"])


def test_study_is_frozen_once_made(place, tmp_path):
    suite = open_suite(CONFIG, overrides(place, tmp_path))
    suite.run()
    before = suite.page.read_bytes(), suite.key_path.read_bytes()
    open_suite(CONFIG, overrides(place, tmp_path, first_name="甲")).run()
    assert (suite.page.read_bytes(), suite.key_path.read_bytes()) == before
    with pytest.raises(ValueError, match="holds another study .seed 0, not 1.; choose another output"):
        open_suite(CONFIG, overrides(place, tmp_path, seed=1)).run()
    whole = suite.key_path.read_text(encoding="utf-8")
    other = whole.replace('"pairs"', '"pears"')
    for torn, message in ((whole[:100], "is not readable as JSON"), (other, "is damaged")):
        suite.key_path.write_text(torn, encoding="utf-8")
        with pytest.raises(ValueError, match=f"key.json {message}"):
            suite.run()
    suite.key_path.write_text(whole, encoding="utf-8")
    suite.page.unlink()
    with pytest.raises(ValueError, match="vote.html is gone while its key is there"):
        suite.run()


def test_another_text_and_large_pictures(tmp_path):
    for name, shade in zip(SECRETS, (40, 220)):
        world["write_pictures"](tmp_path / name, 3, shade, size=320)
    more = dict(prompt_key="prompt_en", language="en", largest_side=300, pairs=2)
    suite = open_suite(CONFIG, overrides(tmp_path, tmp_path / "out", **more))
    suite.run()
    study = study_of(suite.page)
    assert len(study["pairs"]) == 2 and all(pair["prompt"].startswith("text ") for pair in study["pairs"])
    header, content = study["pairs"][0]["A"][0].split(",")
    assert header == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (300, 300)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(language="fr"), "language='fr': use zh or en"),
        (dict(pairs=21), "pairs=21, but there are only 20 prompts"),
        (dict(pairs=0), "pairs=0: must be at least 1"),
        (dict(prompt_key="prompt_fr"), "has no such text"),
        (dict(first_name="x", second_name="x"), "both models are called 'x'"),
    ],
)
def test_mistakes_in_the_recipe(place, tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_suite(CONFIG, overrides(place, tmp_path / "out", **options)).run()
    assert not (tmp_path / "out" / "key.json").exists()


def test_folders_that_do_not_pair_up(place, tmp_path):
    one, two = place / SECRETS[0], place / SECRETS[1]
    short = world["write_pictures"](tmp_path / "short", 19, 0, 2)
    single = world["write_pictures"](tmp_path / "single", 20, 0, 1)
    for folder, message in (
        (short, f"1 of the 20 prompts of {one} are not in {short}, first '第19句<描述>'"),
        (single, "2 and 1 pictures of '第0句<描述>'"),
        (tmp_path / "nowhere", f"no folder of pictures at {tmp_path / 'nowhere'}"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
            open_suite(CONFIG, overrides(place, tmp_path / "out", first=one, second=folder)).run()
    with pytest.raises(ValueError, match=re.escape(f"1 of the 20 prompts of {two} are not in {short}")):
        open_suite(CONFIG, overrides(place, tmp_path / "out", first=short, second=two)).run()
    (single / "00007" / "samples" / "0000.png").unlink()
    with pytest.raises(ValueError, match="has no pictures for 1 of 20 prompts, first 00007"):
        read_pictures(single)
    (short / "00003" / "samples" / "0001.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="0001.png (is not a picture|cannot be decoded)"):
        open_suite(CONFIG, overrides(place, tmp_path / "bad", first=short, second=short, first_name="x")).run()
    assert not (tmp_path / "bad" / "key.json").exists()


def test_folders_of_other_layouts(place, tmp_path):
    """Numbered pictures with a list of prompts, and pictures that say their prompts, against GenEval's layout."""
    listed, telling = tmp_path / "listed", tmp_path / "telling"
    for folder in (listed, telling):
        folder.mkdir()
    for i in range(20):
        for k in range(2):
            picture, about = Image.new("RGB", (8, 8), (i, k, 0)), PngImagePlugin.PngInfo()
            picture.save(listed / f"{i:03d}_{k}.jpg", quality=95)
            about.add_itxt("prompt", f"第{i}句<描述>")
            picture.save(telling / f"{2 * i + k:05d}.png", pnginfo=about)
    (telling / "grid.png").write_bytes(b"not looked at")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"第{i}句<描述>\n" for i in range(20)), encoding="utf-8")
    geneval = read_pictures(place / SECRETS[0])
    for other in (read_pictures(listed, prompts), read_pictures(telling)):
        pairs = pair_up(geneval, other, ("one", "two"))
        assert [len(pair.second) for pair in pairs] == [2] * 20 and pairs[3].line["class"] == "计数"
        pixels = np.asarray(Image.open(pairs[17].second[1]).convert("RGB"), int)[0, 0]
        assert np.abs(pixels - [17, 1, 0]).max() <= 4
    prompts.write_text("只有一句\n", encoding="utf-8")
    with pytest.raises(ValueError, match="there are only 1 prompts, counted from 0"):
        read_pictures(listed, prompts)
    with pytest.raises(ValueError, match="does not say its prompt"):
        read_pictures(listed)


# ---- in a browser ----


@pytest.fixture
def browser(tmp_path):
    driver, reason = world["browser_or_reason"](tmp_path / "downloads", tmp_path / "profile")
    if driver is None:
        pytest.skip(reason)
    yield driver
    driver.quit()


def keys(driver, *names: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    actions = ActionChains(driver)
    for name in names:
        actions.send_keys(name)
    actions.perform()


def shown(driver) -> tuple[str, str, str, str]:
    """(question, prompt, source of the first picture on the left, on the right)."""
    script = """return [document.getElementById("question").className, document.getElementById("prompt").textContent,
        document.querySelector("#left img").src, document.querySelector("#right img").src]"""
    return tuple(driver.execute_script(script))


def vote(driver, decide, count: int) -> list[tuple]:
    """Answer `count` questions; decide(question, left is the dark first folder) -> an arrow."""
    from selenium.webdriver.common.keys import Keys

    arrows = {"left": Keys.ARROW_LEFT, "right": Keys.ARROW_RIGHT, "tie": Keys.ARROW_DOWN}
    seen = []
    for _ in range(count):
        question, prompt, left, right = shown(driver)
        seen.append((prompt, question, shade_of(left) == 40))
        assert {shade_of(left), shade_of(right)} == {40, 220}
        keys(driver, arrows[decide(question, shade_of(left) == 40)])
    return seen


def downloaded(folder: Path) -> dict:
    deadline = time.monotonic() + 30
    while not (files := list(folder.glob("*.json"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(files) == 1, list(folder.glob("*"))
    return json.loads(files[0].read_text(encoding="utf-8"))


def test_a_whole_vote_by_keyboard(place, tmp_path, browser):
    """Twenty pairs: the page is closed half-way, one answer is taken back, and the file is merged into a report."""
    from selenium.webdriver.common.keys import Keys

    suite = open_suite(CONFIG, overrides(place, tmp_path / "out"))
    suite.run()
    browser.get(suite.page.as_uri())
    keys(browser, Keys.ENTER)
    assert browser.find_element("id", "notice").text == "请填写姓名或编号。"
    keys(browser, "评审 1", Keys.ENTER)

    def decide(question, first_is_left):  # the first folder fits better, the second looks better
        return "left" if first_is_left == (question == "alignment") else "right"

    seen = vote(browser, decide, 13)
    keys(browser, Keys.BACKSPACE, Keys.BACKSPACE)
    assert shown(browser)[:2] == (seen[11][1], seen[11][0])
    vote(browser, lambda question, first_is_left: "tie", 1)  # now this question is a tie
    browser.get("about:blank")
    browser.get(suite.page.as_uri())
    keys(browser, Keys.ENTER)  # the name is still there
    assert shown(browser)[:2] == ("fidelity", seen[12][0])  # thirteen questions are answered
    seen += vote(browser, decide, 27)
    assert browser.find_element("id", "end").is_displayed() and not browser.find_element("id", "vote").is_displayed()
    keys(browser, Keys.ENTER)
    content = downloaded(tmp_path / "downloads")

    assert content["voter"] == "评审 1" and content["finished"] and len(content["votes"]) == 40
    assert len({prompt for prompt, _, _ in seen}) == 20
    assert [question for _, question, _ in seen] == ["alignment", "fidelity"] * 20
    lefts = [left for _, question, left in seen if question == "alignment"]
    assert 3 <= sum(lefts) <= 17 and sum(v["left"] == "A" for v in content["votes"]) == 20
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    options = overrides(place, tmp_path / "out", votes=tmp_path / "downloads")
    criteria = open_suite(CONFIG, options).run()["results"]["criteria"]
    assert criteria["alignment"]["all"]["first"]["mean"] == 1.0
    assert criteria["fidelity"]["all"]["second"]["mean"] == pytest.approx(19 / 20)
    assert criteria["fidelity"]["all"]["tie"]["mean"] == pytest.approx(1 / 20)


def test_order_and_sides_come_from_the_voter(place, tmp_path, browser):
    from selenium.webdriver.common.keys import Keys

    suite = open_suite(CONFIG, overrides(place, tmp_path / "out"))
    suite.run()
    seen = {}
    for turn, voter in enumerate(("甲", "乙", "甲")):
        browser.get(suite.page.as_uri())
        keys(browser, voter, Keys.ENTER)  # typed over the name of the voter before
        if turn == 2:
            keys(browser, *[Keys.BACKSPACE] * 8)  # all the way back
        seen[turn] = vote(browser, lambda question, first_is_left: "tie", 8)
    assert seen[0] == seen[2] != seen[1]
    keys(browser, "s")
    content = downloaded(tmp_path / "downloads")
    assert not content["finished"] and len(content["votes"]) == 8
