// The photographs that were chosen: analysed one after another, each with its state.

/** One photograph. `state` is waiting, working, done or failed; `message` says why it failed; `result` is what was found. */
class Entry {
  state = "waiting";
  message = "";
  result = null;
  constructor(file, name) {
    Object.assign(this, { file, name });
  }
}

const KEPT = 4; // photographs whose large pictures stay in memory: each has some 20 MB

/**
 * Events: `change` (detail: the entry whose state or pictures changed), `select` (another entry is shown), `list` (entries
 * were added or removed).
 */
export class Album extends EventTarget {
  entries = [];
  selected = null;
  #detector;
  #detail;
  #busy = false;
  #drawing = false;
  #pictures = new Map(); // entry -> {overlay, picture}, the last used last

  /** @param detail a function that gives the longest side at which photographs are analysed, or undefined. */
  constructor(detector, detail) {
    super();
    this.#detector = detector;
    this.#detail = detail;
  }

  /** Add files, and show the first of them. */
  add(files) {
    const added = files.map((file) => new Entry(file, file.name || "picture"));
    if (!added.length) return;
    this.entries.push(...added);
    this.#tell("list");
    this.select(added[0]);
    this.work();
  }

  select(entry) {
    this.selected = entry;
    this.#tell("select");
    this.#draw();
  }

  clear() {
    for (const entry of this.entries) this.#forget(entry);
    this.entries = [];
    this.#tell("list");
    this.select(null);
  }

  /** Analyse an entry again, with the detail that is chosen now. */
  again(entry) {
    if (!entry || entry.state === "working" || !(entry.result || entry.state === "failed")) return;
    this.#set(entry, "waiting");
    this.work();
  }

  /** The large pictures of an entry, {overlay, picture}; undefined until they are drawn. */
  pictures(entry) {
    return this.#pictures.get(entry);
  }

  /** Analyse what is waiting, the selected entry first. If the network cannot be loaded, everything goes on waiting. */
  async work() {
    this.#draw();
    if (this.#busy) return;
    this.#busy = true;
    try {
      while (await this.#loaded()) {
        const waiting = this.entries.filter(({ state }) => state === "waiting");
        const entry = waiting.includes(this.selected) ? this.selected : waiting[0];
        if (!entry) return;
        await this.#analyse(entry);
      }
    } finally {
      this.#busy = false;
    }
  }

  #loaded() {
    return this.#detector.ready.then(() => true, () => false);
  }

  async #analyse(entry) {
    this.#set(entry, "working");
    const { ready } = this.#detector;
    const { generation } = this.#detector;
    try {
      const found = await this.#detector.map(entry.file, { detail: this.#detail() });
      const { overlay, picture, ...result } = found;
      const ran = await ready;
      if (!this.entries.includes(entry)) return [overlay, picture, result.thumbnail].forEach((bitmap) => bitmap.close());
      entry.result?.thumbnail.close();
      entry.result = { ...result, ran };
      entry.retried = false;
      this.#keep(entry, { overlay, picture });
      this.#set(entry, "done");
    } catch (error) {
      if (!this.entries.includes(entry)) return;
      if (generation !== this.#detector.generation && error.name === "PageError" && !entry.retried) {
        entry.retried = true; // what runs the network was changed, or it crashed over another photograph
        this.#set(entry, "waiting");
      } else this.#set(entry, "failed", error.message);
    }
  }

  /** Draw the selected entry if it is not drawn any more, one at a time: who goes through the row quickly waits for the last. */
  async #draw() {
    if (this.#drawing) return;
    this.#drawing = true;
    try {
      while (this.#undrawn() && (await this.#loaded())) await this.#redraw(this.#undrawn());
    } finally {
      this.#drawing = false;
    }
  }

  #undrawn() {
    const entry = this.selected;
    return entry?.state === "done" && !this.#pictures.has(entry) ? entry : null;
  }

  async #redraw(entry) {
    if (!entry) return;
    const { result } = entry;
    const { map: values, height, width } = result;
    const { generation } = this.#detector;
    const gone = () => !this.entries.includes(entry) || entry.result !== result;
    try {
      const { overlay, picture, thumbnail } = await this.#detector.draw(entry.file, { values, height, width });
      thumbnail.close();
      if (gone()) return [overlay, picture].forEach((bitmap) => bitmap.close());
      entry.redrawn = false;
      this.#keep(entry, { overlay, picture });
      this.#tell("change", entry);
    } catch (error) {
      if (gone() || entry.state !== "done") return;
      if (generation !== this.#detector.generation && !entry.redrawn) entry.redrawn = true; // not its fault: once more
      else this.#set(entry, "failed", error.message);
    }
  }

  #keep(entry, pictures) {
    this.#close(entry);
    this.#pictures.set(entry, pictures);
    for (const old of this.#pictures.keys()) {
      if (this.#pictures.size <= KEPT) break;
      if (old !== this.selected) this.#close(old);
    }
  }

  #close(entry) {
    const pictures = this.#pictures.get(entry);
    this.#pictures.delete(entry);
    pictures?.overlay.close();
    pictures?.picture.close();
  }

  #forget(entry) {
    this.#close(entry);
    entry.result?.thumbnail.close();
  }

  #set(entry, state, message = "") {
    Object.assign(entry, { state, message });
    this.#tell("change", entry);
  }

  #tell(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }
}
