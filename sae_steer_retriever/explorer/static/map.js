// The map: thousands of features on a canvas, drawn again only when something has changed.

import { about, get } from "/static/api.js";
import { byId, complain, el, featureLink, percent, say, show } from "/static/dom.js";

const canvas = byId("canvas");
const context = canvas.getContext("2d");
const dark = matchMedia("(prefers-color-scheme: dark)");
// Okabe and Ito's, without black; of families that share a colour only the one under the pointer is lit.
const FAMILIES = ["#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7", "#8c7a00"];
// Cividis, for frequency: the same for every kind of sight.
const RAMP = [[0, 32, 77], [60, 77, 110], [124, 123, 120], [187, 175, 113], [255, 234, 70]];
const CELL = 24;

let points = { ids: [], x: [], y: [], names: [], frequencies: [], families: [], family_names: {} };
let view = { scale: 1, x: 0, y: 0 };
let size = { width: 1, height: 1, ratio: 1 };
let found = new Set();
let near = -1;
let grid = new Map();
let waiting = false;

// -- places -----------------------------------------------------------------------------------------------------------

const side = () => Math.min(size.width, size.height) * 0.94;
const screenX = (place) => (points.x[place] - 0.5) * side() * view.scale + size.width / 2 + view.x;
const screenY = (place) => (points.y[place] - 0.5) * side() * view.scale + size.height / 2 + view.y;
const radius = () => Math.min(2.2 * Math.sqrt(view.scale), 7);

function zoom(factor, x = size.width / 2, y = size.height / 2) {
  const scale = Math.max(0.8, Math.min(60, view.scale * factor));
  const share = scale / view.scale;
  view = { scale, x: (view.x - (x - size.width / 2)) * share + (x - size.width / 2), y: (view.y - (y - size.height / 2)) * share + (y - size.height / 2) };
  draw();
}

function all() {
  view = { scale: 1, x: 0, y: 0 };
  draw();
}

function showPoint(place) {
  view.scale = Math.max(view.scale, 6);
  view.x = -(points.x[place] - 0.5) * side() * view.scale;
  view.y = -(points.y[place] - 0.5) * side() * view.scale;
  near = place;
  draw();
}

// -- drawing ----------------------------------------------------------------------------------------------------------

function ramp(share) {
  const at = Math.max(0, Math.min(0.9999, share)) * (RAMP.length - 1);
  const low = Math.floor(at);
  const mixed = RAMP[low].map((value, channel) => Math.round(value + (RAMP[low + 1][channel] - value) * (at - low)));
  return `rgb(${mixed.join(",")})`;
}

function colours() {
  if (byId("colour").value === "family") {
    const plain = dark.matches ? "#5d6873" : "#a9b2bb";
    return points.families.map((family) => (family === null ? plain : FAMILIES[family % FAMILIES.length]));
  }
  const logs = points.frequencies.map((frequency) => Math.log10(Math.max(frequency, 1e-7)));
  const low = logs.reduce((one, other) => Math.min(one, other), Infinity);
  const high = logs.reduce((one, other) => Math.max(one, other), -Infinity);
  byId("ramp-low").textContent = percent(10 ** low, 3);
  byId("ramp-high").textContent = `to ${percent(10 ** high, 1)} of passages`;
  // On a dark page the ramp begins lighter, on a light one it ends darker: each end stays visible.
  return logs.map((value) => {
    const share = (value - low) / Math.max(high - low, 1e-9);
    return ramp(dark.matches ? 0.2 + 0.8 * share : 0.88 * share);
  });
}

let tints = [];

function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    paint();
  });
}

