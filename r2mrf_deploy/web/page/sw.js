// The service worker: the page works without a network, and on a host that sends no headers it has the threads of
// WebAssembly. Browsers allow these only to pages that are isolated from other origins, which two headers ask for.
//
// It holds the files of one version. Their names have hashes of their content, so what it finds by a name is right, whatever
// version asks. index.html, whose name is fixed, comes from the network while there is one: an old page never stays.

const VERSION = new URL(location.href).searchParams.get("version");
const SCOPE = new URL(registration.scope);
const PREFIX = `r2mrf ${SCOPE.pathname} `; // hosts put several pages on one origin, whose caches are one another's
const CACHE = PREFIX + VERSION;
const INDEX = new URL("index.html", SCOPE).href;
const ISOLATED = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

addEventListener("install", (event) => {
  event.waitUntil(install().then(() => skipWaiting()));
});

addEventListener("activate", (event) => {
  event.waitUntil(tidy());
});

addEventListener("fetch", (event) => {
  const { request } = event;
  const address = new URL(request.url);
  if (request.method !== "GET" || address.origin !== SCOPE.origin || !address.pathname.startsWith(SCOPE.pathname)) return;
  address.search = address.hash = "";
  if (address.href === SCOPE.href || address.href === INDEX) event.respondWith(page(request));
  else if (!address.pathname.endsWith("/sw.js")) event.respondWith(file(request, address.href));
});

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
  await cache.put(INDEX, index);
  await Promise.all(names.map((name) => keep(cache, new URL(name, SCOPE).href)));
}

/** Names of fixed files may be in the browser's cache from an older version; those with hashes cannot be. */
async function keep(cache, address) {
  const hashed = /-[0-9a-f]{12}\./.test(address);
  const response = await fetch(address, { cache: hashed ? "force-cache" : "no-cache" });
  if (!response.ok) throw new Error(`${address} is missing`);
  await cache.put(address, response);
}

/** Remove the files of other versions of this page. */
async function tidy() {
  for (const name of await caches.keys()) {
    if (name.startsWith(PREFIX) && name !== CACHE) await caches.delete(name);
  }
}

/** index.html: from the network, and without one as it was kept. */
async function page(request) {
  const kept = async () => (await caches.open(CACHE)).match(INDEX);
  try {
    const response = await fetch(request);
    if (response.type === "opaqueredirect") return response;
    if (response.ok) return isolated(response);
    return isolated((await kept()) ?? response);
  } catch (error) {
    const response = await kept();
    if (!response) throw error;
    return isolated(response);
  }
}

/** Any other file: as it was kept, otherwise from the network. WebGPU's files are kept from then on. */
async function file(request, address) {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(address);
  if (kept) return isolated(kept);
  const response = await fetch(request);
  if (response.ok && response.type === "basic" && /\/ort[-.][^/]*-[0-9a-f]{12}\./.test(address)) await cache.put(address, response.clone());
  return isolated(response);
}

function isolated(response) {
  if (response.status === 0 || response.type === "opaqueredirect") return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATED)) headers.set(name, value);
  const { status, statusText } = response;
  const empty = status === 204 || status === 205 || status === 304;
  return new Response(empty ? null : response.body, { status, statusText, headers });
}
