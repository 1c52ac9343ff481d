// Short names for what the page does with its elements.

export const at = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Say something to screen readers. */
export function say(text) {
  at("said").textContent = text;
}

/** Say something to everybody, at the top; nothing to take it away. */
export function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

/** Give a file to the person. */
export function save(blob, name) {
  const address = URL.createObjectURL(blob);
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** Draw a bitmap on a canvas of its size, or of a given size, in which it lies in the middle. */
export function paint(canvas, bitmap) {
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
}
