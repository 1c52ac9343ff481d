// How a photograph of any size lies in the network's input, and how its map is cut out of the output: `fitting.py` in Python,
// to the same bits.

import { resized, resizedMap, within } from "./resize.js";

const SMALLEST = 32; // the smallest side of an input whose size is free: the networks reduce by 32
const NEUTRAL = { mean: [0, 0, 0], std: [1, 1, 1], longest_side: 640, fit: "stretch" };

export const preprocessOf = (contract) => contract.preprocess ?? NEUTRAL;

const spatial = (spec) => (spec.layout === "NCHW" ? [2, 3] : [1, 2]);

/** The least and the most that the input's height and width can be: [[least, most], [least, most]]. */
export function bounds(contract, detail = preprocessOf(contract).longest_side) {
  const spec = contract.inputs[0];
  const profile = contract.profiles?.[spec.name] ?? {};
  return spatial(spec).map((axis) => {
    const side = spec.shape[axis];
    if (typeof side === "number") return [side, side];
    const least = Math.max(SMALLEST, profile.min?.[axis] ?? SMALLEST);
    return [least, Math.min(detail, profile.max?.[axis] ?? detail)];
  });
}

/** Whether photographs of different sizes have different inputs, so that there is a choice of detail. */
export const isFree = (contract) => bounds(contract, Infinity).some(([least, most]) => least !== most);

/**
 * Fit a photograph into the input.
 * @param detail the longest side, where the input's size is free; by default the contract's.
 * @returns {photograph, content, canvas, corner}: [height, width] each; `corner` is [top, left] of the content in the canvas.
 */
export function fittingOf(photograph, contract, detail) {
  const [[leastHigh, mostHigh], [leastWide, mostWide]] = bounds(contract, detail);
  const stretch = preprocessOf(contract).fit === "stretch" && leastHigh === mostHigh && leastWide === mostWide;
  const content = stretch ? [mostHigh, mostWide] : within(...photograph, mostHigh, mostWide);
  const canvas = stretch ? content : [Math.max(leastHigh, content[0]), Math.max(leastWide, content[1])];
  const corner = content.map((side, axis) => Math.floor((canvas[axis] - side) / 2));
  return { photograph, content, canvas, corner };
}

/** For each position of a side of the canvas, the content's that mirroring at its edges, again and again, puts there. */
function mirrored(content, before, canvas) {
  const period = 2 * content;
  return Int32Array.from({ length: canvas }, (_, i) => {
    const at = (((i - before) % period) + period) % period;
    return at < content ? at : period - 1 - at;
  });
}

/** The canvas, RGB bytes [H, W, 3], with the photograph in it. */
export function place(source, { content, canvas, corner }) {
  const pixels = resized(source, ...content);
  if (content[0] === canvas[0] && content[1] === canvas[1]) return pixels;
  const [rows, columns] = canvas.map((side, axis) => mirrored(content[axis], corner[axis], side));
  const placed = new Uint8Array(canvas[0] * canvas[1] * 3);
  let to = 0;
  for (const row of rows) {
    for (const column of columns) {
      const from = (row * content[1] + column) * 3;
      placed[to++] = pixels[from];
      placed[to++] = pixels[from + 1];
      placed[to++] = pixels[from + 2];
    }
  }
  return placed;
}

/** The part of a map, {values, height, width} of the canvas, that is the content's. */
export function contentOf(map, { content, canvas, corner }) {
  if (content[0] === canvas[0] && content[1] === canvas[1]) return map;
  const values = map.height === canvas[0] && map.width === canvas[1] ? map.values : resizedMap(map, ...canvas);
  const [height, width] = content;
  const cut = new Float32Array(height * width);
  for (let y = 0; y < height; y++) {
    const from = (corner[0] + y) * canvas[1] + corner[1];
    cut.set(values.subarray(from, from + width), y * width);
  }
  return { values: cut, height, width };
}

/**
 * RGB bytes of the canvas as the tensor that the network takes: {dtype, shape, data}. A static batch holds copies.
 */
export function asInput(pixels, [height, width], contract) {
  const spec = contract.inputs[0];
  const batch = typeof spec.shape[0] === "number" ? spec.shape[0] : 1;
  const one = spec.layout === "NCHW" ? normalised(pixels, height * width, preprocessOf(contract), spec.dtype) : pixels;
  const shape = spec.layout === "NCHW" ? [batch, 3, height, width] : [batch, height, width, 3];
  if (batch === 1) return { dtype: spec.dtype, shape, data: one };
  const data = new one.constructor(one.length * batch);
  for (let n = 0; n < batch; n++) data.set(one, n * one.length);
  return { dtype: spec.dtype, shape, data };
}

/** Planes of (x / 255 - mean) / std, each step rounded to single precision. */
function normalised(pixels, plane, { mean, std }, dtype) {
  const planes = new (dtype === "float16" ? Uint16Array : Float32Array)(3 * plane);
  for (let colour = 0; colour < 3; colour++) {
    const levels = Float32Array.from({ length: 256 }, (_, x) =>
      Math.fround(Math.fround(Math.fround(x / 255) - Math.fround(mean[colour])) / Math.fround(std[colour])));
    const table = dtype === "float16" ? Uint16Array.from(levels, halfBits) : levels;
    for (let i = 0; i < plane; i++) planes[colour * plane + i] = table[pixels[3 * i + colour]];
  }
  return planes;
}

const WORD = new DataView(new ArrayBuffer(4));

/** A number as the bits of a half precision number, rounded to the nearest, and of two to the even one. */
function halfBits(value) {
  const size = Math.abs(value);
  WORD.setFloat32(0, value);
  const sign = (WORD.getUint32(0) >>> 16) & 0x8000;
  if (Number.isNaN(value)) return sign | 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  const exponent = Math.max(-14, Math.floor(Math.log2(size || 1e-9)));
  const unit = 2 ** (exponent - 10);
  const below = Math.floor(size / unit);
  const over = size / unit - below;
  const count = below + (over > 0.5 || (over === 0.5 && below % 2) ? 1 : 0);
  return sign | (count < 1024 ? count : ((exponent + 15) << 10) + (count - 1024));
}

/** The bits of half precision numbers as single precision. */
export function fromHalf(bits) {
  return Float32Array.from(bits, (half) => {
    const [exponent, fraction, sign] = [(half >> 10) & 31, half & 1023, half & 0x8000 ? -1 : 1];
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  });
}
