// Run model.onnx. Its graph contains the preprocessing, so it takes images of any size.

import * as ort from "./ort.wasm.bundle.min.js";
import { metadata, withOutputs } from "./protobuf.js";
import { bitmapOf, pixelsOf, traits } from "./pixels.js";

/** An image with 16 bits per color: browsers do not know which values are black and white. */
export class DeepImageError extends Error {}

/** A model, its description of itself, and its session. */
export class Model {
  /** Download the runtime and the model; `report` is called with the bytes that have arrived. */
  static async load(report) {
    let loaded = 0;
    const count = (bytes) => report((loaded += bytes));
    const [runtime, file] = await Promise.all([
      download("ort-wasm-simd-threaded.wasm", count),
      download("model.onnx", count),
    ]);
    // More threads would need two HTTP headers that few static servers send.
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = runtime;
    return new Model(file, await ort.InferenceSession.create(file));
  }

  constructor(file, session) {
    this.file = file;
    this.session = session;
    this.entries = metadata(file);
    this.manifest = this.entry("resnetkit");
    this.classes = this.manifest.classes;
    this.preprocessing = this.manifest.preprocessing;
    /** The number of input channels. */
    this.channels = this.preprocessing.mean.length === 4 ? 4 : 3;
  }

  /** Return an entry of the file, parsed as JSON. */
  entry(key) {
    return JSON.parse(new TextDecoder().decode(this.entries.get(key)));
  }

  /** Return the bitmap of a photo, and its most probable classes. */
  async answer(blob, count = 5) {
    const range = this.preprocessing.value_range;
    if (range && traits(new Uint8Array(await blob.slice(0, 32).arrayBuffer())).deep) {
      throw new DeepImageError();
    }
    const bitmap = await bitmapOf(blob);
    const { probabilities } = await this.run(pixelsOf(bitmap, this.channels));
    const top = Array.from(probabilities, (probability, i) => ({
      class: this.classes[i],
      probability,
    }))
      .sort((a, b) => b.probability - a.probability)
      .slice(0, count);
    return { bitmap, top };
  }

  /** Return the outputs for one image, by name. */
  async run(pixels, session = this.session) {
    const input = new ort.Tensor("uint8", pixels.data, [1, ...pixels.shape]);
    const outputs = await session.run({ [this.manifest.entrance]: input });
    return Object.fromEntries(Object.entries(outputs).map(([name, value]) => [name, value.data]));
  }

  /** Start another session, which also returns intermediate tensors. */
  startWith(names) {
    return ort.InferenceSession.create(withOutputs(this.file, names));
  }
}

async function download(name, count) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: HTTP ${response.status}`);
  const reader = response.body.getReader();
  const chunks = [];
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    chunks.push(part.value);
    count(part.value.length);
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}
