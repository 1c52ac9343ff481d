// Resizes photographs and maps by Pillow's antialiased bilinear filter, to the same bits as `images.resize` in Python.
//
// Each sample of the output has a triangle of weights around its centre, widened by the scale when a picture shrinks.
// Bytes are summed in integers (weights have 22 fractional bits) and rounded after each of two passes; maps are summed in
// double precision and rounded to single. A large picture is worked on in strips of rows, as Python does, so that only a
// part of it is in memory. Pillow takes a strip's edges as single precision numbers, and so does this.

const STRIP = 1 << 20; // pixels that are worked on at once
const BITS = 22;
const HALF = 1 << (BITS - 1);

/**
 * For each of `count` outputs: the first of `size` inputs that counts, how many do, and their weights, one after another.
 * The outputs lie evenly in the box [from, to) of the inputs.
 */
function triangles(size, from, to, count) {
  const scale = Math.fround(to - from) / count;
  const support = Math.max(scale, 1);
  const inverse = 1 / support;
  const most = 2 * Math.ceil(support) + 1;
  const first = new Int32Array(count);
  const length = new Int32Array(count);
  const weights = new Float64Array(count * most);
  for (let i = 0; i < count; i++) {
    const centre = from + (i + 0.5) * scale;
    const begin = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(size, Math.trunc(centre + support + 0.5));
    let sum = 0;
    for (let x = begin; x < end; x++) {
      const distance = Math.abs((x - centre + 0.5) * inverse);
      const weight = distance < 1 ? 1 - distance : 0;
      weights[i * most + x - begin] = weight;
      sum += weight;
    }
    if (sum !== 0) for (let k = i * most; k < (i + 1) * most; k++) weights[k] /= sum;
    first[i] = begin;
    length[i] = end - begin;
  }
  return { first, length, weights, most, fixed: Int32Array.from(weights, (w) => Math.trunc(0.5 + w * (1 << BITS))) };
}

const byte = (sum) => {
  const level = sum >> BITS;
  return level < 0 ? 0 : level > 255 ? 255 : level;
};

/** Passes over RGB bytes: `along` resizes each row, `down` each column. */
const BYTES = {
  channels: 3,
  make: (length) => new Uint8Array(length),
  along(input, width, height, to, outWidth) {
    const output = new Uint8Array(outWidth * height * 3);
    const { first, length, fixed, most } = to;
    let at = 0;
    for (let y = 0; y < height; y++) {
      const row = y * width * 3;
      for (let x = 0; x < outWidth; x++) {
        let [a, b, c] = [HALF, HALF, HALF];
        let pixel = row + first[x] * 3;
        for (let k = x * most, end = k + length[x]; k < end; k++, pixel += 3) {
          const w = fixed[k];
          a += input[pixel] * w;
          b += input[pixel + 1] * w;
          c += input[pixel + 2] * w;
        }
        output[at++] = byte(a);
        output[at++] = byte(b);
        output[at++] = byte(c);
      }
    }
    return output;
  },
  down(input, width, to, outHeight) {
    const values = width * 3;
    const output = new Uint8Array(values * outHeight);
    const sums = new Int32Array(values);
    for (let y = 0; y < outHeight; y++) {
      sums.fill(HALF);
      for (let k = 0; k < to.length[y]; k++) {
        const w = to.fixed[y * to.most + k];
        const row = (to.first[y] + k) * values;
        for (let x = 0; x < values; x++) sums[x] += input[row + x] * w;
      }
      for (let x = 0, at = y * values; x < values; x++) output[at + x] = byte(sums[x]);
    }
    return output;
  },
};

/** The same over the floats of a map. */
const FLOATS = {
  channels: 1,
  make: (length) => new Float32Array(length),
  along(input, width, height, to, outWidth) {
    const output = new Float32Array(outWidth * height);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < outWidth; x++) {
        let sum = 0;
        const begin = y * width + to.first[x];
        for (let k = 0; k < to.length[x]; k++) sum += input[begin + k] * to.weights[x * to.most + k];
        output[y * outWidth + x] = sum;
      }
    }
    return output;
  },
  down(input, width, to, outHeight) {
    const output = new Float32Array(width * outHeight);
    const sums = new Float64Array(width);
    for (let y = 0; y < outHeight; y++) {
      sums.fill(0);
      for (let k = 0; k < to.length[y]; k++) {
        const w = to.weights[y * to.most + k];
        const row = (to.first[y] + k) * width;
        for (let x = 0; x < width; x++) sums[x] += input[row + x] * w;
      }
      output.set(sums, y * width);
    }
    return output;
  },
};

