/** Everything this browser has drawn: kept by the service, so it survives reload and restart. */

import { ApiError, pictures } from "../base/api.js";
import { byId, h, property } from "../base/dom.js";
import { onLanguage, t } from "../base/i18n.js";
import { icon } from "../base/icons.js";
import { get, on } from "../base/state.js";

let shown = []; // newest first
let next = null;
let state = "loading"; // "ready", "failed"
let open = () => {};
const items = new Map(); // id -> element

function item(picture) {
  const image = h("img", {
    src: picture.url,
    alt: picture.settings.prompt,
    class: "picture",
    loading: "lazy",
    width: picture.width,
    height: picture.height,
  });
  image.addEventListener("error", reload, { once: true }); // its address has expired
  const label = t("gallery.open", { prompt: picture.settings.prompt });
  const button = h(
    "button",
    {
      type: "button",
      class: "gallery-item",
      "aria-label": label,
      title: picture.settings.prompt,
      dataset: { id: picture.id, job: picture.job },
      onclick: () => open(picture),
    },
    image,
  );
  property(button, "--ratio", String(picture.width / picture.height));
  return h("li", {}, button);
}

function show() {
  const list = byId("gallery");
  for (const picture of shown) if (!items.has(picture.id)) items.set(picture.id, item(picture));
  const wanted = shown.map((picture) => items.get(picture.id));
  if (wanted.length !== list.children.length || wanted.some((element, index) => list.children[index] !== element))
    list.replaceChildren(...wanted);
  byId("gallery-count").textContent = shown.length
    ? t("gallery.count", { n: `${shown.length}${next ? "+" : ""}` })
    : "";
  foot();
  mark();
}

function foot() {
  const box = byId("gallery-foot");
  box.replaceChildren();
  if (state === "loading" && !shown.length)
    box.append(
      h(
        "div",
        { class: "gallery-empty waiting", "aria-label": t("gallery.loading"), role: "status" },
        Array.from({ length: 6 }, () => h("span", { class: "ghost" })),
      ),
    );
  else if (state === "failed" && !shown.length) {
    box.append(
      h(
        "div",
        { class: "gallery-empty" },
        h("p", {}, t("gallery.failed")),
        h("button", { type: "button", class: "button slim", onclick: reload }, icon("reuse"), t("retry")),
      ),
    );
  } else if (!shown.length) box.append(h("p", { class: "gallery-empty faint" }, t("gallery.empty")));
  else if (next)
    box.append(h("button", { type: "button", class: "button gallery-more", onclick: more }, t("gallery.more")));
}

/** The pictures of the job on the canvas are outlined. */
function mark() {
  const job = get("job");
  const id = job?.pictures.find((picture) => picture.index === get("picture"))?.id;
  const buttons = [...byId("gallery").querySelectorAll("button")];
  buttons.forEach((button, index) => {
    button.setAttribute("aria-current", String(button.dataset.id === id));
    button.tabIndex =
      button.dataset.id === id || (index === 0 && !buttons.some((each) => each.dataset.id === id)) ? 0 : -1;
  });
}

async function load(before) {
  try {
    const answer = await pictures(before);
    state = "ready";
    return answer;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    state = "failed";
    return null;
  }
}

/** Newest page again; older ones that were already loaded stay. */
export async function reload() {
  const answer = await load(null);
  if (answer) {
    const fresh = new Set(answer.pictures.map((picture) => picture.id));
    const last = answer.pictures.at(-1)?.created ?? 0;
    const older = answer.next ? shown.filter((picture) => !fresh.has(picture.id) && picture.created < last) : [];
    for (const picture of answer.pictures) {
      const image = items.get(picture.id)?.querySelector("img");
      if (image && !image.complete | (image.naturalWidth === 0)) image.src = picture.url;
    }
    shown = [...answer.pictures, ...older];
    if (!older.length) next = answer.next;
  }
  show();
}

async function more() {
  const answer = await load(next);
  if (!answer) return show();
  const known = new Set(shown.map((picture) => picture.id));
  shown = [...shown, ...answer.pictures.filter((picture) => !known.has(picture.id))];
  next = answer.next;
  return show();
}

export function forget(picture) {
  shown = shown.filter((each) => each.id !== picture.id);
  items.delete(picture.id);
  show();
}

/** Arrow keys move through the grid; up and down by what stands above and below. */
function keys(event) {
  const buttons = [...byId("gallery").querySelectorAll("button")];
  const here = buttons.indexOf(document.activeElement);
  if (here < 0) return;
  const columns = buttons.filter((button) => button.offsetTop === buttons[0].offsetTop).length;
  const steps = {
    ArrowRight: 1,
    ArrowLeft: -1,
    ArrowDown: columns,
    ArrowUp: -columns,
    Home: -here,
    End: buttons.length - 1 - here,
  };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const place = Math.min(buttons.length - 1, Math.max(0, here + steps[event.key]));
  buttons.forEach((button, index) => {
    button.tabIndex = index === place ? 0 : -1;
  });
  buttons[place].focus();
}

/** opener(picture) shows a picture on the canvas. */
export function startGallery(opener) {
  open = opener;
  byId("gallery").addEventListener("keydown", keys);
  on("job", mark);
  on("picture", mark);
  onLanguage(() => {
    items.clear();
    show();
  });
  show();
  reload();
}
