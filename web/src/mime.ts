// Which representation of an output is shown first, and how. Pure.
import { joinText } from "./cell_state.js";

export type DisplayKind = "plotly" | "vega" | "geo" | "html" | "markdown" | "latex" | "svg" | "image" | "audio" | "video" | "script" | "json" | "text" | "file";

export const WIDGET = "application/vnd.jupyter.widget-view+json";
/** Libraries that one output loads, and that others use. */
const LOADS = /^application\/vnd\.(bokehjs|holoviews)_load\.v0\+json$/;
const USES = /^application\/vnd\.(bokehjs|holoviews)_exec\.v0\+json$/;
const VEGA = /^application\/vnd\.vega(lite)?\.v\d(\.json|\+json)$/;
const IMAGES = ["image/svg+xml", "image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp"];
/** R sends plots as SVG and as pixels; a large SVG is slower to show than it is worth. */
const LARGE_SVG = 300_000;

/** How a type is shown; `file` is what is only to be saved. */
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

/** What says most stands in front; what is named neither here nor by its lane comes behind. */
const ORDER = ["plotly", "bokeh", "vega", "geo", "html", "markdown", "latex", ...IMAGES, "application/pdf", "audio", "video", "text/csv", "script", "json", "text", "text/plain"];

function rank(mime: string, data: Record<string, unknown>): number {
  const value = data[mime];
  // A marker says of the script beside it that it needs what another output has loaded; it shows nothing itself.
  if (mime === WIDGET || LOADS.test(mime) || USES.test(mime)) return ORDER.length + 1;
  const lane = displayKindOf(mime);
  if (!["json", "plotly", "vega", "geo"].includes(lane) && !isText(value)) return ORDER.length + 2;
  if (lane === "svg" && joinText(value).length > LARGE_SVG && IMAGES.some((one) => one !== mime && one in data)) return ORDER.indexOf("application/pdf");
  if (lane === "script" && usesLibrary(data)) return ORDER.indexOf("bokeh");
  const at = ORDER.includes(mime) ? ORDER.indexOf(mime) : ORDER.indexOf(lane);
  return at < 0 ? ORDER.length : at;
}

const isText = (value: unknown) =>
  typeof value === "string" || (Array.isArray(value) && value.every((piece) => typeof piece === "string")) || typeof (value as { artifact?: unknown } | null)?.artifact === "string";

/** All representations, the one to show first in front. */
export function rankedTypes(data: Record<string, unknown>): string[] {
  return Object.keys(data).sort((a, b) => rank(a, data) - rank(b, data));
}

/** Whether it loads a library for outputs after it. */
export const loadsLibrary = (data: Record<string, unknown>) => Object.keys(data).some((mime) => LOADS.test(mime));
/** Whether it needs such a library. */
export const usesLibrary = (data: Record<string, unknown>) => Object.keys(data).some((mime) => USES.test(mime));

const BASIC = ["scatter", "bar", "pie"];
const CARTESIAN = ["box", "contour", "heatmap", "histogram", "histogram2d", "histogram2dcontour", "image", "scatterternary", "violin"];

/** The smallest of Plotly's bundles that draws all traces. */
export function plotlyBundle(figure: unknown): string {
  const kinds = traces(figure);
  if (kinds.every((kind) => BASIC.includes(kind))) return "plotly-basic.js";
  return kinds.every((kind) => BASIC.includes(kind) || CARTESIAN.includes(kind)) ? "plotly-cartesian.js" : "plotly-full.js";
}

/** Whether Plotly would fetch tiles or outlines of countries for it. */
export function needsMaps(figure: unknown): boolean {
  return traces(figure).some((kind) => /geo|map|choropleth/.test(kind) && !/heatmap|treemap/.test(kind));
}

function traces(figure: unknown): string[] {
  const data = (figure as { data?: unknown } | null)?.data;
  return (Array.isArray(data) ? data : []).map((trace) => String((trace as { type?: unknown } | null)?.type ?? "scatter"));
}
