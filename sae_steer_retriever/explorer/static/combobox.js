// A field in which a feature is found by its name: the ARIA combobox with a list of options.

import { get } from "/static/api.js";
import { complain, el, featureTitle, percent } from "/static/dom.js";

/**
 * @param {HTMLInputElement} input the field
 * @param {HTMLElement} list the list of options
 * @param {(name: string, feature: object | null) => void} choose gets what was chosen: a feature, or a text as it is
 * @param {{free?: boolean}} options free: whether a text as it is may be chosen
 */
export function combobox(input, list, choose, { free = true } = {}) {
  let options = [];
  let active = -1;
  let timer = 0;
  let looking = null;

  function open(shown) {
    list.hidden = !shown;
    input.setAttribute("aria-expanded", String(shown));
    if (!shown) input.removeAttribute("aria-activedescendant");
  }

  function move(to) {
    active = options.length ? (to + options.length) % options.length : -1;
    [...list.children].forEach((row, place) => row.setAttribute("aria-selected", String(place === active)));
    const row = list.children[active];
    if (!row) return;
    input.setAttribute("aria-activedescendant", row.id);
    row.scrollIntoView({ block: "nearest" });
  }

  function take(option) {
    if (!option) return;
    clearTimeout(timer);
    looking?.abort();
    input.value = "";
    options = [];
    list.replaceChildren();
    open(false);
    choose(option.name, option.feature);
  }

  function render(text, features) {
    options = features.map((feature) => ({ name: `#${feature.id}`, feature }));
    if (free) options.push({ name: text, feature: null });
    list.replaceChildren(...options.map((option, place) => el(
      "li",
      { id: `${list.id}-${place}`, role: "option", "data-testid": "feature-option", onmousedown: (event) => { event.preventDefault(); take(option); } },
      option.feature ? el("span", { text: featureTitle(option.feature) }) : el("span", { text: `“${text}” as it is` }),
      el("span", { class: "quiet", text: option.feature ? `  ${percent(option.feature.frequency, 2)} of passages` : ", all features that it means" }),
    )));
    open(options.length > 0);
    move(0);
  }

  async function look() {
    const text = input.value.trim();
    looking?.abort();
    if (!text) return open(false);
    looking = new AbortController();
    try {
      const found = await get(`/api/features?limit=12&search=${encodeURIComponent(text)}`, looking.signal);
      if (input.value.trim() === text) render(text, found.features);
    } catch (error) {
      if (error.name !== "AbortError") complain(error.message);
    }
    return undefined;
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, 150);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) look();
      else move(active + (event.key === "ArrowDown" ? 1 : -1));
    } else if (event.key === "Enter") {
      event.preventDefault();
      const text = input.value.trim();
      if (!list.hidden && options[active]) take(options[active]);
      else if (text && free) take({ name: text, feature: null });
    } else if (event.key === "Escape") {
      open(false);
    }
  });
  input.addEventListener("blur", () => open(false));
}
