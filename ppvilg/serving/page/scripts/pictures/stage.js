/** The canvas of one job: its pictures while they are drawn and after, what is going on, and the expert strip. */

import { ApiError, cancel } from "../base/api.js";
import { byId, h, property } from "../base/dom.js";
import { duration, language, onLanguage, t } from "../base/i18n.js";
import { icon } from "../base/icons.js";
import { announce, notify } from "../base/notices.js";
import { get, isFinal, on, set } from "../base/state.js";
import { write } from "../base/storage.js";
import { loadSettings } from "../compose/drop.js";
import { wordsFor } from "../compose/examples.js";
import { putPrompt } from "../compose/prompt.js";
import { actions, facts } from "./actions.js";
import { newestPreview, turnOf } from "./blocks.js";
import { clearing, noise, setPicture, shownWidth } from "./show.js";
import { expertStrip } from "./strip.js";

const ROOM = [
  { most: 1, columns: 1, room: 384 },
  { most: 4, columns: 2, room: 288 },
  { most: 9, columns: 3, room: 192 },
  { most: Infinity, columns: 4, room: 144 },
];
let built = null; // {key, update}
let whenGone = () => {};

const pictureAt = (job, index) => job.pictures.find((picture) => picture.index === index) ?? null;

function show() {
  const job = get("job");
  if (!job) {
    built = null;
    return welcome();
  }
  const index = Math.min(get("picture"), job.request.num_images - 1);
  const key = [job.id, job.state, index, Boolean(pictureAt(job, index)), language(), Boolean(get("model"))].join(" ");
  if (built?.key !== key) {
    const focused = byId("stage").contains(document.activeElement) ? document.activeElement.id : "";
    built = { key, update: build(job, index) };
    if (focused) byId(focused)?.focus({ preventScroll: true });
  }
  built.update(job);
  tell(job);
  return undefined;
}

function build(job, index) {
  const tiles = easel(job, index);
  const side = isFinal(job) || pictureAt(job, index) ? finished(job, index) : progress();
  const strip = expertStrip(job, index);
  const open = !isFinal(job) && pictureAt(job, index) ? progress() : null;
  byId("stage").replaceChildren(
    h(
      "div",
      { class: "stage-grid" },
      tiles.element,
      h(
        "div",
        { class: "about" },
        h("blockquote", { class: "quote" }, job.request.prompt),
        side.element,
        open?.element ?? "",
      ),
    ),
    strip.element,
  );
  return (next) => {
    tiles.update(next);
    side.update(next);
    open?.update(next);
    strip.update(next, index);
  };
}

// ---- pictures ----

function easel(job, selected) {
  const { width, height, num_images: count } = job.request;
  const { columns, room } = ROOM.find(({ most }) => count <= most);
  const tiles = Array.from({ length: count }, (_, index) => tile(job, index, selected, count));
  const element = h(
    "div",
    { class: "easel", role: "group", "aria-label": t("easel.title") },
    tiles.map((each) => each.element),
  );
  property(element, "--tile", `${shownWidth(width, height, room)}px`);
  property(element, "--ratio", `${width} / ${height}`);
  property(element, "--columns", String(Math.min(columns, count)));
  const crisp = h(
    "button",
    {
      type: "button",
      class: "button quiet slim crisp",
      id: "crisp",
      "aria-pressed": String(get("crisp")),
      onclick: () => set("crisp", !get("crisp")),
    },
    icon("grid"),
    t("crisp"),
  );
  const whole = h("div", { class: "easel-box" }, element, Math.max(width, height) <= 256 ? crisp : "");
  return { element: whole, update: (next) => tiles.forEach((each) => each.update(next)) };
}

function tile(job, index, selected, count) {
  const image = h("img", { class: "picture", alt: "", hidden: true });
  const inside = [noise(16, 16), image];
  const element =
    count === 1
      ? h("div", { class: "tile" }, inside)
      : h(
          "button",
          {
            type: "button",
            class: "tile",
            id: `tile-${index}`,
            "aria-pressed": String(index === selected),
            onclick: () => set("picture", index),
          },
          inside,
        );
  const update = (next) => {
    const done = pictureAt(next, index);
    const preview = newestPreview(next, index);
    image.alt = t(done ? "picture.alt" : "preview.alt", { n: index + 1, prompt: next.request.prompt });
    element.classList.toggle("drawing", !done && !isFinal(next));
    element.classList.toggle("undrawn", !done && isFinal(next));
    if (done) setPicture(image, done.url, done.sha256);
    else if (preview) setPicture(image, preview.url, `${next.id} ${index} ${preview.step}`);
  };
  return { element, update };
}

// ---- beside them ----

