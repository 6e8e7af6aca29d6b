// "This, not that": a steering from examples, and one from judged hits.

import { about, post, stream } from "/static/api.js";
import { byId, complain, el, featureLink, say, signed } from "/static/dom.js";
import { HitList } from "/static/hits.js";
import { benchOf, editOf, kept, openBench } from "/static/state.js";

const judgments = new Map();
let query = "";
const hits = new HitList(byId("judge-hits"), "judge-hit", () => null);

/** Passages, parted by empty lines. */
const passages = (text) => text.split(/\n\s*\n/).map((part) => part.trim()).filter(Boolean);

function steering(found, place, changes) {
  const rows = found.features.map((reason) => el(
    "tr", { "data-testid": "reason" },
    el("td", { class: "number", text: signed(reason.strength, 2) }),
    el("td", { class: "name" }, featureLink(reason.feature, reason.label.includes(`#${reason.feature}`) ? reason.label : `${reason.label} #${reason.feature}`), el("div", { class: "quiet", text: reason.reason })),
  ));
  const head = el("tr", {}, el("th", { scope: "col", text: "strength" }), el("th", { scope: "col", text: "feature, and why" }));
  const open = el("button", { type: "button", class: "primary", text: "Open in the workbench", "data-testid": "open-bench", onclick: () => openBench({ ...changes, edits: found.edits.map(editOf) }) });
  const mean = (ranks) => (ranks.reduce((sum, rank) => sum + rank, 0) / ranks.length).toFixed(1);
  const ranks = found.ranks_before?.length ? el("p", { text: `Mean rank of the hits you liked: ${mean(found.ranks_before)} without this steering, ${mean(found.ranks_after)} with it.`, "data-testid": "ranks" }) : "";
  place.replaceChildren(
    el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)),
    ranks,
    found.warning ? el("p", { class: "warn", text: found.warning }) : "",
    el("p", {}, open),
  );
}

async function work(place, path, body, changes) {
  complain("");
  say("Working", true);
  try {
    steering(await post(path, body), place, changes);
    say("Done.");
  } catch (error) {
    place.replaceChildren();
    complain(error.message);
    say("");
  }
}

byId("contrast-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const positive = passages(byId("positive").value);
  if (!positive.length) return complain("Paste at least one passage that hits should be like.");
  return work(byId("contrast-result"), "/api/contrast", { positive, negative: passages(byId("negative").value) }, {});
});

// -- judging ----------------------------------------------------------------------------------------------------------

function judged() {
  const up = [...judgments.values()].filter((one) => one > 0).length;
  const down = judgments.size - up;
  byId("judged").textContent = judgments.size ? `${up} up, ${down} down` : "Search, then judge the hits.";
  byId("autosteer").disabled = up === 0;
}

function buttons(hit) {
  const pair = [["▲ like this", 1, "up"], ["▼ not this", -1, "down"]].map(([text, value, name]) => {
    const button = el("button", { type: "button", text, "aria-pressed": "false", "data-testid": `judge-${name}` });
    button.onclick = () => {
      if (judgments.get(hit.id) === value) judgments.delete(hit.id);
      else judgments.set(hit.id, value);
      pair.forEach(([other, own]) => other.setAttribute("aria-pressed", String(judgments.get(hit.id) === own)));
      judged();
    };
    return [button, value];
  });
  return el("div", { class: "judge", role: "group", "aria-label": `Judge ${hit.id}` }, ...pair.map(([button]) => button));
}

async function search() {
  judgments.clear();
  judged();
  byId("autosteer-result").replaceChildren();
  complain("");
  if (!query.trim()) return hits.render([]);
  say("Searching", true);
  try {
    await stream("/api/search", { state: benchOf({ query }), before: false }, undefined, (line) => {
      if (line.kind === "results") {
        hits.render(line.hits);
        line.hits.forEach((hit, place) => byId("judge-hits").children[place].append(buttons(hit)));
        say(`${line.hits.length} hits, not steered.`);
      } else if (line.kind === "reasons") {
        hits.explain(line.hits);
      }
    });
  } catch (error) {
    complain(error.message);
    say("");
  }
  return undefined;
}

byId("judge-form").addEventListener("submit", (event) => {
  event.preventDefault();
  query = byId("judge-query").value;
  search();
});
byId("autosteer").addEventListener("click", () => {
  const of = (value) => [...judgments].filter(([, one]) => one === value).map(([id]) => id);
  work(byId("autosteer-result"), "/api/autosteer", { query, positive: of(1), negative: of(-1) }, { query });
});

judged();
about().catch((error) => complain(error.message));
byId("judge-query").value = kept()?.query || "";
if (byId("judge-query").value) {
  query = byId("judge-query").value;
  search();
}
