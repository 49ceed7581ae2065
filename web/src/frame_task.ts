// What the page sends to a frame: one output to draw, with the libraries that it needs.

export interface FrameTask {
  kind: "html" | "page" | "script" | "plotly" | "vega";
  content: unknown;
  /** The address of the library's script, from our server. */
  library?: string;
  /** Of Vega: `vega` or `vega-lite`. */
  mode?: string;
  /** What earlier outputs provide for this one, in order. */
  before?: { html?: string; script?: string }[];
  dark: boolean;
}
