// The errors that a user can meet. Each message is plain English that says what is wrong and what to do about it.

/** A picture that cannot be used. Nothing else is wrong: the next one can be taken. */
export class PictureError extends Error {
  name = "PictureError";
}

/** A part of the page that is missing or damaged, or that the browser does not have. */
export class PageError extends Error {
  name = "PageError";
}

const FATAL = /memory|alloc|abort|unreachable|out of bounds|detached|lost|destroyed/i; // the last two: WebGPU's device

/** Whether an error leaves ONNX Runtime's memory in an unknown state, or without its graphics card, so that a new worker has to be started. */
export function isFatal(error) {
  if (error instanceof PictureError || error instanceof PageError) return false;
  return error instanceof WebAssembly.RuntimeError || error instanceof RangeError || FATAL.test(String(error?.message ?? error));
}
