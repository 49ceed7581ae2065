// One output of a cell: the representation that says most, and a switch to the others.
import { LitElement, type TemplateResult, css, html, nothing } from "lit";
import { plain } from "./ansi.js";
import { type Access, artifact, save } from "./api.js";
import { type Output, type Shown, Stream, joined, newlines } from "./cells.js";
import { type Lane, laneOf, plotlyBundle, ranked } from "./mime.js";
import type { FrameKind } from "./sandbox.js";
import { base, cellStyle } from "./style.js";
import { folded } from "./text.js";
import { tree } from "./tree.js";

type Content = { blob?: Blob; url?: string; fragment?: DocumentFragment; asFrame?: boolean; failed?: string };

const EXTENSIONS: Record<string, string> = {
  "image/svg+xml": "svg", "image/jpeg": "jpg", "text/plain": "txt", "text/markdown": "md", "text/latex": "tex", "application/pdf": "pdf",
  "application/javascript": "js", "application/geo+json": "geojson",
};
const extension = (mime: string) => EXTENSIONS[mime] ?? (/json$/.test(mime) ? "json" : (mime.split(/[/+;]/)[1] ?? "bin").replace(/[^a-z0-9]/gi, ""));

/** Shows an output. */
export class CellkeepOutput extends LitElement {
  static override properties = {
    output: { attribute: false },
    version: { attribute: false },
    access: { attribute: false },
    name: {},
    bare: { type: Boolean },
    chosen: { state: true },
    pages: { state: true },
    zoomed: { state: true },
  };
  static override styles = [base, cellStyle, css`:host { background: none; }`];
  declare output: Shown;
  /** Changes with the text of a stream, which is the same stream then. */
  declare version: number;
  declare access: Access | undefined;
  declare name: string;
  /** Without tools. */
  declare bare: boolean;
  declare chosen: string;
  declare pages: number;
  declare zoomed: boolean;
  private contents = new Map<string, Content>();
  private of?: Shown;

  constructor() {
    super();
    this.pages = 0;
    this.name = "output";
  }

  override willUpdate(): void {
    if (this.of === this.output) return;
    this.release();
    this.of = this.output;
    if (this.chosen && !(this.data[this.chosen] !== undefined)) this.chosen = "";
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.release();
  }

  override connectedCallback(): void {
    super.connectedCallback();
    this.requestUpdate();
  }

  private release(): void {
    for (const { url } of this.contents.values()) if (url) URL.revokeObjectURL(url);
    this.contents.clear();
  }

  private get data(): Record<string, unknown> {
    return this.output instanceof Stream ? {} : (this.output.data ?? {});
  }

  override render(): TemplateResult | typeof nothing {
    const output = this.output;
    if (!output) return nothing;
    if (output instanceof Stream) {
      return html`<div class="output ${output.name === "stderr" ? "stderr" : ""}">${this.text(output.text, output.lines)}</div>`;
    }
    if (output.output_type === "error") return this.error(output);
    const kinds = ranked(output.data ?? {});
    if (kinds.length === 0) return nothing;
    const kind = this.chosen || (kinds[0] as string);
    return html`<div class="output">
      ${this.lane(kind, laneOf(kind), output)}
      ${this.tools(kind, kinds)}
    </div>`;
  }

  private text(text: string, lines = newlines(text)): TemplateResult {
    return folded(text, lines, this.pages, () => (this.pages += 1));
  }

