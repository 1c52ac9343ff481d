// What a map says of its photograph, in figures: `predict/scores.py` in Python.

const THRESHOLD = 0.5;
const SURE = 0.7;
const FLAT = 0.1;
const SUBJECT = 0.25;

const rounded = (value) => Math.round(value * 1e4) / 1e4;

/** Weights of the pixels of a side, which sum to 1. */
function gaussian(side) {
  const weights = Float64Array.from({ length: side }, (_, n) => Math.exp(-(((n + 0.5) / side - 0.5) ** 2) / (2 * SUBJECT ** 2)));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return weights.map((weight) => weight / sum);
}

function verdictOf(values) {
  const sorted = values.slice().sort();
  const end = Math.floor(values.length / 20);
  const [low, high] = [sorted[end], sorted[values.length - 1 - end]];
  if (low >= SURE) return "all sharp";
  if (high <= 1 - SURE) return "all blurred";
  return high - low < FLAT ? "flat" : "partial";
}

/**
 * The scores of a map.
 * @param values Float32Array [height, width] in 0 .. 1.
 * @returns {in_focus, mean_confidence, peak_confidence, subject, verdict}
 */
export function scoresOf(values, height, width) {
  const [rows, columns] = [gaussian(height), gaussian(width)];
  let [sharp, sum, peak, subject] = [0, 0, 0, 0];
  for (let y = 0, i = 0; y < height; y++) {
    let row = 0;
    for (let x = 0; x < width; x++, i++) {
      const value = values[i];
      if (value >= THRESHOLD) sharp++;
      if (value > peak) peak = value;
      sum += value;
      row += value * columns[x];
    }
    subject += rows[y] * row;
  }
  return {
    in_focus: rounded(sharp / values.length),
    mean_confidence: rounded(sum / values.length),
    peak_confidence: rounded(peak),
    subject: rounded(subject),
    verdict: verdictOf(values),
  };
}
