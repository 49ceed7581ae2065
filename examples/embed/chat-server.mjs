// A small chat of one's own that shows cells: node examples/embed/chat-server.mjs (Node 18 or later, no packages).
//
// The token for Cellkeep stays in this server. A visitor's browser gets a link's token, which reads that visitor's session and nothing
// else, and <cellkeep-cell> follows the cell by itself: this server hands on no output.
import { createServer } from "node:http";

const cellkeep = process.env.CELLKEEP_URL ?? "http://127.0.0.1:7788";
const token = process.env.CELLKEEP_TOKEN;
const port = Number(process.env.PORT ?? 8001);
const hosts = [`127.0.0.1:${port}`, `localhost:${port}`];

async function call(path, body) {
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
  const response = await fetch(cellkeep + path, { method: "POST", headers, body: JSON.stringify(body) });
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.detail), { code: answer.code, status: response.status });
  return answer;
}

/** A session for each conversation, and what its visitor may see of it. */
const conversations = new Map();

/** A link to a session, which is renewed before it expires. */
async function link(session) {
  const share = await call(`/v1/sessions/${session}/shares`, { days: 1 });
  return { token: share.token, until: Date.parse(share.expires_at) };
}

function conversation(id) {
  if (!conversations.has(id)) {
    const made = (async () => {
      const { id: session } = await call("/v1/sessions", { kernel: "python", labels: { conversation: id } });
      return { session, ...(await link(session)) };
    })();
    // One that could not be made is tried again with the next message.
    made.catch(() => conversations.delete(id));
    conversations.set(id, made);
  }
  return conversations.get(id);
}

/** What the bot says. Yours asks a model here, and gives it the cell's outputs: GET .../cells/CELL?outputs=none&wait=60 tells when. */
async function answer(id, text) {
  const code = /```(?:python)?\n([\s\S]*?)```/.exec(text)?.[1] ?? (text.startsWith("=") ? text.slice(1) : undefined);
  if (code === undefined) return { text: "Send me Python after a =, or between three backticks, and I run it." };
  return { text: "I run this:", cell: await run(id, code) };
}

async function run(id, code, isAgain = false) {
  const made = await conversation(id);
  try {
    if (made.until - Date.now() < 3_600_000) Object.assign(made, await link(made.session));
    const cell = await call(`/v1/sessions/${made.session}/cells`, { source: code });
    return { server: cellkeep, session: made.session, cell: cell.id, token: made.token };
  } catch (error) {
    // The session has ended, or is no more: the conversation goes on in a new one.
    if (isAgain || (error.status !== 404 && error.code !== "session_gone")) throw error;
    conversations.delete(id);
    return run(id, code, true);
  }
}

const page = `<!doctype html><html lang="en"><meta charset="utf-8"><title>A chat of my own</title>
<style>body { font: 16px/1.5 system-ui; max-width: 44rem; margin: 2rem auto; padding: 0 1rem } .me { text-align: end; color: #246 } input { width: 100%; font: inherit; padding: .5rem }</style>
<main></main><form><input aria-label="Message" placeholder="=6*7" autofocus></form>
<script type="module" src="${cellkeep}/-/assets/cellkeep-cell.js"></script>
<script type="module">
  const main = document.querySelector("main"), id = crypto.randomUUID();
  const add = (name, fields) => { const element = Object.assign(document.createElement(name), fields); main.append(element); element.scrollIntoView(); };
  document.querySelector("form").onsubmit = async (event) => {
    event.preventDefault();
    const input = document.querySelector("input"), text = input.value;
    input.value = "";
    add("p", { className: "me", textContent: text });
    const said = await (await fetch("/say", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ id, text }) })).json();
    add("p", { textContent: said.text });
    if (said.cell) add("cellkeep-cell", { ...said.cell, readonly: true, language: "python" });
  };
</script></html>`;

async function body(request) {
  let text = "";
  for await (const piece of request) {
    text += piece;
    if (text.length > 100_000) throw new Error("the message is too long");
  }
  return JSON.parse(text);
}

createServer(async (request, response) => {
  if (request.method !== "POST") return response.setHeader("content-type", "text/html").end(page);
  response.setHeader("content-type", "application/json");
  // Pages of others can send forms and plain text here with a visitor's browser: this takes neither, and nothing from them.
  const { origin, host, "content-type": type = "" } = request.headers;
  if (!hosts.includes(host) || origin !== `http://${host}` || !type.startsWith("application/json")) {
    return response.writeHead(403).end(JSON.stringify({ text: "Only this page may ask." }));
  }
  try {
    const { id, text } = await body(request);
    response.end(JSON.stringify(await answer(String(id), String(text))));
  } catch (error) {
    response.end(JSON.stringify({ text: `That did not work: ${error.message}` }));
  }
}).listen(port, "127.0.0.1", () => console.log(`a chat of one's own at http://127.0.0.1:${port}`));
