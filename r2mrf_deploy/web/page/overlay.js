// Draws what the network says about a photograph: `drawing.overlay` in Python, to the same bits.

const DARK = Math.fround(0.35); // how bright what is out of focus is drawn
const LINE = [255, 210, 0];

/** The pixels of a mask that lie within `width` of its complement. */
function outline(mask, height, width, thickness) {
  let inner = mask;
  for (let n = 0; n < thickness; n++) {
    const less = new Uint8Array(inner.length);
    for (let y = 0, i = 0; y < height; y++) {
      const up = y > 0 ? -width : 0;
      const down = y < height - 1 ? width : 0;
      for (let x = 0; x < width; x++, i++) {
        less[i] = inner[i] & inner[i + up] & inner[i + down] & inner[x > 0 ? i - 1 : i] & inner[x < width - 1 ? i + 1 : i];
      }
    }
    inner = less;
  }
  return mask.map((value, i) => value & ~inner[i]);
}

/**
 * The area in focus in its own colours, the rest dark and grey, and a line where the map is 0.5.
 * @param pixels RGB bytes [height, width, 3].
 * @param focus Float32Array [height, width] in 0 .. 1.
 * @returns {ImageData}
 */
export function overlay(pixels, focus, height, width) {
  const shown = new Uint8ClampedArray(height * width * 4);
  const mask = new Uint8Array(height * width);
  const { fround } = Math;
  for (let i = 0, from = 0, to = 0; i < mask.length; i++, from += 3, to += 4) {
    const weight = Math.min(1, Math.max(0, focus[i]));
    const [red, green, blue] = [pixels[from], pixels[from + 1], pixels[from + 2]];
    const luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16; // Pillow's
    const dark = fround(fround(fround(1 - weight) * fround(DARK * luma)) + 0.5);
    shown[to] = Math.trunc(fround(fround(weight * red) + dark));
    shown[to + 1] = Math.trunc(fround(fround(weight * green) + dark));
    shown[to + 2] = Math.trunc(fround(fround(weight * blue) + dark));
    shown[to + 3] = 255;
    mask[i] = focus[i] >= 0.5 ? 1 : 0;
  }
  const thickness = Math.max(1, Math.floor(Math.max(height, width, 3) / 400));
  outline(mask, height, width, thickness).forEach((on, i) => {
    if (on) shown.set(LINE, 4 * i);
  });
  return new ImageData(shown, width, height);
}

/** RGB bytes as a picture. */
export function imageOf(pixels, height, width) {
  const shown = new Uint8ClampedArray(height * width * 4);
  for (let i = 0, from = 0, to = 0; i < height * width; i++, from += 3, to += 4) {
    shown[to] = pixels[from];
    shown[to + 1] = pixels[from + 1];
    shown[to + 2] = pixels[from + 2];
    shown[to + 3] = 255;
  }
  return new ImageData(shown, width, height);
}
