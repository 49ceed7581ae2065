// Outputs that need a library which another output loads, as those of Bokeh do: their frame starts with the scripts and the
// HTML of
// the other outputs. Pure.
import { type CellState, type Output, type CellOutput, joinText } from "./cell_state.js";
import { Stream } from "./stream.js";
import { loadsLibrary, usesLibrary } from "./mime.js";

export type Prelude = { html?: string; script?: string }[];

const dataOf = (output: CellOutput): Record<string, unknown> => (output instanceof Stream ? {} : (output.data ?? {}));
const scriptOf = (data: Record<string, unknown>) => joinText(data["application/javascript"] ?? data["text/javascript"]);
const inOrder = (cell: CellState) => [...cell.outputs.entries()].sort(([a], [b]) => a - b);

/** What the frame of an output starts with; undefined if the output needs nothing. */
export function preludeOf(output: Output, cell: CellState, cells: Iterable<CellState>): Prelude | undefined {
  if (!usesLibrary(output.data ?? {})) return undefined;
  const loads = new Set<string>();
  for (const one of cells) for (const [, other] of inOrder(one)) if (loadsLibrary(dataOf(other))) loads.add(scriptOf(dataOf(other)));
  const placeholder: Prelude = [];
  for (const [, other] of inOrder(cell)) {
    if (other === output) break;
    const html = joinText(dataOf(other)["text/html"]);
    if (html.includes("data-root-id")) placeholder.splice(0, 1, { html });
  }
  return [...[...loads].filter(Boolean).map((script) => ({ script })), ...placeholder];
}
