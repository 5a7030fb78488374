/** A mask of width x height pixels, 1 = repaint; strokes have no soft edge, so what is shown is what is sent. */

const REMEMBERED = 40;

export class Painting {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.mask = new Uint8Array(width * height);
    this.past = [];
  }

  remember() {
    this.past.push(this.mask.slice());
    if (this.past.length > REMEMBERED) this.past.shift();
  }

  undo() {
    this.mask = this.past.pop() ?? this.mask;
  }

  clear() {
    this.remember();
    this.mask.fill(0);
  }

  invert() {
    this.remember();
    this.mask = this.mask.map((value) => 1 - value);
  }

  /** A line of discs from one point to another, in pixels. */
  line([x0, y0], [x1, y1], radius, paint) {
    const steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / Math.max(1, radius / 2)));
    for (let step = 0; step <= steps; step += 1) {
      this.disc(x0 + ((x1 - x0) * step) / steps, y0 + ((y1 - y0) * step) / steps, radius, paint ? 1 : 0);
    }
  }

  disc(x, y, radius, value) {
    const top = Math.max(0, Math.floor(y - radius));
    const bottom = Math.min(this.height - 1, Math.ceil(y + radius));
    for (let row = top; row <= bottom; row += 1) {
      const half = Math.sqrt(Math.max(0, radius * radius - (row + 0.5 - y) ** 2));
      const left = Math.max(0, Math.round(x - half));
      const right = Math.min(this.width, Math.round(x + half));
      if (right > left) this.mask.fill(value, row * this.width + left, row * this.width + right);
    }
  }

  /** Painted share of the picture, 0 to 1. */
  share() {
    return this.mask.reduce((sum, value) => sum + value, 0) / this.mask.length;
  }

  /** RGBA bytes with `colour` where it is painted. */
  coloured(colour, other = [0, 0, 0, 0]) {
    const bytes = new Uint8ClampedArray(this.mask.length * 4);
    this.mask.forEach((value, index) => bytes.set(value ? colour : other, index * 4));
    return bytes;
  }

  canvas() {
    const canvas = document.createElement("canvas");
    canvas.width = this.width;
    canvas.height = this.height;
    return canvas;
  }

  /** PNG as the service wants it: white = repaint, black = keep. */
  png() {
    const canvas = this.canvas();
    const bytes = this.coloured([255, 255, 255, 255], [0, 0, 0, 255]);
    canvas.getContext("2d").putImageData(new ImageData(bytes, this.width, this.height), 0, 0);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  /** The reverse of png(), fitted to this size. */
  read(image) {
    const canvas = this.canvas();
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0, this.width, this.height);
    const { data } = context.getImageData(0, 0, this.width, this.height);
    this.mask = this.mask.map((_, index) => (data[index * 4] > 127 ? 1 : 0));
  }
}
