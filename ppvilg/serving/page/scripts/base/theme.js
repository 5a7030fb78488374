/** Light, dark, or as the system wants it. */

import { byId } from "./dom.js";
import { onLanguage, t } from "./i18n.js";
import { icon } from "./icons.js";
import { read, write } from "./storage.js";

const ORDER = ["auto", "light", "dark"];
const ICONS = { auto: "auto", light: "sun", dark: "moon" };
const system = matchMedia("(prefers-color-scheme: dark)");
let theme = ORDER.includes(read("theme")) ? read("theme") : "auto";

function apply() {
  const dark = theme === "dark" || (theme === "auto" && system.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  const button = byId("theme");
  button.replaceChildren(icon(ICONS[theme]));
  button.setAttribute("aria-label", t(`theme.${theme}`));
  button.title = t(`theme.${theme}`);
}

export function startTheme() {
  byId("theme").addEventListener("click", () => {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
    write("theme", theme);
    apply();
  });
  system.addEventListener("change", apply);
  onLanguage(apply);
  apply();
}
