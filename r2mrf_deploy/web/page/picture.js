// Decodes a picture as `predict` does: upright, its stored values without colour management, the first frame alone.

import { PageError, PictureError } from "./errors.js";
import { describe } from "./formats.js";
import { opaque, refuseAltered, upright } from "./pixels.js";

const MOST_PIXELS = 178_956_970; // what Pillow reads
const MOST_ON_PHONES = 64_000_000; // decoded, they take 256 MB
const MOST_BYTES = 1 << 29;

const OPTIONS = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
const OTHERS = new Set(["HEIC", "TIFF", "JPEG 2000"]); // formats that few browsers open

/** The most pixels that a picture may have on this device. */
function most() {
  const small = (navigator.deviceMemory ?? 8) <= 4 || /Mobi|Android|iPhone|iPad/.test(navigator.userAgent);
  return small ? MOST_ON_PHONES : MOST_PIXELS;
}

function refuseLarge(width, height) {
  if (!(width * height > most())) return;
  const [has, limit] = [width * height, most()].map((pixels) => Math.floor(pixels / 1e6).toLocaleString("en"));
  throw new PictureError(`This picture has ${has} million pixels, and at most ${limit} million fit here. Scale it down first.`);
}

/**
 * Decode a picture.
 * @param {Blob | ImageBitmap} source a file, or a frame of a camera.
 * @returns {height, width, rows, note, close}: a source for `resized`; `note` says what else it is ("It is ..."). `close` frees it.
 * @throws {PictureError} it is no picture, is damaged, or is too large. {PageError} as `refuseAltered`.
 */
export async function decode(source) {
  refuseAltered();
  if (source instanceof ImageBitmap) return { ...upright(source, 1), note: "", close: () => source.close() };
  const { bitmap, orientation, notes } = await bitmapOf(source);
  return { ...upright(bitmap, orientation), note: notes.filter(Boolean).join(" and "), close: () => bitmap.close() };
}

async function bitmapOf(blob) {
  if (blob.size > MOST_BYTES) {
    throw new PictureError(`This file has ${Math.round(blob.size / 1e6).toLocaleString("en")} MB, and at most ${MOST_BYTES >> 20} MB fit here.`);
  }
  const bytes = await contentOf(blob);
  const found = describe(bytes, blob.name ?? "");
  refuseLarge(found.width, found.height);
  if (found.width === 0 || found.height === 0) throw new PictureError("This file is damaged: its picture has no pixels.");
  for (const [at, values] of found.patches) bytes.set(values, at);
  const decoded = await bitmapFrom(new Blob([bytes], { type: found.type }), found);
  refuseLarge(decoded.width, decoded.height);
  if (!found.alpha) return { bitmap: decoded, orientation: found.orientation, notes: [found.note] };
  const { bitmap, exact } = await opaque(decoded);
  const note = exact ? "" : "a picture whose transparent parts may have other colours here than in the file";
  return { bitmap, orientation: found.orientation, notes: [found.note, note] };
}

async function contentOf(blob) {
  try {
    return new Uint8Array(await blob.arrayBuffer());
  } catch { // it was moved or changed since it was chosen, or is a folder
    throw new PictureError("This file cannot be read. It may have been moved or changed, or be a folder: choose it again.");
  }
}

async function bitmapFrom(blob, { format, width, height }) {
  try {
    return await createImageBitmap(blob, OPTIONS);
  } catch (error) {
    if (error instanceof TypeError) { // about the options, and not about the picture
      throw new PageError(`This browser is too old to decode pictures as this page needs it: update it. (${error.message})`);
    }
    if (format === "HEIC") {
      const how = "an iPhone takes JPEG by Settings, Camera, Formats, Most Compatible";
      throw new PictureError(`This browser cannot open HEIC photographs. Save it as JPEG first (${how}).`);
    }
    if (OTHERS.has(format)) throw new PictureError(`This browser cannot open ${format} pictures. Save it as JPEG or PNG first.`);
    if (width * height > 5e7) {
      throw new PictureError("This browser cannot decode this picture: it is damaged, or too large for the memory. Scale it down first.");
    }
    throw new PictureError(`This file is damaged, or ${format} of a kind that this browser cannot open.`);
  }
}
