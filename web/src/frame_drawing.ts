// Draws an output in its frame: the library and the earlier outputs that it needs, then its HTML, script or plot.
import { renameSrcdoc } from "./guard.js";
import { drawPlot } from "./frame_plots.js";
import { removeRemote } from "./frame_remote.js";
import type { FrameTask } from "./frame_task.js";

export async function draw(task: FrameTask, box: HTMLElement): Promise<void> {
  if (task.library) await loadLibrary(task.library);
  for (const { html, script } of task.before ?? []) {
    if (html !== undefined) await insertHtml(html, box.appendChild(document.createElement("div")));
    if (script !== undefined) await runScript(script, box.appendChild(document.createElement("div")));
  }
  if (task.kind === "html") await insertHtml(String(task.content), box);
  else if (task.kind === "script") await runScript(String(task.content), box);
  else await drawPlot(task, box);
}

function loadLibrary(address: string): Promise<void> {
  if (document.querySelector(`script[src="${address}"]`)) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const element = document.createElement("script");
    element.src = address;
    element.onload = () => resolve();
    element.onerror = () => reject(new Error("its library is not in this build of cellkeep"));
    document.head.append(element);
  });
}

/**
 * Inserts foreign HTML. Its scripts do not run when they are parsed from text: each is replaced by a new element, in order.
 */
async function insertHtml(text: string, box: HTMLElement): Promise<void> {
  const template = document.createElement("template");
  template.innerHTML = renameSrcdoc(text);
  removeRemote(template.content);
  box.replaceChildren(template.content);
  for (const inert of [...box.querySelectorAll("script")]) {
    const script = document.createElement("script");
    for (const { name, value } of [...inert.attributes]) script.setAttribute(name, value);
    script.textContent = inert.textContent;
    const loaded = script.src ? new Promise((resolve) => (script.onload = script.onerror = resolve)) : undefined;
    inert.replaceWith(script);
    await loaded;
  }
}

async function runScript(source: string, box: HTMLElement): Promise<void> {
  // Jupyter's front ends name the element that a script may write into `element`.
  await new Function("element", source)(box);
}