function paint() {
  const style = getComputedStyle(document.documentElement);
  const strong = style.getPropertyValue("--text");
  context.setTransform(size.ratio, 0, 0, size.ratio, 0, 0);
  context.clearRect(0, 0, size.width, size.height);
  grid = new Map();
  const family = near >= 0 && byId("colour").value === "family" ? points.families[near] : null;
  const own = radius();
  const visible = [];
  const byTint = new Map();
  for (let place = 0; place < points.ids.length; place += 1) {
    const x = screenX(place);
    const y = screenY(place);
    if (x < -10 || y < -10 || x > size.width + 10 || y > size.height + 10) continue;
    const cell = `${Math.floor(x / CELL)},${Math.floor(y / CELL)}`;
    if (!grid.has(cell)) grid.set(cell, []);
    grid.get(cell).push(place);
    visible.push(place);
    const lit = place === near || (found.size ? found.has(place) : family === null || points.families[place] === family);
    const dim = !lit;
    const key = `${tints[place]}|${dim ? 1 : 0}`;
    if (!byTint.has(key)) byTint.set(key, []);
    byTint.get(key).push(x, y);
  }
  for (const [key, places] of byTint) {
    const [tint, dim] = key.split("|");
    context.globalAlpha = dim === "1" ? 0.25 : 0.9;
    context.fillStyle = tint;
    context.beginPath();
    for (let at = 0; at < places.length; at += 2) {
      context.moveTo(places[at] + own, places[at + 1]);
      context.arc(places[at], places[at + 1], own, 0, 2 * Math.PI);
    }
    context.fill();
  }
  context.globalAlpha = 1;
  context.strokeStyle = strong;
  for (const place of [...found, near]) {
    if (place < 0) continue;
    context.lineWidth = place === near ? 2.5 : 1.5;
    context.beginPath();
    context.arc(screenX(place), screenY(place), own + 3, 0, 2 * Math.PI);
    context.stroke();
  }
  // What is pointed at or was found comes first; of the rest, names only where they have room.
  const told = [near, ...(view.scale >= 2 || found.size <= 12 ? found : [])].filter((place) => visible.includes(place));
  names(visible.length <= 60 ? [...told, ...visible] : told, strong, style.getPropertyValue("--page"));
}

/** Names beside the points, where few enough are in sight, none over another. */
function names(visible, strong, page) {
  context.font = "12px system-ui, sans-serif";
  context.textBaseline = "middle";
  const taken = [];
  for (const place of new Set(visible)) {
    const full = points.names[place];
    const text = full.length > 34 ? `${full.slice(0, 33)}…` : full;
    const x = screenX(place) + radius() + 5;
    const y = screenY(place);
    const box = [x, y - 8, x + context.measureText(text).width, y + 8];
    if (box[2] > size.width || taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) continue;
    taken.push(box);
    context.lineWidth = 3;
    context.strokeStyle = page;
    context.strokeText(text, x, y);
    context.fillStyle = strong;
    context.fillText(text, x, y);
  }
}

function resize() {
  const box = canvas.getBoundingClientRect();
  size = { width: box.width, height: box.height, ratio: devicePixelRatio || 1 };
  canvas.width = Math.round(box.width * size.ratio);
  canvas.height = Math.round(box.height * size.ratio);
  draw();
}

// -- pointing ---------------------------------------------------------------------------------------------------------

function nearest(x, y) {
  let best = -1;
  let least = (radius() + 8) ** 2;
  const column = Math.floor(x / CELL);
  const row = Math.floor(y / CELL);
  for (let dx = -1; dx <= 1; dx += 1) {
    for (let dy = -1; dy <= 1; dy += 1) {
      for (const place of grid.get(`${column + dx},${row + dy}`) || []) {
        const away = (screenX(place) - x) ** 2 + (screenY(place) - y) ** 2;
        if (away < least) [best, least] = [place, away];
      }
    }
  }
  return best;
}

function tip(place, x, y) {
  const node = byId("tip");
  show(node, place >= 0);
  if (place < 0) return;
  const family = points.families[place];
  node.replaceChildren(
    el("strong", { text: points.names[place] }),
    el("div", { class: "quiet", text: `${percent(points.frequencies[place], 2)} of passages${family === null ? "" : `; family ${points.family_names[family] ?? family}`}` }),
  );
  node.style.left = `${Math.max(4, Math.min(x + 14, size.width - node.offsetWidth - 4))}px`;
  node.style.top = `${Math.max(4, Math.min(y + 14, size.height - node.offsetHeight - 4))}px`;
}

