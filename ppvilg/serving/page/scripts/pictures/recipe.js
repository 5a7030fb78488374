/** A link that reproduces a picture: settings, model hash and SHA-256 in the part of the address that is never sent. */

import { byId, h } from "../base/dom.js";
import { loadSettings } from "../compose/drop.js";
import { onLanguage, t } from "../base/i18n.js";
import { icon } from "../base/icons.js";
import { notify } from "../base/notices.js";
import { get, on } from "../base/state.js";
import { send } from "../compose/submit.js";

let recipe = null;
let wrong = false;
let openJob = null;

function encode(value) {
  const bytes = new TextEncoder().encode(JSON.stringify(value));
  return btoa(String.fromCharCode(...bytes))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");
}

function decode(text) {
  const bytes = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return JSON.parse(new TextDecoder().decode(Uint8Array.from(bytes, (character) => character.charCodeAt(0))));
}

export const linkOf = (picture) => `${location.href.split("#")[0]}#r=${encode(picture.recipe)}`;

/** Draws a recipe again and lets the service compare. */
export async function verify({ settings, model_hash, sha256 }) {
  const job = await send({ ...settings, expect: { model_hash, sha256: [sha256].flat() } });
  if (job) openJob(job);
}

function readAddress() {
  const text = location.hash.match(/^#r=([\w-]+)$/)?.[1];
  recipe = null;
  wrong = false;
  if (text) {
    try {
      recipe = decode(text);
      if (typeof recipe.settings?.prompt !== "string") throw new SyntaxError("no prompt in the recipe");
    } catch {
      recipe = null;
      wrong = true;
    }
  }
  show();
}

function leave() {
  history.replaceState(null, "", location.pathname + location.search);
  readAddress();
}

function remark() {
  const model = get("model");
  if (!model) return "";
  if (model.hash === recipe.model_hash)
    return h("p", { class: "remark good" }, icon("check"), t("recipe.same.model", { name: model.name }));
  return h("p", { class: "remark warn" }, icon("warn"), t("recipe.other.model", { name: model.name }));
}

function show() {
  const box = byId("recipe");
  box.hidden = !recipe && !wrong;
  box.replaceChildren();
  if (wrong) {
    const dismiss = h("button", { type: "button", class: "button slim", onclick: leave }, t("close"));
    box.append(h("p", { class: "remark bad" }, icon("warn"), h("span", {}, t("recipe.broken")), dismiss));
  }
  if (!recipe) return;
  const { settings, model_hash: hash = "", sha256 = "" } = recipe;
  const facts = [
    t("recipe.seed", { seed: settings.seed ?? "?" }),
    `${settings.width}×${settings.height}`,
    t("recipe.model", { hash: hash.slice(0, 12) }),
    `SHA-256 ${[sha256].flat()[0]?.slice(0, 12)}…`,
  ];
  const fill = () => loadSettings(settings, t("recipe.filled"));
  box.append(
    h("p", { class: "label" }, t("recipe.title")),
    h("blockquote", { class: "quote" }, settings.prompt),
    h("p", { class: "small faint code" }, facts.join(" · ")),
    remark(),
    h(
      "div",
      { class: "row tight" },
      h(
        "button",
        {
          type: "button",
          class: "button primary",
          id: "recipe-verify",
          disabled: get("model")?.hash !== hash,
          onclick: () => verify(recipe),
        },
        icon("verify"),
        t("recipe.verify"),
      ),
      h("button", { type: "button", class: "button", onclick: fill }, icon("reuse"), t("recipe.fill")),
      h("button", { type: "button", class: "button quiet", onclick: leave }, t("recipe.ignore")),
    ),
  );
}

export async function copyLink(picture) {
  const link = linkOf(picture);
  try {
    await navigator.clipboard.writeText(link);
    notify(t("link.copied"));
  } catch {
    prompt(t("link.copy"), link); // no clipboard outside a secure context: the link is there to be copied by hand
  }
}

export function startRecipe(show_job) {
  openJob = show_job;
  addEventListener("hashchange", readAddress);
  on("model", show);
  onLanguage(show);
  readAddress();
}
