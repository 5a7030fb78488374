/** The seventeen styles and the three shapes; what the loaded model never learned is said, not hidden. */

import { byId, h, property, radioKeys } from "../base/dom.js";
import { hasText, language, onLanguage, t } from "../base/i18n.js";
import { get, on } from "../base/state.js";
import { change, current, onSettings } from "./settings.js";

let unfolded = false;

export const styleName = (style) => (language() === "en" && hasText(`style.${style}`) ? t(`style.${style}`) : style);

function styleChip(style, none, learned) {
  const chosen = (current().style ?? none) === style;
  return h(
    "button",
    {
      type: "button",
      role: "radio",
      class: `style${learned === false ? " unlearned" : ""}`,
      "aria-checked": String(chosen),
      tabindex: chosen ? "0" : "-1",
      dataset: { value: style },
      onclick: () => change({ style: style === none ? null : style }),
    },
    h("span", { class: "swatch", dataset: { style }, "aria-hidden": "true" }),
    styleName(style),
  );
}

function styleGroup(styles, none, learned) {
  const chosen = current().style ?? none;
  const chips = styles.map((style, index) => {
    const chip = styleChip(style, none, learned);
    if (!styles.includes(chosen) && index === 0) chip.tabIndex = 0;
    return chip;
  });
  const label = learned ? t("style.label") : t("style.others");
  const group = h("div", { class: "styles", role: "radiogroup", "aria-label": label }, chips);
  radioKeys(group);
  return group;
}

/** Styles that the model did not learn, behind a button. */
function otherStyles(others, none) {
  const show = unfolded || others.includes(current().style);
  const unfold = () => {
    unfolded = !show;
    showStyles();
    byId("styles-unfold").focus();
  };
  const button = {
    type: "button",
    class: "button quiet slim",
    id: "styles-unfold",
    "aria-expanded": String(show),
    onclick: unfold,
  };
  const text = t(show ? "style.fewer" : "style.more", { n: others.length });
  return [h("button", button, text), show ? styleGroup(others, none, false) : ""];
}

function showStyles() {
  const box = byId("styles");
  const focused = box.contains(document.activeElement);
  box.replaceChildren();
  const model = get("model");
  if (!model) return;
  const none = model.styles[model.styles.length - 1];
  const learned = model.styles_learned ?? null;
  const others = learned ? model.styles.filter((style) => style !== none && !learned.includes(style)) : [];
  const known = [none, ...model.styles.filter((style) => style !== none && !others.includes(style))];
  box.append(styleGroup(known, none, true));
  if (others.length) box.append(...otherStyles(others, none));
  if (others.includes(current().style)) {
    box.append(
      h("p", { class: "remark warn" }, t("style.unlearned", { style: styleName(current().style), model: model.name })),
    );
  } else if (!learned) box.append(h("p", { class: "faint small" }, t("style.unknown")));
  if (focused) box.querySelector('[aria-checked="true"]')?.focus();
}

/** Shape of the form's size: one of the model's, or null for a size of another origin. */
export function shapeOf(model, settings) {
  if (settings.width === null) return model.shapes[0];
  return model.shapes.find((shape) => shape.width === settings.width && shape.height === settings.height) ?? null;
}

function shapeButton(shape, chosen) {
  const { width, height } = shape;
  const figure = h("span", { class: "shape-figure", "aria-hidden": "true" });
  property(figure, "--w", `${(26 * width) / Math.max(width, height)}px`);
  property(figure, "--h", `${(26 * height) / Math.max(width, height)}px`);
  const name = shape.id === "own" ? t("shape.own") : shape[language()];
  return h(
    "button",
    {
      type: "button",
      role: "radio",
      class: `shape${shape.learned === false ? " unlearned" : ""}`,
      "aria-checked": String(chosen),
      tabindex: chosen ? "0" : "-1",
      dataset: { value: shape.id },
      title: shape.learned === false ? t("shape.unlearned") : null,
      onclick: () => change({ width, height }),
    },
    figure,
    h("span", {}, name),
    h("span", { class: "small faint code" }, `${width}×${height}`),
  );
}

function showShapes() {
  const box = byId("shapes");
  const focused = box.contains(document.activeElement);
  const model = get("model");
  box.replaceChildren();
  if (!model) return;
  const settings = current();
  const chosen = shapeOf(model, settings);
  const own = chosen ? [] : [{ id: "own", width: settings.width, height: settings.height }];
  box.append(...[...model.shapes, ...own].map((shape) => shapeButton(shape, (chosen ?? own[0]).id === shape.id)));
  if (focused) box.querySelector('[aria-checked="true"]')?.focus();
}

export function startStyles() {
  radioKeys(byId("shapes"));
  onSettings((settings, changed) => {
    if (changed.has("style")) showStyles();
    if (changed.has("width") || changed.has("height")) showShapes();
  });
  const showAll = () => {
    showStyles();
    showShapes();
  };
  on("model", showAll);
  onLanguage(showAll);
}
