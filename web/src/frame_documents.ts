// Whole documents in an output's frame: one that replaces ours, and those of frames within it, which get a confined frame
// each.
import { type DocumentWriter, renameSrcdoc } from "./guard.js";
import { addBlockedAddress, addRemoteHosts, isRemote, removeRemote } from "./frame_remote.js";
import { SANDBOX_FLAGS, innerFrameUrl } from "./frame_sandbox.js";

/** The deepest frame within frames. Deeper ones stay empty. */
const MAX_DEPTH = 3;

/** Reports blocked requests and clicked links. A document that replaces this one loses the listeners: call it again then. */
export function reportEvents(port: MessagePort): void {
  document.addEventListener("securitypolicyviolation", (event) => isRemote(event.blockedURI) && addBlockedAddress(event.blockedURI));
  // A link opens only when the person follows it a second time, in the page outside, which shows the whole address.
  addEventListener("click", (event) => {
    const link = (event.target as Element | null)?.closest?.("a[href]");
    if (!(link instanceof HTMLAnchorElement) || link.getAttribute("href")?.startsWith("#") || link.download) return;
    event.preventDefault();
    port.postMessage({ link: link.href });
  });
}

/** Replaces the document of this frame by a whole one. */
export function replaceDocument(text: string, port: MessagePort, write: DocumentWriter): void {
  const parsed = new DOMParser().parseFromString(renameSrcdoc(text), "text/html");
  removeRemote(parsed);
  document.open();
  reportEvents(port);
  write.call(document, `<!doctype html>${parsed.documentElement.outerHTML}`);
  document.close();
}

/**
 * Shows the document of a frame within this one (at this depth) in a confined frame, one level down. Passes its links and
 * remote hosts on. Returns the function that tells it about a change of the theme.
 */
export function openInnerFrame(frame: HTMLIFrameElement, text: string, depth: number, dark: boolean, outer: MessagePort): (dark: boolean) => void {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = ({ data }) => {
    const { link, remote } = data as { link?: unknown; remote?: unknown };
    if (typeof link === "string") outer.postMessage({ link });
    if (Array.isArray(remote)) addRemoteHosts(remote);
  };
  if (depth < MAX_DEPTH) {
    frame.setAttribute("sandbox", SANDBOX_FLAGS);
    frame.addEventListener("load", () => frame.contentWindow?.postMessage("begin", "*", [port2]), { once: true });
    frame.src = innerFrameUrl(depth + 1);
    port1.postMessage({ kind: "page", content: text, dark });
  }
  return (dark) => port1.postMessage({ dark });
}
