// The page: what the controls do, and what the dials show.

import { CHANNELS } from "./arkit.js";
import { Camera } from "./camera.js";
import { Face } from "./face.js";
import { Playout } from "./playout.js";
import { Record } from "./save.js";
import { Refusal } from "./refusal.js";
import { Session } from "./session.js";
import { Sound } from "./sound.js";

const RATE = 16000; // of the sound, which every policy hears at
const TO_REST_S = 3.5; // after the end, until the face is still
const SEES = {
  pictures: "Let it see me: five small pictures a second",
  face: "Let it see my face: the server reads it off small pictures, and keeps none",
};
const SAYS = {
  idle: "Press Start and talk: the face listens.",
  connecting: "One moment …",
  listening: "It listens. Talk to it.",
  "going on": "The connection was lost. Going on …",
  ended: "That was it. Press Start to talk again.",
};
const CONNECTION = {
  idle: "Not connected",
  connecting: "Connecting",
  listening: "Connected",
  "going on": "Going on elsewhere",
  ended: "Not connected",
  failed: "Not connected",
};

const $ = (id) => document.getElementById(id);
const face = new Face($("face"));
const rest = new Float32Array(CHANNELS.length);
let policies = [];
let token = ""; // lives as long as the page
let state = "idle";
let talk = null; // {sound, session, playout, record, camera} of the session, or of the last one
let stats = { late: 0, dropped: 0, sessions: null };

// What tests and consoles read.
window.rapport = {
  weights: () => face.weights(),
  turns: () => face.turns(),
  get state() {
    return state;
  },
  get stats() {
    const { session, playout } = talk ?? {};
    const plays = playout?.state === "plays";
    return {
      ...stats,
      delay_ms: plays ? (1000 * playout.delay) / playout.rate : null,
      name: session?.name ?? null,
      went_on: session?.wentOn ?? 0,
      answered: session?.next ?? 0,
      shown: playout?.sample ?? 0,
      playout: playout?.state ?? "waits",
      steady: playout?.steady ?? false,
    };
  },
};

/** Asks the server, and the user for a token where the server wants one. */
async function ask(method, path, body) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Refusal("The server does not answer. Trying again …");
  }
  if (response.status === 401) {
    if (await askToken()) return ask(method, path, body);
    throw new Refusal("This server wants a token: press Start to give it.", { final: true });
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const taken = response.status === 503 && "All places are taken. Trying again …";
  const said = answer.message ?? answer.detail?.message ?? answer.detail;
  const message = typeof said === "string" ? said : taken || `The server refuses (${response.status}).`;
  throw new Refusal(message, {
    final: response.status < 500 && response.status !== 429,
    waitS: Number(response.headers.get("Retry-After")) || 0,
  });
}

async function askToken() {
  const dialog = $("asks");
  if (dialog.open) return false;
  $("token").value = "";
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  token = dialog.returnValue === "yes" ? $("token").value : "";
  return token !== "";
}

