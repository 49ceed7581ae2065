// The document around an output's frame. Foreign code may navigate its frame to any address, which only the policy of the
// document
// around it can forbid. Pages of others have other policies or none; this document has ours. It passes message ports on and
// reads nothing.
import { SANDBOX_FLAGS, innerFrameUrl, restrictFrames } from "./frame_sandbox.js";

const address = innerFrameUrl(0);
restrictFrames(document, address);
const frame = document.createElement("iframe");
frame.setAttribute("sandbox", SANDBOX_FLAGS);
Object.assign(frame, { src: address, referrerPolicy: "no-referrer", title: "Output" });

let loads = 0;
let report: MessagePort | undefined;
const firstLoad = new Promise<void>((resolve) => {
  frame.onload = () => {
    loads += 1;
    if (loads === 1) resolve();
    else reportNavigation();
  };
});

/** The frame has loaded another document: it is removed, and the page is told. */
function reportNavigation(): void {
  frame.remove();
  report?.postMessage({ left: true });
}

addEventListener("message", function receivePorts({ source, ports: [content, reports] }) {
  if (source !== parent || !content || !reports) return;
  removeEventListener("message", receivePorts);
  report = reports;
  if (loads > 1) reportNavigation();
  // The frame has no origin to address. Whatever document is in it gets this output and nothing else.
  void firstLoad.then(() => frame.contentWindow?.postMessage("begin", "*", [content]));
});
document.body.append(frame);
