// What the page says about the network: whether it is loaded, what runs it, and the choices there are.

import { at, make, say } from "./dom.js";
import { bounds, isFree, preprocessOf } from "./fitting.js";
import { megabytes, runner } from "./words.js";

const SIDES = [480, 640, 960, 1280, 1600, 2048];

let forbidden = false; // the service worker, without which the next visit has no more threads than this one

/** No service worker can be had: nothing is promised of the next visit. */
export function unkept() {
  forbidden = true;
  at("hint")?.remove();
}

/**
 * The state of the network. Its progress is shown beside it, where screen readers do not read each step.
 * @returns a function that follows the loading that is under way: a promise of whether the network is ready in the end.
 */
export function state(detector, artifact) {
  const shown = at("state");
  detector.addEventListener("progress", ({ detail: { loaded, total } }) => {
    at("loading").value = loaded / total;
    at("loaded").textContent = loaded < total ? `${megabytes(loaded)} of ${megabytes(total)} MB` : "It is being prepared.";
  });
  const follow = async () => {
    const { ready } = detector;
    const { generation } = detector;
    const busy = (is) => { at("loading").hidden = at("loaded").hidden = !is; };
    busy(true);
    at("again").hidden = true;
    shown.className = at("loaded").textContent = "";
    shown.textContent = "The network is being loaded.";
    const { facts, error } = await ready.then((facts) => ({ facts }), (error) => ({ error }));
    if (generation !== detector.generation) return false; // another one is being loaded
    busy(false);
    if (facts) {
      shown.textContent = `The network ${artifact.title} is ready: ${runner(facts)}.`;
      if (hinted(facts)) shown.append(make("span", { id: "hint", textContent: " Load this page again to have it use more processors." }));
    } else {
      shown.className = "failed";
      shown.textContent = error.message;
      at("again").hidden = false;
    }
    return Boolean(facts);
  };
  detector.addEventListener("restart", () => {
    say("The network stopped working and was started again.");
    follow();
  });
  return follow;
}

/** One thread in a browser that could have more: the service worker makes it so from the next visit on. */
function hinted({ provider, threads, isolated }) {
  const could = "serviceWorker" in navigator && !forbidden && navigator.hardwareConcurrency > 1;
  return provider === "wasm" && threads === 1 && !isolated && could;
}

/**
 * The choices of detail and of what runs the network.
 * @returns a function that gives the longest side that was chosen; undefined for the network's own.
 */
export function choices(artifact, provider) {
  const { contract } = artifact;
  const own = preprocessOf(contract).longest_side;
  const most = Math.max(...bounds(contract, Infinity).map(([, side]) => (Number.isFinite(side) ? side : SIDES.at(-1))));
  const usual = Math.min(own, most);
  const sides = [usual, ...SIDES.filter((side) => side > usual && side <= most)];
  at("detail").append(...sides.map((side, n) =>
    make("option", { value: String(side), textContent: n ? `${side.toLocaleString("en")} pixels` : `${side} pixels, the network's own` })));
  at("detail-group").hidden = !isFree(contract) || sides.length < 2;
  at("provider").value = provider;
  const choice = provider === "webgpu" || (navigator.gpu && artifact.files.webgpu); // whoever asked for WebGPU can leave it
  at("provider-group").hidden = !choice;
  return () => (at("detail-group").hidden ? undefined : Number(at("detail").value));
}
