// A stream's text while it grows: its two ends are held here, what is between them is with the server. Pure.

/** Held of the beginning, at most. */
const MOST_HEAD = 64 << 10;
/** Held of the end: cut back to the smaller as often as it reaches the larger, so that little is copied. */
const LEAST_TAIL = 64 << 10;
const MOST_TAIL = 192 << 10;

/** So many bytes and ends of lines that are not held. */
interface Dropped {
  bytes: number;
  lines: number;
}

/** Text that may be too long to hold: `gap` bytes are missing between its ends. */
export interface LongText {
  readonly head: string;
  readonly tail: string;
  readonly gap: number;
  /** Ends of lines in all of it; none where they cannot be told any more. */
  readonly lines: number | undefined;
}

/** A stream of a cell. */
export class Stream implements LongText {
  head = "";
  tail = "";
  lines: number | undefined = 0;
  /** Changes whenever the text does. */
  version = 0;
  /** Changes whenever something is taken back that is not held. */
  cuts = 0;
  private headBytes = 0;
  private tailBytes = 0;
  private dropped: Dropped[] = [];
  private droppedBytes = 0;

  /** One whose text is nowhere else is held in full. */
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

  /** So many bytes stand, and more follows. */
  edit(keep: number, more: string): void {
    this.version += 1;
    if (keep < this.bytes) this.cut(keep);
    this.add(more);
  }

  private add(text: string): void {
    if (this.lines !== undefined) this.lines += newlines(text);
    const room = this.tail || this.droppedBytes > 0 ? 0 : this.keepsAll ? text.length : MOST_HEAD - this.head.length;
    const at = room >= text.length ? text.length : boundary(text, Math.max(room, 0));
    this.head += text.slice(0, at);
    this.headBytes += utf8Length(text, 0, at);
    this.tail += text.slice(at);
    this.tailBytes += utf8Length(text, at);
    if (this.tail.length > MOST_TAIL) this.drop(boundary(this.tail, this.tail.length - LEAST_TAIL));
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

  /** So many bytes of what is not held stand. */
  private undrop(keep: number): void {
    while (this.droppedBytes > keep) {
      const last = this.dropped.pop() as Dropped;
      this.droppedBytes -= last.bytes;
      if (this.droppedBytes < keep) {
        // Where the cut goes through a piece, only the server knows how many lines are left of it.
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

/** A place in a text that is not between the two halves of a character. */
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
    // A pair of surrogates is four bytes, two of them counted with each half.
    length += unit < 0x80 ? 1 : unit < 0x800 || (unit >= 0xd800 && unit < 0xe000) ? 2 : 3;
  }
  return length;
}

export function newlines(text: string): number {
  let count = 0;
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) count += 1;
  return count;
}