  private tools(kind: string, kinds: string[]): TemplateResult | typeof nothing {
    const lane = laneOf(kind);
    if (this.bare || (kinds.length === 1 && ["text", "file"].includes(lane))) return nothing;
    if (kinds.length === 2 && lane === "text") return nothing;
    return html`<div class="tools" part="tools">
      ${lane === "image" || lane === "svg" ? html`<button @click=${() => (this.zoomed = !this.zoomed)} aria-pressed=${this.zoomed ? "true" : "false"}>${this.zoomed ? "Fit" : "Full size"}</button>` : nothing}
      ${lane === "image" && kind === "image/png" ? html`<button @click=${() => this.copyImage(kind)}>Copy</button>` : nothing}
      ${lane === "html" && this.contents.get(kind)?.fragment ? html`<button @click=${this.copyTable}>Copy</button>` : nothing}
      <button @click=${() => this.download(kind)}>Download</button>
      ${kinds.length > 1
        ? html`<select aria-label="Representation" @change=${(event: Event) => (this.chosen = (event.target as HTMLSelectElement).value)}>
            ${kinds.map((one) => html`<option value=${one} ?selected=${one === kind}>${one}</option>`)}
          </select>`
        : nothing}
    </div>`;
  }

  private lane(kind: string, lane: Lane, output: Output): TemplateResult | typeof nothing {
    const value = output.data?.[kind];
    const reference = (value as { artifact?: unknown } | null)?.artifact;
    const isReference = typeof reference === "string" && typeof value === "object" && lane !== "json" && lane !== "plotly" && lane !== "vega";
    switch (lane) {
      case "plotly":
        return this.frame("plotly", value, plotlyBundle(value), "", "Plotly plot");
      case "vega":
        return this.frame("vega", value, "vega.js", kind.includes("vegalite") ? "vega-lite" : "vega", "Vega plot");
      case "script":
        return this.frame("script", joined(value), "", "", "Output of a script");
      case "json":
        return html`<div class="tree">${tree(value, output.metadata?.["application/json"])}</div>`;
      case "html":
      case "markdown":
        return this.foreign(kind, lane, joined(value));
      case "latex":
        return this.latex(kind, joined(value));
      case "image":
      case "svg":
      case "audio":
      case "video":
        return this.media(kind, lane, output);
      case "text":
        return isReference ? this.file(kind) : this.text(joined(value));
      case "file":
        return this.file(kind);
    }
  }

  private frame(kind: FrameKind, content: unknown, library: string, mode: string, label: string): TemplateResult {
    void import("./sandbox.js");
    return html`<cellkeep-frame .kind=${kind} .content=${content} .library=${library} .mode=${mode} .server=${this.access?.server ?? ""} .label=${label}></cellkeep-frame>`;
  }

  /** What is there of a representation; asked for, if it is not there yet. */
  private content(kind: string, make: () => Promise<Content>): Content | undefined {
    const there = this.contents.get(kind);
    if (there) return there;
    const of = this.output;
    this.contents.set(kind, {});
    make()
      .catch((error: unknown) => ({ failed: error instanceof Error ? error.message : String(error) }))
      .then((content: Content) => {
        if (this.output !== of) {
          if (content.url) URL.revokeObjectURL(content.url);
          return;
        }
        this.contents.set(kind, content);
        this.requestUpdate();
      });
    return undefined;
  }

  private foreign(kind: string, lane: "html" | "markdown", text: string): TemplateResult {
    const content = this.content(kind, async () => {
      const { plainHtml, markdown } = await import("./sanitize.js");
      const fragment = lane === "markdown" ? markdown(text) : plainHtml(text);
      return fragment ? { fragment } : { asFrame: true };
    });
    if (content?.asFrame) return this.frame("html", text, "", "", "HTML output");
    if (content?.fragment) return html`<div class="scroll ${lane === "markdown" ? "prose markdown" : ""}">${nodes(content.fragment)}</div>`;
    return html`<p class="note">${content?.failed ?? ""}</p>`;
  }

  private latex(kind: string, text: string): TemplateResult {
    const content = this.content(kind, async () => {
      const { formulas } = await import("./latex.js");
      return { fragment: formulas(text) };
    });
    return content?.fragment ? html`<div class="scroll">${nodes(content.fragment)}</div>` : this.text(text);
  }

