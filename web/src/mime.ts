// Which representation of an output is shown first, and how it is displayed. Pure.
import { joinText } from "./cell_state.js";

export type DisplayKind = "plotly" | "vega" | "geo" | "html" | "markdown" | "latex" | "svg" | "image" | "audio" | "video" | "script" | "json" | "text" | "file";

export const WIDGET = "application/vnd.jupyter.widget-view+json";
/** Markers of outputs that load a library, and of those that use it. */
const LOADS = /^application\/vnd\.(bokehjs|holoviews)_load\.v0\+json$/;
const USES = /^application\/vnd\.(bokehjs|holoviews)_exec\.v0\+json$/;
const VEGA = /^application\/vnd\.vega(lite)?\.v\d(\.json|\+json)$/;
const IMAGES = ["image/svg+xml", "image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp"];
/** In characters. R sends plots as SVG and as PNG; for a larger SVG the PNG is preferred, since it is drawn faster. */
const LARGE_SVG = 300_000;

/** How a type is displayed; `file`: it can only be saved. */
export function displayKindOf(mime: string): DisplayKind {
  const kind = mime.split(";")[0]?.trim().toLowerCase() ?? "";
  if (kind === "application/vnd.plotly.v1+json") return "plotly";
  if (VEGA.test(kind)) return "vega";
  if (kind === "application/geo+json") return "geo";
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

/** MIME types and kinds of display, the most expressive first. Others come last. */
const ORDER = ["plotly", "bokeh", "vega", "geo", "html", "markdown", "latex", ...IMAGES, "application/pdf", "audio", "video", "text/csv", "script", "json", "text", "text/plain"];

function rank(mime: string, data: Record<string, unknown>): number {
  const value = data[mime];
  // A marker is about the script beside it, and displays nothing itself.
  if (mime === WIDGET || LOADS.test(mime) || USES.test(mime)) return ORDER.length + 1;
  const kindOfDisplay = displayKindOf(mime);
  if (!["json", "plotly", "vega", "geo"].includes(kindOfDisplay) && !isText(value)) return ORDER.length + 2;
  if (kindOfDisplay === "svg" && joinText(value).length > LARGE_SVG && IMAGES.some((one) => one !== mime && one in data)) return ORDER.indexOf("application/pdf");
  if (kindOfDisplay === "script" && usesLibrary(data)) return ORDER.indexOf("bokeh");
  const at = ORDER.includes(mime) ? ORDER.indexOf(mime) : ORDER.indexOf(kindOfDisplay);
  return at < 0 ? ORDER.length : at;
}

const isText = (value: unknown) =>
  typeof value === "string" || (Array.isArray(value) && value.every((piece) => typeof piece === "string")) || typeof (value as { artifact?: unknown } | null)?.artifact === "string";

/** All MIME types of an output, the one to show first in front. Exports have an order of their own (`src/mime.rs`). */
export function rankedTypes(data: Record<string, unknown>): string[] {
  return Object.keys(data).sort((a, b) => rank(a, data) - rank(b, data));
}

/** Whether an output loads a library for later ones. */
export const loadsLibrary = (data: Record<string, unknown>) => Object.keys(data).some((mime) => LOADS.test(mime));
/** Whether an output needs such a library. */
export const usesLibrary = (data: Record<string, unknown>) => Object.keys(data).some((mime) => USES.test(mime));

const BASIC = ["scatter", "bar", "pie"];
const CARTESIAN = ["box", "contour", "heatmap", "histogram", "histogram2d", "histogram2dcontour", "image", "scatterternary", "violin"];

/** The smallest bundle of Plotly that can draw all traces. */
export function plotlyBundle(figure: unknown): string {
  const kinds = traces(figure);
  if (kinds.every((kind) => BASIC.includes(kind))) return "plotly-basic.js";
  return kinds.every((kind) => BASIC.includes(kind) || CARTESIAN.includes(kind)) ? "plotly-cartesian.js" : "plotly-full.js";
}

/** Whether Plotly would fetch map tiles or outlines of countries for the figure. */
export function needsMaps(figure: unknown): boolean {
  return traces(figure).some((kind) => /geo|map|choropleth/.test(kind) && !/heatmap|treemap/.test(kind));
}

function traces(figure: unknown): string[] {
  const data = (figure as { data?: unknown } | null)?.data;
  return (Array.isArray(data) ? data : []).map((trace) => String((trace as { type?: unknown } | null)?.type ?? "scatter"));
}
