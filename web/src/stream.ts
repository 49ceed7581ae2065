// The text of a stream while it grows: its two ends are in memory, the middle is on the server. Pure.

/** Characters kept of the beginning, at most. */
const MAX_HEAD = 64 << 10;
/** Characters kept of the end: cut to the minimum whenever it exceeds the maximum, so that little is copied. */
const MIN_TAIL = 64 << 10;
const MAX_TAIL = 192 << 10;

/** A piece of the middle, which is not in memory. */
interface Dropped {
  bytes: number;
  lines: number;
}

/** Text that may be too long for memory: `gap` bytes are missing between its ends. */
export interface LongText {
  readonly head: string;
  readonly tail: string;
  readonly gap: number;
  /** Line ends in the whole text; undefined if they are unknown after an edit. */
  readonly lines: number | undefined;
}

/** A stream of a cell, as `output.append` and `output.update` events edit it. */
export class Stream implements LongText {
  head = "";
  tail = "";
  lines: number | undefined = 0;
  /** Increases with every change of the text. */
  version = 0;
  /** Increases when text in the middle is removed. */
  cuts = 0;
  private headBytes = 0;
  private tailBytes = 0;
  private dropped: Dropped[] = [];
  private droppedBytes = 0;

  /** `keepsAll`: no server has the text, so all of it stays in memory. */
  constructor(
    readonly name: string,
    text: string,
    private readonly keepsAll = false,
  ) {
    this.add(text);
  }

  get gap(): number {
    return this.droppedBytes;
  }

  get bytes(): number {
    return this.headBytes + this.droppedBytes + this.tailBytes;
  }

  /** Keeps the first `keep` bytes and appends a text. */
  edit(keep: number, more: string): void {
    this.version += 1;
    if (keep < this.bytes) this.cut(keep);
    this.add(more);
  }

  private add(text: string): void {
    if (this.lines !== undefined) this.lines += newlines(text);
    const room = this.tail || this.droppedBytes > 0 ? 0 : this.keepsAll ? text.length : MAX_HEAD - this.head.length;
    const at = room >= text.length ? text.length : boundary(text, Math.max(room, 0));
    this.head += text.slice(0, at);
    this.headBytes += utf8Length(text, 0, at);
    this.tail += text.slice(at);
    this.tailBytes += utf8Length(text, at);
    if (this.tail.length > MAX_TAIL) this.drop(boundary(this.tail, this.tail.length - MIN_TAIL));
  }

  private drop(length: number): void {
    const text = this.tail.slice(0, length);
    const bytes = utf8Length(text);
    this.dropped.push({ bytes, lines: newlines(text) });
    this.droppedBytes += bytes;
    this.tail = this.tail.slice(length);
    this.tailBytes -= bytes;
  }

  private cut(keep: number): void {
    const atTail = this.bytes - this.tailBytes;
    if (keep >= atTail) {
      [this.tail, this.tailBytes] = this.shortened(this.tail, this.tailBytes, keep - atTail);
      return;
    }
    this.cuts += 1;
    [this.tail, this.tailBytes] = this.shortened(this.tail, this.tailBytes, 0);
    this.undrop(Math.max(keep - this.headBytes, 0));
    if (keep < this.headBytes) [this.head, this.headBytes] = this.shortened(this.head, this.headBytes, keep);
  }

  /** Keeps the first `keep` bytes of the middle. */
  private undrop(keep: number): void {
    while (this.droppedBytes > keep) {
      const last = this.dropped.pop() as Dropped;
      this.droppedBytes -= last.bytes;
      if (this.droppedBytes < keep) {
        // The cut divides a piece: only the server knows how many lines are left of it.
        this.dropped.push({ bytes: keep - this.droppedBytes, lines: 0 });
        this.droppedBytes = keep;
        this.lines = undefined;
      } else if (this.lines !== undefined) this.lines -= last.lines;
    }
    if (this.droppedBytes === 0 && this.lines === undefined) this.lines = newlines(this.head);
  }

  private shortened(text: string, bytes: number, keep: number): [string, number] {
    let at = keep === 0 ? 0 : text.length;
    let left = keep === 0 ? 0 : bytes;
    while (at > 0 && left > keep) {
      at -= 1;
      left -= utf8Length(text, at, at + 1);
    }
    if (this.lines !== undefined) this.lines -= newlines(text.slice(at));
    return [text.slice(0, at), left];
  }
}

/** This position, or the one before it if it would divide a surrogate pair. */
function boundary(text: string, at: number): number {
  const unit = text.charCodeAt(at - 1);
  return unit >= 0xd800 && unit < 0xdc00 ? at - 1 : at;
}

const encoder = new TextEncoder();

export function utf8Length(text: string, from = 0, to = text.length): number {
  if (to - from > 1000) return encoder.encode(text.slice(from, to)).length;
  let length = 0;
  for (let at = from; at < to; at += 1) {
    const unit = text.charCodeAt(at);
    // A surrogate pair is four bytes: two are counted for each half.
    length += unit < 0x80 ? 1 : unit < 0x800 || (unit >= 0xd800 && unit < 0xe000) ? 2 : 3;
  }
  return length;
}

export function newlines(text: string): number {
  let count = 0;
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) count += 1;
  return count;
}
