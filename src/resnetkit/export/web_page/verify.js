// Run the model on the golden images in its file, and compare each stage with the recorded values.
// docs/artefact.md in resnetkit specifies the entries, the stages and the tolerances.

import { bitmapOf, pixelsOf, traits } from "./pixels.js";

export const STAGES = ["decoded", "cropped", "normalized", "logits", "probabilities", "class"];

const SAMPLE = 4096;

/**
 * Return {rows, undecoded, total}.
 *
 * A row has the number of images compared at a stage, the largest difference, and the names of the
 * images that differ. `undecoded` has the names of images that this browser decodes in its own way
 * or not at all: nothing else is compared for them, so they are not counted as agreeing.
 */
export async function verify(model, report) {
  const { images } = model.entry("resnetkit.golden");
  const { stages } = model.manifest;
  const session = await model.startWith([stages.cropped, stages.normalized]);
  const rows = STAGES.map((stage) => ({ stage, images: 0, largest: 0, differing: [] }));
  const undecoded = [];
  for (const [i, image] of images.entries()) {
    await report(i, images.length);
    const results = await compareImage(model, session, image);
    if (!results) undecoded.push(image.name);
    for (const { stage, largest, agrees } of results ?? []) {
      const row = rows[STAGES.indexOf(stage)];
      row.images += 1;
      row.largest = Math.max(row.largest, largest);
      if (!agrees) row.differing.push(image.name);
    }
  }
  await session.release();
  return { rows, undecoded, total: images.length };
}

/** Return the results of the stages of an image; null if this browser decodes it differently. */
async function compareImage(model, session, image) {
  const { manifest, preprocessing, channels } = model;
  const limits = manifest.tolerances;
  const pixels = await decode(image.file, channels);
  const decoded = compareDecoded(pixels, image.decoded, limits);
  if (!decoded.agrees && hasManyDecodings(image.file, channels)) return null;
  if (!pixels) return [decoded];

  const values = await model.run(pixels, session);
  const crop = await decode(image.crop, preprocessing.mean.length);
  const cropped = values[manifest.stages.cropped];
  const logits = floats(image.logits);
  const best = values.probabilities.indexOf(Math.max(...values.probabilities));
  return [
    decoded,
    levels("cropped", cropped, planes(crop), limits),
    within(
      "normalized",
      values[manifest.stages.normalized],
      normalize(cropped, preprocessing),
      limits.normalized,
    ),
    within("logits", values.logits, logits, limits.logit_share * deviation(logits) + 1e-3),
    within("probabilities", values.probabilities, floats(image.probabilities), limits.probability),
    {
      stage: "class",
      largest: Number(model.classes[best] !== image.class),
      agrees: model.classes[best] === image.class || image.near_tie,
    },
  ];
}

/** Return the pixels of a base64-encoded image; null if this browser cannot decode it. */
async function decode(text, channels) {
  try {
    return pixelsOf(await bitmapOf(new Blob([bytes(text)])), channels);
  } catch {
    return null;
  }
}

/** Compare decoded pixels with the recorded ones, which are evenly spaced. */
function compareDecoded(pixels, expected, limits) {
  if (!pixels || String(pixels.shape) !== String(expected.shape)) {
    return { stage: "decoded", largest: Infinity, agrees: false };
  }
  const count = pixels.data.length;
  const kept = Math.min(count, SAMPLE);
  const found = Array.from({ length: kept }, (_, k) => pixels.data[Math.floor((k * count) / kept)]);
  return levels("decoded", found, bytes(expected.sample), limits);
}

/** Return whether browsers decode a file in different ways: CMYK, 16 bits, or hidden colors. */
function hasManyDecodings(text, channels) {
  const { deep, alpha, cmyk } = traits(bytes(text));
  return deep || cmyk || (alpha && channels === 4);
}

/** Compare values from 0 to 255: nearly all must be within a level, and none far off. */
function levels(stage, found, expected, limits) {
  const differences = differencesOf(found, expected);
  const near = differences.filter((difference) => difference <= limits.levels).length;
  const largest = maximum(differences);
  const agrees =
    largest <= limits.most_levels && near >= limits.level_share * differences.length;
  return { stage, largest, agrees };
}

/** Compare values that may differ by at most a limit. */
function within(stage, found, expected, limit) {
  const largest = maximum(differencesOf(found, expected));
  return { stage, largest, agrees: largest <= limit };
}

function differencesOf(found, expected) {
  if (found.length !== expected.length) return [Infinity];
  return Array.from(expected, (value, i) => {
    const difference = Math.abs(found[i] - value);
    return Number.isNaN(difference) ? Infinity : difference;
  });
}

function maximum(values) {
  return values.reduce((a, b) => Math.max(a, b), 0);
}

/** (H, W, C) -> (C, H, W). */
function planes({ data, shape: [height, width, channels] }) {
  const size = height * width;
  return data.map((_, i) => data[(i % size) * channels + Math.floor(i / size)]);
}

/** (C, S, S) levels -> the input of the network. */
function normalize(crop, { mean, std }) {
  const size = crop.length / mean.length;
  return crop.map((level, i) => {
    const channel = Math.floor(i / size);
    return (level / 255 - mean[channel]) / std[channel];
  });
}

function deviation(values) {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
}

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** Little-endian float32, as all browsers keep it in memory. */
function floats(text) {
  return new Float32Array(bytes(text).buffer);
}
