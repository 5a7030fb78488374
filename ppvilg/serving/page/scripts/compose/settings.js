/** What the form holds. null means: the model's own value. Kept in this browser, so a reload loses nothing. */

import { readObject, writeObject } from "../base/storage.js";

const EMPTY = {
  prompt: "",
  negative_prompt: "",
  style: null,
  width: null,
  height: null,
  num_images: 1,
  seed: null,
  num_inference_steps: null,
  guidance_scale: null,
  sampler: null,
  eta: null,
  image: null, // {id, width, height, url}
  mask: null, // {id, url}
  strength: null,
  word_weights: {},
  lora: {}, // scale, or scales of the experts, by name
};
const listeners = new Set();
let settings = { ...EMPTY, ...pick(readObject("draft")) };

function pick(given) {
  return Object.fromEntries(Object.entries(given ?? {}).filter(([name]) => name in EMPTY));
}

export const current = () => settings;

export function onSettings(listener) {
  listeners.add(listener);
}

/** Changes some values and tells everyone which. */
export function change(values) {
  settings = { ...settings, ...values };
  writeObject("draft", settings);
  for (const listener of listeners) listener(settings, new Set(Object.keys(values)));
}

/** Fills the whole form, returns a function that puts back what was there. */
export function replace(values) {
  const before = settings;
  change({ ...EMPTY, ...pick(values) });
  return () => change(before);
}

/** Body of POST v1/jobs. Weights of words that are no longer in the prompt stay in the form and are not sent. */
export function asRequest(words = null) {
  const weights = Object.entries(settings.word_weights).filter(([word]) => !words || words.has(word));
  const { image, mask, strength, ...rest } = settings;
  const body = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== null && value !== ""));
  body.prompt = settings.prompt;
  body.word_weights = Object.fromEntries(weights);
  if (image) {
    body.image = image.id;
    if (mask) body.mask = mask.id;
    if (strength !== null) body.strength = strength;
  }
  return body;
}

/** The form's values from those of a job, a picture or a PNG. Pictures are named by id there. */
export function fromRequest(request) {
  const values = pick(request);
  for (const name of ["image", "mask"]) {
    const id = values[name];
    values[name] = typeof id === "string" && id ? { id, url: `v1/uploads/${id}.png` } : null;
  }
  values.word_weights = values.word_weights ?? {};
  values.lora = values.lora ?? {};
  values.negative_prompt = values.negative_prompt ?? "";
  return values;
}
