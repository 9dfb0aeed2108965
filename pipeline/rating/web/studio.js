// The studio's page: how far it is, what it is worth, who looks careless.

import { Refusal, ask } from "./talk.js";

const LOOK_MS = 10000;
const $ = (id) => document.getElementById(id);
const share = (value) => (value === null ? "–" : `${Math.round(100 * value)} %`);
const number = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits));

let token = keptBefore() ?? "";
if (location.hash.length > 1) {
  keep(decodeURIComponent(location.hash.slice(1)));
  history.replaceState(null, "", location.pathname);
}

/** Keeps the token for when the page is loaded again. Where a browser stores nothing, it is asked for then. */
function keep(given) {
  token = given;
  try {
    sessionStorage.setItem("token", token);
  } catch {
    // storage is blocked
  }
}

function keptBefore() {
  try {
    return sessionStorage.getItem("token");
  } catch {
    return null;
  }
}

const headers = () => ({ Authorization: `Bearer ${token}` });
const waiting = (lost) => lost && ($("state").textContent = "No connection; trying again …");
const call = (path, body) => ask(`v1/${path}`, { body, headers: headers(), waiting });

function element(name, text, attributes = {}) {
  const made = Object.assign(document.createElement(name), attributes);
  if (text instanceof Node) made.append(text);
  else made.textContent = text;
  return made;
}

function table(place, columns, rows, left = []) {
  const cells = (name, texts) =>
    texts.map((text, n) => element(name, text, { className: left.includes(n) ? "left" : "" }));
  const head = document.createElement("tr");
  head.append(...cells("th", columns));
  const lines = rows.map(({ texts, className = "" }) => {
    const line = Object.assign(document.createElement("tr"), { className });
    line.append(...cells("td", texts));
    return line;
  });
  $(place).replaceChildren(head, ...lines);
}

function card(name, value, under = "") {
  const box = document.createElement("div");
  const shown = element("dd", value);
  if (under) shown.append(element("small", under));
  box.append(element("dt", name), shown);
  return box;
}

function show(said) {
  const counts = Object.values(said.groups);
  const full = counts.filter((count) => count >= said.per_group).length;
  const without = said.agreement_without_flagged;
  $("cards").replaceChildren(
    card("Groups rated enough", `${full} of ${counts.length}`, `${said.begun} being rated now`),
    card("Raters", String(said.came), `${said.raters.filter((rater) => rater.flags.length).length} flagged`),
    card("Answers", String(said.answers), `${said.opinions} count as ${said.form === "pairs" ? "choices" : "ratings"}`),
    card("Agreement (alpha)", number(said.agreement), without === null ? "1 = perfect, 0 = chance" : `${number(without)} without the flagged`),
  );
  $("covered").textContent = `Raters of each group, of ${said.per_group}; round ${said.round}.`;
  $("cover").replaceChildren(
    ...Object.entries(said.groups).map(([name, count]) => {
      const cell = element("i", String(count), { title: `group ${name}: ${count} of ${said.per_group}` });
      cell.style.setProperty("--share", Math.min(count / said.per_group, 1));
      return cell;
    }),
  );
  const { alpha, reliability, warnings } = said.survey;
  const criteria = Object.keys(alpha);
  table("agreement", ["", "alpha", "reliability of the mean"], criteria.map((name) => ({ texts: [name, number(alpha[name]), number(reliability[name])] })));
  $("warnings").replaceChildren(...warnings.map((text) => element("p", text, { className: "soft warns" })));
  const controls = Object.entries(said.matched);
  $("control").hidden = !controls.length;
  table("matched", ["who listens", "judgements", "own speaker's preferred", "rated higher by"], controls.map(([source, row]) => ({
    texts: [source.replace("_", " "), String(row.judgements), share(row.matched), number(row.difference)],
  })));
  const strengths = Object.entries(said.strengths);
  $("strong").hidden = !strengths.length;
  table("strengths", ["who listens", "strength"], strengths.map(([name, value]) => ({ texts: [name.replace("_", " "), number(value)] })));
  table(
    "raters",
    ["rater", "groups", "items", "s an item", "alike", "second time", "checks", "too quick", "alpha without", "to look at", "leave out"],
    said.raters.map((row) => ({
      className: [row.flags.length ? "flagged" : "", row.left_out ? "out" : ""].join(" "),
      texts: [
        row.outside ? `${row.rater} · ${row.outside}` : row.rater, String(row.groups), String(row.items), number(row.seconds, 1), share(row.straight),
        number(row.unsteady), `${row.checks[0]} of ${row.checks[1]}`, share(row.quick),
        row.against === null ? "–" : `${row.against > 0 ? "+" : ""}${number(row.against)}`, row.flags.join("; "), box(row),
      ],
    })),
    [9],
  );
  $("links").replaceChildren(...Object.values(said.links).map((link) => element("li", link)));
  $("state").textContent = `as of ${new Date().toLocaleTimeString()}`;
  $("view").hidden = false;
}

function box(row) {
  const made = Object.assign(document.createElement("input"), { type: "checkbox", checked: row.left_out });
  made.setAttribute("aria-label", `leave out ${row.rater}`);
  made.addEventListener("change", async () => {
    await call(`raters/${row.rater.replace("rater-", "")}`, { left_out: made.checked });
    look();
  });
  return made;
}

async function look() {
  try {
    show(await call("status"));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.status === 401) {
      $("state").textContent = "A token is wanted.";
      if (!$("asks").open) $("asks").showModal();
      return;
    }
    $("state").textContent = error.message;
  }
}

$("asks").addEventListener("close", () => {
  keep($("token").value);
  look();
});
for (const button of document.querySelectorAll("[data-file]"))
  button.addEventListener("click", async () => {
    const answer = await fetch(`v1/${button.dataset.file}`, { headers: headers() });
    if (!answer.ok) return;
    const link = element("a", "", { href: URL.createObjectURL(await answer.blob()), download: button.dataset.file });
    link.click();
    URL.revokeObjectURL(link.href);
  });
setInterval(() => !document.hidden && !$("asks").open && look(), LOOK_MS);
look();
