// What a file is, by its content, before anything decodes it: its format, size, orientation and number of frames, and
// whether it is whole.
//
// Browsers disagree about pictures that are cut off: some show what there is. A map of half a picture would be wrong, so a
// file that ends too soon is refused here, as `predict` refuses it.

import { PictureError } from "./errors.js";
import { orientationIn, orientationInText, orientationInXmp, text } from "./exif.js";
import { crc32 } from "./png.js";

const CUT_OFF = "This file is cut off: it ends before its picture does. Copy or download it again.";
const DAMAGED = "This file is damaged: its header makes no sense. Copy or download it again.";
const RAW = /\.(dng|cr2|cr3|crw|erf|raf|3fr|kdc|rwl|mrw|nef|nrw|orf|rw2|pef|iiq|srw|arw|sr2|srf)$/i;
const RAW_BEGINNINGS = ["FUJIFILMCCD-RAW", "IIRO", "IIRS", "MMOR", "IIU\0"];
const HEIC = ["heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs"];

/**
 * What is known of a picture before it is decoded.
 * @param {Uint8Array} bytes the whole file.
 * @param {string} name its name, whose suffix tells raw photographs from other TIFF files.
 * @returns {format, type, width, height, orientation, note, alpha, patches}: sizes as they are stored (null if only the
 *   decoder knows them); `orientation` is EXIF's, still to be applied; `patches` are [offset, bytes] that have the browser
 *   not apply it; `alpha` says whether there may be transparent pixels.
 * @throws {PictureError} it is no picture, or it is not whole.
 */
export function describe(bytes, name) {
  if (bytes.length === 0) throw new PictureError("This file is empty.");
  const head = text(bytes, 0, 64);
  const known = { orientation: 1, note: "", alpha: false, patches: [], width: null, height: null };
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const found = inside(() => read(bytes, view, head, name));
  return { ...known, ...found };
}

/** Reading past the end is what happens in a file that was cut off. */
function inside(reader) {
  try {
    return reader();
  } catch (error) {
    if (error instanceof RangeError) throw new PictureError(CUT_OFF);
    throw error;
  }
}

function read(bytes, view, head, name) {
  if (head.startsWith("\xff\xd8\xff")) return { format: "JPEG", type: "image/jpeg", ...jpeg(bytes, view) };
  if (head.startsWith("\x89PNG\r\n\x1a\n")) return { format: "PNG", type: "image/png", ...png(bytes, view) };
  if (head.startsWith("GIF8")) return { format: "GIF", type: "image/gif", ...gif(bytes, view) };
  if (head.startsWith("RIFF") && head.slice(8, 12) === "WEBP") {
    return { format: "WebP", type: "image/webp", ...webp(bytes, view) };
  }
  if (head.startsWith("BM")) return { format: "BMP", type: "image/bmp", ...bmp(view) };
  if (head.slice(4, 8) === "ftyp" && head.slice(8, 12) !== "crx ") return boxes(bytes, view, head);
  const raw = RAW.test(name) || head.slice(8, 10) === "CR" || head.slice(4, 12) === "ftypcrx ";
  if (raw || RAW_BEGINNINGS.some((begin) => head.startsWith(begin))) {
    throw new PictureError("This is a raw photograph, which browsers cannot develop. Save it as JPEG first.");
  }
  if (head.startsWith("II*\0") || head.startsWith("MM\0*")) return { format: "TIFF", type: "image/tiff", ...tiff(view) };
  if (head.startsWith("\0\0\0\x0cjP  \r\n\x87\n")) return { format: "JPEG 2000", type: "image/jp2", ...jpeg2000(bytes, view) };
  throw new PictureError(noPicture(head));
}

function noPicture(head) {
  const start = head.replace(/^\xef\xbb\xbf/, "").trimStart();
  if (/^<(\?xml|!doctype svg|svg|!--)/i.test(start)) {
    return "This is a drawing (SVG) or another XML file, and not a photograph.";
  }
  if (/^P[1-7]\s/.test(head)) return "This browser cannot open PPM pictures. Save it as PNG first.";
  if (head.startsWith("\x1aE\xdf\xa3") || head.slice(4, 8) === "moov") return "This is a film. Choose a picture.";
  return "This is not a picture of a format that the page knows. Choose a JPEG, PNG, WebP, AVIF, GIF or BMP file.";
}

