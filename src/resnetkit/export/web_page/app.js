// The page: photos in, answers out. Photos are drawn and classified here, and never sent anywhere.

import { DeepImageError, Model } from "./model.js";
import { language, text } from "./texts.js";
import { verify } from "./verify.js";

const THUMBNAIL = 256; // pixels of the longer side

const byId = (id) => document.getElementById(id);
const percent = new Intl.NumberFormat(language, {
  style: "percent",
  minimumFractionDigits: 1,
  maximumFractionDigits: 1,
});

document.documentElement.lang = language;
for (const element of document.querySelectorAll("[data-text]")) {
  element.textContent = text[element.dataset.text];
}

/** The queued work. It runs in order, because the runtime has one thread. */
let work = Promise.resolve();

function enqueue(task) {
  work = work.then(task).catch((error) => console.error(error));
  return work;
}

function say(message) {
  byId("status").textContent = message;
}

/** Let the browser draw before the runtime blocks it. */
function painted() {
  return new Promise((resolve) => setTimeout(resolve, 20));
}

// Photos

/** Show photos at the top of the list, and classify them one after another. */
function add(model, files) {
  const cards = Array.from(files, (file) => ({ file, card: newCard(file) }));
  byId("photos").prepend(...cards.map(({ card }) => card));
  byId("toolbar").hidden = false;
  for (const { file, card } of cards) {
    enqueue(async () => {
      if (!card.isConnected) return; // removed while it waited
      await painted();
      await answer(model, file, card);
    });
  }
}

function newCard(file) {
  const card = byId("photo").content.cloneNode(true).firstElementChild;
  card.querySelector(".name").textContent = file.name;
  card.querySelector(".class").textContent = text.working;
  card.querySelector("canvas").setAttribute("aria-label", file.name);
  card.classList.add("waiting");
  return card;
}

async function answer(model, file, card) {
  try {
    const { bitmap, top } = await model.answer(file);
    drawThumbnail(card.querySelector("canvas"), bitmap);
    bitmap.close();
    card.querySelector(".class").textContent = top[0].class;
    card.querySelector(".bars").replaceChildren(...top.map(newBar));
    say(text.answered(file.name, top[0].class, percent.format(top[0].probability)));
  } catch (error) {
    card.classList.add("failed");
    card.querySelector(".class").textContent = reasonOf(error);
    say(`${file.name}: ${reasonOf(error)}`);
  }
  card.classList.remove("waiting");
}

function newBar({ class: label, probability }) {
  const bar = byId("bar").content.cloneNode(true).firstElementChild;
  bar.querySelector(".label").textContent = label;
  bar.querySelector("data").value = probability;
  bar.querySelector("data").textContent = percent.format(probability);
  bar.querySelector(".fill").style.width = `${100 * probability}%`;
  return bar;
}

function drawThumbnail(canvas, bitmap) {
  const scale = Math.min(1, THUMBNAIL / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
}

function reasonOf(error) {
  if (error instanceof DeepImageError) return text.deep;
  if (error instanceof DOMException) return text.unreadable; // the browser's decoder threw it
  return text.failed(messageOf(error));
}

/** The runtime also throws numbers, for instance when memory runs out. */
function messageOf(error) {
  return error?.message ?? String(error);
}

/** Take photos from the dialog, the clipboard, or wherever on the page they are dropped. */
function listen(model) {
  byId("files").addEventListener("change", ({ target }) => {
    add(model, target.files);
    target.value = ""; // the same file may be chosen again
  });
  document.addEventListener("paste", ({ clipboardData }) => {
    if (clipboardData.files.length) add(model, clipboardData.files);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => {
    if (!relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    if (event.dataTransfer.files.length) add(model, event.dataTransfer.files);
  });
  byId("clear").addEventListener("click", () => {
    byId("photos").replaceChildren();
    byId("toolbar").hidden = true;
    say(text.ready);
    byId("files").focus();
  });
  byId("verify").addEventListener("click", () => enqueue(() => showVerification(model)));
}

// Verification

async function showVerification(model) {
  byId("verify").disabled = true;
  try {
    const report = await verify(model, async (done, total) => {
      byId("verdict").textContent = text.verifying(done + 1, total);
      await painted();
    });
    byId("stages").querySelector("tbody").replaceChildren(...report.rows.map(newRow));
    byId("stages").hidden = false;
    byId("verdict").replaceChildren(...verdict(report));
  } catch (error) {
    byId("verdict").textContent = text.unverified(messageOf(error));
  }
  byId("verify").disabled = false;
}

function verdict({ rows, undecoded, total }) {
  const first = rows.find((row) => row.differing.length);
  const compared = total - undecoded.length;
  const lines = [document.createElement("strong")];
  if (first) lines[0].textContent = text.disagrees(text.stages[first.stage]);
  else lines[0].textContent = compared ? text.agrees(compared, total) : text.nothing;
  lines[0].className = first ? "bad" : compared ? "good" : "";
  if (undecoded.length) lines.push(` ${text.undecoded(undecoded.join(text.join))}`);
  return lines;
}

function newRow({ stage, images, largest, differing }) {
  const row = document.createElement("tr");
  row.dataset.stage = stage;
  const names = differing.join(text.join);
  const result = names ? text.differs(names) : images ? text.same : text.none;
  for (const value of [text.stages[stage], images, shortened(largest), result]) {
    row.insertCell().textContent = value;
  }
  row.lastElementChild.className = names ? "bad" : images ? "good" : "";
  return row;
}

function shortened(number) {
  return Number.isFinite(number) ? Number(number.toPrecision(3)) : "∞";
}

// Start

function describe({ manifest, classes }) {
  const { architecture, sha256 } = manifest.source;
  const { accuracy } = manifest.metrics;
  document.title = byId("title").textContent = text.title(architecture);
  byId("about").textContent = text.about(classes.length);
  byId("source").textContent = [
    accuracy === undefined ? "" : text.accuracy(percent.format(accuracy)),
    manifest.license ? text.license(manifest.license) : "",
    text.source(sha256.slice(0, 12)),
  ]
    .filter(Boolean)
    .join(" · ");
}

async function start() {
  try {
    const model = await Model.load((bytes) => {
      say(text.loading((bytes / 1e6).toFixed(0)));
    });
    describe(model);
    listen(model);
    say(text.ready);
    byId("status").classList.add("unseen");
    byId("chooser").hidden = false;
    byId("verification").hidden = !model.entries.has("resnetkit.golden");
    if (new URLSearchParams(location.search).has("verify")) byId("verify").click();
  } catch (error) {
    say(text.broken(messageOf(error)));
    throw error;
  }
}

say(text.starting);
start();
