// How photographs come in: chosen, dropped (also folders of them), pasted.

import { at, notice } from "./dom.js";

const PICTURE = /\.(jpe?g|mpo|png|bmp|tiff?|webp|gif|jp2|avif|hei[cf]|hif)$/i;
const MOST = 500; // photographs at once: each stays in memory as a map and a thumbnail

/**
 * @param {(files: File[]) => void} take receives what comes in.
 */
export function intake(take) {
  const taken = (files) => {
    notice(files.length > MOST ? `These are ${files.length.toLocaleString("en")} files: the first ${MOST} are taken.` : "");
    if (files.length) take(files.slice(0, MOST));
  };
  at("choose").addEventListener("click", () => at("files").click());
  at("files").addEventListener("change", () => {
    taken([...at("files").files]);
    at("files").value = ""; // so that the same file can be chosen again
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) taken(files.map(named));
  });
  dropping(taken);
}

/** Pictures from a clipboard are all called image.png. */
function named(file) {
  return file.name === "image.png" ? new File([file], "pasted.png", { type: file.type }) : file;
}

function dropping(taken) {
  let depth = 0; // of elements that are entered and not left
  const shown = (more) => {
    depth = Math.max(0, depth + more);
    at("dropping").hidden = depth === 0;
  };
  const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragenter", (event) => holdsFiles(event) && shown(1));
  addEventListener("dragleave", (event) => holdsFiles(event) && shown(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", async (event) => {
    event.preventDefault(); // otherwise the browser would open the file instead of this page
    shown(-Infinity);
    const { files, folders } = content(event.dataTransfer);
    const inside = await Promise.all(folders.map(pictures));
    const all = [...files, ...inside.flatMap((found) => found ?? [])];
    taken(all);
    if (inside.includes(null)) notice("A folder cannot be read. Choose the photographs in it instead.");
    else if (!all.length) notice(folders.length ? "This folder holds no pictures." : "This is no file. Save the picture first, or copy and paste it.");
  });
}

/** What was dropped: files, and folders as entries of the browser's own file system. It has to be read at once. */
function content(transfer) {
  const items = [...(transfer?.items ?? [])].filter(({ kind }) => kind === "file");
  const found = { files: [], folders: [] };
  for (const item of items) {
    const entry = item.webkitGetAsEntry?.();
    const file = entry?.isDirectory ? null : item.getAsFile();
    if (entry?.isDirectory) found.folders.push(entry);
    else if (file) found.files.push(file);
  }
  return found;
}

/** The pictures in a folder, by their names, without its subfolders: as `predict` takes one. null if it cannot be read. */
async function pictures(folder) {
  const reader = folder.createReader();
  const found = [];
  try {
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) break;
      found.push(...some.filter(({ isFile, name }) => isFile && PICTURE.test(name) && !name.startsWith("._")));
    }
    found.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
    return await Promise.all(found.map((entry) => new Promise((resolve, reject) => entry.file(resolve, reject))));
  } catch {
    return null;
  }
}
