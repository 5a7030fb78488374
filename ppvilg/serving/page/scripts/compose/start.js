/** The picture to start from: dropped, chosen or taken from the gallery; how far to leave it; what to repaint. */

import { ApiError, picture, upload, uploadUrl } from "../base/api.js";
import { byId, h } from "../base/dom.js";
import { number, onLanguage, t } from "../base/i18n.js";
import { icon } from "../base/icons.js";
import { notify } from "../base/notices.js";
import { get, on } from "../base/state.js";
import { openMask } from "./mask.js";
import { change, current, onSettings } from "./settings.js";

const KINDS = ["image/png", "image/jpeg", "image/webp"];
let working = false;
let problem = "";

/** Uploads a file and starts from it; a fault is shown where the picture would be. */
export async function startFromFile(file) {
  if (!KINDS.includes(file.type)) return fail(t("start.kind", { name: file.name }));
  const limit = get("model")?.limits?.picture_bytes ?? 10485760;
  if (file.size > limit) return fail(t("start.size", { size: Math.round(limit / 1048576) }));
  working = true;
  problem = "";
  show();
  try {
    const { id, width, height } = await upload(file);
    change({
      image: { id, width, height, url: uploadUrl(id) },
      mask: null,
      strength: null,
      ...nearestShape(width, height),
    });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    problem = error.sentence;
  } finally {
    working = false;
    show();
  }
  return undefined;
}

function fail(sentence) {
  problem = sentence;
  show();
}

/** Starts from a picture of the gallery. */
export function startFromPicture({ id, width, height, url }) {
  problem = "";
  change({ image: { id, width, height, url }, mask: null, strength: null, ...nearestShape(width, height) });
}

function nearestShape(width, height) {
  const model = get("model");
  if (!model) return {};
  const distance = (shape) => Math.abs(Math.log(shape.width / shape.height) - Math.log(width / height));
  const shape = model.shapes.reduce((best, each) => (distance(each) < distance(best) ? each : best));
  return { width: shape.width, height: shape.height };
}

function chooser() {
  const input = h("input", {
    type: "file",
    class: "unseen",
    id: "start-file",
    accept: KINDS.join(","),
    tabindex: "-1",
    "aria-hidden": "true",
  });
  input.addEventListener("change", () => {
    if (input.files[0]) startFromFile(input.files[0]);
  });
  const button = h(
    "button",
    { type: "button", class: "start-well", id: "start-choose", onclick: () => input.click() },
    icon("image"),
    h("span", {}, t(working ? "start.uploading" : "start.choose")),
    h("span", { class: "faint small" }, t("start.hint")),
  );
  button.disabled = working;
  return [button, input];
}

function chosen({ image, mask, strength }) {
  const defaults = get("model")?.defaults ?? {};
  const usual = (mask ? defaults.strength_with_mask : defaults.strength) ?? (mask ? 1 : 0.8);
  const shown = h("output", { class: "code small" }, number(strength ?? usual));
  const slider = h("input", {
    type: "range",
    min: "0",
    max: "1",
    step: "0.05",
    id: "strength",
    "aria-describedby": "strength-hint",
  });
  slider.value = String(strength ?? usual);
  slider.addEventListener("input", () => {
    shown.textContent = number(slider.valueAsNumber);
  });
  slider.addEventListener("change", () => change({ strength: slider.valueAsNumber }));
  const clear = () => {
    const before = { image, mask, strength };
    change({ image: null, mask: null, strength: null });
    notify(t("start.removed"), { label: t("undo"), run: () => change(before) });
    byId("start-choose")?.focus();
  };
  const photo = h("img", { src: image.url, alt: t("start.alt"), class: "start-picture" });
  photo.addEventListener("error", () => renew(image, photo), { once: true });
  return h(
    "div",
    { class: "start-chosen" },
    h("div", { class: "start-frame" }, photo, mask ? painted(mask) : ""),
    h(
      "div",
      { class: "start-side" },
      h("div", { class: "row spread" }, h("label", { class: "label", for: "strength" }, t("start.strength")), shown),
      slider,
      h("p", { class: "faint small", id: "strength-hint" }, t(mask ? "start.strength.mask" : "start.strength.hint")),
      h(
        "div",
        { class: "row tight" },
        h(
          "button",
          { type: "button", class: "button slim", id: "open-mask", onclick: openMask },
          icon("brush"),
          t(mask ? "mask.again" : "mask.open"),
        ),
        h("button", { type: "button", class: "button quiet slim", onclick: clear }, icon("close"), t("start.remove")),
      ),
      mask
        ? h(
            "button",
            { type: "button", class: "button quiet slim", onclick: () => change({ mask: null }) },
            icon("eraser"),
            t("mask.remove"),
          )
        : "",
    ),
  );
}

/** The painted area in colour over the picture. */
function painted(mask) {
  const area = h("span", { class: "start-mask", role: "img", "aria-label": t("mask.alt") });
  area.style.maskImage = `url("${mask.url}")`;
  return area;
}

/** An id names an upload or a picture of the gallery, whose address expires: ask for it anew. */
async function renew(image, photo) {
  try {
    photo.src = (await picture(image.id)).url;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    photo.replaceWith(h("p", { class: "remark warn" }, icon("warn"), t("start.gone")));
  }
}

function show() {
  const settings = current();
  const box = byId("start");
  box.replaceChildren(...(settings.image ? [chosen(settings)] : chooser()));
  if (problem) box.append(h("p", { class: "field-error", role: "alert" }, problem));
}

export function startStart() {
  onSettings((settings, changed) => {
    if (changed.has("image")) problem = "";
    if (["image", "mask", "strength"].some((name) => changed.has(name)) && document.activeElement?.id !== "strength")
      show();
  });
  on("model", show);
  onLanguage(show);
  show();
}
