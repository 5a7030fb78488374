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

/** A little landscape under so much noise, 0 to 1: what drawing by denoising looks like. */
export function clearing(share) {
  const size = 48;
  const canvas = h("canvas", { width: size, height: size });
  const context = canvas.getContext("2d");
  const sky = context.createLinearGradient(0, 0, 0, size);
  sky.addColorStop(0, "#f3c6a5");
  sky.addColorStop(1, "#fbeed9");
  context.fillStyle = sky;
  context.fillRect(0, 0, size, size);
  disc(context, 31, 17, 8, "#c8432f");
  disc(context, 6, 62, 30, "#7f9c86");
  disc(context, 42, 66, 30, "#56796b");
  const pixels = context.getImageData(0, 0, size, size);
  pixels.data.forEach((value, index) => {
    if (index % 4 < 3) pixels.data[index] = value * (1 - share) + share * (60 + 150 * Math.random());
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function disc(context, x, y, radius, colour) {
  context.fillStyle = colour;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
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
