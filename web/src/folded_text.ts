// Long text, folded to its head and tail. A person opens the middle page by page; what is not in memory is loaded from the
// server.
import { type TemplateResult, html, nothing } from "lit";
import { colourText } from "./ansi.js";
import { type LongText, newlines, utf8Length } from "./stream.js";

const MAX_LINES = 160;
const MAX_CHARS = 24_000;
const HEAD_LINES = 12;
const TAIL_LINES = 20;
const END_CHARS = 6_000;
/** Limits of one more page. */
const PAGE_LINES = 500;
const PAGE_CHARS = 100_000;
const PAGE_BYTES = 128 << 10;
/** Bytes of one request when the whole text is loaded. */
const MAX_BYTES = 1 << 20;

/** Loads a range of a text, in bytes; the server may return less. */
export type ReadRange = (from: number, to: number) => Promise<{ from: number; to: number; text: string }>;

/** The end of the first `lines` lines, at most `chars`. */
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

/** A text that is in memory completely. */
export function completeText(text: string): LongText {
  return { head: text, tail: "", gap: 0, lines: newlines(text) };
}

export async function readAll(text: LongText, read: ReadRange | undefined): Promise<string> {
  if (text.gap === 0 || !read) return text.head + text.tail;
  const pieces = [text.head];
  const from = utf8Length(text.head);
  for (let at = from; at < from + text.gap; ) {
    const piece = await read(at, Math.min(at + MAX_BYTES, from + text.gap));
    if (piece.to <= at) break;
    pieces.push(piece.text);
    at = piece.to;
  }
  return [...pieces, text.tail].join("");
}

/** A view of a long text: how much of it a person has opened. */
export class FoldedText {
  private pages = 0;
  private middle = "";
  private middleBytes = 0;
  private cuts = 0;
  private busy = false;
  private failed = "";
  private drawn?: { text: string; nodes: Node[] };

  constructor(private changed: () => void) {}

  /** The text, or its two ends with a button between them. */
  view(text: LongText & { cuts?: number }, read?: ReadRange): TemplateResult {
    if (this.cuts !== (text.cuts ?? 0)) Object.assign(this, { cuts: text.cuts ?? 0, middle: "", middleBytes: 0 });
    return text.gap > 0 ? this.viewWithGap(text, read) : this.viewComplete(text.head + text.tail, text.lines ?? 0);
  }

  private viewComplete(text: string, lines: number): TemplateResult {
    if (lines <= MAX_LINES && text.length <= MAX_CHARS) return html`<pre part="text">${colourText(text)}</pre>`;
    const head = headEnd(text, HEAD_LINES + this.pages * PAGE_LINES, END_CHARS + this.pages * PAGE_CHARS);
    const tail = Math.max(tailStart(text), head);
    const hidden = tail > head ? lines - newlines(text.slice(0, head)) - newlines(text.slice(tail)) : 0;
    return this.renderEnds(text.slice(0, head), tail - head, hidden, text.slice(tail), () => (this.pages += 1));
  }

  private viewWithGap(text: LongText, read: ReadRange | undefined): TemplateResult {
    const head = this.pages === 0 ? text.head.slice(0, headEnd(text.head, HEAD_LINES, END_CHARS)) : text.head + this.middle;
    const start = tailStart(text.tail);
    const tail = text.tail.slice(start);
    const next = utf8Length(text.head) + this.middleBytes;
    const end = utf8Length(text.head) + text.gap + utf8Length(text.tail, 0, start);
    const left = this.pages === 0 ? end - utf8Length(head) : end - next;
    const hidden = text.lines === undefined ? 0 : text.lines - newlines(head) - newlines(tail);
    const more = () => (this.pages === 0 ? (this.pages = 1) : void (read && this.load(read, next, Math.min(next + PAGE_BYTES, end))));
    return this.renderEnds(head, left, hidden, tail, this.pages > 0 && !read ? undefined : more);
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

  private renderEnds(head: string, left: number, lines: number, tail: string, more: (() => void) | undefined): TemplateResult {
    // The head stays the same while the tail grows: its elements are created once.
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
