/** Texts in Chinese and English by key, with values for {braces}; markup has data-t, data-t-label, data-t-placeholder. */

import en from "../../texts/en.js";
import zh from "../../texts/zh.js";
import { read, write } from "./storage.js";

const TEXTS = { zh, en };
const listeners = new Set();
let current = read("language") === "en" ? "en" : "zh";

export const language = () => current;

export function t(key, values = {}) {
  const text = TEXTS[current][key];
  if (text === undefined) throw new Error(`no text ${key} in ${current}`);
  return typeof text === "function" ? text(values) : text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

export const hasText = (key) => key in TEXTS[current];

export function translate(root = document) {
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-label]"))
    element.setAttribute("aria-label", t(element.dataset.tLabel));
  for (const element of root.querySelectorAll("[data-t-placeholder]"))
    element.placeholder = t(element.dataset.tPlaceholder);
}

export function setLanguage(next) {
  current = next;
  write("language", next);
  document.documentElement.lang = next === "en" ? "en" : "zh-CN";
  translate();
  for (const listener of listeners) listener();
}

export function onLanguage(listener) {
  listeners.add(listener);
}

/** Seconds as people say them: 3 秒, 2 分 10 秒. */
export function duration(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 60) return t("time.seconds", { n: whole });
  return t("time.minutes", { m: Math.floor(whole / 60), s: whole % 60 });
}

/** Names one after the other: 水彩、像素风格. */
export const list = (names) => names.join(current === "en" ? ", " : "、");

/** A number as short as it can be said: 1.5, 20, 1.01. */
export const number = (value) => String(Math.round(value * 1000) / 1000);

export function moment(seconds) {
  const options = { month: "numeric", day: "numeric", hour: "2-digit", minute: "2-digit" };
  return new Intl.DateTimeFormat(current === "en" ? "en-GB" : "zh-CN", options).format(new Date(seconds * 1000));
}
