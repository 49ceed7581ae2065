// The sandbox of frames for outputs, shared by all documents that hold such a frame.

/** The flags of a frame. `allow-same-origin` is missing: it would give the frame our origin. */
export const SANDBOX_FLAGS = "allow-scripts allow-downloads allow-pointer-lock";

/**
 * The address of the document that draws, by the number of such documents around it: browsers do not load a page within
 * itself.
 */
export function innerFrameUrl(depth: number): string {
  return new URL(`/-/frame/inner${depth > 0 ? `?${depth}` : ""}`, location.href).href;
}

/**
 * From now on, frames of the document load only that address. The policy of its response permits no more than the server.
 */
export function restrictFrames(document: Document, address: string): void {
  const meta = Object.assign(document.createElement("meta"), { httpEquiv: "Content-Security-Policy", content: `frame-src ${new URL(address).origin}/-/frame/inner` });
  document.head.append(meta);
}
