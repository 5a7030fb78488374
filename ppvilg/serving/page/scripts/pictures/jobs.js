/** Which job is on the canvas, which others are unfinished: found again after a reload, watched until their end. */

import { ApiError, job as ask, latest, unfinished, watch } from "../base/api.js";
import { byId, h, property } from "../base/dom.js";
import { onLanguage, t } from "../base/i18n.js";
import { icon } from "../base/icons.js";
import { notify } from "../base/notices.js";
import { get, isFinal, on, set } from "../base/state.js";
import { read, write } from "../base/storage.js";
import { forget, reload } from "./gallery.js";
import { stopJob } from "./stage.js";
import { closeComparison } from "./strip.js";

let stopWatching = () => {};
let finishedPictures = "";

function receive(job) {
  if (get("job")?.id !== job.id) return;
  const done = `${job.id} ${job.pictures.length} ${job.state}`;
  set("job", job);
  if (done !== finishedPictures && (job.pictures.length || isFinal(job))) {
    finishedPictures = done;
    reload();
    if (isFinal(job)) listUnfinished();
  }
}

/** Puts a job on the canvas and, on a phone, into view. */
export function showJob(job, picture = 0) {
  put(job, picture);
  if (matchMedia("(max-width: 900px)").matches) byId("stage").scrollIntoView({ block: "start" });
}

function put(job, picture) {
  stopWatching();
  closeComparison();
  write("job", job.id);
  set("picture", picture);
  set("job", job);
  stopWatching = isFinal(job) ? () => {} : watch(job.id, receive);
  listUnfinished();
}

/** A picture of the gallery, with the job that drew it where that is still known. */
export async function openPicture(picture) {
  if (get("job")?.id === picture.job) return set("picture", picture.index);
  try {
    showJob(await ask(picture.job), picture.index);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    notify(error.sentence);
  }
  return undefined;
}

export function pictureGone(picture) {
  forget(picture);
  const job = get("job");
  if (job?.id === picture.job) {
    set(
      "job",
      job.request.num_images === 1 ? null : { ...job, pictures: job.pictures.filter((each) => each.id !== picture.id) },
    );
  }
}

// ---- the others ----

async function listUnfinished() {
  try {
    set("unfinished", await unfinished());
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // the banner already says that the service cannot be reached
  }
}

function tray() {
  const box = byId("tray");
  const others = get("unfinished").filter((job) => job.id !== get("job")?.id);
  box.hidden = !others.length;
  box.replaceChildren(...others.map(trayItem));
}

function trayItem(job) {
  const state =
    job.state === "queued"
      ? t("tray.queued", { n: job.queue?.place ?? 1 })
      : `${Math.round(100 * (job.progress?.fraction ?? 0))} %`;
  const preview = job.previews.at(-1);
  const open = h(
    "button",
    { type: "button", class: "tray-open", onclick: () => showJob(job) },
    preview
      ? h("img", { src: preview.url, alt: "", class: "picture" })
      : h("span", { class: "tray-wait", "aria-hidden": "true" }),
    h("span", { class: "tray-text" }, job.request.prompt),
    h("span", { class: "small faint code" }, state),
  );
  const stop = {
    type: "button",
    class: "button quiet slim square",
    "aria-label": t("tray.cancel", { prompt: job.request.prompt }),
    onclick: () => stopJob(job.id).then(listUnfinished),
  };
  return property(
    h("div", { class: "tray-item" }, open, h("button", stop, icon("close"))),
    "--share",
    String(job.progress?.fraction ?? 0),
  );
}

async function poll() {
  const before = get("unfinished").length;
  if (document.hidden || !before) return;
  await listUnfinished();
  if (get("unfinished").length < before) reload();
}

/** After a reload: what was on the canvas, else what is being drawn, else the newest. */
async function restore() {
  const id = read("job");
  try {
    await listUnfinished();
    const kept = id ? await ask(id).catch(() => null) : null;
    const job = kept ?? get("unfinished").at(-1) ?? (await latest());
    if (job && !get("job")) put(job, 0);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // shown by the banner; asked again when the service is back
  }
}

export function startJobs() {
  on("unfinished", tray);
  on("job", tray);
  onLanguage(tray);
  let was = true;
  on("online", (online) => {
    if (online && !was) {
      reload();
      if (!get("job")) restore();
    }
    was = online;
  });
  setInterval(poll, 1500);
  return restore();
}
