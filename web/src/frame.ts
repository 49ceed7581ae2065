// The document in an output's frame, which has no origin and no network. It receives one task through a port, draws it, and
// reports
// its height, links and errors.
import { guard, watchFrames } from "./guard.js";
import { openInnerFrame, replaceDocument, reportEvents } from "./frame_documents.js";
import { draw } from "./frame_drawing.js";
import { isPlot, stubPlotlyMaps } from "./frame_plots.js";
import { redirectScripts, reportRemoteTo } from "./frame_remote.js";
import { innerFrameUrl, restrictFrames } from "./frame_sandbox.js";
import type { FrameTask } from "./frame_task.js";

/** How many frames are around this one, within the frame of the page. */
const depth = Number(location.search.slice(1)) || 0;
restrictFrames(document, innerFrameUrl(0));
const write = guard();
redirectScripts();
stubPlotlyMaps();

const root = document.documentElement;
const box = document.getElementById("output") as HTMLElement;

addEventListener("message", function receiveTask(event) {
  const port = event.ports[0];
  if (event.source !== parent || !port) return;
  removeEventListener("message", receiveTask);
  port.onmessage = ({ data }) => start(port, data as FrameTask);
});

function start(port: MessagePort, task: FrameTask): void {
  reportRemoteTo(port);
  const innerThemes = new Set<(dark: boolean) => void>();
  watchFrames((frame, text) => innerThemes.add(openInnerFrame(frame, text, depth, task.dark, port)));
  reportEvents(port);
  if (task.kind === "page") {
    port.onmessage = ({ data }) => innerThemes.forEach((setTheme) => setTheme(data?.dark === true));
    replaceDocument(String(task.content), port, write);
  } else drawAndResize(port, task, innerThemes);
}

/** Draws an output, again in each new theme if it is a plot, and reports its height whenever it changes. */
function drawAndResize(port: MessagePort, task: FrameTask, innerThemes: Set<(dark: boolean) => void>): void {
  const reportHeight = heightReporter(port);
  const redraw = () =>
    draw(task, box).then(
      () => port.postMessage({ drawn: task.kind }),
      (error: unknown) => port.postMessage({ failed: showError(error) }),
    ).then(reportHeight);
  port.onmessage = ({ data }) => {
    if (typeof data?.dark !== "boolean" || data.dark === task.dark) return;
    task.dark = data.dark;
    setTheme(task.dark);
    for (const setInnerTheme of innerThemes) setInnerTheme(task.dark);
    if (isPlot(task)) void redraw();
  };
  setTheme(task.dark);
  new ResizeObserver(reportHeight).observe(root);
  void redraw();
}

function setTheme(dark: boolean): void {
  root.dataset.theme = dark ? "dark" : "light";
}

function heightReporter(port: MessagePort): () => void {
  let reported = -1;
  return () => {
    const height = Math.ceil(Math.max(root.offsetHeight, document.body.scrollHeight));
    if (height !== reported) port.postMessage({ height: (reported = height) });
  };
}

function showError(error: unknown): string {
  const note = document.createElement("p");
  note.className = "failed";
  note.textContent = `This output could not be drawn: ${error instanceof Error ? error.message : String(error)}`;
  box.append(note);
  return note.textContent;
}
