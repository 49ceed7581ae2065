// <cellkeep-output>: one output of a cell in its most expressive representation, with a menu of the others.
import { LitElement, type TemplateResult, css, html, nothing } from "lit";
import { stripAnsi } from "./ansi.js";
import { type Access, save } from "./api.js";
import { type Output, type CellOutput, joinText } from "./cell_state.js";
import { errorView, errorPrompt, errorTitle } from "./error_view.js";
import type { Prelude } from "./frame_prelude.js";
import { blobOf, extensionOf, sizeOf } from "./media.js";
import { type DisplayKind, WIDGET, loadsLibrary, displayKindOf, needsMaps, plotlyBundle, rankedTypes } from "./mime.js";
import type { FrameKind } from "./output_frame.js";
import { type LongText, Stream } from "./stream.js";
import { base, cellStyle, outputStyle } from "./style.js";
import { FoldedText, type ReadRange, completeText, readAll } from "./folded_text.js";
import { jsonTree } from "./json_tree.js";

type Content = { url?: string; fragment?: DocumentFragment; asFrame?: boolean; failed?: string };

export class CellkeepOutput extends LitElement {
  static override properties = {
    output: { attribute: false },
    version: { attribute: false },
    access: { attribute: false },
    server: {},
    theme: {},
    read: { attribute: false },
    prelude: { attribute: false },
    code: { attribute: false },
    name: {},
    bare: { type: Boolean },
    chosen: { state: true },
    zoomed: { state: true },
    remote: { state: true },
    done: { state: true },
  };
  static override styles = [base, cellStyle, outputStyle, css`:host { background: none; }`];
  declare output: CellOutput;
  /** The version of a stream: it changes while `output` stays the same object. */
  declare version: number;
  declare access: Access | undefined;
  /** The origin of frames; also set without access to the API. */
  declare server: string;
  /** The theme of its cell; empty: as the system. */
  declare theme: string;
  /** Loads the middle of a stream, which is not in memory. */
  declare read: ReadRange | undefined;
  /** What earlier outputs provide for the frame of this one. */
  declare prelude: Prelude | undefined;
  /** The source of the cell, and its language. */
  declare code: { source: string; language: string } | undefined;
  declare name: string;
  /** Hides the tools. */
  declare bare: boolean;
  declare chosen: string;
  declare zoomed: boolean;
  /** The hosts whose resources were not loaded. */
  declare remote: string[];
  /** The tool that was just used; its button shows the result for a moment. */
  declare done: string;
  private contents = new Map<string, Content>();
  private contentsOf?: CellOutput;
  private folding = new FoldedText(() => this.requestUpdate());
  private longText?: { source: string; text: LongText };

  constructor() {
    super();
    Object.assign(this, { name: "output", server: "", theme: "", remote: [], done: "" });
  }

