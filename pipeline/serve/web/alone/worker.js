// Runs a listener beside the page, which stays smooth.
//
// In: {folder, lead, text}, then {sound, noise, text, liveliness} for each chunk.
// Out: {facts, next}, then {frame, motion, arkit, next, ms}, or {error}. `next`: what the listener
// needs for its next step.

import * as ort from "../vendor/ort/ort.wasm.min.mjs";
import { ArkitRig } from "./rig.js";
import { Listener } from "./listener.js";

// More threads need a page that is isolated from other origins, which few hosts can be told.
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL("../vendor/ort/", import.meta.url).href;

let listener;
let rig;

async function begin({ folder, lead, text }) {
  const answer = await fetch(new URL("listener.json", folder));
  if (!answer.ok) throw new Error(`listener.json: the host answers ${answer.status}`);
  const facts = await answer.json();
  listener = await Listener.load(ort, facts, new URL("step.onnx", folder).href);
  listener.start(lead ?? facts.lead, text);
  rig = new ArkitRig(facts.arkit, facts.layout);
  postMessage({ facts, next: next() });
}

async function step({ sound, noise, text, liveliness }) {
  const begun = performance.now();
  listener.tell(text);
  const { frame, values } = await listener.step(sound, noise);
  const shown = values.map((value) => liveliness * value);
  const columns = [];
  for (let at = 0; at < shown.length; at += listener.dim) {
    columns.push(...rig.columns(shown.subarray(at, at + listener.dim)));
  }
  const ms = performance.now() - begun;
  const arkit = Float32Array.from(columns);
  postMessage({ frame, motion: values, arkit, next: next(), ms });
}

function next() {
  const { number, waits, span } = listener;
  return { number, waits, span };
}

self.onmessage = async ({ data }) => {
  try {
    await (data.folder ? begin(data) : step(data));
  } catch (error) {
    postMessage({ error: error.message });
  }
};
