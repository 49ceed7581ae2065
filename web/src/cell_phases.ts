// The phases of a cell in words. Pure.

/** The text of the chip, and the class of its look, by phase. */
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

/** What happened to the cell and to the session. */
export const HINTS: Record<string, string> = {
  timeout: "The cell ran longer than its time limit. Its outputs are kept; the session goes on.",
  memory_exceeded: "The cell exceeded the memory limit of the session. The kernel was restarted: variables are gone, files and cells stay.",
  output_exceeded: "The cell exceeded the output limit. The outputs until then are kept.",
  kernel_died: "The kernel died while it ran this cell and was restarted: variables are gone, files and cells stay.",
  interrupted: "The cell was interrupted. Its outputs are kept.",
  cancelled: "The cell was removed from the queue before it started.",
};

/** A duration with a unit that fits. */
export function formatDuration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.floor((ms % 60_000) / 1000)} s`;
}