/** Tries until the server answers. */
async function keepLoading() {
  for (;;) {
    try {
      return await loadPolicies();
    } catch (error) {
      complain(error);
      if (error.final) return;
      await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }
}

async function loadPolicies() {
  const answer = await ask("GET", "v1/policies");
  policies = answer.policies;
  $("policy").replaceChildren(...policies.map(({ name }) => new Option(name, name)));
  $("kill").hidden = !answer.demo;
  showPolicy();
}

function chosen() {
  return policies.find(({ name }) => name === $("policy").value);
}

function showPolicy() {
  const policy = chosen();
  const camera = policy?.camera ?? null;
  $("prompt").hidden = !policy?.takes_text;
  $("texts").replaceChildren(...(policy?.texts ?? []).map((text) => new Option(text)));
  $("camera-choice").hidden = !camera;
  $("camera-says").textContent = camera ? SEES[camera.reads] : "";
  $("unseen").hidden = camera !== null;
  $("simulated").hidden = !policy?.simulated;
}

function show(word, message) {
  state = word;
  const running = ["connecting", "listening", "going on"].includes(word);
  $("says").textContent = message || SAYS[word];
  $("connection").textContent = CONNECTION[word];
  $("connection").dataset.state = word;
  $("start").textContent = running ? "Stop" : "Start";
  $("start").classList.toggle("running", running);
  for (const id of ["policy", "seed", "file", "nofile", "camera"]) $(id).disabled = running;
  if (!running && talk) rests(talk);
}

/** Sound and camera end; the clock goes on until the face is at rest. */
function rests(ended) {
  ended.sound.stop();
  ended.camera?.stop();
  $("seen").hidden = true;
  clearInterval(ended.acks);
  setTimeout(() => {
    ended.sound.close();
    if (talk === ended) face.show(rest);
    ended.still = true;
  }, 1000 * TO_REST_S);
}

async function start() {
  show("connecting");
  $("start").disabled = true; // the browser may be asking whether this page may listen
  const file = $("file").files[0] ?? null;
  const policy = chosen();
  let sound;
  let camera = null;
  try {
    sound = await Sound.open(RATE, file);
    if (policy?.camera && $("camera").checked) camera = await Camera.open($("seen"), policy.camera);
  } catch (error) {
    sound?.close();
    return show("failed", sound ? notSeen(error) : notHeard(error));
  } finally {
    $("start").disabled = false;
  }
  $("seen").hidden = !camera;
  const wishes = { policy: policy?.name, seed: Number($("seed").value) };
  if (policy?.takes_text && $("text").value) wishes.text = $("text").value;
  talk?.sound.close();
  stats = { late: 0, dropped: 0, sessions: null };
  $("seen").classList.remove("read");
  const session = new Session((body) => ask("POST", "v1/sessions", body), wishes, {
    begun,
    frames,
    seen: (read) => $("seen").classList.toggle("read", read),
    stats: (counted) => (stats = counted),
    state: (word, message) => session === talk?.session && show(word, message),
  });
  session.liveliness = Number($("liveliness").value);
  session.retells = policy?.camera?.reads === "pictures";
  talk = { sound, session, camera, playout: null, record: null };
  sound.onlost = () => session.stop();
  keepAwake(sound, session);
  session.begin();
}

function notHeard(error) {
  if (error.name === "NotAllowedError") return "Your browser does not let this page listen: allow it, or use a recording.";
  if (error.name === "NotFoundError") return "There is no microphone: plug one in, or use a recording.";
  return error.message;
}

function notSeen(error) {
  if (error.name === "NotAllowedError") return "Your browser does not let this page see: allow it, or untick the camera.";
  if (error.name === "NotFoundError") return "There is no camera: plug one in, or untick it.";
  return error.message;
}

/** The server is ready for the first time. */
function begun(info, waitS) {
  const { sound, session, camera } = talk;
  if (info.rate !== RATE) {
    const message = `The server hears at ${info.rate} Hz, this page speaks at ${RATE}.`;
    throw new Refusal(message, { final: true });
  }
  talk.playout = new Playout(info.rate, info.fps, CHANNELS.length);
  talk.record = new Record(info);
  $("simulated").hidden = !info.simulated;
  $("recorded").hidden = !info.recorded;
  sound.begin(waitS, info.chunk_samples, (number, samples) => {
    if (session.over) return;
    talk.record.say(samples);
    session.say(number, samples);
  });
  session.endAfter(sound.chunks);
  camera?.begin((picture) => {
    const running = sound.context.state === "running"; // else it is no moment of the sound
    if (running && sound.now() > 0) session.picture(Math.floor(sound.now()), picture);
  });
  talk.acks = setInterval(() => session.ack(Math.floor(talk.playout.at(sound.now()))), 1000);
  $("save").disabled = false;
}

function frames(sample, values) {
  talk.playout.add(sample, values, talk.sound.now());
  talk.record.show(sample, values);
}

/** Telephones pause sound. The session waits, and goes on where it was, as after a lost connection. */
function keepAwake(sound, session) {
  let paused = false;
  sound.context.onstatechange = () => {
    const running = sound.context.state === "running";
    if (running && paused) session.goOn();
    paused = !running && !session.over;
    if (paused) session.pause();
    if (paused) $("says").textContent = "Your browser paused the sound: touch the page to go on.";
  };
}

function draw() {
  requestAnimationFrame(draw);
  if (!talk || talk.still) return;
  const { sound, playout, session } = talk;
  if (playout && sound.first !== null) {
    face.show(playout.show(sound.now()));
    const late = ["holds", "rests"].includes(playout.state);
    $("face").classList.toggle("late", late && !session.over);
  }
  $("level").style.setProperty("--level", session.over ? 0 : sound.level());
}

function turnDials() {
  const now = window.rapport.stats;
  $("delay").textContent = now.delay_ms === null ? "–" : Math.round(now.delay_ms);
  $("late").textContent = now.late;
  $("dropped").textContent = now.dropped;
  $("sessions").textContent = now.sessions ?? "–";
  $("went").textContent = now.went_on;
  $("named").hidden = now.name === null;
  $("session-name").textContent = now.name ?? "";
}

function chooseFile() {
  const file = $("file").files[0];
  $("filename").textContent = file ? file.name : "Use a recording instead";
  $("nofile").hidden = !file;
}

$("start").onclick = () => {
  if ($("start").classList.contains("running")) talk.session.stop();
  else start();
};
$("file").onchange = chooseFile;
$("nofile").onclick = () => {
  $("file").value = "";
  chooseFile();
};
$("policy").onchange = showPolicy;
$("text").onchange = () => talk?.session.tell($("text").value);
$("liveliness").oninput = () => {
  const value = Number($("liveliness").value);
  $("amount").textContent = `${Math.round(100 * value)} %`;
  talk?.session.liven(value);
};
$("save").onclick = () => talk?.record?.save();
$("kill").onclick = () => ask("POST", "v1/demo/kill").catch((refusal) => ($("says").textContent = refusal.message));
document.addEventListener("pointerdown", () => talk?.session.over === false && talk.sound.context.resume());

const complain = (error) => ($("says").textContent = error.message);
face.load("head.glb").catch(() => complain(new Error("The head could not be loaded: reload the page.")));
keepLoading();
setInterval(turnDials, 250);
draw();
