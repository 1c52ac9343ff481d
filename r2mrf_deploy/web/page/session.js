// The network: loads ONNX Runtime Web and the model, and runs it.

import { unpacked, verified } from "./download.js";
import { PageError } from "./errors.js";

/** The network of a page, opened on one provider. */
export class Session {
  /**
   * Load and open it.
   * @param artifact what the page was made with.
   * @param base the page's address.
   * @param provider "wasm" or "webgpu".
   * @param threads how many WebAssembly may use; more than 1 only in a page that is cross-origin isolated.
   * @param progress told {loaded, total} in bytes.
   * @throws {PageError} something is missing; the message says what to do.
   */
  static async open({ artifact, base, provider, threads, progress }) {
    const files = artifact.files[provider];
    if (!files) throw new PageError("This page was made without WebGPU. Choose WebAssembly.");
    const software = provider === "webgpu" && (await isSoftware());
    const started = performance.now();
    const total = artifact.files.model.bytes + files.binary.bytes;
    let loaded = 0;
    const count = (bytes) => progress({ loaded: Math.min(loaded += bytes, total), total });
    const script = import(new URL(files.script, base).href).catch(() => {
      throw new PageError(`The file ${files.script} cannot be loaded. Load the page again.`);
    });
    const [ort, model, binary] = await Promise.all([
      script,
      verified(artifact.files.model, base, count),
      verified(files.binary, base, count).then(unpacked),
    ]);
    const opening = performance.now();
    const session = new Session(ort, artifact, provider, threads, software);
    await session.#create(model, binary, new URL(files.loader, base).href);
    session.loadMs = opening - started;
    session.createMs = performance.now() - opening;
    return session;
  }

  constructor(ort, artifact, provider, threads, software) {
    Object.assign(this, { ort, artifact, provider, software, threads: provider === "webgpu" ? 1 : possible(threads) });
  }

  async #create(model, binary, loader) {
    const { env } = this.ort;
    env.logLevel = "error";
    env.wasm.numThreads = this.threads;
    env.wasm.wasmBinary = binary;
    env.wasm.wasmPaths = { mjs: loader };
    const options = { executionProviders: [this.provider], graphOptimizationLevel: "all", logSeverityLevel: 3 };
    try {
      this.inner = await this.ort.InferenceSession.create(model, options);
    } catch (error) {
      if (this.provider === "wasm") throw error;
      throw new PageError(`The graphics card cannot run this network. Choose WebAssembly. (${error.message})`);
    }
    this.threads = env.wasm.numThreads; // it may have found that it cannot have as many
    env.wasm.wasmBinary = undefined; // 14 MB that nobody needs any more
  }

  /** What there is to know of the opened network. */
  get facts() {
    const spec = (given) => given.map(({ name, dtype, shape }) => ({ name, dtype, shape }));
    const { contract, runtime } = this.artifact;
    return {
      provider: this.provider,
      software: this.software,
      threads: this.threads,
      isolated: Boolean(globalThis.crossOriginIsolated),
      runtime,
      loadMs: this.loadMs,
      createMs: this.createMs,
      inputs: spec(contract.inputs),
      outputs: spec(contract.outputs),
    };
  }

  /**
   * Compute the outputs.
   * @param feeds name -> {dtype, shape, data}: `data` is an ArrayBuffer or a typed array.
   * @returns {outputs: name -> {dtype, shape, data: ArrayBuffer}, start, end}: milliseconds of `performance.now()`.
   */
  async run(feeds) {
    const tensors = {};
    for (const [name, { dtype, shape, data }] of Object.entries(feeds)) {
      tensors[name] = new this.ort.Tensor(dtype, typed(dtype, data), shape);
    }
    const start = performance.now();
    const found = await this.inner.run(tensors);
    const outputs = {};
    for (const [name, tensor] of Object.entries(found)) {
      const data = await tensor.getData(true);
      outputs[name] = { dtype: tensor.type, shape: [...tensor.dims], data: exactly(data) };
    }
    const end = performance.now();
    return { outputs, start, end };
  }
}

/** How many threads there can be of those that were asked for. */
function possible(threads) {
  if (!globalThis.crossOriginIsolated) return 1;
  return Math.min(Math.max(1, Math.trunc(threads) || 1), navigator.hardwareConcurrency || 1);
}

const ARRAYS = { uint8: Uint8Array, int8: Int8Array, float32: Float32Array, float16: Uint16Array, int32: Int32Array };

function typed(dtype, data) {
  const kind = ARRAYS[dtype];
  if (!kind) throw new PageError(`The page cannot give the network values of type ${dtype}.`);
  return data instanceof ArrayBuffer ? new kind(data) : new kind(data.buffer, data.byteOffset, data.byteLength / kind.BYTES_PER_ELEMENT);
}

/** The bytes of an array, in a buffer of their own. */
const exactly = (data) => data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);

/**
 * Whether what WebGPU offers is no graphics card but a program on the processor, which is slow.
 * @throws {PageError} it offers nothing.
 */
async function isSoftware() {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) throw new PageError("This browser gives the page no graphics card (WebGPU). Choose WebAssembly.");
  return Boolean(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
}
