/** A modal dialog: title, close button, Escape, focus kept inside and given back by the browser's own <dialog>. */

import { h } from "./dom.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";

/** fill(dialog, close) makes the content; wide: room for a canvas. Resolves when the dialog is gone. */
export function openDialog(title, fill, { wide = false, name = "" } = {}) {
  return new Promise((resolve) => {
    const heading = h("h2", { id: `dialog-${name}` }, title);
    const dialog = h("dialog", { class: `dialog${wide ? " wide" : ""}`, "aria-labelledby": `dialog-${name}` });
    const close = () => dialog.close();
    dialog.append(
      h(
        "header",
        { class: "dialog-head" },
        heading,
        h(
          "button",
          { type: "button", class: "button quiet square", "aria-label": t("close"), onclick: close },
          icon("close"),
        ),
      ),
      fill(dialog, close),
    );
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) close();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
