// The catalog: every live feature, the most frequent first, or those that answer to a text.

import { about, get } from "/static/api.js";
import { byId, complain, el, featureLink, percent, say, show } from "/static/dom.js";

const PAGE = 50;
let offset = 0;
let timer = 0;
let looking = null;

const address = new URLSearchParams(location.search);
let family = address.get("family");
byId("find").value = address.get("search") || "";

function row(feature) {
  const score = feature.score === null ? "–" : feature.score.toFixed(2);
  const name = feature.label ? feature.name : "(no label)";
  const group = feature.family === null ? "" : el("a", { href: `/features?family=${feature.family}`, text: `#${feature.family}` });
  return el(
    "tr", { "data-testid": "feature-row", "data-feature": String(feature.id) },
    el("td", { class: "number narrow", text: `#${feature.id}` }),
    el("td", { class: "name" }, featureLink(feature.id, name), feature.by === "person" ? el("span", { class: "quiet", text: "  named by a person" }) : ""),
    el("td", { class: "number wide-only", text: score }),
    el("td", { class: "number", text: percent(feature.frequency, 2) }),
    el("td", { class: "number wide-only" }, group),
  );
}

async function look(more = false) {
  looking?.abort();
  looking = new AbortController();
  const text = byId("find").value.trim();
  offset = more ? offset + PAGE : 0;
  const asked = new URLSearchParams({ offset: String(offset), limit: String(PAGE) });
  if (text) asked.set("search", text);
  else if (family !== null) asked.set("family", family);
  say("Looking", true);
  try {
    const found = await get(`/api/features?${asked}`, looking.signal);
    const rows = found.features.map(row);
    if (more) byId("rows").append(...rows);
    else byId("rows").replaceChildren(...rows);
    complain("");
    const shown = offset + rows.length;
    const order = text ? "the best answers first" : "the most frequent first";
    say(`${found.count.toLocaleString("en")} feature${found.count === 1 ? "" : "s"}${!text && family !== null ? ` of family #${family}` : ""}, ${shown.toLocaleString("en")} shown, ${order}. A label's score is how well it finds its passages: 0.5 is chance.`);
    show(byId("more"), shown < found.count);
    show(byId("all"), Boolean(text) || family !== null);
    const next = new URLSearchParams(text ? { search: text } : family === null ? {} : { family });
    history.replaceState(null, "", next.size ? `?${next}` : location.pathname);
  } catch (error) {
    if (error.name === "AbortError") return;
    complain(error.message);
    say("");
  }
}

byId("find").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => look(), 200);
});
byId("more").addEventListener("click", () => look(true));
byId("all").addEventListener("click", () => {
  byId("find").value = "";
  family = null;
  look();
});

about().catch((error) => complain(error.message));
look();
