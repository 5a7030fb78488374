/** The prompt's own field: it grows with its text, examples come on request and can be taken back. */

import { byId, h } from "../base/dom.js";
import { language, onLanguage, t } from "../base/i18n.js";
import { icon } from "../base/icons.js";
import { notify } from "../base/notices.js";
import { get } from "../base/state.js";
import { wordsFor } from "./examples.js";
import { change, current, onSettings } from "./settings.js";

const field = byId("prompt");
let turn = -1;

function fit() {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

/** Puts a whole prompt into the field; what was there can be put back. */
export function putPrompt(text) {
  const before = current().prompt;
  change({ prompt: text });
  if (before.trim() && before !== text) {
    notify(t("prompt.replaced"), { label: t("undo"), run: () => change({ prompt: before }) });
  }
}

function nextExample() {
  const { examples } = wordsFor(get("model")?.name, language());
  turn = turn < 0 ? Math.floor(Math.random() * examples.length) : (turn + 1) % examples.length;
  const before = current().prompt;
  change({ prompt: examples[turn] });
  if (before.trim() && !examples.includes(before)) {
    notify(t("prompt.replaced"), { label: t("undo"), run: () => change({ prompt: before }) });
  }
}

/** openHelper is what the button beside the field opens. */
export function startPrompt(openHelper) {
  field.value = current().prompt;
  field.addEventListener("input", () => {
    change({ prompt: field.value });
    fit();
  });
  onSettings((settings, changed) => {
    if (!changed.has("prompt") || field.value === settings.prompt) return;
    field.value = settings.prompt;
    fit();
  });
  const helper = byId("open-helper");
  const example = byId("next-example");
  const label = () => {
    helper.replaceChildren(icon("wand"), h("span", {}, t("helper.open")));
    example.replaceChildren(icon("dice"), h("span", {}, t("prompt.example")));
    fit();
  };
  helper.addEventListener("click", openHelper);
  example.addEventListener("click", nextExample);
  addEventListener("resize", fit);
  onLanguage(label);
  label();
}
