/** Painting what is to be drawn again: mouse, finger, pen or keys, on the pixels of the picture to come. */

import { ApiError, upload, uploadUrl } from "../base/api.js";
import { openDialog } from "../base/dialog.js";
import { h, property, showError } from "../base/dom.js";
import { t } from "../base/i18n.js";
import { icon } from "../base/icons.js";
import { get } from "../base/state.js";
import { Painting } from "./painting.js";
import { change, current } from "./settings.js";
import { shapeOf } from "./styles.js";

const COLOUR = [214, 69, 52, 150];

export function openMask() {
  return openDialog(t("mask.title"), body, { wide: true, name: "mask" });
}

function sizeOfPicture() {
  const { width, height } = current().width ? current() : shapeOf(get("model"), current());
  return [width, height];
}

function body(dialog, close) {
  const [width, height] = sizeOfPicture();
  const painting = new Painting(width, height);
  const tools = { radius: Math.max(2, Math.round(Math.min(width, height) / 10)), erase: false };
  const canvas = h("canvas", {
    class: "mask-canvas",
    width,
    height,
    tabindex: "0",
    role: "application",
    "aria-label": t("mask.canvas"),
  });
  const cursor = h("span", { class: "mask-cursor", "aria-hidden": "true", hidden: true });
  const board = h("div", { class: "mask-board" }, h("img", { src: current().image.url, alt: "" }), canvas, cursor);
  property(board, "--ratio", String(width / height));
  const status = h("p", { class: "faint small", role: "status" });
  const problem = h("p", { class: "field-error", role: "alert", hidden: true });
  const done = h("button", { type: "button", class: "button primary", id: "mask-done" }, icon("check"), t("mask.done"));

  const draw = () => {
    canvas.getContext("2d").putImageData(new ImageData(painting.coloured(COLOUR), width, height), 0, 0);
    const share = painting.share();
    status.textContent = t(share ? "mask.share" : "mask.nothing", {
      share: (100 * share).toFixed(share < 0.1 ? 1 : 0),
    });
    done.disabled = !share;
  };
  const view = { canvas, cursor, painting, tools, draw, board };
  pointer(view);
  keys(view);
  done.addEventListener("click", () => keep(painting, done, problem, close));
  load(painting, draw);
  draw();
  return h(
    "div",
    { class: "dialog-body mask-body" },
    h("p", { class: "faint small" }, t("mask.hint"), h("span", { class: "mask-keys" }, t("mask.keys"))),
    h("div", { class: "mask-place" }, board),
    toolbar(view),
    status,
    problem,
    h("div", { class: "row end" }, h("button", { type: "button", class: "button", onclick: close }, t("cancel")), done),
  );
}

/** What was painted before is there again. */
async function load(painting, draw) {
  const { mask } = current();
  if (!mask) return;
  const image = new Image();
  image.src = mask.url;
  try {
    await image.decode();
  } catch {
    return; // the upload has expired: the painting starts empty, as its button says
  }
  painting.read(image);
  draw();
}

async function keep(painting, button, problem, close) {
  button.disabled = true;
  try {
    const { id } = await upload(await painting.png());
    change({ mask: { id, url: uploadUrl(id) }, strength: null });
    close();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    showError(problem, error.sentence);
    button.disabled = false;
  }
}

function toolbar({ tools, painting, draw, canvas }) {
  const mode = (erase, name, label) => {
    const press = () => {
      tools.erase = erase;
      for (const each of modes.children)
        each.setAttribute("aria-pressed", String(each === (erase ? modes.lastChild : modes.firstChild)));
    };
    return h(
      "button",
      { type: "button", "aria-pressed": String(tools.erase === erase), onclick: press },
      icon(name),
      label,
    );
  };
  const modes = h("div", { class: "segments", role: "group", "aria-label": t("mask.tool") });
  modes.append(mode(false, "brush", t("mask.paint")), mode(true, "eraser", t("mask.erase")));
  const most = Math.max(4, Math.round(Math.min(painting.width, painting.height) / 3));
  const size = h("input", { type: "range", min: "1", max: String(most), step: "1", "aria-label": t("mask.size") });
  size.value = String(tools.radius);
  size.addEventListener("input", () => {
    tools.radius = size.valueAsNumber;
  });
  canvas.addEventListener("sizechange", () => {
    size.value = String(tools.radius);
  });
  const act = (name, label, run) => {
    const press = () => {
      run();
      draw();
    };
    return h("button", { type: "button", class: "button slim", onclick: press }, icon(name), label);
  };
  return h(
    "div",
    { class: "mask-tools" },
    modes,
    h("label", { class: "mask-size small" }, t("mask.size"), size),
    h(
      "div",
      { class: "row tight" },
      act("undo", t("undo"), () => painting.undo()),
      act("auto", t("mask.invert"), () => painting.invert()),
      act("trash", t("mask.clear"), () => painting.clear()),
    ),
  );
}

function pointer({ canvas, painting, tools, draw }) {
  let last = null;
  const at = (event) => {
    const frame = canvas.getBoundingClientRect();
    return [
      ((event.clientX - frame.left) / frame.width) * painting.width,
      ((event.clientY - frame.top) / frame.height) * painting.height,
    ];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    painting.remember();
    last = at(event);
    painting.line(last, last, tools.radius, !tools.erase);
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const next = at(each);
      painting.line(last, next, tools.radius, !tools.erase);
      last = next;
    }
    draw();
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    canvas.addEventListener(end, () => {
      last = null;
    });
  }
}

/** Arrows move, space paints, shift and an arrow paint a line, [ and ] change the brush, X paints or takes away. */
function keys({ canvas, cursor, painting, tools, draw }) {
  const place = [painting.width / 2, painting.height / 2];
  const show = () => {
    cursor.hidden = false;
    property(cursor, "--x", `${(100 * place[0]) / painting.width}%`);
    property(cursor, "--y", `${(100 * place[1]) / painting.height}%`);
    property(cursor, "--size", `${(200 * tools.radius) / painting.width}%`);
  };
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const resize = (step) => {
    tools.radius = Math.max(1, tools.radius + step);
    canvas.dispatchEvent(new Event("sizechange"));
  };
  canvas.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (move) {
      const before = [...place];
      const step = Math.max(1, Math.round(tools.radius / 2));
      place[0] = Math.min(painting.width, Math.max(0, place[0] + move[0] * step));
      place[1] = Math.min(painting.height, Math.max(0, place[1] + move[1] * step));
      if (event.shiftKey) {
        painting.remember();
        painting.line(before, place, tools.radius, !tools.erase);
      }
    } else if (event.key === " ") {
      painting.remember();
      painting.line(place, place, tools.radius, !tools.erase);
    } else if (event.key === "[" || event.key === "]") resize(event.key === "[" ? -1 : 1);
    else if (event.key === "x" || event.key === "X") tools.erase = !tools.erase;
    else if (event.key === "z" && (event.ctrlKey || event.metaKey)) painting.undo();
    else return;
    event.preventDefault();
    show();
    draw();
  });
  canvas.addEventListener("blur", () => {
    cursor.hidden = true;
  });
}
