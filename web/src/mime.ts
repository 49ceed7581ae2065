// Which representation of an output is shown first, and how. Pure.
import { joined } from "./cells.js";

export type Lane = "plotly" | "vega" | "html" | "markdown" | "latex" | "svg" | "image" | "audio" | "video" | "script" | "json" | "text" | "file";

const IMAGES = ["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp"];
/** R sends plots as SVG and as pixels; a large SVG is slower to show than it is worth. */
const LARGE_SVG = 300_000;
const VEGA = /^application\/vnd\.vega(lite)?\.v\d(\.json|\+json)$/;

/** How a type is shown; `file` is what is only to be saved. */
export function laneOf(mime: string): Lane {
  const kind = mime.split(";")[0]?.trim().toLowerCase() ?? "";
  if (kind === "application/vnd.plotly.v1+json") return "plotly";
  if (VEGA.test(kind)) return "vega";
  if (kind === "text/html") return "html";
  if (kind === "text/markdown") return "markdown";
  if (kind === "text/latex") return "latex";
  if (kind === "image/svg+xml") return "svg";
  if (IMAGES.includes(kind)) return "image";
  if (kind.startsWith("audio/")) return "audio";
  if (kind.startsWith("video/")) return "video";
  if (kind === "application/javascript" || kind === "text/javascript") return "script";
  if (kind === "application/json" || /[+.]json$/.test(kind)) return "json";
  return kind.startsWith("text/") ? "text" : "file";
}

const ORDER: Lane[] = ["plotly", "vega", "html", "markdown", "latex", "svg", "image", "file", "audio", "video", "script", "json", "text"];

/** All representations, the one to show first in front. */
export function ranked(data: Record<string, unknown>): string[] {
  const rank = (mime: string) => {
    if (mime === "application/geo+json") return ORDER.indexOf("vega");
    if (mime === "application/vnd.jupyter.widget-view+json") return ORDER.length + 1;
    // What only may be saved comes last, but for documents.
    if (laneOf(mime) === "file" && mime !== "application/pdf") return ORDER.length;
    if (mime === "image/svg+xml" && joined(data[mime]).length > LARGE_SVG && IMAGES.some((one) => one in data)) return ORDER.indexOf("file");
    return ORDER.indexOf(laneOf(mime));
  };
  return Object.keys(data).sort((a, b) => rank(a) - rank(b));
}

const BASIC = ["scatter", "bar", "pie"];
const CARTESIAN = ["box", "contour", "heatmap", "histogram", "histogram2d", "histogram2dcontour", "image", "scatterternary", "violin"];

/** The smallest of Plotly's bundles that draws all traces. */
export function plotlyBundle(figure: unknown): string {
  const traces = (figure as { data?: unknown } | null)?.data;
  const kinds = (Array.isArray(traces) ? traces : []).map((trace) => String((trace as { type?: unknown } | null)?.type ?? "scatter"));
  if (kinds.every((kind) => BASIC.includes(kind))) return "plotly-basic.js";
  return kinds.every((kind) => BASIC.includes(kind) || CARTESIAN.includes(kind)) ? "plotly-cartesian.js" : "plotly-full.js";
}
