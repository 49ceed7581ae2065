// Outputs that need what others have loaded, as Bokeh's do: their frame begins with what the others put down. Pure.
import { type CellState, type Output, type CellOutput, joinText } from "./cell_state.js";
import { Stream } from "./stream.js";
import { loadsLibrary, usesLibrary } from "./mime.js";

export type Prelude = { html?: string; script?: string }[];

const dataOf = (output: CellOutput): Record<string, unknown> => (output instanceof Stream ? {} : (output.data ?? {}));
const scriptOf = (data: Record<string, unknown>) => joinText(data["application/javascript"] ?? data["text/javascript"]);
const inOrder = (cell: CellState) => [...cell.outputs.entries()].sort(([a], [b]) => a - b);

/** What must be in the frame of a cell's output before it; nothing, if it stands for itself. */
export function before(output: Output, cell: CellState, cells: Iterable<CellState>): Prelude | undefined {
  if (!usesLibrary(output.data ?? {})) return undefined;
  const loads = new Set<string>();
  for (const one of cells) for (const [, other] of inOrder(one)) if (loadsLibrary(dataOf(other))) loads.add(scriptOf(dataOf(other)));
  const place: Prelude = [];
  for (const [, other] of inOrder(cell)) {
    if (other === output) break;
    const html = joinText(dataOf(other)["text/html"]);
    if (html.includes("data-root-id")) place.splice(0, 1, { html });
  }
  return [...[...loads].filter(Boolean).map((script) => ({ script })), ...place];
}
