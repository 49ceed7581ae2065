// An error output: its message first, then the traceback with the frames of libraries folded.
import { type TemplateResult, html, nothing } from "lit";
import { colourText, stripAnsi } from "./ansi.js";
import type { Output } from "./cell_state.js";

const MAX_CHARS = 6_000;
/** Of a longer traceback only the two ends are shown. */
const MAX_FRAMES = 40;
const LIBRARIES = ["/site-packages/", "/dist-packages/", "/lib/python", "<frozen ", "/usr/lib/"];

const firstLine = (entry: string) => stripAnsi(entry.split("\n", 1)[0] ?? "").trim().slice(0, 300);
const isRule = (entry: string) => /^-{10,}$/.test(stripAnsi(entry).trim());
const isFrame = (entry: string) => /^(File |Cell In|Input In|<ipython-input)/.test(firstLine(entry));
const isLibrary = (entry: string) => firstLine(entry).startsWith("File ") && LIBRARIES.some((place) => firstLine(entry).includes(place));

export function errorTitle(output: Output): string {
  return stripAnsi([output.ename, output.evalue].filter(Boolean).join(": ")) || "Error";
}

const entriesOf = (output: Output) => (output.traceback ?? []).map(String).filter((entry) => !isRule(entry));

export function errorView(output: Output): TemplateResult {
  const entries = entriesOf(output);
  const title = errorTitle(output);
  const where = syntaxErrorMark(entries);
  return html`<strong dir="auto">${title.length > 2000 ? `${title.slice(0, 2000)}…` : title}</strong>
    ${where ? html`<pre class="where">${where}</pre>` : nothing}
    ${entries.length > 0 ? html`<details><summary>Traceback</summary><div class="frames">${tracebackFrames(entries)}</div></details>` : nothing}`;
}

/** The line of a syntax error and the caret below it. */
function syntaxErrorMark(entries: string[]): string {
  const lines = stripAnsi(entries.join("\n")).split("\n");
  const at = lines.findIndex((line) => /^\s*\^+\s*$/.test(line));
  return at > 0 && lines.some((line) => /^\w*SyntaxError|^IndentationError|^TabError/.test(line)) ? lines.slice(at - 1, at + 1).join("\n") : "";
}

/** The user's own frames are open. Neighbouring frames of libraries are folded into one line. */
function tracebackFrames(entries: string[]): TemplateResult[] {
  const parts: TemplateResult[] = [];
  const shown = entries.length > MAX_FRAMES ? [...entries.slice(0, MAX_FRAMES / 2), `… ${entries.length - MAX_FRAMES} more …`, ...entries.slice(-MAX_FRAMES / 2)] : entries;
  for (let at = 0; at < shown.length; ) {
    const end = shown.findIndex((entry, index) => index >= at && !isLibrary(entry));
    const run = shown.slice(at, end < 0 ? undefined : end);
    if (run.length === 0) {
      parts.push(html`<pre>${colourText(shown[at] as string)}</pre>`);
      at += 1;
      continue;
    }
    const what = run.length === 1 ? firstLine(run[0] as string) : `${run.length} frames of libraries`;
    parts.push(html`<details><summary>${what}</summary><pre>${colourText(run.join("\n"))}</pre></details>`);
    at += run.length;
  }
  return parts;
}

/** What a language model needs to help, as plain text: the code, the error and the user's own frames. */
export function errorPrompt(output: Output, source: string, language: string): string {
  const own = entriesOf(output).filter((entry) => !isLibrary(entry));
  const hidden = entriesOf(output).length - own.length;
  const trace = stripAnsi(own.join("\n"));
  const short = trace.length > MAX_CHARS ? `${trace.slice(0, MAX_CHARS / 3)}\n…\n${trace.slice((-MAX_CHARS * 2) / 3)}` : trace;
  const code = source.length > MAX_CHARS ? `${source.slice(0, MAX_CHARS)}\n…` : source;
  const parts = [source ? `This ${language || "code"} cell failed:\n\n${fenced(code, language)}` : "", `${errorTitle(output)}`];
  if (isFrame(own[0] ?? "") || own.length > 1) parts.push(fenced(short, ""));
  if (hidden > 0) parts.push(`(${hidden} frames of libraries left out)`);
  return parts.filter(Boolean).join("\n\n");
}

/** The text in a markdown fence that is longer than any in it. */
function fenced(text: string, language: string): string {
  const fence = "`".repeat(Math.max(3, ...[...text.matchAll(/`+/g)].map((match) => match[0].length + 1)));
  return `${fence}${language}\n${text.replace(/\n$/, "")}\n${fence}`;
}
