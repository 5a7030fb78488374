/** What one expert changed: the picture it was handed, the picture it handed on, and the difference. */

import { h, property } from "../base/dom.js";
import { t } from "../base/i18n.js";
import { icon } from "../base/icons.js";
import { get } from "../base/state.js";
import { endOfBlock, turnOf } from "./blocks.js";
import { pixelsOf, shownWidth } from "./show.js";

const VISIBLE = 16; // of 255: what an eye begins to see

export function comparison(job, picture, blocks, place) {
  const block = blocks[place];
  const after = endOfBlock(job, picture, block.expert);
  const before = place > 0 ? endOfBlock(job, picture, blocks[place - 1].expert) : startOf(job);
  const { width, height } = job.request;
  const shown = shownWidth(width, height, 208);
  const name = t("expert.name", { n: block.expert + 1 });
  const text = h("p", { class: "small" });
  const parts = [];
  if (before) {
    const heat = h("canvas", { class: "picture", width, height, role: "img", "aria-label": t("compare.change") });
    parts.push(wipe(before.url, after.url, name), figure(heat, t("compare.change")));
    difference(before.url, after.url, heat, block, text);
  } else {
    parts.push(
      figure(
        h("img", { src: after.url, alt: t("compare.after", { name }), class: "picture" }),
        t("compare.after", { name }),
      ),
    );
    text.textContent = t("compare.from.noise", { name });
  }
  const panel = h(
    "div",
    { class: "compare-row" },
    parts,
    h("div", { class: "compare-text" }, h("h4", {}, t("compare.title", { name })), text),
  );
  property(panel, "--picture", `${shown}px`);
  return property(panel, "--turn", String(turnOf(block.expert, get("model")?.num_experts ?? blocks.length)));
}

function startOf(job) {
  return job.request.image && !job.request.mask ? { url: `v1/uploads/${job.request.image}.png` } : null;
}

const figure = (content, caption) =>
  h("figure", { class: "compare-figure" }, content, h("figcaption", { class: "small faint" }, caption));

/** Two pictures over each other and a slider that uncovers one of them. */
function wipe(before, after, name) {
  const box = h(
    "div",
    { class: "wipe" },
    h("img", { src: after, alt: t("compare.after", { name }), class: "picture" }),
    h("img", { src: before, alt: t("compare.before", { name }), class: "picture wipe-over" }),
    h("span", { class: "wipe-edge", "aria-hidden": "true" }),
  );
  const slider = h("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": t("compare.slider") });
  slider.addEventListener("input", () => property(box, "--cut", `${slider.value}%`));
  property(box, "--cut", "50%");
  const sides = h(
    "figcaption",
    { class: "small faint row spread" },
    h("span", {}, t("compare.before", { name })),
    h("span", {}, t("compare.after", { name })),
  );
  return h("figure", { class: "compare-figure" }, box, slider, sides);
}

/** Draws where two pictures differ, strongest change at full colour, and says how much that is. */
async function difference(before, after, canvas, block, text) {
  const { width, height } = canvas;
  let pixels;
  try {
    pixels = await Promise.all([before, after].map((address) => pixelsOf(address, width, height)));
  } catch {
    text.replaceChildren(icon("warn"), t("compare.gone"));
    return;
  }
  const changes = new Float32Array(width * height);
  for (let index = 0; index < changes.length; index += 1) {
    for (let channel = 0; channel < 3; channel += 1) {
      changes[index] += Math.abs(pixels[0][index * 4 + channel] - pixels[1][index * 4 + channel]) / 3;
    }
  }
  const mean = changes.reduce((sum, value) => sum + value, 0) / changes.length;
  const seen = changes.filter((value) => value > VISIBLE).length / changes.length;
  paint(canvas, changes, Math.max(64, ...samples(changes)), getComputedStyle(canvas).color);
  text.textContent = t("compare.text", { mean: mean.toFixed(1), share: (100 * seen).toFixed(0), visible: VISIBLE });
}

/** At most 4,096 values, the largest among them: enough to scale by, and safe to spread into a call. */
function samples(values) {
  const step = Math.ceil(values.length / 4096);
  const kept = [];
  for (let start = 0; start < values.length; start += step) {
    let largest = 0;
    for (let index = start; index < Math.min(values.length, start + step); index += 1)
      largest = Math.max(largest, values[index]);
    kept.push(largest);
  }
  return kept;
}

function paint(canvas, changes, largest, colour) {
  const context = canvas.getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
  const image = new ImageData(canvas.width, canvas.height);
  changes.forEach((change, index) =>
    image.data.set([red, green, blue, 255 * Math.min(1, change / largest)], index * 4),
  );
  context.putImageData(image, 0, 0);
}
