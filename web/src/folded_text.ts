// Long text, folded to its head and tail. What is between them is opened page by page, and asked of the server where it is not held.
import { type TemplateResult, html, nothing } from "lit";
import { colourText } from "./ansi.js";
import { type LongText, newlines, utf8Length } from "./stream.js";

const MOST_LINES = 160;
const MOST_CHARS = 24_000;
const HEAD_LINES = 12;
const TAIL_LINES = 20;
const END_CHARS = 6_000;
/** What one more page shows. */
const PAGE_LINES = 500;
const PAGE_CHARS = 100_000;
const PAGE_BYTES = 128 << 10;
/** Asked for at once where all of it is wanted. */
const MOST_BYTES = 1 << 20;

/** Asks for some bytes of a text; may give fewer. */
export type ReadRange = (from: number, to: number) => Promise<{ from: number; to: number; text: string }>;

/** Where so many lines end, and at most so many characters. */
function headEnd(text: string, lines: number, chars: number): number {
  let at = 0;
  for (let line = 0; line < lines && at < chars; line += 1) at = text.indexOf("\n", at) + 1 || text.length;
  return Math.min(at, chars, text.length);
}

function tailStart(text: string): number {
  let at = text.length;
  if (text.endsWith("\n")) at -= 1;
  for (let line = 0; line < TAIL_LINES && at > 0; line += 1) at = text.lastIndexOf("\n", at - 1);
  return Math.max(at + 1, text.length - END_CHARS, 0);
}

const count = (number: number, noun: string) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const size = (bytes: number) => (bytes < 1e6 ? `${Math.ceil(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

/** Text that is all here. */
export function whole(text: string): LongText {
  return { head: text, tail: "", gap: 0, lines: newlines(text) };
}

/** All of a text. */
export async function readAll(text: LongText, read: ReadRange | undefined): Promise<string> {
  if (text.gap === 0 || !read) return text.head + text.tail;
  const pieces = [text.head];
  const from = utf8Length(text.head);
  for (let at = from; at < from + text.gap; ) {
    const piece = await read(at, Math.min(at + MOST_BYTES, from + text.gap));
    if (piece.to <= at) break;
    pieces.push(piece.text);
    at = piece.to;
  }
  return [...pieces, text.tail].join("");
}

/** How much of a text a person has opened. */
export class FoldedText {
  private pages = 0;
  private middle = "";
  private middleBytes = 0;
  private cuts = 0;
  private busy = false;
  private failed = "";
  private drawn?: { text: string; nodes: Node[] };

  constructor(private changed: () => void) {}

  /** The text, or its two ends with what is between them a click away. */
  view(text: LongText & { cuts?: number }, read?: ReadRange): TemplateResult {
    if (this.cuts !== (text.cuts ?? 0)) Object.assign(this, { cuts: text.cuts ?? 0, middle: "", middleBytes: 0 });
    return text.gap > 0 ? this.parted(text, read) : this.held(text.head + text.tail, text.lines ?? 0);
  }

  private held(text: string, lines: number): TemplateResult {
    if (lines <= MOST_LINES && text.length <= MOST_CHARS) return html`<pre part="text">${colourText(text)}</pre>`;
    const head = headEnd(text, HEAD_LINES + this.pages * PAGE_LINES, END_CHARS + this.pages * PAGE_CHARS);
    const tail = Math.max(tailStart(text), head);
    const hidden = tail > head ? lines - newlines(text.slice(0, head)) - newlines(text.slice(tail)) : 0;
    return this.ends(text.slice(0, head), tail - head, hidden, text.slice(tail), () => (this.pages += 1));
  }

  private parted(text: LongText, read: ReadRange | undefined): TemplateResult {
    const head = this.pages === 0 ? text.head.slice(0, headEnd(text.head, HEAD_LINES, END_CHARS)) : text.head + this.middle;
    const start = tailStart(text.tail);
    const tail = text.tail.slice(start);
    const next = utf8Length(text.head) + this.middleBytes;
    const end = utf8Length(text.head) + text.gap + utf8Length(text.tail, 0, start);
    const left = this.pages === 0 ? end - utf8Length(head) : end - next;
    const hidden = text.lines === undefined ? 0 : text.lines - newlines(head) - newlines(tail);
    const more = () => (this.pages === 0 ? (this.pages = 1) : void (read && this.load(read, next, Math.min(next + PAGE_BYTES, end))));
    return this.ends(head, left, hidden, tail, this.pages > 0 && !read ? undefined : more);
  }

  private async load(read: ReadRange, from: number, to: number): Promise<void> {
    if (this.busy) return;
    Object.assign(this, { busy: true, failed: "" });
    const { cuts } = this;
    try {
      const piece = await read(from, to);
      if (cuts !== this.cuts) return;
      this.middle += piece.text;
      this.middleBytes += piece.to - piece.from;
    } catch (error) {
      this.failed = error instanceof Error ? error.message : String(error);
    } finally {
      this.busy = false;
      this.changed();
    }
  }

  private ends(head: string, left: number, lines: number, tail: string, more: (() => void) | undefined): TemplateResult {
    // The head stays as it is while the tail grows: its elements are made once.
    if (this.drawn?.text !== head) this.drawn = { text: head, nodes: [...colourText(head).childNodes] };
    const open = () => {
      more?.();
      this.changed();
    };
    return html`<pre part="text">${this.drawn.nodes}</pre>${
      left > 0
        ? html`<button class="fold" aria-expanded="false" ?disabled=${!more} @click=${open}>${lines > 0 ? count(lines, "line") : size(left)} folded${more ? " · show more" : ""}</button>
          ${this.failed ? html`<p class="note" role="alert">${this.failed}</p>` : nothing}`
        : nothing
    }<pre part="text">${colourText(tail)}</pre>`;
  }
}
