// The document around an output's frame. What is in there may lead its frame to any address, and only the document around it can forbid
// that: pages of others have policies of their own making or none, this one has ours. It hands over what it is given, and sees no more of it.
import { FLAGS, inner, narrow } from "./nesting.js";

const address = inner(0);
narrow(document, address);
const frame = document.createElement("iframe");
frame.setAttribute("sandbox", FLAGS);
Object.assign(frame, { src: address, referrerPolicy: "no-referrer", title: "Output" });

let loads = 0;
let report: MessagePort | undefined;
const first = new Promise<void>((resolve) => {
  frame.onload = () => {
    loads += 1;
    if (loads === 1) resolve();
    else left();
  };
});

/** It has gone elsewhere by itself: what is there now is not ours to show. */
function left(): void {
  frame.remove();
  report?.postMessage({ left: true });
}

addEventListener("message", function begin({ source, ports: [content, own] }) {
  if (source !== parent || !content || !own) return;
  removeEventListener("message", begin);
  report = own;
  if (loads > 1) left();
  // It has no origin that could be named; whoever is in this frame gets this output and no more.
  void first.then(() => frame.contentWindow?.postMessage("begin", "*", [content]));
});
document.body.append(frame);
