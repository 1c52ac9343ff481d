// Reads the pixels of a decoded picture exactly, upright, a few rows at a time.

import { PageError } from "./errors.js";

const SIDE = 8192; // of the largest canvas or texture that is used: all browsers have this
const MOST_EXACT = 64e6; // pixels: making a picture opaque takes three times its memory

/** EXIF orientation -> the transform that turns a picture of w x h upright. */
const UPRIGHT = {
  1: () => [1, 0, 0, 1, 0, 0],
  2: (w) => [-1, 0, 0, 1, w, 0],
  3: (w, h) => [-1, 0, 0, -1, w, h],
  4: (w, h) => [1, 0, 0, -1, 0, h],
  5: () => [0, 1, 1, 0, 0, 0],
  6: (w, h) => [0, 1, -1, 0, h, 0],
  7: (w, h) => [0, -1, -1, 0, h, w],
  8: (w) => [0, -1, 1, 0, 0, w],
};

/**
 * A decoded picture as a source for `resized`.
 * @param {ImageBitmap} bitmap as the file stores it, opaque.
 * @returns {height, width, rows}, upright.
 */
export function upright(bitmap, orientation) {
  const turned = orientation > 4;
  const [height, width] = turned ? [bitmap.width, bitmap.height] : [bitmap.height, bitmap.width];
  const [a, b, c, d, e, f] = UPRIGHT[orientation](bitmap.width, bitmap.height);
  const canvas = new OffscreenCanvas(1, 1);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  function tile(left, top, across, down) {
    if (canvas.width !== across || canvas.height !== down) [canvas.width, canvas.height] = [across, down];
    context.imageSmoothingEnabled = false;
    context.globalCompositeOperation = "copy";
    context.setTransform(a, b, c, d, e - left, f - top);
    context.drawImage(bitmap, 0, 0);
    return context.getImageData(0, 0, across, down).data;
  }
  function rows(first, end) {
    const bytes = new Uint8Array((end - first) * width * 3);
    for (let top = first; top < end; top += SIDE) {
      for (let left = 0; left < width; left += SIDE) {
        const [across, down] = [Math.min(SIDE, width - left), Math.min(SIDE, end - top)];
        const from = tile(left, top, across, down);
        for (let y = 0, i = 0; y < down; y++) {
          let to = ((top - first + y) * width + left) * 3;
          for (let x = 0; x < across; x++, i += 4) {
            bytes[to++] = from[i];
            bytes[to++] = from[i + 1];
            bytes[to++] = from[i + 2];
          }
        }
      }
    }
    return bytes;
  }
  return { height, width, rows };
}

/**
 * A picture without its transparency, the colours of transparent pixels as they are stored: `predict` drops alpha too.
 * A 2D canvas multiplies colours by alpha, so this goes through WebGL.
 * @returns {bitmap, exact}: the same picture where nothing in it is transparent; `exact` is false where it cannot be done.
 */
export async function opaque(bitmap) {
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(1, 1);
  const gl = canvas.getContext("webgl2");
  if (!gl || width * height > MOST_EXACT) return { bitmap, exact: false };
  const bytes = new Uint8ClampedArray(width * height * 4);
  try {
    for (let top = 0; top < height; top += SIDE) {
      for (let left = 0; left < width; left += SIDE) {
        const [across, down] = [Math.min(SIDE, width - left), Math.min(SIDE, height - top)];
        const part = await createImageBitmap(bitmap, left, top, across, down, { premultiplyAlpha: "none" });
        const read = texels(gl, part);
        part.close();
        if (!read) return { bitmap, exact: false };
        for (let y = 0; y < down; y++) {
          bytes.set(read.subarray(y * across * 4, (y + 1) * across * 4), ((top + y) * width + left) * 4);
        }
      }
    }
  } finally {
    gl.getExtension("WEBGL_lose_context")?.loseContext();
  }
  let transparent = false;
  for (let i = 3; i < bytes.length; i += 4) {
    if (bytes[i] === 255) continue;
    transparent = true;
    bytes[i] = 255;
  }
  if (!transparent) return { bitmap, exact: true };
  bitmap.close();
  return { bitmap: await createImageBitmap(new ImageData(bytes, width, height), { colorSpaceConversion: "none" }), exact: true };
}

/** The stored bytes of a picture by way of a texture; null if WebGL fails. */
function texels(gl, part) {
  const texture = gl.createTexture();
  const frame = gl.createFramebuffer();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, part);
  gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const bytes = new Uint8Array(part.width * part.height * 4);
  gl.readPixels(0, 0, part.width, part.height, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
  const failed = gl.getError() !== gl.NO_ERROR;
  gl.deleteFramebuffer(frame);
  gl.deleteTexture(texture);
  return failed ? null : bytes;
}

/**
 * Some browsers change what pages read from canvases, against fingerprinting. A map of such pixels would be wrong.
 * @throws {PageError} this is such a browser.
 */
export function refuseAltered() {
  const given = Uint8ClampedArray.from({ length: 1024 }, (_, n) => (n % 4 === 3 ? 255 : (n * 37) % 256));
  const context = new OffscreenCanvas(16, 16).getContext("2d", { willReadFrequently: true });
  context.putImageData(new ImageData(given, 16, 16), 0, 0);
  const found = context.getImageData(0, 0, 16, 16).data;
  if (given.some((value, n) => value !== found[n])) {
    const cure = "Allow this page to read canvases, and load it again.";
    throw new PageError(`This browser changes the pixels that a page reads, against fingerprinting. ${cure}`);
  }
}
