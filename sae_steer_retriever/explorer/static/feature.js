// All that is known of one feature, and a name of one's own for it.

import { about, get, post } from "/static/api.js";
import { byId, complain, el, featureLink, featureTitle, percent, say, show } from "/static/dom.js";
import { histogram, zipf } from "/static/plots.js";
import { editOf, kept, openBench } from "/static/state.js";

const id = Number(location.pathname.split("/").pop());
// A word is marked if its share of the match is this large compared with the largest of its passage.
const CARRIES = 0.6;
const HELPS = 0.35;
let current = null;

function facts(feature) {
  const rows = [
    ["keywords", feature.keywords.join(", ") || "–"],
    ["label score", feature.score_meaning],
    ["frequency", `${feature.active_in.toLocaleString("en")} of the ${feature.passages.toLocaleString("en")} passages it was made from (${percent(feature.frequency, 2)})`],
    ["here", `${feature.here.count.toLocaleString("en")} of ${feature.passages_here.toLocaleString("en")} passages of this collection`],
    ["unit", `${feature.unit.toFixed(4)}, the activation that 1.0 in a steering stands for; largest ${feature.maximum.toFixed(4)}`],
  ];
  if (feature.label_by === "person") rows.splice(1, 0, ["named", `by a person${feature.generated_label ? `; generated: ${feature.generated_label}` : ""}`]);
  else if (feature.label && feature.label_by !== "keywords") rows.splice(1, 0, ["named", `by ${feature.label_by}`]);
  if (feature.note) rows.push(["note", feature.note]);
  byId("facts").replaceChildren(...rows.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value, dir: "auto" })]));
}

const related = (one, figure) => el("li", {}, figure ? el("span", { class: "number quiet", text: `${figure}  ` }) : "", featureLink(one.id, featureTitle(one)));

function passage(example) {
  return el(
    "li", { "data-testid": "passage", "data-id": example.id },
    el("div", { class: "quiet" }, el("span", { class: "number", text: `${example.strength.toFixed(3)}  ` }), el("span", { text: example.id, dir: "auto" })),
    el("p", { class: "text", dir: "auto", "data-testid": "text", text: example.text + (example.cut ? " …" : "") }),
  );
}

/** Mark the words that activate the feature; the text stays text. */
function mark(node, text, read) {
  const strongest = Math.max(1e-9, ...read.values);
  const parts = [];
  let end = 0;
  read.spans.forEach(([start, stop], place) => {
    const share = read.values[place] / strongest;
    if (share < HELPS || stop > text.length) return;
    parts.push(text.slice(end, start), el("mark", { class: share >= CARRIES ? "strong" : "weak", text: text.slice(start, stop), title: `${percent(share)} of the share of the passage's strongest word` }));
    end = stop;
  });
  node.replaceChildren(...parts, text.slice(end));
}

async function words(lists) {
  const examples = [...lists.top, ...lists.middle];
  if (!examples.length) return;
  const note = byId("words-note");
  note.classList.add("busy");
  try {
    const found = await post(`/api/features/${id}/words`, { passages: [...new Set(examples.map((example) => example.id))] });
    for (const list of ["top", "middle"]) {
      [...byId(list).children].forEach((node, place) => {
        const read = found.passages[node.dataset.id];
        const text = node.querySelector(".text");
        if (read && text) mark(text, lists[list][place].text + (lists[list][place].cut ? " …" : ""), read);
      });
    }
  } catch (error) {
    note.textContent = `The words cannot be marked: ${error.message}`;
  }
  note.classList.remove("busy");
}

function render(feature) {
  current = feature;
  const title = feature.label ? featureTitle(feature) : `#${feature.id} (no label)`;
  byId("title").textContent = title;
  document.title = `${title} · sae-steer explorer`;
  facts(feature);
  byId("histogram").replaceChildren(histogram(feature.here.counts, feature.here.edges));
  byId("zipf").replaceChildren(zipf(feature.zipf));
  byId("neighbours").replaceChildren(...feature.nearest.map((other) => related({ id: other.id, name: other.label }, other.cosine.toFixed(2))));
  if (!feature.nearest.length) byId("neighbours").append(el("li", { class: "quiet", text: "None is known." }));
  byId("family-name").replaceChildren(feature.family ? el("a", { href: `/features?family=${feature.family.id}`, text: `${feature.family.name} (family #${feature.family.id})` }) : "It is in no family.");
  byId("family").replaceChildren(...feature.family_features.filter((one) => one.id !== id).map((one) => related(one)));
  byId("trie").textContent = feature.trie_text || "";
  show(byId("trie"), Boolean(feature.trie_text));
  show(byId("grow-row"), !feature.trie_text && feature.lists.top.length > 0);
  show(byId("trie-panel"), Boolean(feature.trie_text) || feature.lists.top.length > 0);
  for (const [list, key] of [["top", "top"], ["middle", "middle"], ["near-misses", "near_misses"]]) {
    byId(list).replaceChildren(...(feature.lists[key] || []).map(passage));
    if (!byId(list).children.length) byId(list).append(el("li", { class: "quiet", text: "None in this collection." }));
  }
  show(byId("unname"), feature.label_by === "person");
  show(byId("page"), true);
}

async function load() {
  say("Loading", true);
  try {
    render(await get(`/api/features/${id}`));
    complain("");
    say("");
  } catch (error) {
    complain(error.message);
    say("");
    return;
  }
  words(current.lists);
}

async function grow() {
  byId("grow").disabled = true;
  byId("grow-note").classList.add("busy");
  try {
    const { text, passages } = await post(`/api/features/${id}/trie`, {});
    byId("trie").textContent = text || "No short word sequence activates it.";
    show(byId("trie"), true);
    byId("grow-note").textContent = `Read from ${passages} passages. Indented below each word are the words before it; * means that no more context is needed.`;
    show(byId("grow"), false);
  } catch (error) {
    byId("grow-note").textContent = error.message;
  }
  byId("grow").disabled = false;
  byId("grow-note").classList.remove("busy");
}

function renaming(open) {
  show(byId("rename-form"), open);
  byId("rename").setAttribute("aria-expanded", String(open));
  if (!open) return byId("rename").focus();
  byId("new-label").value = current.label_by === "person" ? current.label : "";
  byId("new-note").value = current.note || "";
  return byId("new-label").focus();
}

async function rename(label, note) {
  try {
    const named = await post(`/api/features/${id}/name`, { label, note: note || null });
    renaming(false);
    await load();
    const alike = named.same_label.length ? ` ${named.same_label.map((other) => `#${other}`).join(", ")} has this name too: steering by it means all of them.` : "";
    say(`Now “${named.name}”, was “${named.before}”.${alike}`);
  } catch (error) {
    complain(error.message);
  }
}

byId("grow").addEventListener("click", grow);
byId("rename").addEventListener("click", () => renaming(byId("rename-form").hidden));
byId("rename-cancel").addEventListener("click", () => renaming(false));
byId("rename-form").addEventListener("submit", (event) => {
  event.preventDefault();
  rename(byId("new-label").value, byId("new-note").value);
});
byId("unname").addEventListener("click", () => rename(null, null));
byId("steer").addEventListener("click", () => {
  const edits = kept()?.edits || [];
  const own = edits.some((edit) => edit.name === `#${id}`) ? [] : [editOf({ name: `#${id}`, strength: 0.5 })];
  openBench({ edits: [...edits, ...own] });
});

about().catch((error) => complain(error.message));
load();
