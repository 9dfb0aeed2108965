// A rater's page: consent, clip after clip, thanks. What is shown is the server's word; a reload asks it again.

import { Player, Shelf } from "./player.js";
import { Scales, Sides } from "./scales.js";
import { Refusal, ask } from "./talk.js";

const LOOK_MS = 15000; // between looks for the next round
const QUESTIONS = { scales: "How is the listener on the right?", pairs: "Who listens better?" };
const HINTS = {
  scales: "Watch to the end, then rate. Keys: 1 to 5, 0 = cannot tell, enter = next, space = play again.",
  pairs: "Watch to the end, then choose. Keys: 1 = A, 2 = no difference, 3 = B, enter = next, space = play again.",
};
const PLAY = { playing: "Pause", paused: "Go on", ended: "Play again", failed: "Try again" };

const $ = (id) => document.getElementById(id);
const shelf = new Shelf();
const player = new Player($("frame"), watched);
let key = "";
let form = null;
let turn = null;
let kind = "scales";
let open = false; // the clip was seen to its end
let sending = false;

const waiting = (lost) => ($("network").textContent = lost ? "No connection. Your answer is kept; trying again …" : "");
const call = (path, body) => ask(`raters/${encodeURIComponent(key)}/${path}`, { body, waiting });

function view(name) {
  for (const each of ["says", "consent", "rating", "thanks"]) $(each).hidden = each !== name;
  if (name !== "rating") player.clear();
}

function say(title, text = "") {
  $("says-title").textContent = title;
  $("says-text").textContent = text;
  view("says");
}

async function begin() {
  const told = new URLSearchParams(location.search);
  try {
    if (told.has("PROLIFIC_PID")) {
      const names = ["study", "PROLIFIC_PID", "STUDY_ID", "SESSION_ID"].filter((name) => told.get(name));
      key = (await ask("raters", { body: Object.fromEntries(names.map((name) => [name, told.get(name)])) })).key;
    } else key = told.get("key") ?? "";
    if (!key) return say("A link is missing", "Please open this page by the link that you were sent.");
    const about = await ask(`raters/${encodeURIComponent(key)}`);
    kind = about.form;
    form = kind === "pairs" ? new Sides($("answers"), changed) : new Scales($("answers"), about.criteria, changed);
    $("hint").textContent = HINTS[kind];
    if (!about.agreed) {
      $("paragraphs").replaceChildren(
        ...about.consent.map((text) => Object.assign(document.createElement("p"), { textContent: text })),
      );
      return view("consent");
    }
    await deliver();
    await show(await call("turn"), false);
  } catch (error) {
    failed(error);
  }
}

function failed(error) {
  if (!(error instanceof Refusal)) throw error;
  say("This did not work", error.message);
}

/** @param playing whether a click came before, so that the browser lets the clip begin. */
async function show(said, playing) {
  turn = said;
  const share = said.of_groups ? (said.groups + (said.item ? (said.item.number - 1) / said.item.of : 0)) / said.of_groups : 0;
  $("bar").style.setProperty("--done", said.item ? Math.min(share, 1) : 1);
  $("bar").parentElement.setAttribute("aria-valuenow", Math.round(100 * Math.min(share, 1)));
  if (said.waits) {
    say("More clips are being made", "This page looks for them by itself. You may also come back later by the same link.");
    setTimeout(async () => show(await call("turn"), false).catch(failed), LOOK_MS);
    return;
  }
  if (!said.item) return thank(said.code);
  open = false;
  player.clear(); // the next clip may be long on its way: the one before is not to be seen in its place
  form.clear();
  $("question").textContent = said.item.instruction ?? QUESTIONS[kind];
  $("question").classList.toggle("told", said.item.instruction !== null);
  $("where").textContent = `Clip ${said.item.number} of ${said.item.of} of this speaker`;
  view("rating");
  const addresses = await Promise.all(said.item.videos.map((address) => shelf.take(address)));
  player.show(addresses);
  if (playing) player.play();
  shelf.keep([...said.item.videos, ...said.ahead]);
  shelf.fetch(said.ahead);
  scrollTo(0, 0);
}

function watched(state) {
  $("play").firstChild.textContent = `${PLAY[state] ?? "Play"} `;
  $("play").disabled = ["empty", "loading"].includes(state);
  $("frame").dataset.state = state;
  if (state === "ended") open = true;
  changed();
}

function changed() {
  $("answers").disabled = !open;
  $("form").classList.toggle("open", open);
  $("next").disabled = !(open && form?.whole) || sending;
}

/** Keeps the answer that is on its way, or none (null). Where a browser stores nothing, it is sent all the same. */
function keep(answer) {
  try {
    if (answer) localStorage.setItem(`kept ${key}`, JSON.stringify(answer));
    else localStorage.removeItem(`kept ${key}`);
  } catch {
    // storage is blocked, or full
  }
}

function keptBefore() {
  try {
    return JSON.parse(localStorage.getItem(`kept ${key}`));
  } catch {
    return null;
  }
}

async function send() {
  if ($("next").disabled) return;
  sending = true;
  changed();
  const kept = { place: turn.item.place, answer: form.answer };
  keep(kept);
  try {
    const said = await call(`answers/${kept.place}`, kept.answer);
    keep(null);
    await show(said, true);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    keep(null);
    await show(await call("turn"), false); // answered in another tab, or no longer offered
  } finally {
    sending = false;
    changed();
  }
}

/** An answer that the page was closed on before the server had it. */
async function deliver() {
  const kept = keptBefore();
  if (!kept) return;
  try {
    await call(`answers/${kept.place}`, kept.answer);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
  }
  keep(null);
}

function thank(code) {
  $("completion").hidden = !code;
  $("code").textContent = code ?? "";
  $("back").href = `https://app.prolific.com/submissions/complete?cc=${encodeURIComponent(code ?? "")}`;
  view("thanks");
}

$("agree").addEventListener("click", async () => {
  $("agree").disabled = true;
  call("consent", {}).then((said) => show(said, false)).catch(failed);
});
$("play").addEventListener("click", () => player.press());
$("frame").addEventListener("click", () => player.press());
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send().catch(failed);
});
$("stop").addEventListener("click", () => {
  player.pause();
  $("asks").showModal();
});
$("asks").addEventListener("close", async () => {
  if ($("asks").returnValue !== "stop") return;
  call("stop", {}).then((said) => thank(said.code)).catch(failed);
});
document.addEventListener("keydown", (event) => {
  if ($("rating").hidden || $("asks").open || event.ctrlKey || event.metaKey || event.altKey) return;
  const on = event.target;
  if (event.key === " " && !on.matches("button, input")) player.press();
  else if (event.key === "Enter" && !on.matches("button")) send().catch(failed);
  else if (open && form.press(event.key)) on.blur?.();
  else if (open && !on.matches("input") && ["ArrowUp", "ArrowDown"].includes(event.key)) form.move(event.key === "ArrowUp" ? -1 : 1);
  else return;
  event.preventDefault();
});
begin();
