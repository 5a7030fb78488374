/** Short messages at the edge of the page, and what only screen readers are told. */

import { byId, h } from "./dom.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";

const SHOWN = 7000;

/** action: {label, run} for a button in the message, for example to undo. */
export function notify(text, action = null) {
  const notice = h("div", { class: "notice" }, h("span", {}, text));
  let timer = setTimeout(() => notice.remove(), action ? SHOWN * 2 : SHOWN);
  if (action) {
    const run = () => {
      notice.remove();
      action.run();
    };
    notice.append(h("button", { type: "button", class: "button slim", onclick: run }, action.label));
  }
  const close = { type: "button", class: "button slim", "aria-label": t("close"), onclick: () => notice.remove() };
  notice.append(h("button", close, icon("close")));
  notice.addEventListener("pointerenter", () => clearTimeout(timer));
  notice.addEventListener("pointerleave", () => (timer = setTimeout(() => notice.remove(), SHOWN)));
  byId("notices").append(notice);
  while (byId("notices").children.length > 3) byId("notices").firstChild.remove();
}

let said = "";

export function announce(text) {
  if (text === said) return;
  said = text;
  byId("announcer").textContent = text;
}
