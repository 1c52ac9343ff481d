// What a browser has to have for this page, and what is said where it is missing.
//
// Workers that are modules are not asked for here: a browser without them cannot start the worker, which is said then.

/** The smallest module with a SIMD instruction: a function that makes a vector of a number, and drops it. */
const SIMD = Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, // magic and version
  1, 4, 1, 96, 0, 0, // one type: () -> ()
  3, 2, 1, 0, // one function of it
  10, 9, 1, 7, 0, 65, 0, 253, 15, 26, 11, // i32.const 0, i8x16.splat, drop, end
);

/** What is missing, as a sentence; empty if everything is there. */
export function missing() {
  const there = typeof WebAssembly === "object";
  const parts = [
    [there, "WebAssembly, which is off in some protected modes"],
    [there && WebAssembly.validate(SIMD), "the SIMD instructions of WebAssembly"],
    [typeof Worker === "function", "workers"],
    [typeof OffscreenCanvas === "function", "OffscreenCanvas"],
    [typeof createImageBitmap === "function", "createImageBitmap"],
    [typeof DecompressionStream === "function" && typeof CompressionStream === "function", "DecompressionStream"],
  ];
  const found = parts.find(([has]) => !has);
  return found ? `This browser does not have ${found[1]}, and the page needs it. Use a current Chrome, Edge, Firefox or Safari.` : "";
}
