// What the page says about the network: whether it is loaded, what runs it, and the choices there are.

import { at, make, say } from "./dom.js";
import { bounds, isFree, preprocessOf } from "./fitting.js";
import { megabytes, runner } from "./words.js";

const SIDES = [480, 640, 960, 1280, 1600, 2048];

/** The state of the network. */
export function state(detector, artifact) {
  const shown = at("state");
  detector.addEventListener("progress", ({ detail: { loaded, total } }) => {
    at("loading").value = loaded / total;
    shown.textContent = loaded < total
      ? `The network is being loaded: ${megabytes(loaded)} of ${megabytes(total)} MB.`
      : "The network is being prepared.";
  });
  const follow = async () => {
    const { ready } = detector;
    at("loading").hidden = false;
    at("again").hidden = true;
    shown.className = "";
    try {
      const facts = await ready;
      shown.textContent = `The network ${artifact.title} is ready: ${runner(facts)}.${hint(facts)}`;
    } catch (error) {
      if (ready !== detector.ready) return; // another one is being loaded
      shown.className = "failed";
      shown.textContent = error.message;
      at("again").hidden = false;
    }
    at("loading").hidden = true;
  };
  detector.addEventListener("restart", () => {
    say("The network stopped working and was started again.");
    follow();
  });
  return follow;
}

/** One thread in a browser that could have more: the service worker makes it so from the next visit on. */
function hint({ provider, threads, isolated }) {
  const could = "serviceWorker" in navigator && navigator.hardwareConcurrency > 1;
  return provider === "wasm" && threads === 1 && !isolated && could ? " Load this page again to have it use more processors." : "";
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
  at("provider-group").hidden = !(navigator.gpu && artifact.files.webgpu);
  return () => (at("detail-group").hidden ? undefined : Number(at("detail").value));
}
