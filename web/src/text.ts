// Long text, folded to its head and tail.
import { type TemplateResult, html, nothing } from "lit";
import { coloured } from "./ansi.js";
import { newlines } from "./cells.js";

const MOST_LINES = 160;
const MOST_CHARS = 24_000;
const HEAD_LINES = 12;
const TAIL_LINES = 20;
const END_CHARS = 6_000;
/** What one more page shows. */
export const PAGE_LINES = 500;
const PAGE_CHARS = 100_000;

/** Where so many lines end, and at most so many characters. */
function headEnd(text: string, lines: number, chars: number): number {
  let at = 0;
  for (let line = 0; line < lines && at >= 0 && at < chars; line += 1) at = text.indexOf("\n", at) + 1 || text.length;
  return Math.min(at, chars, text.length);
}

function tailStart(text: string): number {
  let at = text.length;
  if (text.endsWith("\n")) at -= 1;
  for (let line = 0; line < TAIL_LINES && at > 0; line += 1) at = text.lastIndexOf("\n", at - 1);
  return Math.max(at + 1, text.length - END_CHARS, 0);
}

const count = (number: number, noun: string) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/** The text, or its two ends with what is between them a click away. */
export function folded(text: string, lines: number, pages: number, more: () => void): TemplateResult {
  if (lines <= MOST_LINES && text.length <= MOST_CHARS) return html`<pre part="text">${coloured(text)}</pre>`;
  const head = headEnd(text, HEAD_LINES + pages * PAGE_LINES, END_CHARS + pages * PAGE_CHARS);
  const tail = Math.max(tailStart(text), head);
  const between = tail - head;
  const hidden = between > 0 ? lines - newlines(text.slice(0, head)) - newlines(text.slice(tail)) : 0;
  return html`<pre part="text">${coloured(text.slice(0, head))}</pre>${
    between > 0
      ? html`<button class="fold" aria-expanded="false" @click=${more}>
          ${hidden > 0 ? count(hidden, "line") : count(between, "character")} folded · show more
        </button>`
      : nothing
  }<pre part="text">${coloured(text.slice(tail))}</pre>`;
}
