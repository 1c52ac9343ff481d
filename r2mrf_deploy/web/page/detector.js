// The network as the page and programs use it: every verb is a promise of what the worker answers.

import { PageError } from "./errors.js";

const MOST_THREADS = 4; // small networks gain little from more
const CRASHED = "The network stopped working, probably for want of memory, and was started again. "
  + "Close other pages, or choose a smaller picture or less detail.";
const NO_MEMORY = "The network cannot be started, probably for want of memory. Close other pages, then try again.";
const NO_WORKER = "The worker of this page cannot be started. Load the page again; if that does not help, this browser is too old "
  + "for it.";

/** An error that the worker answered with to a verb, under its own name. */
function asError({ name, message, fatal }, verb) {
  const own = name === "PictureError" || name === "PageError";
  const error = new Error(own || !fatal ? message : `${verb === "open" ? NO_MEMORY : CRASHED} (${message})`);
  error.name = name;
  return error;
}

/** How many threads WebAssembly uses unless it is told. */
const defaultThreads = () => (globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1);

/**
 * A network in a worker. It is loaded when `ready` is first asked for, or a verb first used.
 *
 * Events: `progress` (detail {loaded, total}), `open` (the network is ready), `restart` (the worker crashed, and there is a new
 * one).
 */
export class Detector extends EventTarget {
  #artifact;
  #worker = null;
  #ready = null;
  #generation = 0;
  #waiting = new Map(); // id -> {resolve, reject}
  #next = 0;

  /**
   * @param artifact what the page was made with: the block of JSON in index.html.
   * @param provider "wasm" or "webgpu".
   * @param threads of WebAssembly: a positive integer; anything else is the default.
   */
  constructor(artifact, { provider = "wasm", threads = 0 } = {}) {
    super();
    this.#artifact = artifact;
    this.provider = provider;
    this.threads = Number.isInteger(threads) && threads > 0 ? threads : defaultThreads();
  }

  /** A promise of {provider, software, threads, isolated, runtime, loadMs, createMs, inputs, outputs}; it is rejected with what is missing. */
  get ready() {
    this.#ready ??= this.#open();
    return this.#ready;
  }

  /** How many times it was loaded: whether it is still the same network as before. Asking loads nothing. */
  get generation() {
    return this.#generation;
  }

  /** Run it by another provider from now on. What is being computed is given up. */
  use(provider) {
    this.provider = provider;
    this.close(new PageError("The network was changed meanwhile."));
    return this.ready;
  }

  /** Compute a network's outputs: {name: {dtype, shape, data: ArrayBuffer}} -> {outputs, start, end}. */
  run(feeds) {
    return this.#ask("run", { feeds });
  }

  /** The map of a file or a bitmap, and what goes with it: see `mapped` in pipeline.js. */
  map(blob, options = {}) {
    return this.#ask("map", { blob, options }, blob instanceof ImageBitmap ? [blob] : []);
  }

  /** A file drawn again with its map, {values, height, width}: {overlay, picture, thumbnail}. */
  draw(blob, map, side) {
    return this.#ask("draw", { blob, map, side });
  }

  /** A map as a PNG file of `size`, {height, width}. */
  file(map, size) {
    return this.#ask("file", { map, size });
  }

  /** The decoded upright RGB bytes of a file: {height, width, data}. */
  pixels(blob) {
    return this.#ask("pixels", { blob });
  }

  /** The network's input from RGB bytes: {dtype, shape, data, content, corner}. */
  fitted({ height, width, data, detail }) {
    return this.#ask("fitted", { height, width, data, detail });
  }

  /** End the worker. What was asked for is rejected. The next verb starts a new one. */
  close(error = new PageError("The network was closed.")) {
    this.#end();
    this.#ready = null;
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const { reject } of waiting) reject(error);
  }

  #end() {
    this.#worker?.terminate();
    this.#worker = null;
  }

  async #ask(verb, message, transfer = []) {
    await this.ready;
    return this.#send(verb, message, transfer);
  }

  #open() {
    this.#generation += 1;
    let worker;
    try {
      worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    } catch {
      return Promise.reject(new PageError(NO_WORKER));
    }
    this.#worker = worker;
    worker.addEventListener("message", ({ data }) => worker === this.#worker && this.#receive(data));
    worker.addEventListener("error", (event) => {
      event.preventDefault();
      if (worker === this.#worker) this.#crashed(event.message);
    });
    const { href: base } = new URL(".", document.baseURI);
    const message = { artifact: this.#artifact, base, provider: this.provider, threads: this.threads };
    const ready = this.#send("open", message, []);
    ready.then(() => this.dispatchEvent(new Event("open")), () => {}); // whoever asks for `ready` is told of a failure
    return ready;
  }

  #send(verb, message, transfer) {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, verb });
      this.#worker.postMessage({ id, verb, ...message }, transfer);
    });
  }

  #receive({ id, result, error, progress }) {
    if (progress) this.dispatchEvent(new CustomEvent("progress", { detail: progress }));
    const waiting = this.#waiting.get(id);
    if (!waiting) return;
    this.#waiting.delete(id);
    if (!error) waiting.resolve(result);
    else {
      waiting.reject(asError(error, waiting.verb));
      if (waiting.verb === "open") this.#end(); // which may be loading the other files still
      else if (error.fatal) this.#restart();
    }
  }

  /** The worker ended by an error that nothing in it caught, or it could not be started. */
  #crashed(said) {
    const opening = [...this.#waiting.values()].some(({ verb }) => verb === "open");
    if (!opening) return this.#restart(new Error(`${CRASHED}${said ? ` (${said})` : ""}`));
    const kept = this.#ready;
    this.close(new PageError(NO_WORKER));
    this.#ready = kept; // rejected by now: whoever asks is told, and only `use` tries again
  }

  #restart(error = new PageError(CRASHED)) {
    this.close(error);
    this.dispatchEvent(new Event("restart"));
    this.ready.catch(() => {}); // whoever asks next is told
  }
}
