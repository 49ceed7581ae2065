// The bytes of a representation of an output, to show and to save.
import { type Access, loadArtifact } from "./api.js";
import { joinText } from "./cell_state.js";
import { displayKindOf } from "./mime.js";

const EXTENSIONS: Record<string, string> = {
  "image/svg+xml": "svg", "image/jpeg": "jpg", "text/plain": "txt", "text/markdown": "md", "text/latex": "tex", "application/pdf": "pdf",
  "application/javascript": "js", "application/geo+json": "geojson",
};

/** The file extension of a MIME type. */
export const extensionOf = (mime: string) => EXTENSIONS[mime] ?? (/json$/.test(mime) ? "json" : (mime.split(/[/+;]/)[1] ?? "bin").replace(/[^a-z0-9]/gi, ""));

/** A width or height from metadata, in pixels, if it is a plausible number. */
export const sizeOf = (value: unknown) => (typeof value === "number" && value > 0 && value < 20_000 ? Math.round(value) : undefined);

export async function blobOf(kind: string, value: unknown, access: Access | undefined): Promise<Blob> {
  const reference = (value as { artifact?: unknown } | null)?.artifact;
  if (typeof reference === "string" && access) return new Blob([await loadArtifact(access, reference)], { type: kind });
  if (["text", "html", "markdown", "latex", "svg", "script"].includes(displayKindOf(kind))) return new Blob([joinText(value)], { type: kind });
  if (typeof value !== "string" && !Array.isArray(value)) return new Blob([JSON.stringify(value, null, 1)], { type: "application/json" });
  const text = joinText(value).replace(/\s/g, "");
  if (!/^[A-Za-z0-9+/]*={0,2}$/.test(text) || text.replace(/=+$/, "").length % 4 === 1) throw new Error("its data is not base64");
  return new Blob([Uint8Array.from(atob(text), (char) => char.charCodeAt(0))], { type: kind });
}
