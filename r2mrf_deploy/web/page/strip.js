// The row of photographs: each a button with its state. One of them is reached by Tab, the others from there by arrow keys.

import { at, make } from "./dom.js";
import { share } from "./words.js";

const STATES = { waiting: "waiting", working: "being analysed …", failed: "could not be used" };

export class Strip {
  #album;
  #buttons = new Map(); // entry -> button

  constructor(album) {
    this.#album = album;
    album.addEventListener("list", () => this.#list());
    album.addEventListener("select", () => this.#mark());
    album.addEventListener("change", ({ detail }) => this.#update(detail));
    at("strip").addEventListener("keydown", (event) => this.#move(event));
  }

  #list() {
    const { entries } = this.#album;
    for (const entry of this.#buttons.keys()) if (!entries.includes(entry)) this.#buttons.delete(entry);
    for (const entry of entries) {
      if (this.#buttons.has(entry)) continue;
      this.#buttons.set(entry, this.#button(entry));
      this.#update(entry);
    }
    at("strip").replaceChildren(...entries.map((entry) => make("li", {}, this.#buttons.get(entry))));
    at("strip").hidden = entries.length < 2;
  }

  #button(entry) {
    const canvas = make("canvas", { width: 4, height: 3 });
    const name = make("span", { className: "called", dir: "auto", textContent: entry.name });
    const button = make("button", { type: "button", className: "thumb", title: entry.name, tabIndex: -1 },
      canvas, name, make("span", { className: "what" }));
    button.addEventListener("click", () => this.#album.select(entry));
    return button;
  }

  #update(entry) {
    const button = this.#buttons.get(entry);
    if (!button) return;
    const { state, result } = entry;
    button.className = `thumb ${state}`;
    button.querySelector(".what").textContent = STATES[state] ?? `${share(result.scores.in_focus)} in focus`;
    if (state !== "done" || !result.thumbnail.width) return;
    const canvas = button.querySelector("canvas");
    [canvas.width, canvas.height] = [result.thumbnail.width, result.thumbnail.height];
    canvas.getContext("2d").drawImage(result.thumbnail, 0, 0);
  }

  #mark() {
    for (const [entry, button] of this.#buttons) {
      const current = entry === this.#album.selected;
      button.tabIndex = current ? 0 : -1;
      button.setAttribute("aria-current", String(current));
      if (current) this.#reveal(button.parentElement);
    }
  }

  /** Scroll the row, and nothing else, so that an item is in view. */
  #reveal(item) {
    const strip = at("strip");
    const [left, right] = [item.offsetLeft - strip.offsetLeft, item.offsetLeft - strip.offsetLeft + item.offsetWidth];
    if (left < strip.scrollLeft) strip.scrollLeft = left - 8;
    if (right > strip.scrollLeft + strip.clientWidth) strip.scrollLeft = right - strip.clientWidth + 8;
  }

  #move(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const { entries, selected } = this.#album;
    const now = entries.indexOf(selected);
    const wanted = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: entries.length - 1 }[event.key];
    if (wanted === undefined) return;
    event.preventDefault();
    const entry = entries[Math.min(Math.max(wanted, 0), entries.length - 1)];
    this.#album.select(entry);
    this.#buttons.get(entry).focus();
  }
}
