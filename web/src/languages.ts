// The languages with syntax colours, from the rows in languages/*.toml.
import rows from "cellkeep:languages";

/** Code that the page offers in an empty session. */
export interface Example {
  title: string;
  source: string;
}

export interface StringSyntax {
  open: string;
  close: string;
  /** Whether a backslash escapes the next character. */
  escapes: boolean;
  multiline: boolean;
}

export interface Language {
  /** The name, then aliases; lower case. */
  names: string[];
  /** Keywords and constants. */
  words: string[];
  /** The start of a comment that ends with its line. */
  comment: string;
  /** Start and end of a comment over several lines. */
  block?: [string, string];
  /** The kinds of string, longest first. */
  strings?: StringSyntax[];
  editor?: { mode: string; indent?: number };
  examples: Example[];
}

const byName = new Map(rows.flatMap((row) => row.names.map((name) => [name, row] as const)));

export const languageOf = (name: string): Language | undefined => byName.get(name.toLowerCase());