  override willUpdate(): void {
    if (this.contentsOf === this.output) return;
    this.release();
    this.contentsOf = this.output;
    this.remote = [];
    if (this.chosen && this.data[this.chosen] === undefined) this.chosen = "";
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
      return html`<div class="output ${output.name === "stderr" ? "stderr" : ""}">${this.folding.view(output, this.read)}${this.textTools(output)}</div>`;
    }
    if (output.output_type === "error") return this.error(output);
    const kinds = rankedTypes(output.data ?? {});
    if (kinds.length === 0) return html`<p class="note">Empty output</p>`;
    const kind = this.chosen || (kinds[0] as string);
    return html`<div class="output">
      ${this.renderContent(kind, displayKindOf(kind), output)}
      ${WIDGET in this.data && kind !== WIDGET ? html`<p class="note">A widget, which is not interactive here.</p>` : nothing}
      ${this.remote.length > 0 ? html`<p class="note">Remote parts were not loaded: ${this.remote.join(", ")}. Outputs have no network.</p>` : nothing}
      ${this.tools(kind, kinds)}
    </div>`;
  }

  private text(text: string): TemplateResult {
    if (this.longText?.source !== text) this.longText = { source: text, text: completeText(text) };
    return this.folding.view(this.longText.text);
  }

  /** A button that shows for a moment whether its action succeeded. */
  private button(name: string, action: () => unknown): TemplateResult {
    const click = async () => {
      try {
        await action();
        this.done = name;
      } catch {
        this.done = `no ${name}`;
      }
      setTimeout(() => (this.done = ""), 1500);
    };
    const result = this.done === name ? "Copied" : this.done === `no ${name}` ? "Not allowed" : name;
    return html`<button @click=${click}>${name.startsWith("Copy") ? result : name}</button>`;
  }

  private textTools(text: LongText): TemplateResult | typeof nothing {
    if (this.bare) return nothing;
    const all = () => readAll(text, this.read).then(stripAnsi);
    const isLong = text.gap > 0 || text.head.length > 2000;
    // On touch screens short text has no tools: it can be selected by hand.
    return html`<div class="tools ${isLong ? "" : "slight"}" part="tools">
      ${this.button("Copy", async () => navigator.clipboard.writeText(await all()))}
      ${isLong ? this.button("Download", async () => save(new Blob([await all()], { type: "text/plain" }), `${this.name}.txt`)) : nothing}
    </div>`;
  }

  private tools(kind: string, kinds: string[]): TemplateResult | typeof nothing {
    const display = displayKindOf(kind);
    if (this.bare || (kinds.length === 1 && display === "file")) return nothing;
    const isTable = display === "html" && this.contents.get(kind)?.fragment !== undefined;
    return html`<div class="tools" part="tools">
      ${display === "image" || display === "svg" ? html`<button @click=${() => (this.zoomed = !this.zoomed)} aria-pressed=${this.zoomed ? "true" : "false"}>${this.zoomed ? "Fit" : "Full size"}</button>` : nothing}
      ${kind === "image/png" ? this.button("Copy", () => navigator.clipboard.write([new ClipboardItem({ [kind]: this.blob(kind) })])) : nothing}
      ${isTable ? this.button("Copy", () => this.copyTable()) : nothing}
      ${["text", "latex", "json", "markdown"].includes(display) ? this.button("Copy", async () => navigator.clipboard.writeText(stripAnsi(await (await this.blob(kind)).text()))) : nothing}
      ${display === "text" && joinText(this.data[kind]).length < 2000 ? nothing : html`<button @click=${() => this.download(kind)}>Download</button>`}
      ${kinds.length > 1
        ? html`<select aria-label="Representation" @change=${(event: Event) => (this.chosen = (event.target as HTMLSelectElement).value)}>
            ${kinds.map((one) => html`<option value=${one} ?selected=${one === kind}>${one}</option>`)}
          </select>`
        : nothing}
    </div>`;
  }

  private renderContent(kind: string, display: DisplayKind, output: Output): TemplateResult | typeof nothing {
    const value = output.data?.[kind];
    switch (display) {
      case "plotly":
        return html`${this.frame("plotly", value, plotlyBundle(value), "", "Plotly plot")}
          ${needsMaps(value) ? html`<p class="note">Map tiles and outlines of countries need the network, which outputs do not have.</p>` : nothing}`;
      case "vega":
        return this.frame("vega", value, "vega.js", kind.includes("vegalite") ? "vega-lite" : "vega", "Vega plot");
      case "script":
        if (loadsLibrary(this.data)) return html`<p class="note">This output loads a library for the plots after it.</p>`;
        return this.frame("script", joinText(value), "", "", "Output of a script");
      case "json":
        if (kind === WIDGET) return html`<p class="note">A widget, which is not interactive here.</p>`;
        return html`<div class="tree">${jsonTree(value, output.metadata?.["application/json"])}</div>`;
      case "geo":
        return this.renderLoaded(kind, async () => ({ fragment: (await import("./geojson.js")).drawGeoJson(value) }), "map", () => html`<div class="tree">${jsonTree(value)}</div>`, "Shapes without a background map, whose tiles need the network.");
      case "html":
      case "markdown":
        return this.foreign(kind, display, joinText(value));
      case "latex":
        return this.renderLoaded(kind, async () => ({ fragment: (await import("./latex.js")).renderFormulas(joinText(value)) }), "", () => this.text(joinText(value)));
      case "image":
      case "svg":
      case "audio":
      case "video":
        return this.media(kind, display, output);
      case "text":
        return typeof value === "object" && !Array.isArray(value) ? this.file(kind) : this.text(joinText(value));
      case "file":
        return this.file(kind);
    }
  }

  private frame(kind: FrameKind, content: unknown, library: string, mode: string, label: string): TemplateResult {
    void import("./output_frame.js");
    return html`<cellkeep-frame .kind=${kind} .content=${content} .library=${library} .mode=${mode} .prelude=${this.prelude} .server=${this.access?.server ?? this.server} .theme=${this.theme} .label=${label}
      @cellkeep-remote=${(event: CustomEvent<string[]>) => (this.remote = event.detail)}></cellkeep-frame>`;
  }

  /** The loaded content of a representation; otherwise starts to load it. */
  private content(kind: string, make: () => Promise<Content>): Content | undefined {
    const loaded = this.contents.get(kind);
    if (loaded) return loaded;
    const { output } = this;
    this.contents.set(kind, {});
    make()
      .catch((error: unknown) => ({ failed: error instanceof Error ? error.message : String(error) }))
      .then((content: Content) => {
        if (this.output !== output) {
          if (content.url) URL.revokeObjectURL(content.url);
          return;
        }
        this.contents.set(kind, content);
        this.requestUpdate();
      });
    return undefined;
  }

  private foreign(kind: string, display: "html" | "markdown", text: string): TemplateResult {
    const content = this.content(kind, async () => {
      const { plainHtml, renderMarkdown } = await import("./sanitize.js");
      const fragment = display === "markdown" ? await renderMarkdown(text) : plainHtml(text);
      return fragment ? { fragment } : { asFrame: true };
    });
    if (content?.asFrame) return this.frame("html", text, "", "", "HTML output");
    if (content?.fragment) return html`${box(content.fragment, display === "markdown" ? "prose markdown" : "", "auto")}`;
    return html`<p class="note">${content?.failed ?? ""}</p>`;
  }

  /** Elements from a module that is loaded on demand; `fallback` until they exist, or if there are none. */
  private renderLoaded(kind: string, make: () => Promise<Content>, look: string, fallback: () => TemplateResult, note = ""): TemplateResult {
    const content = this.content(kind, make);
    if (!content?.fragment) return fallback();
    return html`${box(content.fragment, look, "")}${note ? html`<p class="note">${note}</p>` : nothing}`;
  }

  private blob(kind: string): Promise<Blob> {
    return blobOf(kind, this.data[kind], this.access);
  }

  private failed(kind: string, failed: string): void {
    this.contents.set(kind, { failed });
    this.requestUpdate();
  }

  private media(kind: string, display: "image" | "svg" | "audio" | "video", output: Output): TemplateResult {
    const content = this.content(kind, async () => ({ url: URL.createObjectURL(await this.blob(kind)) }));
    if (content?.failed) return html`<p class="note">This output (${kind}) cannot be shown: ${content.failed}.</p>`;
    if (!content?.url) return html`<div class="wait"></div>`;
    if (display === "audio") return html`<audio controls src=${content.url}></audio>`;
    if (display === "video") return html`<video controls src=${content.url}></video>`;
    const meta = (output.metadata?.[kind] ?? {}) as Record<string, unknown>;
    const alt = joinText(output.data?.["text/plain"]).slice(0, 200) || "Output image";
    const look = `${this.zoomed ? "large" : ""} ${meta.needs_background === "dark" ? "on-dark" : ""} ${sizeOf(meta.width) && sizeOf(meta.height) ? "sized" : ""}`;
    return html`<div class="scroll"><img part="image" class=${look} src=${content.url} alt=${alt}
      width=${sizeOf(meta.width) ?? nothing} height=${sizeOf(meta.height) ?? nothing} @click=${() => (this.zoomed = !this.zoomed)} @error=${() => this.failed(kind, "it is no picture that this browser can read")}></div>`;
  }

  private file(kind: string): TemplateResult {
    const download = html`<button @click=${() => this.download(kind)}>Download</button>`;
    if (kind !== "application/pdf") return html`<p class="note">A file of type ${kind} ${download}</p>`;
    const content = this.content(kind, async () => ({ url: URL.createObjectURL(await this.blob(kind)) }));
    if (content?.failed) return html`<p class="note">This PDF cannot be shown: ${content.failed}.</p>`;
    return html`<p class="note">PDF document ${content?.url ? html`<a href=${content.url} target="_blank" rel="noopener">Open</a>` : nothing} ${download}</p>`;
  }

  private error(output: Output): TemplateResult {
    const { source = "", language = "" } = this.code ?? {};
    return html`<div class="error" role="group" aria-label="Error">
      ${errorView(output)}
      <div class="below">
        ${this.button("Copy for a language model", () => navigator.clipboard.writeText(errorPrompt(output, source, language)))}
        ${this.button("Copy error", () => navigator.clipboard.writeText(`${errorTitle(output)}\n\n${stripAnsi((output.traceback ?? []).map(String).join("\n"))}`))}
      </div>
    </div>`;
  }

  private async download(kind: string): Promise<void> {
    const blob = await this.blob(kind);
    save(blob, `${this.name}.${extensionOf(kind)}`);
    this.dispatchEvent(new CustomEvent("cellkeep-artifact", { bubbles: true, composed: true, detail: { mime: kind, name: this.name, blob } }));
  }

  private async copyTable(): Promise<void> {
    const { tsvOf } = await import("./table.js");
    const tables = [...this.renderRoot.querySelectorAll("table")].map(tsvOf);
    await navigator.clipboard.writeText(tables.join("\n\n") || (this.renderRoot.querySelector(".scroll")?.textContent ?? ""));
  }
}

const MAX_AUTO_DIR_NODES = 2000;

/**
 * The box of a fragment. A fragment is empty once it is inserted, so its box is kept and nothing is drawn again. The box is filled
 * before it is shown: in a visible box with `dir=auto`, the browser would determine the direction of all text again for each node.
 */
const boxes = new WeakMap<DocumentFragment, HTMLElement>();
function box(fragment: DocumentFragment, look: string, dir: "auto" | ""): HTMLElement {
  const made = boxes.get(fragment) ?? document.createElement("div");
  if (!boxes.has(fragment)) {
    made.className = `scroll ${look}`.trim();
    // With many nodes, determining the direction takes seconds even then.
    if (fragment.childElementCount <= MAX_AUTO_DIR_NODES) made.dir = dir;
    made.append(fragment);
    boxes.set(fragment, made);
  }
  return made;
}

if (!customElements.get("cellkeep-output")) customElements.define("cellkeep-output", CellkeepOutput);
