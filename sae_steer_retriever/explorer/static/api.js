// Requests to the server that this page came from, and to no other.

export class Refused extends Error {}

async function checked(response) {
  if (response.ok) return response;
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error || message;
  } catch {
    // no JSON: the status is all there is to say
  }
  throw new Refused(message);
}

async function sent(path, options) {
  try {
    return await checked(await fetch(path, options));
  } catch (error) {
    if (error instanceof Refused || error.name === "AbortError") throw error;
    throw new Refused("the explorer's server does not answer: is it still running?");
  }
}

const posted = (body, signal) => ({
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
});

export async function get(path, signal) {
  return (await sent(path, { signal })).json();
}

export async function post(path, body, signal) {
  return (await sent(path, posted(body, signal))).json();
}

/** Post, and hand over each line of the answer as it comes. */
export async function stream(path, body, signal, onLine) {
  const response = await sent(path, posted(body, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    rest += value;
    let end;
    while ((end = rest.indexOf("\n")) >= 0) {
      onLine(JSON.parse(rest.slice(0, end)));
      rest = rest.slice(end + 1);
    }
  }
}

/** Say what the explorer is looking at, in the page's head. */
export async function about() {
  const found = await get("/api/about");
  const place = document.getElementById("about");
  place.textContent = `“${found.collection}”: ${found.passages.toLocaleString("en")} passages, ` +
    `${found.live.toLocaleString("en")} live features, ${found.encoder.split("/").pop()}`;
  return found;
}
