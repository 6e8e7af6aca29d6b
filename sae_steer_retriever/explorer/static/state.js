// The state of the workbench: in the address, in this tab's memory, and in the steps that can be undone.

const PREFIX = "b1.";
const KEPT = "sae-steer-bench";
const EDIT = { name: "", op: "add", strength: 0.5, side: null, on: true, when: null, above: 0, features: null, weights: null };
const BENCH = { query: "", edits: [], k: 10, space: "original", side: null, fetch_k: null, drift_cap: 0.8 };

export const editOf = (row) => ({ ...EDIT, ...row });
export const benchOf = (state) => ({ ...BENCH, ...state, edits: (state.edits || []).map(editOf) });
export const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

function without(defaults, given) {
  return Object.fromEntries(Object.entries(given).filter(([key, value]) => !same(value, defaults[key])));
}

/** The part of an address behind "#". */
export function fragment(state) {
  const body = without(BENCH, { ...state, edits: state.edits.map((edit) => without(EDIT, edit)) });
  const bytes = new TextEncoder().encode(JSON.stringify(body));
  const text = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return PREFIX + btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

/** The state that an address holds; null if it holds none. */
export function fromFragment(hash) {
  const text = hash.replace(/^#/, "");
  if (!text.startsWith(PREFIX)) return null;
  const body = atob(text.slice(PREFIX.length).replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = Uint8Array.from(body, (character) => character.charCodeAt(0));
  return benchOf(JSON.parse(new TextDecoder().decode(bytes)));
}

export function keep(state) {
  try {
    sessionStorage.setItem(KEPT, fragment(state));
  } catch {
    // private windows may refuse: the address has the state all the same
  }
}

export function kept() {
  try {
    return fromFragment(sessionStorage.getItem(KEPT) || "");
  } catch {
    return null;
  }
}

/** The address of the workbench in a state. */
export const linkOf = (state) => `${location.origin}/#${fragment(state)}`;

/** Open the workbench where this tab last left it, with other rows. */
export function openBench(changes) {
  const state = benchOf({ ...(kept() || BENCH), ...changes });
  keep(state);
  location.href = linkOf(state);
}

export class Steps {
  constructor(state) {
    this.done = [];
    this.current = structuredClone(state);
    this.last = { of: null, at: 0 };
  }

  /**
   * Note a state; the one before can be gone back to. Turns of one knob in quick succession are one step.
   * @param {object} state the workbench
   * @param {string | null} of which knob was turned, if one was
   */
  note(state, of = null) {
    if (same(state, this.current)) return false;
    const now = performance.now();
    const more = of !== null && of === this.last.of && now - this.last.at < 1000 && this.done.length > 0;
    this.last = { of, at: now };
    if (!more) this.done.push(this.current);
    if (this.done.length > 200) this.done.shift();
    this.current = structuredClone(state);
    return true;
  }

  back() {
    if (!this.done.length) return null;
    this.last = { of: null, at: 0 };
    this.current = this.done.pop();
    return structuredClone(this.current);
  }
}
