// A cell as its events tell it. Pure.
import { Stream } from "./stream.js";

export interface Output {
  output_type: string;
  name?: string;
  text?: string;
  data?: Record<string, unknown>;
  metadata?: Record<string, unknown>;
  ename?: string;
  evalue?: string;
  traceback?: string[];
  execution_count?: number | null;
}

export interface Failure {
  ename: string;
  evalue: string;
  traceback: string[];
}

export type CellOutput = Stream | Output;

export interface CellState {
  id: string;
  type: string;
  source: string;
  metadata?: Record<string, unknown>;
  state: "queued" | "running" | "finished";
  status?: string;
  count?: number | null;
  outputs: Map<number, CellOutput>;
  startedAt?: number;
  wallMs?: number;
  question?: { prompt: string; password: boolean };
  /** Outputs of the run before, kept on view until the new one shows something. */
  stale?: Map<number, CellOutput>;
  /** The same, for as long as the run after it stands. */
  previous?: Map<number, CellOutput>;
  /** Why it ended as it did, where the kernel could not tell. */
  why?: string;
  lost: number;
  /** Changes whenever anything of it does. */
  version: number;
}

export interface Event {
  seq: number;
  time: string;
  type: string;
  cell?: string;
  index?: number;
  keep?: number;
  output?: Output;
  state?: string;
  why?: string;
  notice?: string;
  prompt?: string;
  password?: boolean;
  status?: string;
  execution_count?: number | null;
  metrics?: { wall_ms?: number };
  change?: string;
  error?: { evalue?: string } | null;
  from?: number;
  to?: number;
}

export function newCell(id: string): CellState {
  return { id, type: "code", source: "", state: "finished", outputs: new Map(), lost: 0, version: 0 };
}

/** Nbformat writes texts as lists of lines, too. */
export function joinText(value: unknown): string {
  if (Array.isArray(value)) return value.map((piece) => (typeof piece === "string" ? piece : "")).join("");
  return typeof value === "string" ? value : "";
}

/** An output as it is shown; the text of one that is in no session is held in full. */
export function toCellOutput(output: Output, keepsAll = false): CellOutput {
  return output.output_type === "stream" ? new Stream(String(output.name ?? "stdout"), joinText(output.text), keepsAll) : output;
}

/** What an event makes of its cell. */
export function apply(cell: CellState, event: Event): void {
  cell.version += 1;
  switch (event.type) {
    case "cell.queued":
      cell.stale = cell.outputs.size > 0 ? cell.outputs : cell.stale;
      cell.previous = cell.outputs.size > 0 ? cell.outputs : cell.previous;
      cell.outputs = new Map();
      Object.assign(cell, { state: "queued", status: undefined, startedAt: undefined, wallMs: undefined, count: undefined, why: undefined });
      cell.question = undefined;
      cell.lost = 0;
      break;
    case "cell.started":
      cell.state = "running";
      cell.startedAt = Date.parse(event.time);
      break;
    case "output.append":
    case "output.update":
      if (event.index !== undefined && event.output) put(cell, event.index, event.output, event.keep);
      cell.stale = undefined;
      break;
    case "output.clear":
      cell.outputs = new Map();
      break;
    case "input.requested":
      cell.question = { prompt: event.prompt ?? "", password: event.password === true };
      break;
    case "cell.finished":
      Object.assign(cell, { state: "finished", status: event.status, count: event.execution_count });
      cell.wallMs = event.metrics?.wall_ms;
      cell.why = event.error?.evalue;
      cell.question = undefined;
      cell.stale = undefined;
      break;
    case "lost":
      cell.lost += (event.to ?? 0) - (event.from ?? 0) + 1;
      break;
  }
}

function put(cell: CellState, index: number, output: Output, keep: number | undefined): void {
  const there = cell.outputs.get(index);
  if (there instanceof Stream && output.output_type === "stream" && keep !== undefined) there.edit(keep, joinText(output.text));
  else cell.outputs.set(index, toCellOutput(output));
}
