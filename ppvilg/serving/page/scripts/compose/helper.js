/** The prompt helper: subject, place, manner and light become a prompt that is shown before anything is changed. */

import { knowledge } from "../base/api.js";
import { openDialog } from "../base/dialog.js";
import { h } from "../base/dom.js";
import { language, t } from "../base/i18n.js";
import { icon } from "../base/icons.js";
import { get } from "../base/state.js";
import { wordsFor } from "./examples.js";
import { putPrompt } from "./prompt.js";
import { current } from "./settings.js";

const PARTS = ["subject", "place", "manner", "light"];
const values = { subject: "", place: "", manner: "", light: "" }; // kept while the page is open

export function openHelper() {
  const words = wordsFor(get("model")?.name, language());
  return openDialog(t("helper.title"), (dialog, close) => body(words, close), { name: "helper" });
}

function body(words, close) {
  const result = h("output", { class: "helper-result", "aria-live": "polite" });
  const replaceButton = h("button", { type: "button", class: "button primary" });
  const appendButton = h("button", { type: "button", class: "button" }, icon("plus"), t("helper.append"));
  const written = () => words.join(values, language());
  const refresh = () => {
    result.textContent = written() || t("helper.empty");
    result.classList.toggle("faint", !written());
    replaceButton.disabled = appendButton.disabled = !written();
  };
  const existing = current().prompt.trim();
  replaceButton.append(icon("check"), existing ? t("helper.replace") : t("helper.use"));
  appendButton.hidden = !existing;
  replaceButton.addEventListener("click", () => {
    close();
    putPrompt(written());
  });
  appendButton.addEventListener("click", () => {
    close();
    putPrompt(`${existing}${language() === "zh" ? "，" : ", "}${written()}`);
  });
  const rows = PARTS.map((part) => row(part, words[part], refresh));
  refresh();
  markUnreadable(rows);
  return h(
    "div",
    { class: "dialog-body" },
    h("p", { class: "faint small" }, t("helper.hint")),
    rows,
    h(
      "div",
      { class: "dialog-foot" },
      h("div", { class: "helper-result-box" }, h("span", { class: "label" }, t("helper.result")), result),
      h("div", { class: "row end" }, appendButton, replaceButton),
    ),
  );
}

function row(part, suggestions, refresh) {
  const input = h("input", {
    class: "input",
    id: `helper-${part}`,
    value: values[part],
    autocomplete: "off",
    maxlength: "200",
  });
  const store = () => {
    values[part] = input.value.trim();
    chips.forEach((chip) => chip.setAttribute("aria-pressed", String(chip.dataset.word === values[part])));
    refresh();
  };
  const chips = suggestions.map((word) =>
    h(
      "button",
      {
        type: "button",
        class: "chip",
        dataset: { word },
        "aria-pressed": String(word === values[part]),
        onclick: () => {
          input.value = input.value === word ? "" : word;
          store();
        },
      },
      word,
    ),
  );
  input.addEventListener("input", store);
  return h(
    "div",
    { class: "helper-row" },
    h("label", { class: "label", for: `helper-${part}` }, t(`helper.${part}`)),
    input,
    h("div", { class: "chips" }, chips),
  );
}

/** Suggestions with characters that the loaded model cannot read are shown as such. */
async function markUnreadable(rows) {
  const chips = rows.flatMap((each) => [...each.querySelectorAll(".chip")]);
  let unknown;
  try {
    const answers = await Promise.all(chips.map((chip) => knowledge({ prompt: chip.dataset.word })));
    unknown = answers.map((answer) => answer.unknown);
  } catch {
    return; // nothing is said about words while the service cannot be asked
  }
  chips.forEach((chip, index) => {
    if (!unknown[index].length) return;
    chip.classList.add("unread");
    chip.title = t("knowledge.unknown", { words: unknown[index].join(" ") });
    chip.append(h("span", { class: "unseen" }, chip.title));
  });
}