/** Whether Pillow, since version 13, takes the columns first: if that removes more than twice as many rows. */
const columnsFirst = (width, height, outWidth, outHeight) =>
  outHeight < height && height - outHeight > 2 * (width - outWidth);

/** Resizes the rows [from, to) of a strip of `height` rows. */
function resizeStrip(kind, strip, width, height, outWidth, outHeight, from, to, columns) {
  const wide = width === outWidth;
  const high = height === outHeight && from === 0 && to === outHeight;
  const rows = high ? null : triangles(height, from, to, outHeight);
  if (!wide && !high && columnsFirst(width, height, outWidth, outHeight)) {
    return kind.along(kind.down(strip, width, rows, outHeight), width, outHeight, columns, outWidth);
  }
  const across = wide ? strip : kind.along(strip, width, height, columns, outWidth);
  return high ? across : kind.down(across, outWidth, rows, outHeight);
}

/** Strips of a resized picture, in order: {top, values}, where `values` has whole rows of the output. */
function* strips(kind, source, outHeight, outWidth) {
  const { height, width } = source;
  const scale = height / outHeight;
  const reach = Math.ceil(Math.max(1, scale)) + 1; // of the filter, in rows of the source
  const across = Math.max(outWidth, Math.ceil(width * scale));
  const step = Math.max(1, Math.floor(STRIP / across));
  const same = height === outHeight && width === outWidth;
  const columns = triangles(width, 0, width, outWidth);
  for (let top = 0; top < outHeight; top += step) {
    const bottom = Math.min(top + step, outHeight);
    if (same) {
      yield { top, values: source.rows(top, bottom) };
      continue;
    }
    const first = Math.max(0, Math.floor(top * scale) - reach);
    const end = Math.min(height, Math.ceil(bottom * scale) + reach);
    const from = Math.fround(top * scale - first);
    const to = Math.fround(Math.min(bottom * scale - first, end - first));
    const strip = source.rows(first, end);
    const size = [width, end - first, outWidth, bottom - top];
    yield { top, values: resizeStrip(kind, strip, ...size, from, to, columns) };
  }
}

function whole(kind, source, height, width) {
  const output = kind.make(height * width * kind.channels);
  for (const { top, values } of strips(kind, source, height, width)) output.set(values, top * width * kind.channels);
  return output;
}

/**
 * A photograph at another size.
 * @param source {height, width, rows}: `rows(first, end)` gives RGB bytes, [end - first, width, 3].
 * @returns {Uint8Array} [height, width, 3].
 */
export const resized = (source, height, width) => whole(BYTES, source, height, width);

const rowsOf = (values, height, width, channels) =>
  ({ height, width, rows: (first, end) => values.subarray(first * width * channels, end * width * channels) });

/** RGB bytes, [height, width, 3], as a source for `resized`. */
export const sourceOf = (bytes, height, width) => rowsOf(bytes, height, width, 3);

/** A map, {values: Float32Array [height, width], height, width}, at another size: Float32Array. */
export const resizedMap = ({ values, height, width }, toHeight, toWidth) =>
  whole(FLOATS, rowsOf(values, height, width, 1), toHeight, toWidth);

/** The same strip by strip, for maps as large as photographs. */
export const mapStrips = ({ values, height, width }, toHeight, toWidth) =>
  strips(FLOATS, rowsOf(values, height, width, 1), toHeight, toWidth);

/** (height, width) reduced in proportion to at most `most`, as `images.within`. */
export function within(height, width, mostHeight, mostWidth = mostHeight) {
  const scale = Math.min(1, mostHeight / height, mostWidth / width);
  const side = (value) => Math.max(1, Math.floor(value * scale + 0.5));
  return [side(height), side(width)];
}
