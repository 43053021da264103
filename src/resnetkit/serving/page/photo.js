// The card of one photo: its thumbnail, its answer or the reason why there is none, its heat map.

import { Refusal } from "./server.js";
import { language, text, translate } from "./texts.js";

const THUMBNAIL = 320; // pixels of the longer side: sharp on screens with two pixels per CSS pixel

export const percent = new Intl.NumberFormat(language, {
  style: "percent",
  minimumFractionDigits: 1,
  maximumFractionDigits: 1,
});

function copyOf(id) {
  const element = document.getElementById(id).content.cloneNode(true).firstElementChild;
  translate(element);
  return element;
}

export class Photo {
  /** The row of the CSV file, once there is an answer or a refusal. */
  row = null;

  #file;
  #server;
  #model;
  #request = new AbortController();
  #hasThumbnail = false;

  /**
   * @param {{ file: File, name: string }} source
   * @param {Server} server
   * @param {object} model what /model returned
   */
  constructor({ file, name }, server, model) {
    this.#file = file;
    this.#server = server;
    this.#model = model;
    this.name = name;
    this.element = copyOf("photo");
    this.#find(".name").textContent = name;
    this.#find(".name").title = name;
    this.#find("canvas").setAttribute("aria-label", name);
    this.#find(".remove").setAttribute("aria-label", text.remove(name));
    this.#find(".why").setAttribute("aria-label", `${text.why}: ${name}`);
    this.#find(".why").addEventListener("click", () => this.#toggleExplanation());
  }

  #find(selector) {
    return this.element.querySelector(selector);
  }

  /** Call a listener on clicks on "remove" or "try again". */
  on(selector, listener) {
    this.#find(selector).addEventListener("click", () => listener(this));
  }

  /**
   * Forget the answer, and return the task that gets a new one.
   * @param {Record<string, string>} parameters such as coverage
   */
  restart(parameters) {
    this.cancel();
    this.#request = new AbortController();
    const { signal } = this.#request;
    this.row = null;
    this.element.classList.remove("failed");
    this.element.classList.add("waiting");
    this.#find(".class").textContent = text.waiting;
    this.#find(".set").hidden = true;
    this.#find(".again").hidden = true;
    this.#find(".why").hidden = true;
    this.#find(".bars").replaceChildren();
    return () => this.#answer(parameters, signal);
  }

  /** Cancel whatever is in progress for this photo. */
  cancel() {
    this.#request.abort();
  }

  /**
   * Get and show the answer. Return the refusal if there is one, and null if there is an answer or
   * nobody is waiting for it anymore.
   */
  async #answer(parameters, signal) {
    if (signal.aborted) return null;
    const say = (message) => {
      if (!signal.aborted) this.#find(".class").textContent = message;
    };
    say(text.working);
    try {
      const body = await this.#read();
      await this.#drawThumbnail();
      const answer = await this.#server.predict(body, parameters, signal, (reason) => say(reason));
      if (signal.aborted) return null;
      this.#show({ ...answer, source: this.name }, parameters);
      return null;
    } catch (error) {
      if (signal.aborted) return null;
      this.#fail(error);
      if (error instanceof Refusal) return error;
      throw error;
    }
  }

  async #read() {
    const most = this.#model.limits.body_bytes;
    // The server would close the connection, and the browser would not show why.
    if (this.#file.size > most) throw new Refusal(text.tooLarge((most / 2 ** 20).toFixed(0)));
    try {
      return await this.#file.arrayBuffer();
    } catch {
      throw new Refusal(text.unreadable); // moved, changed, or a folder
    }
  }

  async #drawThumbnail() {
    if (this.#hasThumbnail) return;
    let bitmap;
    try {
      bitmap = await createImageBitmap(this.#file);
    } catch {
      return; // the server reads more formats than browsers do
    }
    const canvas = this.#find("canvas");
    const scale = Math.min(1, THUMBNAIL / Math.max(bitmap.width, bitmap.height));
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    this.#hasThumbnail = true;
    this.element.classList.add("drawn");
  }

  #show(row, { coverage }) {
    this.row = row;
    this.element.classList.remove("waiting");
    const isUnknown = row.class !== row.top[0].class;
    this.element.classList.toggle("unknown", isUnknown);
    this.#find(".class").textContent = isUnknown ? text.unknown : row.class;
    this.#find(".bars").replaceChildren(...row.top.map(newBar));
    this.#find(".why").hidden = !this.#model.explain;
    if (row.set) {
      const names = row.set.map((name) => {
        const chip = document.createElement("span");
        chip.className = "chip";
        chip.textContent = name;
        return chip;
      });
      const lead = document.createElement("span");
      lead.textContent = text.set(shareOf(coverage));
      this.#find(".set").replaceChildren(lead, ...(names.length ? names : [text.emptySet]));
      this.#find(".set").hidden = false;
    }
  }

  #fail(error) {
    const message = error.message;
    this.row = {
      source: this.name,
      class: null,
      probability: null,
      model: this.#model.model,
      error: message,
    };
    this.element.classList.remove("waiting");
    this.element.classList.add("failed");
    const translated = text.reasons[error.reason];
    this.#find(".class").textContent = translated ? `${translated} ${message}` : message;
    this.#find(".again").hidden = !error.isPassing;
  }

  /** What a screen reader says about the answer. */
  get summary() {
    if (this.row === null) return "";
    if (this.row.error !== null) return `${this.name}: ${this.row.error}`;
    const label = this.#find(".class").textContent;
    return text.answered(this.name, label, percent.format(this.row.probability));
  }

  // The heat map

  async #toggleExplanation() {
    const figure = this.#find(".explanation");
    const button = this.#find(".why");
    figure.hidden = !figure.hidden;
    button.setAttribute("aria-expanded", String(!figure.hidden));
    const image = this.#find(".explanation img");
    if (figure.hidden || image.src || figure.ariaBusy === "true") return;
    const caption = this.#find("figcaption");
    caption.textContent = text.working;
    figure.ariaBusy = "true";
    const { signal } = this.#request;
    try {
      const body = await this.#read();
      const parameters = { explain: "true", top_k: "1" };
      const answer = await this.#server.predict(body, parameters, signal, (message) => {
        caption.textContent = message;
      });
      image.src = answer.explanation;
      image.alt = text.mapOf(answer.top[0].class);
      image.hidden = false;
      caption.textContent = text.mapCaption(answer.top[0].class);
    } catch (error) {
      caption.textContent = error.message; // the next click tries again
      if (signal.aborted) {
        figure.hidden = true;
        button.setAttribute("aria-expanded", "false");
      }
    }
    figure.ariaBusy = "false";
  }
}

function newBar({ class: label, probability }) {
  const bar = copyOf("bar");
  bar.querySelector(".label").textContent = label;
  bar.querySelector("data").value = probability;
  bar.querySelector("data").textContent = percent.format(probability);
  bar.querySelector(".fill").style.width = `${100 * probability}%`;
  return bar;
}

/** Return a coverage such as "0.9" as "90%". */
export function shareOf(coverage) {
  return new Intl.NumberFormat(language, { style: "percent" }).format(coverage);
}
