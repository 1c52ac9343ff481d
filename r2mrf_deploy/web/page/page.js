// The page: puts its parts together. `window.r2mrf` is the network, for programs that drive the page.
//
// Query parameters: `provider` is wasm (also by `auto`) or webgpu; `threads` is a positive integer; with `ui=0` nothing is loaded until
// `r2mrf` is asked, and no service worker is registered.

import { Album } from "./album.js";
import { camera } from "./camera.js";
import { Detector } from "./detector.js";
import { at, notice, save, say } from "./dom.js";
import { intake } from "./intake.js";
import { choices, state, unkept } from "./network.js";
import { Strip } from "./strip.js";
import { missing } from "./support.js";
import { Viewer } from "./viewer.js";
import { VERDICTS, share } from "./words.js";

at("unstarted").remove();
const artifact = JSON.parse(at("artifact").textContent);
const query = new URLSearchParams(location.search);
const provider = query.get("provider") === "webgpu" ? "webgpu" : "wasm";
const detector = new Detector(artifact, { provider, threads: Number(query.get("threads")) });
window.r2mrf = detector;
at("made").textContent = `${artifact.title} · ${artifact.runtime} · version ${artifact.version}`;
at("licences").href = artifact.licences;

if (query.get("ui") !== "0") {
  const lacking = missing();
  if (lacking) {
    notice(lacking);
    at("intake").hidden = at("network").hidden = true;
  } else start();
}

function start() {
  const follow = state(detector, artifact);
  const detail = choices(artifact, provider);
  const album = new Album(detector, detail);
  new Strip(album);
  new Viewer(album);
  intake((files) => album.add(files));
  camera(detector, (file) => album.add([file]));
  detector.addEventListener("open", () => idle(album).then(offline), { once: true });
  follow();

  at("again").addEventListener("click", () => change(at("provider").value));
  at("provider").addEventListener("change", () => change(at("provider").value));
  at("detail").addEventListener("change", () => album.again(album.selected));
  async function change(wanted) {
    detector.use(wanted).catch(() => {});
    if (!(await follow())) return; // what is shown stays
    album.again(album.selected);
    album.work();
  }

  at("clear").addEventListener("click", () => {
    album.clear();
    notice("");
    at("choose").focus();
  });
  album.addEventListener("list", () => {
    at("clear").hidden = album.entries.length === 0;
  });
  album.addEventListener("change", ({ detail: entry }) => {
    const { scores } = entry.result ?? {};
    if (entry.state === "done") say(`${entry.name}: ${VERDICTS[scores.verdict]}; ${share(scores.in_focus)} of the picture is in focus.`);
    if (entry.state === "failed") say(`${entry.name} could not be used. ${entry.message}`);
  });
  saving(album);
  sample(album);
}

/** Until the first photograph is done, or for some seconds if none comes: what is stored for later must not delay it. */
function idle(album) {
  return new Promise((resolve) => {
    const wait = () => (album.entries.some(({ state }) => state === "waiting" || state === "working") ? setTimeout(wait, 500) : resolve());
    setTimeout(wait, 3000);
  });
}

function saving(album) {
  const stem = () => album.selected.name.replace(/\.[^.]+$/, "");
  at("save-map").addEventListener("click", async () => {
    const { map: values, height, width, photograph } = album.selected.result;
    const name = `${stem()}_map.png`;
    try {
      save(await detector.file({ values, height, width }, photograph), name);
    } catch (error) {
      notice(`The map could not be saved: ${error.message}`);
    }
  });
  at("save-overlay").addEventListener("click", async () => {
    const pictures = album.pictures(album.selected);
    if (!pictures) return;
    const name = `${stem()}_overlay.jpg`; // now: another may be selected by the time it is encoded
    try {
      const canvas = new OffscreenCanvas(pictures.overlay.width, pictures.overlay.height);
      canvas.getContext("2d").drawImage(pictures.overlay, 0, 0);
      save(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 }), name);
    } catch (error) {
      notice(`The overlay could not be saved: ${error.message}`);
    }
  });
}

function sample(album) {
  at("try").hidden = !artifact.sample;
  at("try").addEventListener("click", async () => {
    try {
      const response = await fetch(artifact.sample);
      if (!response.ok) throw new Error(response.statusText);
      album.add([new File([await response.blob()], `sample${artifact.sample.slice(artifact.sample.lastIndexOf("."))}`)]);
    } catch {
      notice("The sample cannot be loaded. Load the page again.");
    }
  });
}

/** Have the page work offline, and from its next visit on with all processors: see sw.js. It is loaded and ready by now. */
async function offline() {
  if (!navigator.serviceWorker) return; // as outside a secure context
  const address = new URL("./sw.js", document.baseURI);
  address.searchParams.set("version", artifact.version);
  await navigator.serviceWorker.register(address).catch(unkept); // a host may not have it, or the browser may forbid it
}
