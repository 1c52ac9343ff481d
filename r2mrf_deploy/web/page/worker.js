// The worker: does what the page asks for, one thing after another, so that the page itself stays alive meanwhile.
//
// A message is {id, verb, ...}, and its answer {id, result} or {id, error: {name, message, fatal}}. While the network loads,
// there are messages {progress: {loaded, total}} too. The verb "open" comes first.

import { isFatal } from "./errors.js";
import { drawn, fit, mapFile, mapped, pixels } from "./pipeline.js";
import { sourceOf } from "./resize.js";
import { Session } from "./session.js";

let session = null;
let artifact = null;

const VERBS = {
  async open(message) {
    ({ artifact } = message);
    session = await Session.open({ ...message, progress: (progress) => postMessage({ progress }) });
    return session.facts;
  },
  run: ({ feeds }) => session.run(feeds),
  map: ({ blob, options }) => mapped(session, blob, options),
  draw: ({ blob, map, side }) => drawn(blob, map, side),
  file: ({ map, size }) => mapFile(map, size),
  pixels: ({ blob }) => pixels(blob),
  fitted({ height, width, data, detail }) {
    const { fitting, input } = fit(sourceOf(new Uint8Array(data), height, width), artifact.contract, detail);
    return { ...input, data: input.data.slice().buffer, content: fitting.content, corner: fitting.corner };
  },
};

/** What of a result moves to the page instead of being copied. */
function moved(result) {
  if (!result || result instanceof Blob) return [];
  const outputs = Object.values(result.outputs ?? {}).map(({ data }) => data);
  return [...outputs, ...Object.values(result)].filter((value) => value instanceof ArrayBuffer || value instanceof ImageBitmap);
}

async function answer({ id, verb, ...message }) {
  try {
    const result = await VERBS[verb](message);
    postMessage({ id, result }, moved(result));
  } catch (error) {
    const said = { name: error?.name ?? "Error", message: String(error?.message ?? error), fatal: isFatal(error) };
    postMessage({ id, error: said });
  }
}

let last = Promise.resolve();
addEventListener("message", ({ data }) => {
  last = last.then(() => answer(data));
});
