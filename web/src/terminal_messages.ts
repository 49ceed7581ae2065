// What the page and the frame of its terminal say to each other.

/** Colours of the terminal, as the library names them. */
export type Colours = Record<string, string>;

/** From the page to the frame. */
export type ToTerminal =
  | { colours: Colours; font: string }
  /** What the process wrote, and the number of the event. Answers of the terminal to output that is only repeated are dropped. */
  | { output: Uint8Array; seq: number; isRepeated: boolean }
  /** Output is missing before what follows, or it is that of another process. */
  | { reset: true }
  | { focus: true }
  | { screenReader: boolean };

/** From the frame to the page. */
export interface FromTerminal {
  /** What the person typed, and what the terminal answers. */
  input?: string;
  /** The same as bytes, one for each character. */
  binary?: string;
  /** The number of the last event that was drawn. */
  drawn?: number;
  size?: { rows: number; cols: number };
  /** The person leaves the terminal by key. */
  leave?: true;
}

/** The key that leaves the terminal. Programs get all others, the tabulator included. */
export const LEAVE_KEY = "F6";
