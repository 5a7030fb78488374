/** Pictures on the page: swapped only when the next one is decoded, sized by whole multiples while they are small. */

import { h } from "../base/dom.js";

/** Largest whole multiple of a small picture that fits; pictures over 256 pixels are fitted as they are. */
export function shownWidth(width, height, room) {
  const longest = Math.max(width, height);
  const scale = longest <= 256 ? Math.max(1, Math.floor(room / longest)) : room / longest;
  return Math.round(width * scale);
}

/** Puts an address into an <img> once it is loaded, so that nothing flickers; the key names the picture. */
export function setPicture(image, address, key) {
  if (image.dataset.key === key) return;
  image.dataset.key = key;
  const next = new Image();
  next.src = address;
  next.decode().then(
    () => {
      if (image.dataset.key !== key) return;
      image.src = address;
      image.hidden = false;
    },
    () => {
      if (image.dataset.key === key) image.dataset.key = ""; // asked for again with the next event
    },
  );
}

/** A small canvas of noise: what every picture is drawn from. */
export function noise(columns = 16, rows = 16) {
  const canvas = h("canvas", { class: "noise", width: columns, height: rows, "aria-hidden": "true" });
  const pixels = new ImageData(columns, rows);
  for (let index = 0; index < pixels.data.length; index += 4) {
    const base = 128 + 60 * (Math.random() + Math.random() - 1);
    for (let channel = 0; channel < 3; channel += 1) pixels.data[index + channel] = base + 110 * (Math.random() - 0.5);
    pixels.data[index + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** Pixels of a picture at this size: Uint8ClampedArray of RGBA. */
export async function pixelsOf(address, width, height) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}