function jpeg(bytes, view) {
  let found = null;
  let exif = null;
  let xmp = 1;
  for (let at = 2; ; ) {
    at = bytes.indexOf(0xff, at);
    while (bytes[at] === 0xff) at++;
    if (at <= 0 || at >= bytes.length) throw new PictureError(CUT_OFF);
    const marker = bytes[at++];
    if (marker === 0xd9) break;
    if (marker === 0 || marker === 1 || (marker >= 0xd0 && marker <= 0xd8)) continue; // in entropy-coded data, or alone
    const end = at + view.getUint16(at);
    if (end > bytes.length) throw new PictureError(CUT_OFF);
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      found ??= { height: view.getUint16(at + 3), width: view.getUint16(at + 5) };
    } else if (marker === 0xe1 && text(bytes, at + 2, 5) === "Exif\0") {
      exif ??= orientationIn(bytes, at + 2, end);
    } else if (marker === 0xe1 && text(bytes, at + 2, 29) === "http://ns.adobe.com/xap/1.0/\0") {
      xmp = orientationInXmp(bytes, at + 31, end);
    }
    at = end;
  }
  if (!found) throw new PictureError(DAMAGED);
  return { ...found, orientation: exif?.value ?? xmp, patches: exif ? [exif.patch] : [] };
}

function png(bytes, view) {
  const found = { width: view.getUint32(16), height: view.getUint32(20), alpha: bytes[25] >= 4, note: "", patches: [] };
  let xmp = 1;
  for (let at = 8; ; ) {
    const [length, kind] = [view.getUint32(at), text(bytes, at + 4, 4)];
    const begin = at + 8;
    at = begin + length + 4;
    if (at > bytes.length) throw new PictureError(CUT_OFF);
    if (kind === "IEND") return { ...found, orientation: found.orientation ?? xmp };
    if (kind === "tRNS") found.alpha = true;
    if (kind === "iTXt" || kind === "tEXt") xmp = orientationInText(bytes, begin, at - 4) ?? xmp;
    if (kind === "acTL") found.note = frames(view.getUint32(begin));
    const exif = kind === "eXIf" && orientationIn(bytes, begin, begin + length);
    if (exif) {
      const changed = bytes.slice(begin - 4, begin + length);
      changed.set(exif.patch[1], exif.patch[0] - begin + 4);
      const sum = new Uint8Array(4);
      new DataView(sum.buffer).setUint32(0, crc32(changed));
      found.orientation = exif.value;
      found.patches = [exif.patch, [begin + length, sum]];
    }
  }
}

function gif(bytes, view) {
  const table = (flags) => (flags & 0x80 ? 3 << ((flags & 7) + 1) : 0);
  const afterBlocks = (at) => {
    while (view.getUint8(at)) at += bytes[at] + 1;
    return at + 1;
  };
  let count = 0;
  let alpha = false;
  try {
    for (let at = 13 + table(bytes[10]); view.getUint8(at) !== 0x3b; ) {
      if (bytes[at] === 0x2c) {
        at = afterBlocks(at + 11 + table(view.getUint8(at + 9)));
        count++;
      } else if (bytes[at] === 0x21) {
        alpha ||= bytes[at + 1] === 0xf9 && (bytes[at + 3] & 1) === 1;
        at = afterBlocks(at + 2);
      } else break;
    }
  } catch (error) {
    if (!count) throw error; // otherwise what follows the first frame is cut off
  }
  return { width: view.getUint16(6, true), height: view.getUint16(8, true), alpha, note: frames(count) };
}

