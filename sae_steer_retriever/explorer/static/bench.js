// The steering workbench: a question, sliders, and two rankings side by side.

import { about, get, post, stream } from "/static/api.js";
import { titles } from "/static/bars.js";
import { combobox } from "/static/combobox.js";
import { byId, complain, copied, el, featureTitle, percent, say, show, showText } from "/static/dom.js";
import { HitList } from "/static/hits.js";
import { Knobs } from "/static/knobs.js";
import { benchOf, editOf, fragment, fromFragment, keep, kept, linkOf, same, Steps } from "/static/state.js";

// A search is made this long after the last turn of a knob, in ms; one that takes longer than the other is let go.
const DEBOUNCE = 60;
const PATIENCE = 400;
// A question is searched when nobody has typed for this long.
const TYPING = 300;

const page = Array.from(crypto.getRandomValues(new Uint32Array(3)), (number) => number.toString(36)).join("");
let state = benchOf({});
let steps = new Steps(state);
let limits = { useful_strength: 1.5 };
let turn = 0;
let timer = 0;
let typing = 0;
let running = null;
let plainKey = null;
let answered = null;
let shownQuery = null;

const knobs = new Knobs(byId("edits"), (commit, of) => changed(commit, of));
const after = new HitList(byId("after"), "after-hit", lift);
const before = new HitList(byId("before"), "before-hit", lift);

// -- the state --------------------------------------------------------------------------------------------------------

function changed(commit, of = null) {
  if (commit) {
    steps.note(state, of);
    remember();
  }
  schedule();
}

function remember() {
  keep(state);
  history.replaceState(null, "", state.query || state.edits.length ? `#${fragment(state)}` : location.pathname);
  byId("undo").disabled = steps.done.length === 0;
}

/** Take a state as it is, into every field. */
function put(given) {
  state = benchOf(given);
  byId("query").value = state.query;
  byId("k").value = state.k;
  byId("fetch-k").value = state.fetch_k ?? "";
  byId("side").value = state.side ?? "";
  byId("space").value = state.space;
  byId("drift-cap").value = state.drift_cap;
  knobs.render(state.edits);
  nameRows();
  remember();
  ask();
  schedule(0);
}

