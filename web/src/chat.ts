// A conversation with the model, read from the metadata of cells. Pure.
import type { CellState } from "./cell_state.js";

/** The part of a cell in a conversation, by its metadata. Untrusted: anybody with access to the notebook can write them. */
export interface ChatMark {
  role?: "user" | "assistant";
  turn?: string;
  state?: string;
  model?: string;
  cut?: boolean;
  error?: { code?: string; detail?: string };
}

/** A note below the last cell of an answer. */
export interface ChatNote {
  text: string;
  bad: boolean;
  /** The message to send again. */
  retryText?: string;
}

const text = (value: unknown): string | undefined => (typeof value === "string" ? value : undefined);

export function chatMarkOf(cell: CellState | undefined): ChatMark {
  const mark = cell?.metadata?.["cellkeep"];
  if (typeof mark !== "object" || mark === null) return {};
  const { role, turn, state, model, cut, error } = mark as Record<string, unknown>;
  const failure = typeof error === "object" && error !== null ? (error as Record<string, unknown>) : undefined;
  return {
    role: role === "user" || role === "assistant" ? role : undefined,
    turn: text(turn),
    state: text(state),
    model: text(model),
    cut: cut === true,
    error: failure && { code: text(failure["code"]), detail: text(failure["detail"]) },
  };
}

/** The id of the message that is being answered, and the notes by the id of the cell that they stand below. */
export function conversation(order: string[], cells: Map<string, CellState>): { answering?: string; notes: Map<string, ChatNote> } {
  const notes = new Map<string, ChatNote>();
  const last = new Map<string, string>();
  let answering: string | undefined;
  for (const id of order) {
    const mark = chatMarkOf(cells.get(id));
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

function noteOf(cell: CellState | undefined): ChatNote | undefined {
  const { state, error } = chatMarkOf(cell);
  const retryText = cell?.source;
  if (state === "failed") return { text: sentence(error?.detail ?? "the answer failed"), bad: true, retryText };
  if (state === "interrupted") return { text: sentence(error?.detail ?? "the answer was interrupted"), bad: false, retryText };
  if (state === "stopped") return { text: "The answer was stopped.", bad: false, retryText };
  return undefined;
}

const sentence = (words: string): string => `${words.charAt(0).toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;
