// Figures and findings as words.

export const VERDICTS = {
  "all sharp": "All of it is in focus",
  "all blurred": "All of it is out of focus",
  partial: "A part of it is in focus",
  flat: "The network cannot tell",
};

export const counted = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/** A share as a percentage. What is not quite nothing or everything is not said to be. */
export function share(value) {
  if (value > 0 && value < 0.01) return "<1\u00a0%";
  if (value > 0.99 && value < 1) return ">99\u00a0%";
  return `${Math.round(100 * value)}\u00a0%`;
}

export const seconds = (ms) => `${(ms / 1000).toFixed(ms < 9950 ? 2 : 1)}\u00a0s`;
export const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

/** What runs the network: {provider, threads, software}. */
export const runner = ({ provider, threads, software }) =>
  provider === "webgpu" ? `WebGPU${software ? " in software" : ""}` : `WebAssembly, ${counted(threads, "thread")}`;

const NONE = "\u2013";

/** The rows of the table of scores: [name, what it is, value]; without values where there is no result yet. */
export const scoreRows = (scores) => [
  ["In focus", "share of the picture", scores ? `${(100 * scores.in_focus).toFixed(1)}\u00a0%` : NONE],
  ["Subject", "sharpness around the centre", scores?.subject.toFixed(2) ?? NONE],
  ["Mean confidence", "of the whole picture", scores?.mean_confidence.toFixed(2) ?? NONE],
  ["Peak confidence", "at its sharpest point", scores?.peak_confidence.toFixed(2) ?? NONE],
];

/** The rows of how they were computed: [name, value], as `scoreRows`. */
export function detailRows(result) {
  if (!result) return [["Size", NONE], ["Analysed at", NONE], ["Time", `${NONE}\n\u00a0\n\u00a0`], ["Ran on", NONE]];
  const { photograph, content, times, ran, note } = result;
  const size = ({ height, width }) => `${width.toLocaleString("en")} × ${height.toLocaleString("en")} pixels`;
  const steps = `decode ${seconds(times.decode)}, fit ${seconds(times.fit)}, network ${seconds(times.compute)}`;
  return [
    ["Size", size(photograph)],
    ["Analysed at", size(content)],
    ["Time", `${seconds(times.decode + times.fit + times.compute)}\n${steps}`],
    ["Ran on", runner(ran)],
    ["Note", note && `It is ${note}.`],
  ].filter(([, value]) => value);
}