const pointers = new Map();
let moved = 0;

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
  moved = 0;
});
canvas.addEventListener("pointermove", (event) => {
  const at = [event.offsetX, event.offsetY];
  const last = pointers.get(event.pointerId);
  if (!last) {
    const place = nearest(...at);
    tip(place, ...at);
    canvas.style.cursor = place >= 0 ? "pointer" : "grab";
    if (place !== near) {
      near = place;
      draw();
    }
    return;
  }
  const others = [...pointers].filter(([key]) => key !== event.pointerId);
  if (others.length) {
    const [, other] = others[0];
    const before = Math.hypot(last[0] - other[0], last[1] - other[1]);
    const now = Math.hypot(at[0] - other[0], at[1] - other[1]);
    if (before > 0) zoom(now / before, (at[0] + other[0]) / 2, (at[1] + other[1]) / 2);
  } else {
    view.x += at[0] - last[0];
    view.y += at[1] - last[1];
    draw();
  }
  moved += Math.hypot(at[0] - last[0], at[1] - last[1]);
  pointers.set(event.pointerId, at);
});
function release(event) {
  const one = pointers.size === 1;
  pointers.delete(event.pointerId);
  if (event.type !== "pointerup" || !one || moved > 6) return;
  const place = nearest(event.offsetX, event.offsetY);
  if (place < 0) return;
  // A finger has not hovered: its first touch shows what it is, the second opens it.
  if (event.pointerType === "touch" && near !== place) {
    near = place;
    tip(place, event.offsetX, event.offsetY);
    draw();
    return;
  }
  location.href = `/features/${points.ids[place]}`;
}
canvas.addEventListener("pointerup", release);
canvas.addEventListener("pointercancel", release);
canvas.addEventListener("pointerleave", () => tip(-1));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY * 0.0015), event.offsetX, event.offsetY);
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  if (steps[event.key]) {
    view.x += steps[event.key][0];
    view.y += steps[event.key][1];
    draw();
  } else if (event.key === "+" || event.key === "=") zoom(1.4);
  else if (event.key === "-") zoom(1 / 1.4);
  else if (event.key === "0") all();
  else return;
  event.preventDefault();
});
byId("zoom-in").addEventListener("click", () => zoom(1.5));
byId("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
byId("zoom-all").addEventListener("click", all);

// -- finding ----------------------------------------------------------------------------------------------------------

let timer = 0;
let looking = null;

async function find() {
  const text = byId("map-find").value.trim();
  looking?.abort();
  if (!text) {
    found = new Set();
    byId("found").replaceChildren();
    byId("map-note").textContent = "";
    return draw();
  }
  looking = new AbortController();
  try {
    const answer = await get(`/api/features?limit=40&search=${encodeURIComponent(text)}`, looking.signal);
    const placeOf = new Map(points.ids.map((id, place) => [id, place]));
    const rows = answer.features.filter((feature) => placeOf.has(feature.id));
    found = new Set(rows.map((feature) => placeOf.get(feature.id)));
    byId("map-note").textContent = rows.length ? `${rows.length} found; they are ringed.` : "No feature matches.";
    byId("found").replaceChildren(...rows.map((feature) => el(
      "li", { "data-testid": "found-feature" },
      featureLink(feature.id, feature.name), " ",
      el("button", { type: "button", class: "plain", text: "show on the map", "aria-label": `Show ${feature.name} on the map`, onclick: () => showPoint(placeOf.get(feature.id)) }),
    )));
    draw();
  } catch (error) {
    if (error.name !== "AbortError") complain(error.message);
  }
  return undefined;
}

byId("map-find").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(find, 200);
});
function recolour() {
  show(byId("ramp-legend"), byId("colour").value === "frequency");
  tints = colours();
  draw();
}
byId("colour").addEventListener("change", recolour);
dark.addEventListener("change", recolour);

// -- loading ----------------------------------------------------------------------------------------------------------

async function load(names) {
  const given = await get(`/api/map?names=${names}`);
  points = { ...points, ...given };
  recolour();
  canvas.dataset.points = String(points.ids.length);
  canvas.dataset.progress = String(given.progress);
  const what = `${points.ids.length.toLocaleString("en")} live features; near ones have like directions.`;
  if (given.progress >= 1) return say(what);
  say(`${what} Being laid out, ${percent(given.progress)} done; this is kept for the next time.`, true);
  setTimeout(() => load(false).catch((error) => complain(error.message)), 2000);
  return undefined;
}

new ResizeObserver(resize).observe(canvas);
about().catch((error) => complain(error.message));
say("Loading", true);
load(true).catch((error) => { complain(error.message); say(""); });
