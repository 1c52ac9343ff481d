// Writes a map as a greyscale PNG file of any size, strip by strip. A canvas would limit its size, and store four channels.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

/** The checksum of a PNG chunk's type and data. */
export function crc32(bytes) {
  let sum = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) sum = TABLE[(sum ^ bytes[i]) & 255] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}

function chunk(kind, data) {
  const bytes = new Uint8Array(12 + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  for (let i = 0; i < 4; i++) bytes[4 + i] = kind.charCodeAt(i);
  bytes.set(data, 8);
  view.setUint32(8 + data.length, crc32(bytes.subarray(4, 8 + data.length)));
  return bytes;
}

/** The nearest integer, and of two the even one, as numpy rounds. */
function rint(value) {
  const below = Math.floor(value);
  const over = value - below;
  return over > 0.5 || (over === 0.5 && below % 2 === 1) ? below + 1 : below;
}

/** Values in 0 .. 1 as bytes: 255 is 1. */
export function grey(values) {
  const levels = new Uint8Array(values.length);
  for (let i = 0; i < values.length; i++) levels[i] = rint(Math.fround(255 * Math.min(1, Math.max(0, values[i]))));
  return levels;
}

/**
 * A greyscale PNG file.
 * @param strips {top, values} in order: whole rows of floats in 0 .. 1.
 * @returns {Promise<Blob>}
 */
export async function greyscalePng(strips, height, width) {
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, width);
  new DataView(header.buffer).setUint32(4, height);
  header[8] = 8; // bits; the other fields are 0: greyscale, deflate, no interlacing
  const packer = new CompressionStream("deflate");
  const packed = new Response(packer.readable).arrayBuffer();
  const writer = packer.writable.getWriter();
  for (const { values } of strips) await writer.write(filtered(grey(values), width));
  await writer.close();
  const signature = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
  const body = [chunk("IHDR", header), chunk("IDAT", new Uint8Array(await packed)), chunk("IEND", new Uint8Array())];
  return new Blob([signature, ...body], { type: "image/png" });
}

/** Rows with PNG's filter type before each: differences to the left, which of a smooth map are small. */
function filtered(levels, width) {
  const rows = levels.length / width;
  const output = new Uint8Array(levels.length + rows);
  for (let y = 0, at = 0; y < rows; y++) {
    output[at++] = 1;
    for (let x = 0, left = 0; x < width; x++) {
      const level = levels[y * width + x];
      output[at++] = level - left;
      left = level;
    }
  }
  return output;
}
