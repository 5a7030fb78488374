/** The expert strip: who draws which steps, how far they are, and one preview of what each handed on. */

import { h, property } from "../base/dom.js";
import { t } from "../base/i18n.js";
import { get } from "../base/state.js";
import { blocksOf, endOfBlock, stepsDone, turnOf } from "./blocks.js";
import { comparison } from "./compare.js";
import { noise, setPicture } from "./show.js";

let opened = null; // expert whose change is shown

export function closeComparison() {
  opened = null;
}

/** The strip of one picture of a job: {element, update(job, picture)}. */
export function expertStrip(job, picture) {
  const model = get("model");
  const blocks = blocksOf(job, model);
  const count = Math.max(model?.num_experts ?? 0, ...blocks.map((block) => block.expert + 1));
  const list = h("ol", { class: "blocks", "aria-label": t("strip.title") });
  const panel = h("div", { class: "comparison", id: "comparison" });
  const cells = blocks.map((block, place) => cell(block, place, blocks.length, count));
  list.append(...cells.map((each) => each.item));
  let shown = { job, picture };
  let drawn = "";

  const compare = () => {
    const place = blocks.findIndex((block) => block.expert === opened);
    const after = place < 0 ? null : endOfBlock(shown.job, shown.picture, opened);
    const key = after ? `${opened} ${shown.picture} ${after.step}` : "";
    if (key === drawn) return;
    drawn = key;
    panel.replaceChildren(...(after ? [comparison(shown.job, shown.picture, blocks, place)] : []));
  };
  const update = (nextJob, nextPicture) => {
    shown = { job: nextJob, picture: nextPicture };
    const done = stepsDone(nextJob, nextPicture, blocks);
    cells.forEach((each) => each.update(nextJob, nextPicture, done, opened));
    compare();
  };
  cells.forEach((each, place) =>
    each.button.addEventListener("click", () => {
      opened = opened === blocks[place].expert ? null : blocks[place].expert;
      update(shown.job, shown.picture);
      if (opened !== null) panel.scrollIntoView({ block: "nearest" });
    }),
  );
  update(job, picture);
  const head = h(
    "div",
    { class: "strip-head" },
    h("h3", {}, t("strip.title.n", { n: blocks.length })),
    h("p", { class: "faint small" }, t("strip.hint")),
  );
  return { element: h("div", { class: "strip" }, head, list, panel), update };
}

function role(place, count) {
  if (count === 1) return t("strip.only");
  if (place === 0) return t("strip.first");
  return t(place === count - 1 ? "strip.last" : "strip.middle");
}

function cell(block, place, blockCount, expertCount) {
  const name = t("expert.name", { n: block.expert + 1 });
  const image = h("img", { alt: "", hidden: true });
  const fill = h("span", { class: "block-fill" });
  const state = h("span", { class: "unseen" });
  const button = h(
    "button",
    { type: "button", class: "block", "aria-controls": "comparison", dataset: { expert: String(block.expert) } },
    h("span", { class: "block-picture" }, noise(10, 10), image),
    h(
      "span",
      { class: "block-text" },
      h("span", { class: "block-name" }, name),
      h("span", { class: "small block-role" }, `${role(place, blockCount)} · ${t("strip.steps", { n: block.steps })}`),
      h("span", { class: "small faint block-range" }, `t ${block.to - 1}–${block.from}`),
    ),
    h("span", { class: "block-bar", "aria-hidden": "true" }, fill),
    state,
  );
  property(button, "--turn", String(turnOf(block.expert, expertCount)));
  const item = property(h("li", {}, button), "--steps", String(block.steps));

  const update = (job, picture, done, openedExpert) => {
    const share = Math.min(1, Math.max(0, (done - block.first_step) / block.steps));
    const after = endOfBlock(job, picture, block.expert);
    const working = job.state === "running" && share > 0 && share < 1;
    const atWork = job.state === "running" && (job.expert ? job.expert.index === block.expert : working);
    property(fill, "--share", String(share));
    button.classList.toggle("at-work", atWork);
    button.classList.toggle("waits", share === 0 && !atWork);
    button.disabled = !after;
    button.setAttribute("aria-expanded", String(openedExpert === block.expert && after !== null));
    state.textContent = t(after ? "strip.state.done" : atWork ? "strip.state.work" : "strip.state.wait");
    if (after) setPicture(image, after.url, `${job.id} ${picture} ${after.step}`);
    else {
      image.hidden = true;
      image.dataset.key = "";
    }
  };
  return { item, button, update };
}
