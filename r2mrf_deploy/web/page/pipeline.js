// A photograph in, its map and what is drawn with it out: what `Predictor` and `predict` do in Python.

import { PageError } from "./errors.js";
import { asInput, contentOf, fittingOf, fromHalf, place } from "./fitting.js";
import { imageOf, overlay } from "./overlay.js";
import { decode } from "./picture.js";
import { mapStrips, resized, resizedMap, within } from "./resize.js";
import { scoresOf } from "./scores.js";
import { greyscalePng } from "./png.js";

const DRAWN = 2048; // the longest side of what is drawn, in pixels
const THUMBNAIL = 240;

const clipped = (values) => values.map((value) => Math.min(1, Math.max(0, value)));

/** The input of the network from a photograph, and how it lies in there. */
export function fit(source, contract, detail) {
  const spec = contract.inputs[0];
  if (contract.inputs.length !== 1 || !spec.layout) {
    throw new PageError("This model has no contract that says how its input takes a photograph. Export it again.");
  }
  const fitting = fittingOf([source.height, source.width], contract, detail);
  return { fitting, input: asInput(place(source, fitting), fitting.canvas, contract) };
}

/** The map among a network's outputs: {values, height, width}. */
function mapOf({ map }) {
  if (!map) throw new PageError("This model gives no output called map. Export it again.");
  const [height, width] = map.shape.slice(-2);
  const values = (map.dtype === "float16" ? fromHalf(new Uint16Array(map.data)) : new Float32Array(map.data)).slice(0, height * width);
  if (!values.every(Number.isFinite)) throw new PageError("The map is not finite: the model is damaged. Export it again.");
  return { values, height, width };
}

/**
 * The map of a photograph.
 * @param {Session} session
 * @param {Blob | ImageBitmap} blob
 * @param detail the longest side of the input, where that is free; by default `predict`'s.
 * @param side the longest side of what is drawn; 0 for nothing.
 * @returns {map, height, width, photograph, input, scores, note, times, overlay, picture, thumbnail}: `map` is Float32Array
 *   at the network's scale, without what fills the input up; times are milliseconds.
 */
export async function mapped(session, blob, { detail, side = DRAWN } = {}) {
  const begun = performance.now();
  const source = await decode(blob);
  try {
    const decoded = performance.now();
    const { fitting, input } = fit(source, session.artifact.contract, detail);
    const fitted = performance.now();
    const { outputs, start, end } = await session.run({ [session.artifact.contract.inputs[0].name]: input });
    const map = contentOf(mapOf(outputs), fitting);
    const { height, width } = source;
    const found = {
      map: map.values,
      height: map.height,
      width: map.width,
      photograph: { height, width },
      input: { height: fitting.canvas[0], width: fitting.canvas[1] },
      content: { height: fitting.content[0], width: fitting.content[1] },
      scores: scoresOf(clipped(map.values), map.height, map.width),
      note: source.note,
      times: { decode: decoded - begun, fit: fitted - decoded, compute: end - start, total: performance.now() - begun },
    };
    return side ? { ...found, ...(await pictures(source, map, side)) } : found;
  } finally {
    source.close();
  }
}

/** A photograph drawn again with a map that is known: {overlay, picture}. */
export async function drawn(blob, map, side = DRAWN) {
  const source = await decode(blob);
  try {
    return await pictures(source, map, side);
  } finally {
    source.close();
  }
}

async function pictures(source, map, side) {
  const [height, width] = within(source.height, source.width, side);
  const pixels = resized(source, height, width);
  const focus = clipped(resizedMap(map, height, width));
  const shown = overlay(pixels, focus, height, width);
  const picture = imageOf(pixels, height, width);
  const [low, narrow] = within(height, width, THUMBNAIL);
  return {
    overlay: await createImageBitmap(shown),
    picture: await createImageBitmap(picture),
    thumbnail: await createImageBitmap(shown, { resizeWidth: narrow, resizeHeight: low, resizeQuality: "medium" }),
  };
}

/** The map as a greyscale PNG file of the photograph's size, as `predict` writes it. */
export const mapFile = (map, { height, width }) => greyscalePng(mapStrips(map, height, width), height, width);

/** The decoded upright RGB bytes of a file: {height, width, data}. */
export async function pixels(blob) {
  const source = await decode(blob);
  try {
    return { height: source.height, width: source.width, data: source.rows(0, source.height).buffer };
  } finally {
    source.close();
  }
}
