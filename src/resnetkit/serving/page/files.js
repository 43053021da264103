// Files from a dialog, the clipboard, or dropped anywhere on the page.

const HIDDEN = /^\.|^Thumbs\.db$/i;

/**
 * Pass on every photo that the user provides, as `{ file, name }`.
 *
 * @param {(photos: { file: File, name: string }[]) => void} add
 * @param {(names: string[]) => void} skip is told which files of a drop cannot be read
 */
export function listen(inputs, add, skip) {
  for (const input of inputs) {
    input.addEventListener("change", () => {
      add(named(input.files));
      input.value = ""; // the same file may be chosen again
    });
  }
  document.addEventListener("paste", ({ clipboardData }) => {
    if (clipboardData?.files.length) add(named(clipboardData.files));
  });
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return; // the browser handles text
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => {
    if (!relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", async (event) => {
    document.body.classList.remove("dragging");
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    const { found, skipped } = await dropped(event.dataTransfer);
    add(found);
    skip(skipped);
  });
}

function named(files) {
  return Array.from(files, (file) => ({ file, name: file.name || "photo" }));
}

/** Return the dropped files; a folder yields all files in it, named by their paths. */
async function dropped(transfer) {
  // The browser empties the list at the first await, so all of it is read now.
  const entries = Array.from(transfer.items, (item) => item.webkitGetAsEntry?.());
  const files = named(transfer.files);
  if (!entries.some((entry) => entry?.isDirectory)) return { found: files, skipped: [] };
  const found = [];
  const skipped = [];
  for (const entry of entries) await collect(entry, found, skipped);
  return { found, skipped };
}

async function collect(entry, found, skipped) {
  if (entry === null || HIDDEN.test(entry.name)) return;
  const name = entry.fullPath.replace(/^\//, "");
  try {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      found.push({ file, name });
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      // A reader returns part of the folder at a time, and nothing at the end.
      const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!part.length) return;
      for (const inner of part) await collect(inner, found, skipped);
    }
  } catch {
    skipped.push(name); // without permission, or deleted in the meantime
  }
}
