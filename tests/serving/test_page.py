"""The page in a headless browser, over the service with the model that comes with the package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ppvilg.models.lora import Adapter, AdapterSettings, TaughtWord
from ppvilg.models.lora_files import write_adapter
from ppvilg.serving.model.info import find_model
from tests.serving.running import running, until

STEPS = 8  # two for each of emoji64's experts
PANDA = "黄色背景上的一只熊猫"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Address of a service of this module's own."""
    pytest.importorskip("selenium", reason="selenium is not installed: pip install ppvilg[test]")
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("chromium and chromedriver (Debian: chromium chromium-driver) are not installed")
    fox = tmp_path_factory.mktemp("adapters") / "fox.safetensors"
    word = TaughtWord("狐狸", "n", None, np.zeros(192, "f4"))
    write_adapter(Adapter(settings=AdapterSettings(4, [0, 250, 500, 750, 1000]), words=[word]), fox)
    with running(find_model("emoji64"), tmp_path_factory.mktemp("service"), adapters={"狐狸": str(fox)}) as found:
        yield f"{found.url}/"


@pytest.fixture(scope="module")
def browser(service, tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking hide-scrollbars"
    for flag in f"{flags} disable-component-update disable-sync disable-dev-shm-usage".split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(60)
        driver.get("about:blank")
        driver.get_log("performance")  # the browser's own first page
        yield driver
    finally:
        driver.quit()


class Page:
    """What a person sees and does on the page."""

    def __init__(self, driver, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, fragment: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(self.address + fragment)
        until(lambda: self.all(".shape"), "the model's shapes")

    def run(self, script: str, *values):
        return self.driver.execute_script(script, *values)

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str):
        return until(lambda: self.all(selector), selector)[0]

    def click(self, selector: str) -> None:
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", self.one(selector))
        self.one(selector).click()

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def type(self, selector: str, text: str) -> None:
        field = self.one(selector)
        field.clear()
        field.send_keys(text)

    def settings(self, prompt: str, steps: int = STEPS) -> None:
        self.type("#prompt", prompt)
        self.run("document.querySelector('#more').open = true")
        self.type("#field-num_inference_steps", str(steps))

    def draw(self) -> None:
        """Ask for a picture and wait until the page shows it, and not the one before."""
        before = self.newest_job()
        self.click("#draw")
        until(lambda: self.newest_job() not in (None, before), "the job")
        until(lambda: self.all("#download-plain") and not self.all("#cancel"), "the picture")

    def newest_job(self) -> str | None:
        """Its id, once it has ended well."""
        jobs = self.fetch("v1/jobs?limit=1")["jobs"]
        return jobs[0]["id"] if jobs and jobs[0]["state"] == "done" else None

    def fetch(self, address: str, method: str = "GET"):
        script = "return fetch(arguments[0], {method: arguments[1]}).then((answer) => answer.json())"
        return self.run(script, address, method)


@pytest.fixture
def page(browser, service):
    """The page as at a first visit; afterwards nothing was asked of anybody else, and no rule was broken."""
    page = Page(browser, service)
    browser.get(service)
    browser.execute_script("localStorage.clear()")
    page.open()
    browser.get_log("browser")
    yield page
    messages = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert asked and all(url.startswith((service, "data:", "blob:")) for url in asked)
    faults = [line["message"] for line in browser.get_log("browser")]
    assert [fault for fault in faults if "Failed to load resource" not in fault] == []


def test_drawing_by_keyboard_alone(page):
    """From the skip link to what an expert changed; previews come block by block."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys):
        ActionChains(page.driver).send_keys(*keys).perform()

    page.run("localStorage.setItem('ppvilg.draft', JSON.stringify({num_inference_steps: 40}))")
    page.open()
    press(Keys.TAB, Keys.ENTER)  # skip to the prompt
    press(PANDA)
    ActionChains(page.driver).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    seen = set()

    def watch():
        seen.add((page.text(".status-title"), page.run("return document.querySelectorAll('.block:enabled').length")))
        return page.all("#download-plain")

    until(watch, "the picture")
    assert {"专家 4 正在画", "专家 1 正在画"} <= {title for title, _ in seen}
    assert {0, 1, 2} <= {ready for _, ready in seen}, "the strip fills while it draws"
    until(lambda: len(page.all(".block:enabled")) == 4, "the whole strip")
    for _ in range(60):
        if page.run("return document.activeElement.dataset.expert") == "2":
            break
        press(Keys.TAB)
    press(Keys.ENTER)
    until(lambda: "平均每个像素改变" in page.text(".compare-text"), "what expert 3 changed")
    assert page.run("return document.querySelector('.block[data-expert=\"2\"]').ariaExpanded") == "true"
    for _ in range(60):
        if page.run("return document.activeElement.type") == "range":
            break
        press(Keys.TAB)
    before = page.run("return getComputedStyle(document.querySelector('.wipe')).getPropertyValue('--cut')")
    press(*[Keys.ARROW_RIGHT] * 5)
    assert before != page.run("return getComputedStyle(document.querySelector('.wipe')).getPropertyValue('--cut')")
    assert until(lambda: page.all(".gallery-item"), "the gallery")[0].get_attribute("title") == PANDA


def test_reload_in_the_middle_and_cancel(page):
    page.settings(PANDA, 250)
    page.click("#draw")
    until(lambda: "正在画" in page.text(".status-title"), "the first step")
    page.type("#prompt", "还没画的")
    page.open()
    until(lambda: "正在画" in page.text(".status-title"), "the job to be found again")
    assert page.text("#stage .quote") == PANDA
    assert page.one("#prompt").get_attribute("value") == "还没画的"
    page.click("#cancel")
    until(lambda: "已取消" in page.text("#stage .remark"), "the end")
    assert page.fetch("v1/jobs?limit=1")["jobs"][0]["state"] == "cancelled"


def test_a_dropped_png_restores_its_settings_and_its_link_verifies(page):
    page.settings(PANDA)
    page.type("#field-seed", "7")
    page.click('[data-value="portrait"]')
    page.draw()
    page.settings("别的")
    drop = """
        const {pictures} = await (await fetch("v1/pictures?limit=1")).json();
        const bytes = await (await fetch(`${pictures[0].url}&metadata=1`)).blob();
        const files = new DataTransfer();
        files.items.add(new File([bytes], "a.png", {type: "image/png"}));
        const drag = (target, kind) =>
            target.dispatchEvent(new DragEvent(kind, {dataTransfer: files, bubbles: true, cancelable: true}));
        drag(document.body, "dragenter");
        drag(document.querySelector('[data-drop="settings"]'), "drop");
        return pictures[0].recipe;"""
    recipe = page.run(drop)
    until(lambda: page.one("#prompt").get_attribute("value") == PANDA, "the prompt of the PNG")
    assert [page.one(f"#field-{name}").get_attribute("value") for name in ("seed", "num_inference_steps")] == ["7", "8"]
    assert page.one('[data-value="portrait"]').get_attribute("aria-checked") == "true"
    page.click(".notice .button")  # undo
    assert page.one("#prompt").get_attribute("value") == "别的"

    link = page.run("return (await import('./scripts/pictures/recipe.js')).linkOf({recipe: arguments[0]})", recipe)
    page.open(link.removeprefix(page.address))
    until(lambda: page.one("#recipe-verify").is_enabled(), "the model to be compared")
    page.click("#recipe-verify")
    until(lambda: "逐字节一致" in page.text("#stage .remark.good"), "the same picture")


def test_a_mask_painted_by_finger_on_a_phone(page):
    page.settings(PANDA)
    page.draw()
    command = page.driver.execute_cdp_cmd
    command("Emulation.setDeviceMetricsOverride", dict(width=390, height=844, deviceScaleFactor=2, mobile=True))
    command("Emulation.setTouchEmulationEnabled", dict(enabled=True))
    try:
        page.open()
        assert page.run("return document.documentElement.scrollWidth") == 390
        page.click("#repaint")
        board = page.run("return document.querySelector('.mask-canvas').getBoundingClientRect().toJSON()")
        at = [{"x": board["left"] + board["width"] * x, "y": board["top"] + board["height"] / 4} for x in (0.3, 0.7)]
        for kind, points in (("touchStart", at[:1]), ("touchMove", at[1:]), ("touchEnd", [])):
            command("Input.dispatchTouchEvent", dict(type=kind, touchPoints=points))
        until(lambda: "会重画" in page.text(".mask-body"), "the stroke")
        page.click("#mask-done")
        page.one(".start-mask")
        page.draw()
    finally:
        command("Emulation.clearDeviceMetricsOverride", {})
        command("Emulation.setTouchEmulationEnabled", dict(enabled=False))
    after, before = page.fetch("v1/pictures?limit=2")["pictures"]
    assert after["settings"]["mask"] and after["settings"]["image"] == before["id"]
    assert changed_rows(page, before["url"], after["url"]) == (True, False), "painted above, kept below"


def changed_rows(page, before: str, after: str) -> tuple[bool, bool]:
    """Whether two pictures differ in their upper and in their lower half."""
    script = """
        const {pixelsOf} = await import("./scripts/pictures/show.js");
        const [one, other] = await Promise.all([...arguments].map((address) => pixelsOf(address, 64, 64)));
        const differ = (from, to) => one.slice(from, to).some((value, index) => value !== other[from + index]);
        return [differ(0, 64 * 32 * 4), differ(64 * 32 * 4, 64 * 64 * 4)];"""
    return tuple(page.run(script, before, after))


def test_what_the_model_reads(page):
    """Words with their marks, a weight that is sent, what it cannot read and what is cut off."""
    page.settings("三只企鹅，饕餮")
    until(lambda: page.all(".word .unread"), "the words")
    assert page.text(".words .mark-m").startswith("数三只") and "饕" in page.text(".remark.warn")
    page.click(".knowledge-head .button")
    slider = page.one('input[data-word="企鹅"]')
    slider.send_keys(*["\ue014"] * 49)  # arrow right
    until(lambda: "×1.5" in page.text(".words"), "the new weight")
    page.draw()
    assert page.fetch("v1/jobs?limit=1")["jobs"][0]["request"]["word_weights"] == {"企鹅": 1.5}
    page.type("#prompt", "一只猫，" * 30)
    until(lambda: page.all(".word.cut"), "what is cut off")


def test_an_adapter_and_its_word(page):
    page.settings("三只狐狸")
    until(lambda: page.all(".word .unread"), "the words")
    choose = "const field = document.querySelector('#field-lora'); field.value = arguments[0];"
    page.run(f"{choose} field.dispatchEvent(new Event('change'))", "狐狸")
    until(lambda: page.all(".words .mark-n") and not page.all(".word .unread"), "the word to be known")
    strength = page.one("#field-lora-scale")
    assert strength.is_enabled() and strength.get_attribute("value") == "1"
    page.run("document.querySelector('#field-lora-scale').value = 0.5")
    page.run("document.querySelector('#field-lora-scale').dispatchEvent(new Event('change'))")
    page.draw()
    assert page.fetch("v1/jobs?limit=1")["jobs"][0]["request"]["lora"] == {"狐狸": 0.5}
    assert "狐狸 ×0.5" in page.text("#stage")


@pytest.fixture(scope="module")
def axe() -> str:
    """The script of axe-core, which looks for what people who do not see, hear or point would stumble over."""
    package = pytest.importorskip("axe_core_python", reason="axe-core is not installed: pip install ppvilg[test]")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


def serious(page, axe: str) -> list[str]:
    """What axe-core finds serious or critical on the page as it is now."""
    page.run(axe)
    page.run(
        "for (const animation of document.getAnimations())"
        "  if (Number.isFinite(animation.effect.getComputedTiming().endTime)) animation.finish()"
    )
    result = page.run("return axe.run(document, {resultTypes: ['violations']})")
    found = result["violations"]
    assert len(result["passes"]) > 10, "it looked at nothing"
    return [
        f"{each['id']}: {node['html'][:120]} {node['failureSummary'][:300]}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def test_axe_core_finds_nothing_serious(page, axe):
    """On the first page, with settings and words open, with a strip, in dialogs; light, dark, English, on a phone."""
    assert serious(page, axe) == []
    page.settings(PANDA)
    until(lambda: page.all(".knowledge-head .button"), "the words")
    page.click(".knowledge-head .button")
    page.draw()
    page.click(".block:enabled")
    assert serious(page, axe) == []
    page.click("#theme")
    page.click("#theme")
    page.click("#language")
    assert serious(page, axe) == []
    for opener in ("#open-helper", "#help", "#model-chip", "#repaint"):
        page.click(opener)
        until(lambda: page.all("dialog[open]"), opener)
        assert serious(page, axe) == [], opener
        page.run("document.querySelector('dialog[open]').close()")
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", dict(width=390, height=844, deviceScaleFactor=2, mobile=True)
    )
    try:
        page.open()
        assert serious(page, axe) == []
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_english_dark_and_a_missing_prompt(page):
    assert page.run("return document.documentElement.lang") == "zh-CN" and page.text("#draw span") == "画出来"
    page.click("#language")
    assert page.text("#draw span") == "Draw" and page.one("#prompt").get_attribute("placeholder").startswith("Describe")
    page.click("#theme")
    page.click("#theme")
    page.open()
    assert page.run("return [document.documentElement.dataset.theme, document.documentElement.lang]") == ["dark", "en"]
    luminance = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    assert max(page.run(luminance)) < 60
    page.click("#draw")  # without a prompt
    assert page.run("return document.activeElement.id") == "prompt"
    assert "Write a prompt" in page.text("#prompt-error")
