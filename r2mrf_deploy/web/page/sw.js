// The service worker: the page works without a network, and on a host that sends no headers it has the threads of
// WebAssembly. Browsers allow these only to pages that are isolated from other origins, which two headers ask for.
//
// It holds the files of one version. Their names have hashes of their content, so what it finds by a name is right, whatever
// version asks. index.html, whose name is fixed, comes from the network while there is one: an old page never stays.
// Whatever else there is below its address, now or later, it leaves alone, and it removes itself once the page is gone.

const VERSION = new URL(location.href).searchParams.get("version");
const SCOPE = new URL(registration.scope);
const PREFIX = `r2mrf ${SCOPE.pathname} `; // hosts put several pages on one origin, whose caches are one another's
const CACHE = PREFIX + VERSION;
const INDEX = new URL("index.html", SCOPE).href;
const HASHED = /-([0-9a-f]{12})\.[^/]*$/;
const OWN = new Set(["licences.txt"]); // the files of fixed names
const ISOLATED = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

addEventListener("install", (event) => {
  event.waitUntil(install().then(replace));
});

addEventListener("activate", (event) => {
  event.waitUntil(tidy());
});

addEventListener("fetch", (event) => {
  const { request } = event;
  const address = new URL(request.url);
  address.search = address.hash = "";
  if (request.method !== "GET") return;
  if (isIndex(address.href)) event.respondWith(page(request));
  else if (isOwn(address.href)) event.respondWith(file(event, address.href));
});

const isIndex = (address) => address === SCOPE.href || address === INDEX;

function isOwn(address) {
  const name = address.startsWith(SCOPE.href) ? address.slice(SCOPE.href.length) : "";
  return !name.includes("/") && (HASHED.test(name) || OWN.has(name));
}

/** The page's own description: the block of JSON in index.html. */
function artifactIn(text) {
  const found = /<script type="application\/json" id="artifact">(.*?)<\/script>/s.exec(text);
  return found ? JSON.parse(found[1]) : null;
}

/** Keep every file of this version, or none. What only WebGPU needs is kept when it is first used. */
async function install() {
  const index = await fetch(INDEX, { cache: "no-cache" });
  const artifact = artifactIn(await index.clone().text());
  if (!index.ok || artifact?.version !== VERSION) throw new Error("the server has another version by now");
  const { script, loader, binary } = artifact.files.webgpu ?? {};
  const later = new Set([script, loader, binary?.name, "sw.js", "_headers"]);
  const shared = new Set([artifact.files.wasm.script, artifact.files.wasm.loader, artifact.files.wasm.binary.name]);
  const names = artifact.companions.filter((name) => shared.has(name) || !later.has(name));
  const cache = await caches.open(CACHE);
  try {
    await cache.put(INDEX, index);
    await Promise.all(names.map((name) => keep(cache, new URL(name, SCOPE).href)));
  } catch (error) {
    if (registration.active?.scriptURL !== location.href) await caches.delete(CACHE); // unless that one uses it
    throw error;
  }
}

/** Names of fixed files may be in the browser's cache from an older version; those with hashes are only there if damaged. */
async function keep(cache, address) {
  for (const mode of HASHED.test(address) ? ["force-cache", "reload"] : ["no-cache"]) {
    const response = await fetch(address, { cache: mode });
    if (!response.ok) throw new Error(`${address} is missing`);
    if (await isRight(response.clone(), address)) return cache.put(address, response);
  }
  throw new Error(`${address} is damaged`);
}

/** Whether a body is the one that its name's hash is of. One that the server unpacked on the way cannot be compared. */
async function isRight(response, address) {
  const [, digits] = HASHED.exec(address) ?? [];
  if (!digits || !globalThis.crypto?.subtle) return true;
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (address.endsWith(".gz") && bytes[0] === 0 && bytes.length > 1) return true;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest.subarray(0, 6), (byte) => byte.toString(16).padStart(2, "0")).join("") === digits;
}

/** Take the place of the worker of an older version, unless that has another tab open, which needs its files. */
async function replace() {
  const tabs = (await clients.matchAll({ type: "window", includeUncontrolled: true })).filter(({ url }) => {
    const { origin, pathname } = new URL(url);
    return isIndex(origin + pathname);
  });
  if (tabs.length < 2) await skipWaiting();
}

/** Remove the files of other versions of this page. */
async function tidy() {
  for (const name of await caches.keys()) {
    if (name.startsWith(PREFIX) && name !== CACHE) await caches.delete(name);
  }
}

/** The page is gone from here: leave its place to what there is now. */
async function leave() {
  await registration.unregister();
  for (const name of await caches.keys()) {
    if (name.startsWith(PREFIX)) await caches.delete(name);
  }
}

/** index.html: from the network, and as it was kept where that fails. Any other answer is the host's, and passes unchanged. */
async function page(request) {
  const kept = async () => (await caches.open(CACHE)).match(INDEX);
  const { url, headers, redirect } = request; // of a navigation, some browsers make no other request
  let response;
  try {
    response = await fetch(url, { headers, redirect, cache: "no-cache", credentials: "same-origin" });
  } catch (error) {
    response = await kept();
    if (!response) throw error;
    return isolated(response);
  }
  if (response.status >= 500) return isolated((await kept()) ?? response);
  const gone = response.status === 404 || response.status === 410;
  if (gone || (response.ok && !(await response.clone().text()).includes('id="artifact"'))) {
    await leave();
    return response;
  }
  return response.ok ? isolated(response) : response;
}

/** Any other file: as it was kept, otherwise from the network; so too if the page asks for it again, as what it got is damaged. */
async function file(event, address) {
  const { request } = event;
  const cache = await caches.open(CACHE);
  const kept = await cache.match(address);
  if (kept && request.cache !== "reload" && request.cache !== "no-cache") return isolated(kept);
  let response;
  try {
    response = await fetch(request);
  } catch (error) {
    if (!kept) throw error;
    return isolated(kept);
  }
  if (!response.ok) return isolated(kept ?? response);
  const later = /\/ort[-.][^/]*$/.test(address); // WebGPU's files are kept from their first use on
  if (response.type === "basic" && (kept || later)) event.waitUntil(store(cache, address, response.clone()).catch(() => {}));
  return isolated(response);
}

async function store(cache, address, response) {
  if (await isRight(response.clone(), address)) await cache.put(address, response);
}

function isolated(response) {
  if (response.status === 0 || response.type === "opaqueredirect") return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATED)) headers.set(name, value);
  const { status, statusText } = response;
  const empty = status === 204 || status === 205 || status === 304;
  return new Response(empty ? null : response.body, { status, statusText, headers });
}
