// A conversation with the model, as the cells tell it. Pure.
import type { CellState } from "./cells.js";

/** What a cell's metadata say of its part in a conversation. Anybody can write them. */
export interface Mark {
  role?: "user" | "assistant";
  turn?: string;
  state?: string;
  model?: string;
  cut?: boolean;
  error?: { code?: string; detail?: string };
}

/** What stands below the last cell of an answer. */
export interface Note {
  text: string;
  bad: boolean;
  /** What to ask once more. */
  again?: string;
}

const text = (value: unknown): string | undefined => (typeof value === "string" ? value : undefined);

export function markOf(cell: CellState | undefined): Mark {
  const mark = cell?.metadata?.["cellkeep"];
  if (typeof mark !== "object" || mark === null) return {};
  const { role, turn, state, model, cut, error } = mark as Record<string, unknown>;
  const told = typeof error === "object" && error !== null ? (error as Record<string, unknown>) : undefined;
  return {
    role: role === "user" || role === "assistant" ? role : undefined,
    turn: text(turn),
    state: text(state),
    model: text(model),
    cut: cut === true,
    error: told && { code: text(told["code"]), detail: text(told["detail"]) },
  };
}

/** The message that is being answered, and what is to be said of those that were. */
export function conversation(order: string[], cells: Map<string, CellState>): { answering?: string; notes: Map<string, Note> } {
  const notes = new Map<string, Note>();
  const last = new Map<string, string>();
  let answering: string | undefined;
  for (const id of order) {
    const mark = markOf(cells.get(id));
    if (mark.role === "user") last.set(id, id);
    else if (mark.role === "assistant" && mark.turn !== undefined && last.has(mark.turn)) last.set(mark.turn, id);
    if (mark.role === "user" && mark.state === "answering") answering = id;
    if (mark.cut) notes.set(id, { text: "The answer was cut off where the model's length ends.", bad: false });
  }
  for (const [message, id] of last) {
    const note = noteOf(cells.get(message));
    if (note) notes.set(id, note);
  }
  return { answering, notes };
}

function noteOf(cell: CellState | undefined): Note | undefined {
  const { state, error } = markOf(cell);
  const again = cell?.source;
  if (state === "failed") return { text: sentence(error?.detail ?? "the answer failed"), bad: true, again };
  if (state === "interrupted") return { text: sentence(error?.detail ?? "the answer was interrupted"), bad: false, again };
  if (state === "stopped") return { text: "The answer was stopped.", bad: false, again };
  return undefined;
}

const sentence = (words: string): string => `${words.charAt(0).toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;