/** Say what rows are called that came by id, from a link or a feature's page: without a question nobody else does. */
async function nameRows() {
  const unnamed = state.edits.filter(({ name }) => /^#\d+$/.test(name) && !knobs.names.has(name));
  if (!unnamed.length) return;
  try {
    const found = await Promise.all(unnamed.map(({ name }) => get(`/api/features?search=${encodeURIComponent(name)}`)));
    for (const { features } of found) knobs.learn(features);
    knobs.render(state.edits);
  } catch (error) {
    complain(error.message);
  }
}

function undo() {
  const last = steps.back();
  if (last) put(last);
}

function add(name, feature) {
  if (feature) knobs.learn([feature]);
  if (!state.edits.some((edit) => edit.name.toLowerCase() === name.toLowerCase())) state.edits.push(editOf({ name, strength: 0.5 }));
  knobs.render(state.edits);
  changed(true);
  const place = state.edits.findIndex((edit) => edit.name.toLowerCase() === name.toLowerCase());
  const row = byId("edits").children[place];
  (row.querySelector("input[type=range]") || row.querySelector("input")).focus();
}

// -- searching --------------------------------------------------------------------------------------------------------

function schedule(wait = DEBOUNCE) {
  clearTimeout(timer);
  timer = setTimeout(search, wait);
}

async function search() {
  if (!state.query.trim()) return blank();
  // One that is about to answer is waited for: the ranking moves while the knob does.
  if (running && !running.answered && performance.now() - running.since < PATIENCE) {
    running.again = true;
    return undefined;
  }
  const key = JSON.stringify([state.query, state.k, state.space, state.fetch_k]);
  const asked = JSON.stringify(state);
  // A slider that is let go says so, and nothing has changed since it was dragged there.
  if (asked === answered && key === plainKey && (!running || running.asked === asked)) return undefined;
  running?.controller.abort();
  const own = { controller: new AbortController(), since: performance.now(), answered: false, again: false, turn: (turn += 1), asked };
  running = own;
  const body = { state, before: key !== plainKey, page, turn: own.turn };
  say("Searching", true);
  try {
    await stream("/api/search", body, own.controller.signal, (line) => receive(own, key, line));
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    if (running === own) {
      answered = null;
      complain(error.message);
      say("");
    }
  }
  if (running === own) running = null;
  if (own.again) schedule(0);
  return undefined;
}

function receive(own, key, line) {
  if (own.turn !== turn) return;
  if (line.kind === "results") {
    own.answered = true;
    answered = own.asked;
    complain("");
    results(line);
    if (line.before) plainKey = key;
    if (own.again) schedule(0);
    own.again = false;
  } else if (line.kind === "reasons") {
    after.explain(line.hits);
    if (line.before) before.explain(line.before);
  } else if (line.kind === "error") {
    complain(line.error);
  }
}

let plain = [];

function results(line) {
  if (line.before) plain = line.before;
  const fresh = Boolean(line.before);
  after.render(line.hits, { moved: line.steered, fresh });
  before.render(plain, { kept: new Set(line.hits.map((hit) => hit.id)), fresh });
  for (const edit of line.edits) for (const feature of edit.features) titles.set(`#${feature.id}`, featureTitle(feature));
  knobs.explain(line.edits);
  drift(line);
  byId("after-title").textContent = line.steered ? "Steered" : "Steered (no steering yet)";
  show(byId("legend"), true);
  const moved = line.hits.filter((hit) => hit.base_rank !== hit.rank).length;
  const added = line.hits.filter((hit) => !plain.some((one) => one.id === hit.id)).length;
  const count = `${line.hits.length} hit${line.hits.length === 1 ? "" : "s"}`;
  say(line.steered ? `${count}, ${moved} moved, ${added} of them new among the first ${line.hits.length}.` : `${count}.`);
  byId("status").dataset.turn = String(line.turn);
  byId("status").dataset.milliseconds = line.milliseconds.toFixed(1);
}

function drift(line) {
  const { lost, cosine, applied } = line.drift;
  byId("drift-lost").textContent = line.steered && lost !== null ? percent(lost, 1) : "–";
  byId("drift-cosine").textContent = line.steered ? cosine.toFixed(3) : "–";
  const excess = state.edits.some((edit) => edit.on && edit.op === "add" && Math.abs(edit.strength) > limits.useful_strength);
  const warnings = [];
  if (applied < 0.995) warnings.push(`The drift cap lets ${percent(applied)} of the query shift through.`);
  if (excess) warnings.push(`Strengths beyond ${limits.useful_strength} mostly cost relevance.`);
  byId("drift-warning").textContent = warnings.join(" ");
  show(byId("drift-warning"), warnings.length > 0);
}

function blank() {
  after.render([]);
  before.render([]);
  plain = [];
  plainKey = null;
  answered = null;
  complain("");
  say("Type a question to begin.");
}

/** The features of the question, as chips. */
async function ask() {
  const query = state.query;
  if (query === shownQuery) return;
  shownQuery = query;
  try {
    const { features } = await post("/api/query", { query });
    if (state.query !== query) return;
    knobs.learn(features);
    byId("query-features").replaceChildren(...features.map((feature) => el(
      "li", {},
      el("button", { type: "button", "data-testid": "chip", "data-feature": String(feature.id), onclick: () => add(`#${feature.id}`, feature) },
        el("span", { text: feature.label ? featureTitle(feature) : `#${feature.id} (no label)` }), el("span", { class: "number", text: feature.strength.toFixed(2) })),
    )));
    show(byId("about-query"), features.length > 0);
  } catch (error) {
    shownQuery = null;
    complain(error.message);
  }
}

/** A button that asks for the smallest steering that lifts a passage. */
function lift(hit) {
  const place = el("div", {});
  const button = el("button", { type: "button", text: "What would lift it to rank 1?", "data-testid": "lift" });
  button.onclick = async () => {
    button.disabled = true;
    place.replaceChildren(el("p", { class: "quiet busy", text: "Trying" }));
    try {
      const found = await post("/api/lift", { state, id: hit.id, rank: 1 });
      const apply = el("button", { type: "button", text: "Use this steering", "data-testid": "lift-apply", onclick: () => { state.edits = found.edits.map(editOf); knobs.render(state.edits); changed(true); } });
      place.replaceChildren(el("p", { text: found.sentence, dir: "auto", "data-testid": "lift-sentence" }), same(found.edits.map(editOf), state.edits) ? "" : apply);
    } catch (error) {
      place.replaceChildren(el("p", { class: "warn", text: error.message }));
    }
    button.disabled = false;
  };
  return el("div", {}, button, place);
}

// -- what is taken away -----------------------------------------------------------------------------------------------

async function code(framework, title) {
  try {
    const found = await post("/api/code", { state, framework });
    showText(title, found.code, (await copied(found.code)) ? "Copied." : "");
  } catch (error) {
    complain(error.message);
  }
}

async function savePolicy() {
  try {
    const { policy } = await post("/api/policy", { state });
    const address = URL.createObjectURL(new Blob([policy], { type: "application/json" }));
    el("a", { href: address, download: "policy.json" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  } catch (error) {
    complain(error.message);
  }
}

async function loadPolicy(event) {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  try {
    if (file.size > 500_000) throw new Error(`${file.name} is too large to be a policy.`);
    const found = await post("/api/policy/read", { policy: await file.text() });
    state.edits = found.edits.map(editOf);
    state.drift_cap = found.drift_cap;
    steps.note(state);
    put(state);
    say(`${found.edits.length} edits read from ${file.name}.`);
  } catch (error) {
    complain(error.message);
  }
}

// -- the fields -------------------------------------------------------------------------------------------------------

function field(id, name, read) {
  byId(id).addEventListener("change", () => {
    const value = read(byId(id));
    if (Number.isNaN(value)) return;
    state[name] = value;
    changed(true);
  });
}

byId("query-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.query = byId("query").value;
  plainKey = null;
  ask();
  changed(true);
});
byId("query").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    if (state.query === byId("query").value) return;
    state.query = byId("query").value;
    ask();
    changed(false);
  }, TYPING);
});
byId("query").addEventListener("change", () => { if (state.query === byId("query").value) changed(true); });
field("k", "k", (node) => node.valueAsNumber);
field("fetch-k", "fetch_k", (node) => (node.value ? node.valueAsNumber : null));
field("side", "side", (node) => node.value || null);
field("space", "space", (node) => node.value);
field("drift-cap", "drift_cap", (node) => node.valueAsNumber);
byId("undo").addEventListener("click", undo);
byId("clear").addEventListener("click", () => { state.edits = []; knobs.render(state.edits); changed(true); });
byId("copy-link").addEventListener("click", async () => {
  if (await copied(linkOf(state))) say("The link is copied.");
  else showText("Link", linkOf(state));
});
byId("copy-langchain").addEventListener("click", () => code("langchain", "Python, LangChain"));
byId("copy-llama-index").addEventListener("click", () => code("llama_index", "Python, LlamaIndex"));
byId("save-policy").addEventListener("click", savePolicy);
byId("load-policy").addEventListener("change", loadPolicy);
combobox(byId("feature-search"), byId("feature-options"), add);

document.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.shiftKey || event.key.toLowerCase() !== "z") return;
  // In a field of text the browser's own undo is meant.
  if (event.target.matches("input[type=text], input[type=search], textarea")) return;
  event.preventDefault();
  undo();
});

function fromAddress() {
  try {
    return fromFragment(location.hash);
  } catch {
    complain("This link holds no state of the explorer.");
    return null;
  }
}

window.addEventListener("hashchange", () => {
  const given = fromAddress();
  if (!given || same(given, state)) return;
  steps.note(given);
  put(given);
});

try {
  limits = await about();
  knobs.largest = limits.largest_strength;
  const start = fromAddress() || kept() || benchOf(limits.start);
  // Typed before the limits came: it is kept.
  start.query = byId("query").value || start.query;
  steps = new Steps(start);
  put(start);
} catch (error) {
  complain(error.message);
}
