/** Files dropped or pasted anywhere: one half of the page starts from the picture, the other reads its settings. */

import { ApiError, pngInfo } from "../base/api.js";
import { byId } from "../base/dom.js";
import { t } from "../base/i18n.js";
import { notify } from "../base/notices.js";
import { fromRequest, replace } from "./settings.js";
import { startFromFile } from "./start.js";

/** Fills the form with settings; what was there can be put back. */
export function loadSettings(request, sentence) {
  const back = replace(fromRequest(request));
  notify(sentence, { label: t("undo"), run: back });
  byId("prompt").focus({ preventScroll: false });
}

export async function restoreFromFile(file) {
  if (file.type !== "image/png") return notify(t("restore.kind", { name: file.name }));
  try {
    const { settings } = await pngInfo(file);
    if (!settings) return notify(t("restore.nothing", { name: file.name }));
    loadSettings(settings, t("restore.done", { name: file.name }));
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    notify(error.sentence);
  }
  return undefined;
}

const hasFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

export function startDrop() {
  const veil = byId("drop-veil");
  let depth = 0;
  const end = () => {
    depth = 0;
    veil.hidden = true;
  };
  addEventListener("dragenter", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    depth += 1;
    veil.hidden = document.querySelector("dialog[open]") !== null;
  });
  addEventListener("dragover", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    const zone = event.target.closest?.(".drop-zone");
    for (const each of veil.children) each.classList.toggle("over", each === zone);
  });
  addEventListener("dragleave", (event) => {
    if (!hasFile(event)) return;
    depth -= 1;
    if (depth <= 0) end();
  });
  addEventListener("drop", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    const use = event.target.closest?.(".drop-zone")?.dataset.drop;
    const [file] = event.dataTransfer.files;
    end();
    if (!file || !use) return;
    if (use === "settings") restoreFromFile(file);
    else startFromFile(file);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    startFromFile(file);
  });
}
