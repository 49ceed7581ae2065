// A small chat server that shows cells: node examples/embed/chat-server.mjs (Node 18 or later, no packages).
//
// The Cellkeep token stays in this server. The browser of a visitor gets the token of a share, which can read the session of
// that visitor and nothing else. <cellkeep-cell> loads the outputs from Cellkeep, so this server forwards none.
import { createServer } from "node:http";

const cellkeep = process.env.CELLKEEP_URL ?? "http://127.0.0.1:7788";
const token = process.env.CELLKEEP_TOKEN;
const port = Number(process.env.PORT ?? 8001);
const hosts = [`127.0.0.1:${port}`, `localhost:${port}`];

async function call(path, body) {
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
  const response = await fetch(cellkeep + path, { method: "POST", headers, body: JSON.stringify(body) });
  const result = await response.json();
  if (!response.ok) throw Object.assign(new Error(result.detail), { code: result.code, status: response.status });
  return result;
}

/** The session of each conversation, and the share token of its visitor. */
const conversations = new Map();

/** Creates a share of a session. `run` replaces it before it expires. */
async function createShare(session) {
  const share = await call(`/v1/sessions/${session}/shares`, { days: 1 });
  return { token: share.token, expiresAt: Date.parse(share.expires_at) };
}

function conversation(id) {
  if (!conversations.has(id)) {
    const created = (async () => {
      const { id: session } = await call("/v1/sessions", { kernel: "python", labels: { conversation: id } });
      return { session, ...(await createShare(session)) };
    })();
    // After a failure, the next message tries again.
    created.catch(() => conversations.delete(id));
    conversations.set(id, created);
  }
  return conversations.get(id);
}

/**
 * The answer of the bot. A real one calls a model here and gives it the outputs of the cell: POST .../cells?wait=60 returns
 * the cell with its outputs when it has ended.
 */
async function answer(id, text) {
  const code = /```(?:python)?\n([\s\S]*?)```/.exec(text)?.[1] ?? (text.startsWith("=") ? text.slice(1) : undefined);
  if (code === undefined) return { text: "Send me Python after a =, or between three backticks, and I run it." };
  return { text: "I run this:", cell: await run(id, code) };
}

async function run(id, code, isAgain = false) {
  const current = await conversation(id);
  try {
    if (current.expiresAt - Date.now() < 3_600_000) Object.assign(current, await createShare(current.session));
    const cell = await call(`/v1/sessions/${current.session}/cells`, { source: code });
    return { server: cellkeep, session: current.session, cell: cell.id, token: current.token };
  } catch (error) {
    // The session has ended or was deleted: the conversation continues in a new one.
    if (isAgain || (error.status !== 404 && error.code !== "session_gone")) throw error;
    conversations.delete(id);
    return run(id, code, true);
  }
}

const page = `<!doctype html><html lang="en"><meta charset="utf-8"><title>Chat with cells</title>
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
    const reply = await (await fetch("/say", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ id, text }) })).json();
    add("p", { textContent: reply.text });
    if (reply.cell) add("cellkeep-cell", { ...reply.cell, readonly: true, language: "python" });
  };
</script></html>`;

async function body(request) {
  let text = "";
  for await (const chunk of request) {
    text += chunk;
    if (text.length > 100_000) throw new Error("the message is too long");
  }
  return JSON.parse(text);
}

createServer(async (request, response) => {
  if (request.method !== "POST") return response.setHeader("content-type", "text/html").end(page);
  response.setHeader("content-type", "application/json");
  // Other sites can make a visitor's browser send forms and plain text here. Only JSON from the own page is accepted.
  const { origin, host, "content-type": type = "" } = request.headers;
  if (!hosts.includes(host) || origin !== `http://${host}` || !type.startsWith("application/json")) {
    return response.writeHead(403).end(JSON.stringify({ text: "Only the page of this server may send messages." }));
  }
  try {
    const { id, text } = await body(request);
    response.end(JSON.stringify(await answer(String(id), String(text))));
  } catch (error) {
    response.end(JSON.stringify({ text: `The request failed: ${error.message}` }));
  }
}).listen(port, "127.0.0.1", () => console.log(`the chat is at http://127.0.0.1:${port}`));
