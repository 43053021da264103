// Requests to the server: they carry the token, wait while the server is busy, and explain failures.

import { text } from "./texts.js";

const PATIENCE = 60; // seconds to wait for one answer; after that, the user decides

/** Why there is no answer, in words for the user. */
export class Refusal extends Error {
  /**
   * @param {string} message the reason, as the server gives it
   * @param {string} reason the reason for programs, such as "queue_full"
   * @param {boolean} isPassing whether another try may succeed
   */
  constructor(message, reason = "", isPassing = false) {
    super(message);
    this.reason = reason;
    this.isPassing = isPassing;
  }
}

export class Server {
  #token = null; // kept only here: a reload forgets it
  #asking = null; // a promise while the user is being asked for a token
  #ask;
  #deadline = {};

  /** @param {(wasWrong: boolean) => Promise<string>} ask asks the user for the token */
  constructor(ask) {
    this.#ask = ask;
  }

  get hasToken() {
    return this.#token !== null;
  }

  /** Return the model's metadata and the server's limits. */
  async model(onWait) {
    const model = await this.#request("model", {}, onWait);
    // People wait longer than the programs that the default is meant for.
    const milliseconds = Math.round(1000 * model.limits.most_deadline_seconds);
    this.#deadline = { "X-Deadline-Ms": String(milliseconds) };
    return model;
  }

  /** Return the class names. */
  async classes() {
    return (await this.#request("classes")).classes;
  }

  /**
   * Return the row for an image.
   *
   * @param {ArrayBuffer} body the bytes of the file
   * @param {Record<string, string>} parameters such as coverage
   * @param {AbortSignal} signal ends the request; the server then drops the image
   * @param {(message: string) => void} onWait is told what the request is waiting for
   */
  predict(body, parameters, signal, onWait) {
    const query = new URLSearchParams(parameters);
    const options = { method: "POST", body, headers: this.#deadline, signal };
    return this.#request(`predict?${query}`, options, onWait);
  }

  async #request(path, options = {}, onWait = () => {}) {
    let waited = 0;
    for (let attempt = 0; ; attempt++) {
      const token = this.#token;
      const authorization = token === null ? {} : { Authorization: `Bearer ${token}` };
      let response = null;
      try {
        const headers = { ...options.headers, ...authorization };
        response = await fetch(path, { ...options, headers });
        if (response.ok) return await response.json();
      } catch (error) {
        if (options.signal?.aborted) throw error;
        response = null; // no answer, or half of one
      }
      if (response?.status === 401) {
        onWait(text.needsToken);
        await this.#replaceToken(token);
        options.signal?.throwIfAborted();
        continue;
      }
      if (response && response.status !== 503) throw await refusalOf(response);
      const seconds = response ? retryAfter(response) : 2 ** attempt;
      waited += seconds;
      if (waited > PATIENCE) {
        throw response ? await refusalOf(response) : new Refusal(text.unreachable, "", true);
      }
      await countDown(seconds, options.signal, (left) =>
        onWait(response ? text.busy(left) : text.reconnecting(left)),
      );
    }
  }

  /** Ask for a token once, however many requests were refused. */
  async #replaceToken(refused) {
    if (this.#token !== refused) return; // another request has asked in the meantime
    this.#asking ??= this.#ask(refused !== null).then((token) => {
      this.#token = token;
      this.#asking = null;
    });
    await this.#asking;
  }
}

async function refusalOf(response) {
  const isPassing = response.status === 408 || response.status >= 500;
  try {
    const { error, reason } = await response.json();
    if (error) return new Refusal(error, reason, isPassing);
  } catch {
    // A proxy in between answers with an HTML page.
  }
  return new Refusal(text.status(response.status), "", isPassing);
}

function retryAfter(response) {
  const seconds = Number(response.headers.get("Retry-After"));
  return seconds > 0 ? seconds : 5;
}

/** Wait, and report every second how many are left. */
async function countDown(seconds, signal, onSecond) {
  for (let left = Math.ceil(seconds); left > 0; left--) {
    onSecond(left);
    // Photos that were refused together should not all retry together.
    const pause = left === 1 ? 1000 + 300 * Math.random() : 1000;
    await new Promise((resolve) => setTimeout(resolve, pause));
    signal?.throwIfAborted();
  }
}
