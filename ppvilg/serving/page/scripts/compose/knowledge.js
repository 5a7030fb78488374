/** The knowledge view: how the model reads the prompt. Words, their marks and weights, what it cannot read or see. */

import { ApiError, knowledge } from "../base/api.js";
import { byId, debounce, h, property } from "../base/dom.js";
import { number, onLanguage, t } from "../base/i18n.js";
import { icon } from "../base/icons.js";
import { get, on } from "../base/state.js";
import { change, current, onSettings } from "./settings.js";

const box = byId("knowledge");
let answer = null;
let asked = null;
let open = false;

/** Words of the prompt as the model cuts them, null before it was asked. */
export const wordsOfPrompt = () => (answer ? new Set(answer.words.map((word) => word.word)) : null);

const ask = debounce(250, async () => {
  asked?.abort();
  const { prompt, style, word_weights, lora } = current();
  if (!prompt.trim()) {
    answer = null;
    return show();
  }
  asked = new AbortController();
  try {
    answer = await knowledge({ prompt, style, word_weights: weightsOf(word_weights), lora }, asked.signal);
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    if (!(error instanceof ApiError)) throw error;
    if (error.code === "not_ready") setTimeout(ask, 1500);
    answer = null;
  }
  return show();
});

const weightsOf = (weights) => (Object.keys(weights).length ? weights : null);

function setWeight(word, weight) {
  const weights = { ...current().word_weights };
  if (weight === word.default_weight) delete weights[word.word];
  else weights[word.word] = weight;
  change({ word_weights: weights });
}

const weightOf = (word) => current().word_weights[word.word] ?? word.default_weight;
const isContent = (word) => word.mark || current().word_weights[word.word] !== undefined;

function show() {
  box.replaceChildren();
  box.hidden = !answer;
  if (!answer) return;
  const changed = answer.words.some((word) => weightOf(word) !== word.default_weight);
  const toggle = h(
    "button",
    {
      type: "button",
      class: "button quiet slim",
      "aria-expanded": String(open),
      "aria-controls": "weights",
      onclick: flip,
    },
    icon("sliders"),
    changed ? t("knowledge.weights.changed") : t("knowledge.weights"),
  );
  box.append(
    h(
      "div",
      { class: "knowledge-head" },
      h("span", { class: "label" }, t("knowledge.title")),
      h(
        "span",
        { class: "faint small", title: t("knowledge.tokens.hint") },
        t("knowledge.tokens", { n: answer.tokens, max: answer.max_tokens }),
      ),
      toggle,
    ),
    h("ul", { class: "words", "aria-label": t("knowledge.title") }, answer.words.map(chip)),
    h("p", { class: "unseen", id: "knowledge-summary" }, summary()),
    ...remarks(),
    open ? sliders() : "",
  );
}

function flip() {
  open = !open;
  show();
  box.querySelector("[aria-expanded]").focus();
}

function chip(word) {
  const classes = ["word"];
  if (word.mark) classes.push(`mark-${word.mark}`);
  if (word.cut) classes.push("cut");
  const weight = weightOf(word);
  if (weight !== word.default_weight) classes.push("tuned");
  const text = word.unknown.length ? split(word) : [word.word];
  if (!word.mark) return h("li", { class: classes.join(" ") }, text);
  const said = `${t(`mark.${word.mark}`)} ${t("knowledge.weight", { weight: number(weight) })}`;
  const press = () => {
    open = true;
    show();
    box.querySelector(`[data-word="${CSS.escape(word.word)}"]`)?.focus();
  };
  return h(
    "li",
    {},
    h(
      "button",
      { type: "button", class: classes.join(" "), title: said, onclick: press },
      h("span", { class: "mark", "aria-hidden": "true" }, t(`mark.short.${word.mark}`)),
      text,
      weight === word.default_weight
        ? ""
        : h("span", { class: "word-weight", "aria-hidden": "true" }, `×${number(weight)}`),
      h("span", { class: "unseen" }, ` ${said}`),
    ),
  );
}

/** Characters of a word, those the model cannot read marked. */
function split(word) {
  const unknown = new Set(word.unknown);
  if (unknown.has(word.word)) return [h("span", { class: "unread" }, word.word)];
  return [...word.word].map((character) =>
    unknown.has(character) ? h("span", { class: "unread" }, character) : character,
  );
}

function summary() {
  const marked = answer.words.filter((word) => word.mark).map((word) => `${word.word} ${t(`mark.${word.mark}`)}`);
  return t("knowledge.summary", { words: marked.join(", ") });
}

function remarks() {
  const lines = [];
  if (answer.unknown.length) lines.push(t("knowledge.unknown", { words: answer.unknown.join(" ") }));
  if (answer.cut) lines.push(t("knowledge.cut", { max: answer.max_tokens, text: answer.cut }));
  return lines.map((line) => h("p", { class: "remark warn" }, icon("warn"), h("span", {}, line)));
}

function sliders() {
  const seen = new Map(answer.words.filter(isContent).map((word) => [word.word, word]));
  const range = get("model")?.limits?.word_weight ?? [0, 3];
  return h(
    "div",
    { class: "weights", id: "weights" },
    h("p", { class: "faint small" }, t("knowledge.weights.hint")),
    [...seen.values()].map((word) => slider(word, range)),
    [...seen.values()].some((word) => weightOf(word) !== word.default_weight)
      ? h(
          "button",
          { type: "button", class: "button quiet slim", onclick: () => change({ word_weights: {} }) },
          icon("undo"),
          t("knowledge.reset"),
        )
      : "",
  );
}

function slider(word, [least, most]) {
  const shown = h("output", { class: "code small" }, number(weightOf(word)));
  const input = h("input", {
    type: "range",
    min: String(least),
    max: String(most),
    step: "0.01",
    dataset: { word: word.word },
    "aria-label": t("knowledge.slider", { word: word.word }),
  });
  input.value = String(weightOf(word));
  input.addEventListener("input", () => {
    shown.textContent = number(input.valueAsNumber);
  });
  input.addEventListener("change", () => {
    setWeight(word, input.valueAsNumber);
  });
  const row = h(
    "label",
    { class: `weight mark-${word.mark || "none"}` },
    h("span", { class: "weight-word" }, word.word),
    h("span", { class: "ticked" }, input),
    shown,
  );
  return property(row, "--at", String((word.default_weight - least) / (most - least)));
}

export function startKnowledge() {
  onSettings((settings, changed) => {
    if (["prompt", "style", "lora"].some((name) => changed.has(name))) ask();
    if (changed.has("word_weights") && answer) keepFocus(show);
  });
  on("model", (model) => {
    if (!answer && model?.ready) ask();
  });
  onLanguage(show);
  ask();
}

/** Redraws without taking the slider away from under the keyboard. */
function keepFocus(redraw) {
  const word = box.contains(document.activeElement) ? document.activeElement.dataset.word : undefined;
  redraw();
  if (word !== undefined) box.querySelector(`input[data-word="${CSS.escape(word)}"]`)?.focus();
}