  private async blob(kind: string): Promise<Blob> {
    const value = this.data[kind];
    const reference = (value as { artifact?: unknown } | null)?.artifact;
    if (typeof reference === "string" && this.access) return new Blob([await artifact(this.access, reference)], { type: kind });
    const isText = ["text", "html", "markdown", "latex", "svg", "script"].includes(laneOf(kind));
    if (isText) return new Blob([joined(value)], { type: kind });
    if (typeof value !== "string" && !Array.isArray(value)) return new Blob([JSON.stringify(value, null, 1)], { type: "application/json" });
    const text = joined(value).replace(/\s/g, "");
    if (!/^[A-Za-z0-9+/]*={0,2}$/.test(text) || text.replace(/=+$/, "").length % 4 === 1) throw new Error("its data is not base64");
    return new Blob([Uint8Array.from(atob(text), (char) => char.charCodeAt(0))], { type: kind });
  }

  private media(kind: string, lane: "image" | "svg" | "audio" | "video", output: Output): TemplateResult {
    const content = this.content(kind, async () => {
      const blob = await this.blob(kind);
      return { blob, url: URL.createObjectURL(blob) };
    });
    if (content?.failed) return html`<p class="note">The output cannot be shown: ${content.failed}</p>`;
    if (!content?.url) return html`<div class="wait"></div>`;
    if (lane === "audio") return html`<audio controls src=${content.url}></audio>`;
    if (lane === "video") return html`<video controls src=${content.url}></video>`;
    const meta = (output.metadata?.[kind] ?? {}) as { width?: unknown; height?: unknown };
    const size = (value: unknown) => (typeof value === "number" && value > 0 && value < 20_000 ? Math.round(value) : nothing);
    const alt = joined(output.data?.["text/plain"]).slice(0, 200) || "Output image";
    return html`<div class="scroll"><img part="image" class=${this.zoomed ? "large" : ""}
      src=${content.url} alt=${alt} width=${size(meta.width)} height=${size(meta.height)}></div>`;
  }

  private file(kind: string): TemplateResult {
    return html`<p class="note">${kind} <button @click=${() => this.download(kind)}>Download</button></p>`;
  }

  private error(output: Output): TemplateResult {
    const trace = (output.traceback ?? []).map(String);
    const title = [output.ename, output.evalue].filter(Boolean).join(": ");
    const copied = () => navigator.clipboard?.writeText(`${plain(title)}\n\n${plain(trace.join("\n")).slice(-6000)}`);
    return html`<div class="error" role="group" aria-label="Error">
      <strong>${plain(title)}</strong>
      ${trace.length > 0
        ? html`<details><summary>Traceback</summary>${this.text(trace.join("\n"))}</details>`
        : nothing}
      <div class="tools"><button @click=${copied}>Copy</button></div>
    </div>`;
  }

  private async download(kind: string): Promise<void> {
    const blob = await this.blob(kind);
    save(blob, `${this.name}.${extension(kind)}`);
    this.dispatchEvent(new CustomEvent("cellkeep-artifact", { bubbles: true, composed: true, detail: { mime: kind, name: this.name, blob } }));
  }

  private async copyImage(kind: string): Promise<void> {
    await navigator.clipboard.write([new ClipboardItem({ [kind]: this.blob(kind) })]);
  }

  private async copyTable(): Promise<void> {
    const rows = [...this.renderRoot.querySelectorAll("tr")];
    const text = rows.map((row) => [...row.children].map((cell) => (cell.textContent ?? "").trim().replace(/\s+/g, " ")).join("\t")).join("\n");
    await navigator.clipboard.writeText(text || (this.renderRoot.querySelector(".scroll")?.textContent ?? ""));
  }
}

/** A fragment is empty once it stands somewhere; its nodes stay the same, so that nothing is drawn anew. */
const kept = new WeakMap<DocumentFragment, Node[]>();
function nodes(fragment: DocumentFragment): Node[] {
  let list = kept.get(fragment);
  if (!list) kept.set(fragment, (list = [...fragment.childNodes]));
  return list;
}

if (!customElements.get("cellkeep-output")) customElements.define("cellkeep-output", CellkeepOutput);
