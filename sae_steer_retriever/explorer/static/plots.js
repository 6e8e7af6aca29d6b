// Two small plots as SVG: a histogram, and passages against rank on logarithmic axes.

import { el, svg } from "/static/dom.js";

const WIDTH = 460;
const HEIGHT = 220;
const LEFT = 52;
const RIGHT = 12;
const TOP = 14;
const BOTTOM = 40;

const text = (x, y, content, attributes = {}) => svg("text", { x, y, ...attributes }, content);

function frame(label, ...children) {
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "plot", role: "img", "aria-label": label }, ...children);
}

const axes = () => svg("path", { class: "axis", d: `M${LEFT} ${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}` });

export function histogram(counts, edges) {
  if (!counts.length) return el("p", { class: "quiet", text: "No passage of this collection has it." });
  const most = Math.max(...counts, 1);
  const width = (WIDTH - LEFT - RIGHT) / counts.length;
  const height = HEIGHT - TOP - BOTTOM;
  const bars = counts.map((count, place) => svg(
    "rect",
    { class: "fill", x: LEFT + place * width + 0.5, y: TOP + height * (1 - count / most), width: Math.max(width - 1, 0.5), height: height * count / most },
    svg("title", {}, `${edges[place].toFixed(3)} to ${edges[place + 1].toFixed(3)}: ${count} passages`),
  ));
  const label = `Histogram: ${counts.reduce((sum, count) => sum + count, 0)} passages, strengths from ${edges[0].toFixed(3)} to ${edges[edges.length - 1].toFixed(3)}`;
  return frame(
    label, ...bars, axes(),
    text(LEFT - 6, TOP + 10, most.toLocaleString("en"), { "text-anchor": "end" }),
    text(LEFT - 6, HEIGHT - BOTTOM, "0", { "text-anchor": "end" }),
    text(LEFT, HEIGHT - BOTTOM + 16, edges[0].toFixed(2)),
    text(WIDTH - RIGHT, HEIGHT - BOTTOM + 16, edges[edges.length - 1].toFixed(2), { "text-anchor": "end" }),
    text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "strength; bars are passages", { "text-anchor": "middle" }),
  );
}

export function zipf(data) {
  if (!data.points.length) return el("p", { class: "quiet", text: "No feature is live." });
  const lastRank = Math.log10(Math.max(data.live, 10));
  const mostCount = Math.log10(Math.max(data.points[0][1], 10));
  const x = (rank) => LEFT + Math.log10(rank) / lastRank * (WIDTH - LEFT - RIGHT);
  const y = (count) => HEIGHT - BOTTOM - Math.log10(Math.max(count, 1)) / mostCount * (HEIGHT - TOP - BOTTOM);
  const path = data.points.map(([rank, count], place) => `${place ? "L" : "M"}${x(rank).toFixed(1)} ${y(count).toFixed(1)}`).join("");
  const nodes = [svg("path", { class: "curve", d: path }), axes()];
  let label = "This feature is dead: no passage of the corpus that the SAE was fitted on has it";
  if (data.rank !== null) {
    label = `Rank ${data.rank.toLocaleString("en")} of ${data.live.toLocaleString("en")}: ${data.count.toLocaleString("en")} passages`;
    const right = x(data.rank) > WIDTH / 2;
    // The curve falls: there is room below it on the left, and above it on the right.
    const height = right ? Math.min(y(data.count) + 24, HEIGHT - BOTTOM - 6) : Math.max(y(data.count) - 10, TOP + 10);
    nodes.push(
      svg("circle", { class: "here", cx: x(data.rank), cy: y(data.count), r: 6 }),
      text(x(data.rank) + (right ? -10 : 10), height, label, { class: "here", "text-anchor": right ? "end" : "start" }),
    );
  }
  return frame(
    label, ...nodes,
    text(LEFT - 6, TOP + 10, data.points[0][1].toLocaleString("en"), { "text-anchor": "end" }),
    text(LEFT - 6, HEIGHT - BOTTOM, "1", { "text-anchor": "end" }),
    text(LEFT, HEIGHT - BOTTOM + 16, "1"),
    text(WIDTH - RIGHT, HEIGHT - BOTTOM + 16, data.live.toLocaleString("en"), { "text-anchor": "end" }),
    text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "rank by passages; both axes logarithmic", { "text-anchor": "middle" }),
  );
}
