/** Number of pictures, negative prompt, seed, steps, guidance (one, or one per expert), sampler, fresh noise. */

import { byId, h, property } from "../base/dom.js";
import { number, onLanguage, t } from "../base/i18n.js";
import { icon } from "../base/icons.js";
import { get, on } from "../base/state.js";
import { change, current, onSettings } from "./settings.js";

function stepper() {
  const box = byId("number");
  const most = get("model")?.limits?.num_images ?? 16;
  const value = current().num_images;
  const focused = box.contains(document.activeElement) ? document.activeElement.dataset.step : undefined;
  const button = (step, name, label) =>
    h(
      "button",
      {
        type: "button",
        class: "button quiet slim square",
        "aria-label": label,
        dataset: { step: String(step) },
        disabled: value + step < 1 || value + step > most,
        onclick: () => change({ num_images: value + step }),
      },
      icon(name),
    );
  box.replaceChildren(
    button(-1, "minus", t("number.less")),
    h("output", { class: "stepper-value", "aria-live": "polite" }, String(value)),
    button(1, "plus", t("number.more")),
  );
  if (focused) box.querySelector(`[data-step="${focused}"]:not(:disabled)`)?.focus();
}

/** A number field; empty means the model's own value, which it shows. */
function numberField(name, { label, hint, least, most, step, usual }) {
  const input = h("input", {
    class: "input",
    type: "number",
    id: `field-${name}`,
    inputmode: step === 1 ? "numeric" : "decimal",
    min: String(least),
    max: String(most),
    step: String(step),
    placeholder: usual,
    "aria-describedby": hint ? `hint-${name}` : null,
  });
  input.value = current()[name] ?? "";
  input.addEventListener("input", () => {
    const wrong = !input.validity.valid;
    if (wrong) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
    if (!wrong) change({ [name]: input.value === "" ? null : input.valueAsNumber });
  });
  return h(
    "div",
    { class: "field" },
    h("label", { class: "label", for: `field-${name}` }, label),
    input,
    hint ? h("p", { class: "faint small", id: `hint-${name}` }, hint) : "",
  );
}

function seedField() {
  const field = numberField("seed", {
    label: t("seed.label"),
    hint: t("seed.hint"),
    least: 0,
    most: 4294967295,
    step: 1,
    usual: t("seed.random"),
  });
  const input = field.querySelector("input");
  const roll = () => {
    const [seed] = crypto.getRandomValues(new Uint32Array(1));
    change({ seed: seed % 1000000 });
  };
  const clear = () => change({ seed: null });
  const joined = h("div", { class: "joined" });
  input.replaceWith(joined);
  joined.append(
    input,
    h(
      "button",
      { type: "button", class: "button square", "aria-label": t("seed.roll"), title: t("seed.roll"), onclick: roll },
      icon("dice"),
    ),
    h(
      "button",
      { type: "button", class: "button square", "aria-label": t("seed.clear"), title: t("seed.clear"), onclick: clear },
      icon("close"),
    ),
  );
  return field;
}

function negativeField() {
  const input = h("input", {
    class: "input",
    id: "field-negative_prompt",
    maxlength: "2000",
    placeholder: t("negative.placeholder"),
  });
  input.value = current().negative_prompt;
  input.addEventListener("input", () => change({ negative_prompt: input.value }));
  return h(
    "div",
    { class: "field wide" },
    h("label", { class: "label", for: "field-negative_prompt" }, t("negative.label")),
    input,
  );
}

function samplerField(model) {
  const usual = model.defaults.sampler;
  const choose = h("select", { class: "input", id: "field-sampler" });
  choose.append(
    ...model.samplers.map((name) => h("option", { value: name }, name === usual ? t("sampler.usual", { name }) : name)),
  );
  choose.value = current().sampler ?? usual;
  choose.addEventListener("change", () => change({ sampler: choose.value === usual ? null : choose.value }));
  return h("div", { class: "field" }, h("label", { class: "label", for: "field-sampler" }, t("sampler.label")), choose);
}

/** An adapter and its scale, where the service offers some. Several, or scales per expert, come with a recipe alone. */
function loraFields(model) {
  const chosen = Object.entries(current().lora);
  const offered = [...new Set([...model.lora.map(({ name }) => name), ...chosen.map(([name]) => name)])];
  if (!offered.length) return [];
  const [name, scale] = chosen[0] ?? [null, 1];
  const simple = chosen.length < 2 && !Array.isArray(scale);
  const choose = h("select", { class: "input", id: "field-lora" });
  choose.append(h("option", { value: "" }, t("lora.none")), ...offered.map((each) => h("option", { value: each }, each)));
  if (!simple) choose.append(h("option", { value: "*" }, t("lora.several", { n: chosen.length })));
  choose.value = simple ? (name ?? "") : "*";
  const strength = h("input", {
    class: "input",
    type: "number",
    id: "field-lora-scale",
    min: "-2",
    max: "2",
    step: "0.05",
    "aria-label": t("lora.scale"),
  });
  strength.value = simple ? String(scale) : "";
  strength.disabled = !simple || name === null;
  choose.addEventListener("change", () => {
    if (choose.value === "*") return;
    change({ lora: choose.value ? { [choose.value]: simple ? scale : 1 } : {} });
    redraw();
  });
  strength.addEventListener("change", () => {
    const value = strength.valueAsNumber;
    if (Number.isFinite(value)) change({ lora: { [choose.value]: Math.min(2, Math.max(-2, value)) } });
  });
  return [
    h("div", { class: "field" }, h("label", { class: "label", for: "field-lora" }, t("lora.label")), choose),
    h("div", { class: "field" }, h("label", { class: "label", for: "field-lora-scale" }, t("lora.scale")), strength),
  ];
}

