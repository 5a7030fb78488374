/** The button that draws, what it will take, and why it could not. */

import { ApiError, draw, queue, randomKey } from "../base/api.js";
import { byId, h, showError } from "../base/dom.js";
import { duration, onLanguage, t } from "../base/i18n.js";
import { icon } from "../base/icons.js";
import { get, isFinal, on } from "../base/state.js";
import { wordsOfPrompt } from "./knowledge.js";
import { asRequest, current, onSettings } from "./settings.js";

let sending = false;
let speed = null;
let waiting = 0;

function label() {
  const button = byId("draw");
  const count = current().num_images;
  const words = sending ? t("draw.sending") : count > 1 ? t("draw.many", { n: count }) : t("draw");
  button.replaceChildren(icon("brush"), h("span", {}, words), h("kbd", {}, "Ctrl ⏎"));
  button.disabled = sending;
  byId("submit-hint").textContent = hint();
}

function hint() {
  const model = get("model");
  if (!get("online")) return t("draw.offline");
  if (!model) return t("draw.connecting");
  if (!model.ready) return t("draw.loading");
  const parts = [];
  if (speed) {
    const steps = current().num_inference_steps ?? model.defaults.num_inference_steps;
    const own = ((current().num_images / speed) * steps) / model.defaults.num_inference_steps;
    parts.push(t("draw.time", { time: duration(own) }));
  }
  if (waiting) parts.push(t("draw.waiting", { n: waiting }));
  return parts.join(" · ");
}

async function askQueue() {
  if (document.hidden) return;
  try {
    const { queued, running, pictures_per_second: rate } = await queue();
    waiting = queued + running;
    speed = rate;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    waiting = 0;
  }
  label();
}

/** Sends a request; returns the job, or null after saying why not. */
export async function send(request) {
  const line = byId("submit-error");
  showError(line, null);
  sending = true;
  label();
  try {
    return await draw(request, randomKey());
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.field === "prompt") showError(byId("prompt-error"), error.sentence, byId("prompt"));
    else showError(line, error.sentence);
    return null;
  } finally {
    sending = false;
    label();
  }
}

export function startSubmit(show) {
  byId("compose").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (sending) return;
    const prompt = byId("prompt");
    const invalid = byId("more-fields").querySelector('[aria-invalid="true"]');
    if (!prompt.value.trim()) {
      showError(byId("prompt-error"), t("prompt.missing"), prompt);
      prompt.focus();
      return;
    }
    if (invalid) {
      byId("more").open = true;
      invalid.focus();
      showError(byId("submit-error"), t("draw.invalid"));
      return;
    }
    const job = await send(asRequest(wordsOfPrompt()));
    if (job) show(job);
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    byId("compose").requestSubmit();
  });
  onSettings((settings, changed) => {
    if (changed.has("prompt")) showError(byId("prompt-error"), null, byId("prompt"));
    label();
  });
  on("model", label);
  on("online", label);
  on("job", (job) => job && isFinal(job) && askQueue());
  onLanguage(label);
  label();
  askQueue();
  setInterval(askQueue, 5000);
}
