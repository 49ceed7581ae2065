// Frames in frames, none with an origin.

/** Flags of a frame, and nothing that would give it our origin. */
export const FLAGS = "allow-scripts allow-downloads allow-pointer-lock";

/** Where the document for what is foreign is, by how many of them are around it: browsers refuse a page within itself. */
export function inner(depth: number): string {
  return new URL(`/-/frame/inner${depth > 0 ? `?${depth}` : ""}`, location.href).href;
}

/** From here on, frames of the document go to that address and nowhere else. Its own policy allows no more than the server. */
export function narrow(document: Document, address: string): void {
  const meta = Object.assign(document.createElement("meta"), { httpEquiv: "Content-Security-Policy", content: `frame-src ${new URL(address).origin}/-/frame/inner` });
  document.head.append(meta);
}
