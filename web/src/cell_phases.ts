// Where a cell is in its life, for people. Pure.

/** What the chip says, and how it looks. */
export const PHASES: Record<string, [text: string, look: string]> = {
  queued: ["queued", "warn"],
  running: ["running", "busy"],
  stopping: ["stopping", "warn"],
  ok: ["done", "ok"],
  error: ["failed", "bad"],
  interrupted: ["interrupted", "warn"],
  timeout: ["timed out", "bad"],
  memory_exceeded: ["out of memory", "bad"],
  output_exceeded: ["too much output", "bad"],
  kernel_died: ["kernel died", "bad"],
  cancelled: ["cancelled", "warn"],
  input: ["waiting for input", "warn"],
  lost: ["connection lost", "warn"],
};

/** What a person can do about it. */
export const HINTS: Record<string, string> = {
  timeout: "The cell ran longer than it may. What it had shown is kept; the session goes on.",
  memory_exceeded: "The cell took more memory than the session has. Its kernel was started anew: variables are gone, files and cells stay.",
  output_exceeded: "The cell produced more output than it may. What came until then is kept.",
  kernel_died: "The kernel ended while it ran this cell and was started anew: variables are gone, files and cells stay.",
  interrupted: "The cell was interrupted; what it had shown is kept.",
  cancelled: "The cell was taken out of the queue before it began.",
};

/** A time as a person would say it. */
export function seconds(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.floor((ms % 60_000) / 1000)} s`;
}
