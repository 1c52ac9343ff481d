// Finds the orientation in a photograph's EXIF or XMP data, and where it is stored.
//
// Browsers differ in which formats' orientation they apply, and in whether they can be told not to. So it is read here, and
// replaced by 1 (upright) in the copy that the browser decodes.

const ORIENTATION = 0x0112;
const BYTES = { 3: 2, 4: 4 }; // of the types SHORT and LONG

/**
 * The orientation in EXIF data.
 * @param {Uint8Array} bytes the file.
 * @param begin, end where the data are: a TIFF header, with or without "Exif\0\0" before it.
 * @returns null if there is none, otherwise {value, patch: [offset, bytes]}: `value` is 1 where it makes no sense, and the
 *   patch makes it 1 in the file.
 */
export function orientationIn(bytes, begin, end) {
  if (text(bytes, begin, 6) === "Exif\0\0") begin += 6;
  const order = text(bytes, begin, 2);
  if ((order !== "II" && order !== "MM") || end - begin < 14) return null;
  const little = order === "II";
  const view = new DataView(bytes.buffer, bytes.byteOffset + begin, end - begin);
  const directory = view.getUint32(4, little);
  if (directory + 2 > view.byteLength) return null;
  const entries = view.getUint16(directory, little);
  for (let n = 0; n < entries; n++) {
    const at = directory + 2 + 12 * n;
    if (at + 12 > view.byteLength) return null;
    if (view.getUint16(at, little) !== ORIENTATION) continue;
    const size = BYTES[view.getUint16(at + 2, little)];
    if (size === undefined || view.getUint32(at + 4, little) !== 1) return null;
    const value = size === 2 ? view.getUint16(at + 8, little) : view.getUint32(at + 8, little);
    const upright = new Uint8Array(size);
    upright[little ? 0 : size - 1] = 1;
    return { value: value >= 1 && value <= 8 ? value : 1, patch: [begin + at + 8, upright] };
  }
  return null;
}

/** The orientation in XMP data, which Python reads where EXIF has none; 1 if it has none either. */
export function orientationInXmp(bytes, begin, end) {
  const found = /tiff:Orientation(?:="|>)([0-9])/.exec(text(bytes, begin, end - begin));
  const value = found ? Number(found[1]) : 1;
  return value >= 1 && value <= 8 ? value : 1;
}

/** The orientation in a chunk of text of a PNG file; null if that is not its XMP data, or compressed, which writers avoid. */
export function orientationInText(bytes, begin, end) {
  return text(bytes, begin, 18) === "XML:com.adobe.xmp\0" ? orientationInXmp(bytes, begin + 18, end) : null;
}

/** Bytes as text, one character for each. */
export function text(bytes, at, count) {
  let found = "";
  const end = Math.min(at + count, bytes.length);
  for (let start = at; start < end; start += 8192) {
    found += String.fromCharCode(...bytes.subarray(start, Math.min(start + 8192, end)));
  }
  return found;
}
