// Loads the large files of the page, and verifies that they are those that it was made with.

import { PageError } from "./errors.js";

const AGAIN = "Load the page again. If that does not help, its files on the server are incomplete.";

async function hashOf(bytes) {
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The body of a response as one array. `count` is told how many more bytes have arrived. */
async function body(response, count) {
  const reader = response.body.getReader();
  const parts = [];
  let length = 0;
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    parts.push(next.value);
    length += next.value.length;
    count(next.value.length);
  }
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

async function once(address, cache, count) {
  let response;
  try {
    response = await fetch(address, { cache });
  } catch {
    throw new PageError(`The server does not answer. ${AGAIN}`);
  }
  if (!response.ok) {
    const name = address.pathname.split("/").pop();
    throw new PageError(`The server has no file ${name}: it may have a newer version of this page. ${AGAIN}`);
  }
  try {
    return await body(response, count);
  } catch {
    throw new PageError(`The connection broke while the page was loading. ${AGAIN}`);
  }
}

/** Whether bytes are those of a file. Outside a secure context, browsers have no SHA-256, and only the length is compared. */
async function matches(bytes, file) {
  return bytes.length === file.bytes && (!globalThis.crypto?.subtle || (await hashOf(bytes)) === file.sha256);
}

/**
 * A file's content, verified. What a cache damaged is loaded again, once.
 * @param {{name, sha256, bytes}} file
 * @param {URL} base the page's address.
 * @param {(bytes: number) => void} count told how many more bytes have arrived.
 * @returns {Promise<Uint8Array>}
 * @throws {PageError} it is missing, or is another one.
 */
export async function verified(file, base, count) {
  const address = new URL(file.name, base);
  for (const cache of ["default", "reload"]) {
    let arrived = 0;
    const bytes = await once(address, cache, (more) => {
      const counted = Math.min(more, file.bytes - arrived); // an unpacked file is larger than it is said to be
      arrived += counted;
      count(counted);
    });
    if (isUnpacked(bytes, file) || (await matches(bytes, file))) return bytes;
    count(-arrived);
  }
  throw new PageError(`The file ${file.name} is damaged, or belongs to another version of this page. ${AGAIN}`);
}

const isGzip = (bytes) => bytes[0] === 0x1f && bytes[1] === 0x8b;
/** A server that knows .gz has its content unpacked on the way: it can no longer be compared with the stored file. */
const isUnpacked = (bytes, file) => file.name.endsWith(".gz") && !isGzip(bytes) && bytes[0] === 0;

/** The content of a file that is stored gzipped. */
export async function unpacked(bytes) {
  if (!isGzip(bytes)) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