const usualGuidance = (model) => model.defaults.guidance_scale;
const perExpert = (model, value) => (Array.isArray(value) ? [...value] : Array(model.num_experts).fill(value));

function guidanceField(model) {
  const value = current().guidance_scale;
  const each = Array.isArray(value);
  const mode = (name, pressed, run) =>
    h("button", { type: "button", "aria-pressed": String(pressed), onclick: run }, t(name));
  const one = () => change({ guidance_scale: each ? value[value.length - 1] : value });
  const all = () => change({ guidance_scale: perExpert(model, value ?? usualGuidance(model)) });
  const usual = [usualGuidance(model)].flat().map(number).join(" / ");
  const head = h(
    "div",
    { class: "row spread" },
    h("span", { class: "label", id: "guidance-label" }, t("guidance.label")),
    h(
      "div",
      { class: "segments slim", role: "group", "aria-labelledby": "guidance-label" },
      mode("guidance.one", !each, one),
      mode("guidance.each", each, all),
    ),
  );
  const hint = h("p", { class: "faint small" }, t("guidance.hint", { usual }));
  if (each) return h("div", { class: "field wide" }, head, expertSliders(model, value), hint);
  const single = numberField("guidance_scale", {
    label: t("guidance.label"),
    least: 0,
    most: model.limits.guidance_scale[1],
    step: 0.1,
    usual,
  });
  single.querySelector("label").className = "unseen";
  return h("div", { class: "field wide" }, head, single, hint);
}

/** One slider per expert, in the order they draw: from the noisiest to the last touches. */
function expertSliders(model, value) {
  const most = Math.max(8, ...value);
  const rows = value.map((scale, expert) => {
    const shown = h("output", { class: "code small" }, number(scale));
    const input = h("input", {
      type: "range",
      min: "0",
      max: String(most),
      step: "0.1",
      "aria-label": t("guidance.slider", { n: expert + 1 }),
    });
    input.value = String(scale);
    input.addEventListener("input", () => {
      shown.textContent = number(input.valueAsNumber);
      const scales = [...current().guidance_scale];
      scales[expert] = input.valueAsNumber;
      change({ guidance_scale: scales });
    });
    const row = h(
      "label",
      { class: "weight expert" },
      h("span", { class: "weight-word" }, t("expert.name", { n: expert + 1 })),
      input,
      shown,
    );
    return property(row, "--turn", String(expert / Math.max(1, model.num_experts - 1)));
  });
  return h("div", { class: "weights" }, rows.reverse());
}

function summary() {
  const model = get("model");
  if (!model) return "";
  const { seed, num_inference_steps: steps, guidance_scale: guidance, negative_prompt: negative, lora } = current();
  const parts = [t("more.steps", { n: steps ?? model.defaults.num_inference_steps })];
  if (guidance !== null) parts.push(t("more.guidance", { value: [guidance].flat().map(number).join("/") }));
  if (seed !== null) parts.push(t("more.seed", { seed }));
  if (negative) parts.push(t("more.negative"));
  if (Object.keys(lora).length) parts.push(Object.keys(lora).join(" + "));
  return parts.join(" · ");
}

function fields() {
  const model = get("model");
  const box = byId("more-fields");
  box.replaceChildren();
  byId("more-summary").textContent = summary();
  stepper();
  if (!model) return;
  const { limits, defaults } = model;
  box.append(
    negativeField(),
    seedField(),
    numberField("num_inference_steps", {
      label: t("steps.label"),
      hint: t("steps.hint"),
      least: 1,
      most: limits.num_inference_steps,
      step: 1,
      usual: String(defaults.num_inference_steps),
    }),
    guidanceField(model),
    samplerField(model),
    ...loraFields(model),
    numberField("eta", {
      label: t("eta.label"),
      hint: t("eta.hint"),
      least: 0,
      most: 1,
      step: 0.05,
      usual: String(defaults.eta),
    }),
  );
}

export function startMore() {
  onSettings((settings, changed) => {
    if (changed.has("num_images")) stepper();
    byId("more-summary").textContent = summary();
    const typing =
      byId("more-fields").contains(document.activeElement) && document.activeElement.matches("input, select");
    const shown = ["negative_prompt", "seed", "num_inference_steps", "guidance_scale", "sampler", "eta", "lora"].some(
      (name) => changed.has(name),
    );
    if (shown && !typing) redraw();
  });
  on("model", fields);
  onLanguage(fields);
}

/** Makes the fields anew and keeps the place of the keyboard. */
function redraw() {
  const focusable = () => [...byId("more-fields").querySelectorAll("button, input, select")];
  const place = focusable().indexOf(document.activeElement);
  fields();
  if (place >= 0) focusable()[place]?.focus();
}
