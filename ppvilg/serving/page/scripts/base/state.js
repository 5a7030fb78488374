/** What several parts of the page look at: set("model", value) tells everyone who asked with on("model", f). */

import { read } from "./storage.js";

const values = {
  model: null,
  me: null,
  online: true,
  job: null,
  picture: 0,
  unfinished: [],
  crisp: read("crisp") === "true",
};
const listeners = new Map();

export const get = (name) => values[name];

export function set(name, value) {
  values[name] = value;
  for (const listener of listeners.get(name) ?? []) listener(value);
}

export function on(name, listener) {
  if (!listeners.has(name)) listeners.set(name, new Set());
  listeners.get(name).add(listener);
}

export const FINAL = new Set(["done", "failed", "cancelled"]);
export const isFinal = (job) => FINAL.has(job.state);
