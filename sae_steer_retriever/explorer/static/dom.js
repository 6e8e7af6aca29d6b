// Making elements. Every text goes in as text: a passage, a label or an id is never read as HTML.

export function el(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  fill(node, options, children);
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function fill(node, options, children) {
  for (const [name, value] of Object.entries(options)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name === "text") node.textContent = value;
    else if (name === "value" || name === "checked" || name === "disabled") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
}

export const byId = (id) => document.getElementById(id);

export function show(node, shown) {
  node.hidden = !shown;
}

/** Put an error where everybody gets to know of it, screen readers too; an empty one takes it away. */
export function complain(message) {
  const place = byId("error");
  place.textContent = message || "";
  show(place, Boolean(message));
}

export function say(message, busy = false) {
  const place = byId("status");
  if (place.textContent !== message) place.textContent = message;
  place.classList.toggle("busy", busy);
}

export const signed = (value, digits = 3) => {
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 && Number(text) !== 0 ? "−" : "+") + text;
};

export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;

export const featureLink = (id, name) => el("a", { href: `/features/${id}`, text: name });

/** What a feature is called beside its id, which an unnamed one has for a name. */
export function featureTitle(feature) {
  return feature.name.includes(`#${feature.id}`) ? feature.name : `${feature.name} #${feature.id}`;
}

/** Copy a text; where the browser does not let a page do so, false. */
export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

/** A dialog with a text to copy. */
export function showText(title, text, note = "") {
  const dialog = byId("text-dialog");
  byId("text-title").textContent = title;
  byId("text-note").textContent = note;
  byId("text-body").textContent = text;
  byId("text-copy").onclick = async () => {
    const done = await copied(text);
    byId("text-note").textContent = done ? "Copied." : "This browser does not let the page copy: select the text.";
  };
  byId("text-close").onclick = () => dialog.close();
  if (!dialog.open) dialog.showModal();
}
