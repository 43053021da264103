// The cameras: a phone's own camera app, and a live view with a shutter button.

import { text } from "./texts.js";

const QUALITY = 0.95;

const byId = (id) => document.getElementById(id);
let taken = 0;
let opened = 0; // how often the dialog was opened

/**
 * Show the buttons of the cameras that can work here.
 *
 * @param {(photos: { file: File, name: string }[]) => void} add
 */
export async function offerCameras(add) {
  // Elsewhere, browsers ignore `capture` and open the same dialog as the chooser.
  byId("phone").hidden = !matchMedia("(pointer: coarse)").matches;
  byId("live").addEventListener("click", openCamera);
  byId("shutter").addEventListener("click", () => takePhoto(add));
  byId("close").addEventListener("click", () => byId("camera").close());
  byId("camera").addEventListener("close", stopCamera);
  byId("live").hidden = !(await hasCamera());
}

/** Browsers let a page use a camera only over HTTPS or from this machine. */
async function hasCamera() {
  if (!isSecureContext || !navigator.mediaDevices?.getUserMedia) return false;
  try {
    const devices = await navigator.mediaDevices.enumerateDevices();
    return devices.some(({ kind }) => kind === "videoinput");
  } catch {
    return false;
  }
}

const video = () => byId("camera").querySelector("video");

async function openCamera() {
  const turn = ++opened;
  byId("camera").showModal();
  byId("shutter").disabled = true;
  byId("camera-status").textContent = text.cameraStarting;
  const wish = { width: { ideal: 1920 }, height: { ideal: 1080 }, facingMode: "environment" };
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: wish });
    // The dialog may have been closed and reopened while the user was being asked.
    if (turn !== opened || !byId("camera").open) return stop(stream);
    video().srcObject = stream;
    await video().play();
    byId("camera-status").textContent = "";
    byId("shutter").disabled = false;
    byId("shutter").focus();
  } catch (error) {
    if (turn !== opened) return;
    const wasDenied = error.name === "NotAllowedError";
    byId("camera-status").textContent = wasDenied ? text.cameraDenied : text.noCamera(error.message);
  }
}

function stopCamera() {
  stop(video().srcObject);
  video().srcObject = null;
}

function stop(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}

async function takePhoto(add) {
  const canvas = document.createElement("canvas");
  canvas.width = video().videoWidth;
  canvas.height = video().videoHeight;
  canvas.getContext("2d").drawImage(video(), 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
  taken++;
  const name = `camera-${taken}.jpg`;
  add([{ file: new File([blob], name, { type: blob.type }), name }]);
  byId("camera-status").textContent = text.taken(name);
}
