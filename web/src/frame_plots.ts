// Draws Plotly and Vega figures in an output's frame, without any request to the network.
import type { FrameTask } from "./frame_task.js";

interface Plotly {
  react(box: Element, data: unknown, layout: unknown, config: unknown): Promise<unknown>;
  addFrames(box: Element, frames: unknown): Promise<unknown>;
}

type VegaEmbed = (box: Element, spec: unknown, options: unknown) => Promise<unknown>;
type Globals = { Plotly?: Plotly; vegaEmbed?: VegaEmbed };

/**
 * Plotly would fetch the outlines of countries from its makers; this gives it empty ones. Call it before Plotly is loaded.
 */
export function stubPlotlyMaps(): void {
  const topology = { type: "Topology", arcs: [], objects: new Proxy({}, { get: () => ({ type: "GeometryCollection", geometries: [] }) }) };
  Object.assign(window, { PlotlyGeoAssets: { topojson: new Proxy({}, { get: () => topology }) } });
}

export const isPlot = (task: FrameTask) => task.kind === "plotly" || task.kind === "vega";

export async function drawPlot(task: FrameTask, box: Element): Promise<void> {
  const { Plotly, vegaEmbed } = window as unknown as Globals;
  if (task.kind === "plotly" && Plotly) await drawPlotly(Plotly, task, box);
  else if (task.kind === "vega" && vegaEmbed) await drawVega(vegaEmbed, task, box);
  else throw new Error("its library is not in this build of cellkeep");
}

type Section = Record<string, Record<string, unknown> | undefined>;
interface Figure {
  data?: unknown;
  layout?: Section;
  config?: object;
  frames?: unknown;
}

function drawPlotly(library: Plotly, task: FrameTask, box: Element): Promise<unknown> {
  const figure = JSON.parse(JSON.stringify(task.content)) as Figure;
  const config = { responsive: true, displaylogo: false, ...figure.config, plotlyServerURL: "", sendData: false };
  return library.react(box, figure.data ?? [], plotlyLayout(figure, task.dark), config).then(() => figure.frames && library.addFrames(box, figure.frames));
}

/** The figure's layout with our colours under its own, and with maps that have no tiles. */
function plotlyLayout({ layout: own = {} }: Figure, dark: boolean): object {
  const [ink, line] = dark ? ["#e3e7ec", "#38414d"] : ["#1c2127", "#dfe3e8"];
  const template = (own.template ?? {}) as Section;
  const base = (template.layout ?? {}) as Section;
  const axis = (of: object | undefined) => ({ ...of, gridcolor: line, linecolor: line, zerolinecolor: line });
  const clear = "rgba(0,0,0,0)";
  const colours = { paper_bgcolor: clear, plot_bgcolor: clear, font: { ...base.font, color: ink }, xaxis: axis(base.xaxis), yaxis: axis(base.yaxis) };
  const margin = { t: own.title ? 60 : 30, r: 20, b: 50, l: 60 };
  const noTiles = { style: "white-bg" };
  const layout = { margin, map: noTiles, mapbox: noTiles, ...own, template: { ...template, layout: { ...base, ...colours } }, autosize: !own.width };
  for (const [name, section] of Object.entries(layout)) if (/^map(box)?\d*$/.test(name)) Object.assign(section as object, noTiles);
  return layout;
}

function drawVega(embed: VegaEmbed, task: FrameTask, box: Element): Promise<unknown> {
  const isLocal = (uri: string) => /^(data:|#)/.test(uri);
  const refuse = (uri: string) => Promise.reject(new Error(`not loaded from the network: ${uri}`));
  const loader = {
    load: (uri: string) => (isLocal(uri) ? fetch(uri).then((response) => response.text()) : refuse(uri)),
    sanitize: (uri: string) => (isLocal(uri) ? Promise.resolve({ href: uri }) : refuse(uri)),
    http: refuse,
    file: refuse,
  };
  const options = { mode: task.mode, actions: false, renderer: "svg", ast: true, loader, logLevel: 0, theme: task.dark ? "dark" : undefined };
  return embed(box, JSON.parse(JSON.stringify(task.content)), { ...options, config: { background: "transparent" } });
}