function progress() {
  const title = h("p", { class: "status-title" });
  const detail = h("p", { class: "faint small" });
  const bar = h("progress", { max: "1", "aria-label": t("progress.label") });
  const stop = h(
    "button",
    { type: "button", class: "button", id: "cancel", onclick: () => stopJob(get("job").id) },
    icon("close"),
    t("job.cancel"),
  );
  const element = h("div", { class: "status" }, title, bar, detail, stop);
  const update = (job) => {
    const { progress: at, expert, queue } = job;
    title.classList.toggle("expert", job.state === "running" && expert !== null);
    if (expert) property(title, "--turn", String(turnOf(expert.index, get("model")?.num_experts ?? 1)));
    title.textContent = headline(job);
    if (job.state === "running") bar.value = at?.fraction ?? 0;
    else bar.removeAttribute("value");
    const parts = [];
    if (job.state === "running" && at) parts.push(t("progress.steps", { done: at.steps_done, total: at.steps_total }));
    if (job.state === "running" && expert) parts.push(`t = ${Math.round(expert.timestep)}`);
    if (queue) parts.push(t("queue.of", queue));
    if (at?.seconds_left) parts.push(t("progress.left", { time: duration(at.seconds_left) }));
    detail.textContent = parts.join(" · ");
  };
  return { element, update };
}

function headline(job) {
  if (job.state === "queued")
    return job.queue?.place > 1 ? t("queue.place", { n: job.queue.place - 1 }) : t("queue.next");
  if (job.expert) return t("progress.expert", { n: job.expert.index + 1 });
  return t(job.progress?.steps_done ? "progress.finishing" : "progress.starting");
}

export async function stopJob(id) {
  try {
    const job = await cancel(id);
    if (get("job")?.id === id) set("job", job);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    notify(error.sentence);
  }
}

function finished(job, index) {
  const picture = pictureAt(job, index);
  const parts = [];
  if (job.state === "failed") parts.push(remark("bad", t("job.failed", { reason: job.error?.message ?? "" })));
  if (job.state === "cancelled") parts.push(remark("", t("job.cancelled")));
  if (job.verification) {
    const { same, drawn } = job.verification;
    parts.push(
      remark(
        same ? "good" : "bad",
        t(same ? "verify.same" : "verify.other", { hash: drawn[0]?.slice(0, 16) ?? "" }),
        same ? "check" : "warn",
      ),
    );
  }
  for (const line of [...(job.warnings ?? []), ...(job.notes ?? [])]) parts.push(remark("warn", line));
  if (picture) parts.push(actions(picture, whenGone), facts(picture.settings, picture));
  else if (isFinal(job)) {
    const again = h(
      "button",
      { type: "button", class: "button", id: "again", onclick: () => loadSettings(job.request, t("reuse.done")) },
      icon("reuse"),
      t("reuse"),
    );
    parts.push(h("div", { class: "row" }, again), facts(job.request));
  }
  return { element: h("div", { class: "result" }, parts), update: () => {} };
}

const remark = (kind, text, name = "info") =>
  h("p", { class: `remark ${kind}` }, icon(kind === "bad" || kind === "warn" ? "warn" : name), h("span", {}, text));

// ---- nothing drawn yet ----

function welcome() {
  const { examples } = wordsFor(get("model")?.name, language());
  const chips = examples.slice(0, 6).map((text) => {
    const use = () => {
      putPrompt(text);
      byId("prompt").focus();
    };
    return h("button", { type: "button", class: "chip", onclick: use }, text);
  });
  byId("stage").replaceChildren(
    h(
      "div",
      { class: "welcome" },
      h("div", { class: "welcome-steps", "aria-hidden": "true" }, [1, 0.7, 0.35, 0].map(clearing)),
      h("h2", {}, t("welcome.title")),
      h("p", { class: "faint" }, t("welcome.text")),
      h("div", { class: "chips" }, chips),
    ),
  );
}

// ---- for those who do not see it ----

function tell(job) {
  const count = job.pictures.length;
  const title = t("brand");
  if (job.state === "running") document.title = `${Math.round(100 * (job.progress?.fraction ?? 0))} % · ${title}`;
  else document.title = title;
  if (job.state === "done") announce(t("announce.done", { n: count }));
  else if (job.state === "failed") announce(t("job.failed", { reason: job.error?.message ?? "" }));
  else if (job.state === "cancelled") announce(t("job.cancelled"));
  else announce(headline(job));
}

/** gone(picture) is called after a picture was deleted. */
export function startStage(gone) {
  whenGone = gone;
  const crisp = () => {
    write("crisp", String(get("crisp")));
    document.documentElement.classList.toggle("crisp-pictures", get("crisp"));
    byId("crisp")?.setAttribute("aria-pressed", String(get("crisp")));
  };
  crisp();
  on("job", show);
  on("picture", show);
  on("model", show);
  on("crisp", crisp);
  onLanguage(show);
  show();
}
