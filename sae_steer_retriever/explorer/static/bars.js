// What a score is made of, as bars: a name, a length, a number with its sign, so that no colour is needed to read it.

import { el, featureLink, percent, signed } from "/static/dom.js";

const FEW = 3;

/** What features are called that are steered by their ids: "#12" -> "hockey, playoffs #12". */
export const titles = new Map();

/** The parts that are shown at once: the steering's, the largest features, and what is unexplained. */
function few(parts) {
  let features = 0;
  return parts.filter((part) => {
    if (part.kind === "feature") return (features += 1) <= FEW;
    return part.kind === "steering" || part.kind === "unexplained";
  });
}

function bar(part, largest) {
  const track = el("span", { class: "bar" });
  track.style.width = `${Math.max(100 * Math.abs(part.value) / largest, 0.5)}%`;
  // The side first: a long name may be cut behind it.
  const called = part.name.replace(/^steering: (.*) \((query|document)\)$/s, (_, name, side) => `steering, ${side}: ${titles.get(name) ?? name}`);
  const name = part.feature === null ? el("span", { text: called }) : featureLink(part.feature, called);
  const value = part.kind === "unexplained" ? `${signed(part.value)} (${percent(part.share)})` : signed(part.value);
  const kind = part.value < 0 && part.kind !== "unexplained" ? `${part.kind} against` : part.kind;
  return el(
    "li",
    { class: kind, "data-kind": part.kind, "data-testid": "bar" },
    el("span", { class: `what ${kind}`, title: called }, name),
    el("span", { class: `track ${kind}`, "aria-hidden": "true" }, track),
    el("span", { class: "number", text: value }),
  );
}

/**
 * @param {Array} parts of one explanation
 * @param {number} largest the largest part by size in the list, so that bars of several hits compare
 * @param {boolean} all whether to show every part
 */
export function bars(parts, largest, all) {
  const shown = all ? parts : few(parts);
  return el("ul", { class: all ? "bars all" : "bars", "aria-label": "Parts of the score" }, ...shown.map((part) => bar(part, largest)));
}

/** The size of the largest part that bars are drawn of. */
export const largestOf = (reasons, all) =>
  Math.max(1e-9, ...Object.values(reasons).flatMap((why) => (all ? why.parts : few(why.parts)).map((part) => Math.abs(part.value))));
