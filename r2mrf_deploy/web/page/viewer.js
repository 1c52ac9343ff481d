// The large picture with its divider: the photograph to the left of it, the overlay or the map to the right.

import { at, make, paint } from "./dom.js";
import { VERDICTS, detailRows, scoreRows } from "./words.js";

const LOOKS = {
  overlay: {
    tag: "Overlay",
    label: "The photograph, what is out of focus dark and grey",
    key: "What is out of focus is dark; the yellow line is where the map is 0.5.",
  },
  map: { tag: "Map", label: "The map of what is in focus", key: "White is in focus, black is not." },
  photograph: { tag: "", label: "The photograph", key: "" },
};
const STATES = { waiting: "Waiting …", working: "Being analysed …", failed: "It could not be used" };
const WAITING = { waiting: "This photograph is waiting for the network.", working: "This photograph is being analysed …" };

export class Viewer {
  #album;
  #map = null; // the map of what is shown, as a canvas

  constructor(album) {
    this.#album = album;
    album.addEventListener("select", () => this.show());
    album.addEventListener("change", ({ detail }) => detail === album.selected && this.show());
    at("looks").addEventListener("change", () => this.#look());
    at("looks").addEventListener("submit", (event) => event.preventDefault());
    at("split").addEventListener("input", () => this.#split());
    this.#drag();
    this.#split();
  }

  /** Show the selected photograph in its state. */
  show() {
    const entry = this.#album.selected;
    document.body.classList.toggle("filled", entry !== null);
    at("result").hidden = entry === null;
    if (entry === null) return;
    const pictures = this.#album.pictures(entry);
    const done = entry.state === "done";
    at("name").textContent = entry.name;
    at("frame").hidden = !(done && pictures);
    at("pending").hidden = Boolean(done && pictures);
    at("pending").textContent = entry.message || (done ? "This photograph is being drawn …" : WAITING[entry.state]);
    at("pending").classList.toggle("failed", entry.state === "failed");
    at("looks").inert = !done;
    at("found").querySelectorAll("button").forEach((button) => { button.disabled = !done; });
    this.#facts(entry);
    if (done && pictures) this.#paint(entry, pictures);
  }

  #facts({ state, result }) {
    const verdict = at("verdict");
    const found = state === "done" ? result : null;
    verdict.textContent = found ? VERDICTS[found.scores.verdict] : STATES[state];
    if (found) verdict.dataset.verdict = found.scores.verdict;
    else delete verdict.dataset.verdict;
    at("scores").replaceChildren(...scoreRows(found?.scores).map(([name, about, value]) =>
      make("tr", {}, make("th", { scope: "row" }, name, make("span", { textContent: about })), make("td", { textContent: value }))));
    at("details").replaceChildren(...detailRows(found).map(([name, value]) =>
      make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", { textContent: value }))));
  }

  #paint({ result }, { picture }) {
    at("frame").style.setProperty("--aspect", picture.width / picture.height);
    paint(at("before"), picture);
    this.#map = mapCanvas(result);
    this.#look();
  }

  /** Show the chosen look beside the photograph. */
  #look() {
    const look = new FormData(at("looks")).get("look");
    const { tag, label, key } = LOOKS[look];
    at("frame").classList.toggle("whole", look === "photograph");
    at("frame").querySelector(".right").textContent = tag;
    at("key").textContent = key;
    at("after").hidden = look === "photograph";
    at("after").setAttribute("aria-label", label);
    at("split").setAttribute("aria-label", `Divider between the photograph and the ${tag.toLowerCase()}`);
    const pictures = this.#album.pictures(this.#album.selected);
    if (!pictures || look === "photograph") return;
    paint(at("after"), look === "map" ? this.#map : pictures.overlay);
  }

  #split() {
    const place = Number(at("split").value);
    at("frame").style.setProperty("--split", `${place}%`);
    at("split").setAttribute("aria-valuetext", `${place} percent of the width shows the photograph`);
    const [left, right] = ["left", "right"].map((side) => at("frame").querySelector(`.${side}`));
    left.hidden = place < 12;
    right.hidden = place > 88;
  }

  /** Pointers move the divider to where they are. */
  #drag() {
    const frame = at("frame");
    const place = (event) => {
      const { left, width } = frame.getBoundingClientRect();
      at("split").value = String((100 * (event.clientX - left)) / width);
      this.#split();
    };
    frame.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || frame.classList.contains("whole")) return;
      frame.setPointerCapture(event.pointerId);
      place(event);
    });
    frame.addEventListener("pointermove", (event) => frame.hasPointerCapture(event.pointerId) && place(event));
  }
}

/** A map as a grey picture of its own size, which the browser enlarges. */
function mapCanvas({ map, height, width }) {
  const canvas = make("canvas", { width, height });
  const image = new ImageData(width, height);
  map.forEach((value, i) => image.data.set([255 * value, 255 * value, 255 * value, 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