function webp(bytes, view) {
  const end = 8 + view.getUint32(4, true);
  if (end > bytes.length) throw new PictureError(CUT_OFF);
  const found = { width: null, height: null, alpha: false, note: "", patches: [] };
  let [count, xmp] = [0, null];
  for (let at = 12; at + 8 <= end; ) {
    const [kind, length] = [text(bytes, at, 4), view.getUint32(at + 4, true)];
    const begin = at + 8;
    if (begin + length > bytes.length) throw new PictureError(CUT_OFF);
    const sized = found.width !== null;
    if (kind === "VP8X") {
      found.alpha = (bytes[begin] & 0x10) !== 0;
      found.width = 1 + (view.getUint32(begin + 3, true) >>> 8);
      found.height = 1 + (view.getUint32(begin + 6, true) >>> 8);
    } else if (kind === "VP8 " && !sized) {
      found.width = view.getUint16(begin + 6, true) & 0x3fff;
      found.height = view.getUint16(begin + 8, true) & 0x3fff;
    } else if (kind === "VP8L" && !sized) {
      const bits = view.getUint32(begin + 1, true);
      [found.width, found.height, found.alpha] = [1 + (bits & 0x3fff), 1 + ((bits >>> 14) & 0x3fff), bits >>> 28 & 1];
    } else if (kind === "EXIF") {
      const exif = orientationIn(bytes, begin, begin + length);
      if (exif) Object.assign(found, { orientation: exif.value, patches: [exif.patch] });
    } else if (kind === "XMP ") xmp ??= orientationInXmp(bytes, begin, begin + length);
    else if (kind === "ANMF") count++;
    at = begin + length + (length & 1);
  }
  return { ...found, orientation: found.orientation ?? xmp ?? 1, alpha: Boolean(found.alpha), note: frames(count) };
}

function bmp(view) {
  const header = view.getUint32(14, true);
  if (header === 12) return { width: view.getUint16(18, true), height: view.getUint16(20, true) };
  const [width, height] = [Math.abs(view.getInt32(18, true)), Math.abs(view.getInt32(22, true))];
  const row = 4 * Math.ceil((width * view.getUint16(28, true)) / 32);
  const plain = view.getUint32(30, true) === 0;
  if (plain && view.getUint32(10, true) + row * height > view.byteLength) throw new PictureError(CUT_OFF);
  return { width, height, alpha: view.getUint16(28, true) === 32 };
}

/** AVIF and HEIF: files of boxes (ISO/IEC 14496-12). */
function boxes(bytes, view, head) {
  const end = Math.min(view.getUint32(0), head.length);
  const brands = [head.slice(8, 12)];
  for (let at = 16; at + 4 <= end; at += 4) brands.push(head.slice(at, at + 4));
  const has = (...names) => names.some((name) => brands.includes(name));
  const heic = has(...HEIC) || (has("mif1") && !has("avif", "avis"));
  if (!heic && !has("avif", "avis")) throw new PictureError("This is a film. Choose a picture.");
  for (let at = 0; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at);
    const size = length === 1 ? Number(view.getBigUint64(at + 8)) : length || bytes.length - at;
    if (size < 8 || at + size > bytes.length) throw new PictureError(CUT_OFF);
    at += size;
  }
  const note = brands[0] === "avis" ? "the first of several frames" : "";
  const format = heic ? { format: "HEIC", type: "image/heic" } : { format: "AVIF", type: "image/avif" };
  return { ...format, ...extent(bytes, view), alpha: true, note };
}

/** The largest size among the pictures of a file of boxes, by its properties `ispe` (ISO/IEC 23008-12, 6.5.3). */
function extent(bytes, view) {
  let largest = { width: null, height: null };
  const most = Math.min(bytes.length - 15, 1 << 20); // the header's properties, and not the pictures' data
  for (let at = bytes.indexOf(0x69); at >= 0 && at < most; at = bytes.indexOf(0x69, at + 1)) {
    if (text(bytes, at, 4) !== "ispe" || view.getUint32(at + 4) !== 0) continue;
    const [width, height] = [view.getUint32(at + 8), view.getUint32(at + 12)];
    if (width * height > (largest.width ?? 0) * (largest.height ?? 0)) largest = { width, height };
  }
  return largest;
}

function tiff(view) {
  const little = view.getUint8(0) === 0x49;
  const directory = view.getUint32(4, little);
  const found = {};
  for (let n = 0; n < view.getUint16(directory, little); n++) {
    const at = directory + 2 + 12 * n;
    const side = { 256: "width", 257: "height" }[view.getUint16(at, little)];
    if (side) found[side] = view.getUint16(at + 2, little) === 3 ? view.getUint16(at + 8, little) : view.getUint32(at + 8, little);
  }
  return { ...found, alpha: true };
}

function jpeg2000(bytes, view) {
  const at = text(bytes, 0, 512).indexOf("ihdr");
  return at < 0 ? {} : { height: view.getUint32(at + 4), width: view.getUint32(at + 8) };
}

const frames = (count) => (count > 1 ? `the first of ${count} frames` : "");
