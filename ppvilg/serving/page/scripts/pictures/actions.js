/** What can be done with a finished picture, and how it was made. */

import { ApiError, picture as ask, removePicture } from "../base/api.js";
import { openDialog } from "../base/dialog.js";
import { h } from "../base/dom.js";
import { moment, number, t } from "../base/i18n.js";
import { icon } from "../base/icons.js";
import { notify } from "../base/notices.js";
import { loadSettings } from "../compose/drop.js";
import { openMask } from "../compose/mask.js";
import { startFromPicture } from "../compose/start.js";
import { styleName } from "../compose/styles.js";
import { copyLink, verify } from "./recipe.js";

async function guarded(run) {
  try {
    return await run();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    notify(error.sentence);
    return undefined;
  }
}

/** The address of a picture lives for an hour: a new one is asked for first. */
const download = (id, metadata) =>
  guarded(async () => {
    const { url } = await ask(id);
    const link = h("a", { href: `${url}&download=1${metadata ? "&metadata=1" : ""}`, download: "" });
    document.body.append(link);
    link.click();
    link.remove();
  });

async function remove(picture, gone) {
  let sure = false;
  await openDialog(
    t("delete.title"),
    (dialog, close) => {
      const yes = () => {
        sure = true;
        close();
      };
      return h(
        "div",
        { class: "dialog-body" },
        h("p", {}, t("delete.text")),
        h(
          "div",
          { class: "row end" },
          h("button", { type: "button", class: "button", onclick: close }, t("cancel")),
          h("button", { type: "button", class: "button primary", onclick: yes }, icon("trash"), t("delete")),
        ),
      );
    },
    { name: "delete" },
  );
  if (sure) await guarded(() => removePicture(picture.id).then(() => gone(picture)));
}

function repaint(picture) {
  startFromPicture(picture);
  openMask();
}

export function actions(picture, gone) {
  const button = (name, label, run, id) =>
    h("button", { type: "button", class: "button slim", id, onclick: run }, icon(name), label);
  return h(
    "div",
    { class: "actions", role: "group", "aria-label": t("actions.title") },
    button("download", t("download"), () => download(picture.id, false), "download-plain"),
    button("download", t("download.metadata"), () => download(picture.id, true), "download-metadata"),
    button("reuse", t("reuse"), () => loadSettings(picture.settings, t("reuse.done")), "reuse"),
    button("image", t("start.from"), () => startFromPicture(picture), "start-from"),
    button("brush", t("repaint"), () => repaint(picture), "repaint"),
    button("link", t("link"), () => copyLink(picture), "copy-link"),
    button("verify", t("verify"), () => verify(picture.recipe), "verify"),
    button("trash", t("delete"), () => remove(picture, gone), "delete"),
  );
}

/** Every setting a picture was made with. */
export function facts(settings, picture = null) {
  const rows = [
    [t("facts.style"), settings.style ? styleName(settings.style) : null],
    [t("negative.label"), settings.negative_prompt || null],
    [t("seed.label"), settings.seed],
    [t("facts.size"), settings.width ? `${settings.width}×${settings.height}` : null],
    [t("steps.label"), settings.num_inference_steps],
    [
      t("guidance.label"),
      settings.guidance_scale === null ? null : [settings.guidance_scale].flat().map(number).join(" / "),
    ],
    [t("sampler.label"), settings.sampler],
    [t("facts.weights"), weights(settings.word_weights)],
    [t("lora.label"), weights(settings.lora)],
    [t("start.strength"), settings.image ? number(settings.strength ?? 0.8) : null],
    [t("facts.model"), picture ? `${picture.model.name} ${picture.model.hash.slice(0, 12)}` : null],
    ["SHA-256", picture ? `${picture.sha256.slice(0, 16)}…` : null],
    [t("facts.created"), picture ? moment(picture.created) : null],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h(
    "dl",
    { class: "facts small" },
    rows.map(([name, value]) => h("div", {}, h("dt", { class: "faint" }, name), h("dd", {}, String(value)))),
  );
}

const weights = (values) =>
  Object.entries(values ?? {})
    .map(([word, weight]) => `${word} ×${[weight].flat().map(number).join("/")}`)
    .join("  ");
