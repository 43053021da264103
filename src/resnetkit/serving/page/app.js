// The page: photos go to the server, a few at a time, and their answers come back as cards.

import { offerCameras } from "./camera.js";
import { csv, save } from "./csv.js";
import { listen } from "./files.js";
import { lanes } from "./lanes.js";
import { percent, Photo, shareOf } from "./photo.js";
import { Server } from "./server.js";
import { language, text, translate } from "./texts.js";

const PARALLEL = 4; // browsers open 6 connections to a server; heat maps and classes need some
const COVERAGES = ["0.8", "0.9", "0.95", "0.99"];
const FALSE_ALARMS = ["0.01", "0.05", "0.1", "0.2"];
const SETTINGS = ["coverage", "false_alarms"]; // parameters of /predict, and ids of their fields
const SPOKEN = 3; // up to this many answers at once are read out one by one

const byId = (id) => document.getElementById(id);
const server = new Server(askToken);
const enqueue = lanes(PARALLEL);
let model; // what /model returned
let photos = []; // in the order on the page: newest first

// Messages

/** Say something to screen readers, and, until the page is ready, to everyone. */
function say(message) {
  byId("status").textContent = message;
}

const unspoken = new Set();
let speaking = null;

/** Announce the answer for a photo, together with any that arrive right after it. */
function announce(photo) {
  unspoken.add(photo);
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    const done = [...unspoken].map(({ summary }) => summary);
    say(done.length > SPOKEN ? text.manyAnswered(done.length) : done.join(" "));
    unspoken.clear();
  }, 400);
}

function showProgress() {
  const done = photos.filter((photo) => photo.row !== null).length;
  byId("toolbar").hidden = !photos.length;
  byId("progress").textContent = text.progress(done, photos.length);
  byId("download").disabled = !done;
}

// Photos

function add(sources) {
  const added = sources.map((source) => new Photo(source, server, model));
  for (const photo of added) {
    photo.on(".remove", remove);
    photo.on(".again", send);
    send(photo);
  }
  photos = [...added, ...photos];
  byId("photos").prepend(...added.map(({ element }) => element));
  showProgress();
}

function showSkipped(names) {
  byId("skipped").textContent = names.length ? text.skipped(names.join(", ")) : "";
}

/** Ask the server about a photo, now or again. */
function send(photo) {
  const chosen = SETTINGS.map((name) => [name, byId(name).value]).filter(([, value]) => value);
  const parameters = Object.fromEntries(chosen);
  const task = photo.restart(parameters);
  showProgress();
  enqueue(async () => {
    const refusal = await task();
    if (refusal?.reason === "bad_parameter" && chosen.length) {
      refuseSetting(parameters, refusal.message);
      return;
    }
    if (photo.row !== null && photos.includes(photo)) announce(photo);
    showProgress();
  });
}

function remove(photo) {
  const next = photo.element.nextElementSibling ?? photo.element.previousElementSibling;
  photo.cancel();
  photo.element.remove();
  photos = photos.filter((other) => other !== photo);
  showProgress();
  (next?.querySelector(".remove") ?? byId("files")).focus(); // the button that had the focus is gone
}

function clear() {
  for (const photo of photos) photo.cancel();
  photos = [];
  byId("photos").replaceChildren();
  showProgress();
  showSkipped([]);
  say(text.cleared);
  byId("files").focus();
}

// Sets of classes, and photos that belong to none of the classes

function offerSettings() {
  for (const [name, values] of [["coverage", COVERAGES], ["false_alarms", FALSE_ALARMS]]) {
    byId(`${name}-label`).hidden = !model[name];
    byId(name).append(...values.map((value) => new Option(shareOf(value), value)));
    byId(name).addEventListener("change", () => {
      byId("setting-note").textContent = "";
      for (const photo of photos) send(photo); // all rows must have the same settings
    });
  }
}

/** Stop offering a value for which the model has too few calibration images. */
function refuseSetting(parameters, reason) {
  const name = SETTINGS.find((one) => reason.startsWith(one) && one in parameters);
  if (!name || byId(name).value !== parameters[name]) return; // another photo was refused first
  byId(name).selectedOptions[0].remove();
  byId(name).value = "";
  byId("setting-note").textContent = reason;
  for (const photo of photos) send(photo);
}

// The token

/** Show the field for the token, and return what the user enters. */
function askToken(wasWrong) {
  byId("token-form").hidden = false;
  byId("token-hint").textContent = wasWrong ? text.tokenWrong : text.tokenHint;
  byId("token").setAttribute("aria-invalid", String(wasWrong));
  byId("token").value = "";
  byId("token").focus();
  return new Promise((resolve) => {
    byId("token-form").addEventListener(
      "submit",
      (event) => {
        event.preventDefault();
        byId("token-form").hidden = true;
        resolve(byId("token").value);
        byId("token").value = "";
      },
      { once: true },
    );
  });
}

// Start

function describe() {
  document.title = byId("title").textContent = text.title(model.architecture ?? model.file);
  byId("about").textContent = text.about;
  byId("hint").textContent = matchMedia("(pointer: coarse)").matches ? "" : text.hint;
  const accuracy = model.metrics?.accuracy ?? model.metrics?.val_accuracy;
  byId("source").textContent = [
    accuracy === undefined ? "" : text.accuracy(percent.format(accuracy)),
    model.license ? text.license(model.license) : "",
    text.source(model.file, model.model),
  ]
    .filter(Boolean)
    .join(" · ");
  byId("interface").hidden = server.hasToken; // a link cannot carry the token
}

/** List the class names when the user wants to see them. */
function offerClasses() {
  const details = byId("classes");
  details.hidden = false;
  details.querySelector("summary").textContent = text.classes(model.classes);
  details.addEventListener("toggle", async () => {
    const list = details.querySelector("ul");
    if (!details.open || list.childElementCount) return;
    const items = (await server.classes()).map((name) => {
      const item = document.createElement("li");
      item.textContent = name;
      return item;
    });
    list.replaceChildren(...items);
  });
}

async function start() {
  document.documentElement.lang = language;
  translate(document);
  say(text.starting);
  try {
    model = await server.model(say);
  } catch (error) {
    say(text.broken(error.message));
    return;
  }
  describe();
  offerClasses();
  offerSettings();
  byId("download").addEventListener("click", () => {
    const rows = photos.map(({ row }) => row).filter((row) => row !== null);
    save(csv(rows), text.fileName);
  });
  byId("clear").addEventListener("click", clear);
  listen([byId("files"), byId("shot")], add, showSkipped);
  say(text.ready);
  byId("status").classList.add("unseen");
  byId("sources").hidden = false;
  await offerCameras(add);
}

start();
