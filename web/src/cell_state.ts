// The state of a cell, folded from its events. Pure.
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
  /** Outputs of the previous execution, shown until the new one has an output. */
  stale?: Map<number, CellOutput>;
  /** Outputs of the previous execution, kept until the next one is queued. */
  previous?: Map<number, CellOutput>;
  /** Why the execution ended, if the server determined it and not the kernel. */
  why?: string;
  /** How many messages of the kernel were lost. */
  lost: number;
  /** Increases with every change. */
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

/** A text of nbformat, which may be a list of lines. */
export function joinText(value: unknown): string {
  if (Array.isArray(value)) return value.map((piece) => (typeof piece === "string" ? piece : "")).join("");
  return typeof value === "string" ? value : "";
}

/** An output with its stream text ready to grow. `keepsAll`: no server has the text, so all of it is kept in memory. */
export function toCellOutput(output: Output, keepsAll = false): CellOutput {
  return output.output_type === "stream" ? new Stream(String(output.name ?? "stdout"), joinText(output.text), keepsAll) : output;
}

/** Applies an event to its cell. */
export function applyEvent(cell: CellState, event: Event): void {
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
      if (event.index !== undefined && event.output) applyOutput(cell, event.index, event.output, event.keep);
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

function applyOutput(cell: CellState, index: number, output: Output, keep: number | undefined): void {
  const current = cell.outputs.get(index);
  if (current instanceof Stream && output.output_type === "stream" && keep !== undefined) current.edit(keep, joinText(output.text));
  else cell.outputs.set(index, toCellOutput(output));
}
