// The rows of the workbench: each a steered feature with a slider, a number, its side, and a switch.

import { el, featureLink, featureTitle, show } from "/static/dom.js";

const OPERATIONS = [["add", "add"], ["clamp", "clamp to"], ["scale", "times"], ["raw", "add, raw"], ["suppress", "suppress"]];
const SIDES = [["", "side as usual"], ["query", "query"], ["document", "document"], ["both", "both"]];
// Of a slider: what is beyond can be typed.
const RANGES = { add: [-2, 2, 0.05], clamp: [0, 3, 0.05], scale: [0, 4, 0.05], raw: [-1, 1, 0.01] };
const STARTS = { add: 0.5, clamp: 1, scale: 2, raw: 0.2, suppress: 0 };

const option = ([value, text], chosen) => {
  const node = el("option", { value, text });
  node.selected = value === chosen;
  return node;
};

export class Knobs {
  /**
   * @param {HTMLElement} list where the rows go
   * @param {(commit: boolean, of?: string) => void} changed told of every change: commit is false while a slider is
   *   dragged; of is the knob that is turned
   */
  constructor(list, changed) {
    this.list = list;
    this.changed = changed;
    this.names = new Map();
    this.edits = [];
    this.largest = 10;
  }

  /** Learn what features are called. */
  learn(features) {
    for (const feature of features) this.names.set(`#${feature.id}`, feature);
  }

  /** Show rows; the array is changed in place when they are turned. */
  render(edits) {
    this.edits = edits;
    this.meanings = new Map();
    // Who turns knobs by keyboard keeps their place when the rows are made anew.
    const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
    const place = focused ? [...this.list.children].findIndex((node) => node.contains(focused)) : -1;
    this.list.replaceChildren(...edits.map((edit) => this.row(edit)));
    if (focused) this.list.children[place]?.querySelector(`[data-testid="${focused.dataset.testid}"]`)?.focus();
    show(document.getElementById("no-edits"), edits.length === 0);
  }

  title(edit) {
    const known = this.names.get(edit.name);
    return known ? featureTitle(known) : edit.name;
  }

  row(edit) {
    const title = this.title(edit);
    const known = this.names.get(edit.name);
    const node = el("li", { class: edit.on ? "edit" : "edit off", "data-testid": "edit", "data-name": edit.name });
    const on = el("input", { type: "checkbox", checked: edit.on, "aria-label": `Use ${title}`, "data-testid": "edit-on" });
    on.onchange = () => {
      edit.on = on.checked;
      node.classList.toggle("off", !edit.on);
      this.changed(true);
    };
    const remove = el("button", { type: "button", class: "plain", text: "✕", "aria-label": `Remove ${title}`, "data-testid": "edit-remove" });
    remove.onclick = () => {
      const place = this.edits.indexOf(edit);
      this.edits.splice(place, 1);
      this.render(this.edits);
      this.changed(true);
      (this.list.children[Math.min(place, this.list.children.length - 1)]?.querySelector("input") || document.getElementById("feature-search")).focus();
    };
    const name = el("span", { class: "name", "data-testid": "edit-name" }, known ? featureLink(known.id, title) : document.createTextNode(title));
    const meaning = el("p", { class: "meaning", hidden: true, "data-testid": "edit-meaning" });
    this.meanings.set(edit, { name, meaning });
    node.append(el("div", { class: "head" }, on, name, remove), meaning);
    if (edit.op !== "suppress") node.append(this.turn(edit, title));
    node.append(this.how(edit, title));
    return node;
  }

  turn(edit, title) {
    const [low, high, step] = RANGES[edit.op];
    const reach = Math.max(Math.abs(edit.strength), high);
    const slider = el("input", { type: "range", min: low < 0 ? -reach : low, max: reach, step, value: String(edit.strength), "aria-label": `Strength of ${title}`, "data-testid": "edit-slider" });
    const number = el("input", { type: "number", min: -this.largest, max: this.largest, step, value: String(edit.strength), "aria-label": `Strength of ${title}, as a number`, "data-testid": "edit-number" });
    const set = (value, commit, source) => {
      if (!Number.isFinite(value)) return;
      edit.strength = Math.round(Math.max(-this.largest, Math.min(this.largest, value)) * 1000) / 1000;
      if (source !== slider) {
        if (Math.abs(edit.strength) > Number(slider.max)) {
          slider.max = Math.abs(edit.strength);
          if (low < 0) slider.min = -Math.abs(edit.strength);
        }
        slider.value = String(edit.strength);
      }
      if (source !== number) number.value = String(edit.strength);
      this.changed(commit, edit.name);
    };
    slider.oninput = () => set(slider.valueAsNumber, false, slider);
    slider.onchange = () => set(slider.valueAsNumber, true, slider);
    number.oninput = () => set(number.valueAsNumber, false, number);
    number.onchange = () => set(number.valueAsNumber, true, number);
    const by = (amount, label, text, id) => el("button", { type: "button", text, "aria-label": `${label} of ${title}`, "data-testid": id, onclick: () => set(edit.strength + amount, true, null) });
    return el("div", { class: "turn" }, by(-2 * step, "Less", "−", "edit-less"), slider, by(2 * step, "More", "+", "edit-more"), number);
  }

  how(edit, title) {
    const operation = el("select", { "aria-label": `What to do with ${title}`, "data-testid": "edit-op" }, ...OPERATIONS.map((one) => option(one, edit.op)));
    operation.onchange = () => {
      edit.op = operation.value;
      edit.strength = STARTS[edit.op];
      if (edit.op !== "add") edit.side = null;
      this.render(this.edits);
      this.changed(true);
    };
    const side = el("select", { "aria-label": `Which side ${title} acts on`, "data-testid": "edit-side" }, ...SIDES.map((one) => option(one, edit.side || "")));
    side.onchange = () => {
      edit.side = side.value || null;
      this.changed(true);
    };
    show(side, edit.op === "add");
    const condition = edit.when === null ? null : el("span", { class: "quiet", text: `only for questions with ${edit.when} > ${edit.above}` });
    return el("div", { class: "how" }, operation, side, condition);
  }

  /** Say what the rows' names mean, as the search has resolved them. */
  explain(resolved) {
    const byName = new Map(resolved.map((edit) => [edit.name, edit]));
    for (const [edit, place] of this.meanings) {
      const found = byName.get(edit.name);
      if (!found) {
        show(place.meaning, false);
        continue;
      }
      this.learn(found.features);
      if (found.features.length === 1 && edit.name === `#${found.features[0].id}`) {
        const title = this.title(edit);
        if (place.name.textContent !== title) place.name.replaceChildren(featureLink(found.features[0].id, title));
        place.meaning.textContent = found.applies ? "" : "its condition does not hold for this question";
        show(place.meaning, !found.applies);
        continue;
      }
      const parts = found.features.flatMap((feature, index) => [index ? "; " : "means ", featureLink(feature.id, featureTitle(feature)), feature.weight < 1 ? ` × ${feature.weight.toFixed(2)}` : ""]);
      place.meaning.replaceChildren(...parts, found.applies ? "" : " – its condition does not hold for this question");
      show(place.meaning, true);
    }
  }
}
