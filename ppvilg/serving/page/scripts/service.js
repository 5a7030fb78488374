/** The service itself: which model it has, whether it answers, who is asking, and the page's help. */

import { ApiError, logIn, logOut, me, model } from "./base/api.js";
import { openDialog } from "./base/dialog.js";
import { byId, h, showError } from "./base/dom.js";
import { list, number, onLanguage, t } from "./base/i18n.js";
import { icon } from "./base/icons.js";
import { get, on, set } from "./base/state.js";
import { styleName } from "./compose/styles.js";

const SOON = 1000;
const LATER = 15000;

function chip() {
  const value = get("model");
  const dot = byId("model-dot");
  const online = get("online");
  dot.className = `dot ${!online ? "bad" : value?.ready ? "good" : "warn"}`;
  const state = !online ? t("model.offline") : value?.ready ? t("model.ready") : t("model.loading");
  byId("model-name").textContent = value?.name ?? "…";
  byId("model-chip").title = state;
  byId("model-chip").setAttribute("aria-label", `${value?.name ?? ""} ${state} ${t("model.about")}`);
  banner();
}

function banner() {
  const box = byId("banner");
  const value = get("model");
  const loading = value && !value.ready;
  box.hidden = get("online") && !loading;
  box.className = `banner ${get("online") ? "" : "bad"}`;
  if (!get("online")) box.replaceChildren(icon("warn"), h("span", {}, t("banner.offline")));
  else if (loading) {
    const { fraction = null } = value.loading ?? {};
    box.replaceChildren(
      h("span", {}, t("banner.loading", { name: value.name })),
      h("progress", {
        max: "1",
        value: fraction ?? undefined,
        "aria-label": t("banner.loading", { name: value.name }),
      }),
    );
  }
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

async function ask() {
  let wait = SOON;
  try {
    const value = await model();
    if (!same(value, get("model"))) set("model", value);
    if (value.ready) wait = LATER;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.code === "no_key") return askForKey();
    if (error.code === "offline") wait = 2000;
  }
  setTimeout(ask, wait);
  return undefined;
}

// ---- a key, where the service wants one ----

function askForKey() {
  const input = h("input", {
    class: "input",
    type: "password",
    id: "key",
    autocomplete: "current-password",
    placeholder: "SK…",
  });
  const problem = h("p", { class: "field-error", role: "alert", hidden: true });
  const enter = async (event) => {
    event.preventDefault();
    try {
      await logIn(input.value.trim());
      location.reload();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      showError(problem, error.sentence, input);
      input.focus();
    }
  };
  const form = h(
    "form",
    { class: "dialog-body", onsubmit: enter },
    h("p", {}, t("key.text")),
    h("label", { class: "label", for: "key" }, t("key.label")),
    input,
    problem,
    h(
      "div",
      { class: "row end" },
      h("button", { type: "submit", class: "button primary" }, icon("key"), t("key.enter")),
    ),
  );
  return openDialog(t("key.title"), () => form, { name: "key" });
}

// ---- about the model ----

function about() {
  const value = get("model");
  if (!value) return h("div", { class: "dialog-body" }, h("p", {}, t("draw.connecting")));
  const { defaults } = value;
  const rows = [
    [t("about.hash"), h("span", { class: "code" }, value.hash)],
    [t("about.experts"), t("about.experts.text", { n: value.num_experts, boundaries: value.boundaries.join(" · ") })],
    [t("about.sizes"), value.shapes.map((shape) => `${shape.width}×${shape.height}`).join("  ")],
    [
      t("about.styles"),
      value.styles_learned ? list(value.styles_learned.map(styleName)) || t("about.none") : t("style.unknown"),
    ],
    [
      t("about.defaults"),
      t("about.defaults.text", {
        steps: defaults.num_inference_steps,
        guidance: [defaults.guidance_scale].flat().map(number).join(" / "),
        sampler: defaults.sampler,
        eta: number(defaults.eta),
      }),
    ],
    [t("about.backend"), value.backend],
    ["ppvilg", value.version],
  ];
  return h(
    "div",
    { class: "dialog-body" },
    h(
      "dl",
      { class: "facts wide" },
      rows.map(([name, text]) => h("div", {}, h("dt", { class: "faint small" }, name), h("dd", {}, text))),
    ),
    account(),
  );
}

function account() {
  const who = get("me");
  if (!who) return "";
  const leave = () => logOut().then(() => location.reload());
  const quota = who.quota
    ? h(
        "p",
        { class: "small faint" },
        t("about.quota", { n: who.quota.pictures_today, of: who.quota.pictures_per_day }),
      )
    : "";
  if (who.owner.kind !== "key") return quota;
  return h(
    "div",
    { class: "row spread" },
    h("p", {}, t("about.key", { name: who.owner.name })),
    quota,
    h("button", { type: "button", class: "button slim", onclick: leave }, t("key.leave")),
  );
}

function help() {
  const rows = ["draw", "move", "gallery", "mask", "close"].map((name) =>
    h("div", {}, h("dt", {}, h("kbd", {}, t(`help.${name}.key`))), h("dd", {}, t(`help.${name}`))),
  );
  return h(
    "div",
    { class: "dialog-body" },
    h("dl", { class: "facts wide keys" }, rows),
    h("p", { class: "small faint" }, t("help.privacy")),
  );
}

export async function startService() {
  byId("help").append(icon("help"));
  byId("model-chip").addEventListener("click", () =>
    openDialog(get("model")?.name ?? t("model.about"), about, { name: "model" }),
  );
  byId("help").addEventListener("click", () => openDialog(t("help.title"), help, { name: "help" }));
  on("model", chip);
  on("online", chip);
  onLanguage(chip);
  chip();
  await ask();
  if (!get("model")) return;
  try {
    set("me", await me());
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // asked for nothing that the page needs to draw
  }
}
