// A list of hits: ranks, how they moved, texts as text, and why each has its score.

import { post } from "/static/api.js";
import { bars, largestOf } from "/static/bars.js";
import { complain, el, show } from "/static/dom.js";

/** How a steered hit moved, in a word and with an arrow. */
function movement(hit) {
  if (hit.base_rank === null) return { kind: "new", text: "▲ new", said: "not found without steering" };
  const steps = hit.base_rank - hit.rank;
  if (steps > 0) return { kind: "up", text: `▲ ${steps} (was ${hit.base_rank})`, said: `up ${steps}, was ${hit.base_rank}` };
  if (steps < 0) return { kind: "down", text: `▼ ${-steps} (was ${hit.base_rank})`, said: `down ${-steps}, was ${hit.base_rank}` };
  return { kind: "same", text: "=", said: "as without steering" };
}

export class HitList {
  /**
   * @param {HTMLElement} list the list
   * @param {string} testId of its hits
   * @param {(hit: object) => (HTMLElement | null)} extra makes what stands below a hit's reasons, such as a button
   */
  constructor(list, testId, extra = () => null) {
    this.list = list;
    this.testId = testId;
    this.extra = extra;
    this.opened = new Set();
    this.whole = new Map();
    this.reasons = {};
  }

  /**
   * @param {Array} hits best first
   * @param {{moved?: boolean, kept?: Set<string> | null, fresh?: boolean}} options moved: show how they moved; kept:
   *   ids that the steered list still has, of which others are marked as gone; fresh: forget the last reasons
   */
  render(hits, { moved = false, kept = null, fresh = true } = {}) {
    const before = fresh ? {} : this.reasons;
    this.reasons = {};
    this.places = new Map();
    this.list.replaceChildren(...hits.map((hit) => {
      const node = this.hit(hit, moved, kept);
      // The last reasons stay until the new ones come: nothing jumps.
      if (before[hit.id]) this.reasons[hit.id] = before[hit.id];
      return node;
    }));
    this.drawReasons();
  }

  explain(reasons) {
    this.reasons = reasons;
    this.drawReasons();
  }

  hit(hit, moved, kept) {
    const move = moved ? movement(hit) : kept && !kept.has(hit.id) ? { kind: "left", text: "▼ gone", said: "not among the steered hits" } : null;
    const why = el("div", {});
    const more = el("details", { "data-testid": "why", ontoggle: () => { if (more.open) this.opened.add(hit.id); else this.opened.delete(hit.id); this.drawReasons(hit.id); } });
    more.open = this.opened.has(hit.id);
    const inside = el("div", {});
    const metadata = Object.entries(hit.metadata);
    more.append(
      el("summary", { text: "Full explanation" }),
      inside,
      metadata.length ? el("p", { class: "quiet", text: metadata.map(([key, value]) => `${key}: ${value}`).join(" · ") }) : "",
      this.extra(hit) || "",
    );
    this.places.set(hit.id, { why, inside });
    const node = el(
      "li",
      { class: `hit ${move ? move.kind : ""}`, "data-testid": this.testId, "data-id": hit.id, "data-rank": String(hit.rank) },
      el(
        "div",
        { class: "head" },
        el("span", { class: "rank number", text: String(hit.rank) }),
        move ? el("span", { class: `move ${move.kind}`, "data-testid": "move" }, el("span", { "aria-hidden": "true", text: move.text }), el("span", { class: "visually-hidden", text: move.said })) : null,
        el("span", { class: "id", text: hit.id, dir: "auto" }),
        el("span", { class: "number", text: hit.score.toFixed(3), title: "score", "data-testid": "score" }),
      ),
      ...this.text(hit),
      why,
      more,
    );
    return node;
  }

  text(hit) {
    const known = this.whole.get(hit.id);
    const text = el("p", { class: known ? "text whole" : "text short", dir: "auto", text: known ?? hit.text, "data-testid": "text" });
    const button = el("button", { type: "button", class: "plain", "aria-expanded": String(Boolean(known)), text: known ? "Show less" : "Show all of it", "data-testid": "show-all" });
    button.onclick = async () => {
      if (this.whole.has(hit.id)) {
        this.whole.delete(hit.id);
      } else {
        try {
          const found = hit.cut ? await post("/api/passage", { id: hit.id }) : hit;
          this.whole.set(hit.id, found.cut ? `${found.text}… (${found.characters.toLocaleString("en")} characters)` : found.text);
        } catch (error) {
          return complain(error.message);
        }
      }
      const open = this.whole.has(hit.id);
      text.className = open ? "text whole" : "text short";
      text.textContent = this.whole.get(hit.id) ?? hit.text;
      if (open) text.tabIndex = 0;
      button.textContent = open ? "Show less" : "Show all of it";
      return button.setAttribute("aria-expanded", String(open));
    };
    show(button, hit.characters > 200);
    return [text, button];
  }

  drawReasons(only = null) {
    const [largest, largestOfAll] = [largestOf(this.reasons, false), largestOf(this.reasons, true)];
    for (const [id, place] of this.places) {
      const why = this.reasons[id];
      if (!why || (only !== null && only !== id)) continue;
      place.why.replaceChildren(bars(why.parts, largest, false));
      place.inside.replaceChildren(...(this.opened.has(id) ? [
        el("p", { text: why.sentence, dir: "auto", "data-testid": "sentence" }),
        bars(why.parts, largestOfAll, true),
        el("p", { class: "quiet", text: why.meaning }),
      ] : []));
    }
  }
}
