// <cellkeep-cell>: a cell of a session, live, or a cell of a notebook file.
import { LitElement, type TemplateResult, html, nothing } from "lit";
import { keyed } from "lit/directives/keyed.js";
import { repeat } from "lit/directives/repeat.js";
import type { Access } from "./api.js";
import { type CellState, type Output, type CellOutput, joinText, newCell, toCellOutput } from "./cell_state.js";
import type { CompleteReply } from "./editor.js";
import { type SessionFeed, feedOf } from "./session_feed.js";
import { highlightCode } from "./highlight.js";
import { preludeOf } from "./frame_prelude.js";
import { displayKindOf, rankedTypes } from "./mime.js";
import "./output.js";
import { HINTS, PHASES, formatDuration } from "./cell_phases.js";
import { Stream } from "./stream.js";
import { base, cellStyle, tokens } from "./style.js";

/** A cell of nbformat 4. */
export interface NotebookCell {
  id?: string;
  cell_type: string;
  source: string | string[];
  outputs?: Output[];
  execution_count?: number | null;
}

/** The element `<cellkeep-cell>`. */
export class CellkeepCell extends LitElement {
  static override properties = {
    server: {},
    session: {},
    cell: {},
    token: {},
    content: { attribute: false },
    language: {},
    readonly: { type: Boolean },
    theme: { reflect: true },
    collapsed: { type: Boolean, reflect: true },
    editing: { state: true },
    earlier: { state: true },
    stopping: { state: true },
    problem: { state: true },
  };
  static override styles = [tokens, base, cellStyle];
  /** The server's origin; empty: that of the page. */
  declare server: string;
  declare session: string;
  declare cell: string;
  /** A token of the server. */
  declare token: string;
  /** A cell of a notebook, instead of server, session and cell. */
  declare content: NotebookCell | undefined;
  /** The language of the code: for colours, the editor and labels. */
  declare language: string;
  /** Removes the controls to run, edit and answer. */
  declare readonly: boolean;
  /** `light` or `dark`; absent: as the system. */
  declare theme: string | undefined;
  /** Shows one line and the plots only. */
  declare collapsed: boolean;
  declare editing: boolean;
  /** Whether the outputs of the previous execution are shown, too. */
  declare earlier: boolean;
  declare stopping: boolean;
  declare problem: string;
  private feed?: SessionFeed;
  private unfollow?: () => void;
  private state: CellState = newCell("");
  private access: Access = { server: "", token: "" };
  /** Timer that redraws the duration of a running cell. */
  private clock = 0;
  private wasWaiting = false;

  constructor() {
    super();
    Object.assign(this, { server: "", session: "", cell: "", token: "", language: "", readonly: false, collapsed: false, editing: false, earlier: false, stopping: false, problem: "" });
  }

  override connectedCallback(): void {
    super.connectedCallback();
    this.requestUpdate("session", null);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.leave();
    clearInterval(this.clock);
    this.clock = 0;
  }

  private leave(): void {
    this.unfollow?.();
    this.unfollow = undefined;
    this.feed = undefined;
  }

  override willUpdate(changed: Map<string, unknown>): void {
    if (["server", "session", "cell", "token", "content"].some((name) => changed.has(name))) this.attach();
    if (this.feed) this.state = this.feed.cell(this.cell);
    if (this.state.state !== "running") this.stopping = false;
    const isRunning = this.state.state === "running" && this.isConnected;
    if (isRunning && !this.clock) this.clock = window.setInterval(() => this.requestUpdate(), 200);
    else if (!isRunning && this.clock) {
      clearInterval(this.clock);
      this.clock = 0;
    }
  }

  private attach(): void {
    this.leave();
    this.drawnVersion = "";
    this.access = { server: this.server.replace(/\/$/, ""), token: this.token };
    if (this.content) this.state = fromNotebook(this.content);
    else if (this.isConnected && this.session && this.cell) {
      this.feed = feedOf(this.access, this.session);
      this.unfollow = this.feed.follow(() => this.feedChanged());
    }
  }

  override updated(): void {
    // The input field gets the focus, unless the focus is in another cell or field.
    const isWaiting = this.state.question !== undefined;
    if (isWaiting && !this.wasWaiting && (document.activeElement === document.body || this.matches(":focus-within"))) {
      this.renderRoot.querySelector<HTMLInputElement>(".question input")?.focus({ preventScroll: true });
    }
    if (isWaiting && !this.wasWaiting) this.dispatch("input", { prompt: this.state.question?.prompt });
    this.wasWaiting = isWaiting;
  }

  private drawnVersion = "";
  /** The feed reports changes of all cells: this cell is drawn only for its own. */
  private feedChanged(): void {
    if (!this.feed) return;
    const version = `${this.feed.cell(this.cell).version} ${this.feed.connection} ${this.feed.isListed}`;
    if (version !== this.drawnVersion) this.requestUpdate();
    this.drawnVersion = version;
  }

  private dispatch(what: "run" | "interrupt" | "input" | "artifact" | "error", detail: object = {}): boolean {
    const event = new CustomEvent(`cellkeep-${what}`, { bubbles: true, composed: true, cancelable: true, detail: { session: this.session, cell: this.cell, ...detail } });
    return this.dispatchEvent(event);
  }

  /** Runs an action on the server, unless the host prevents the default of its event to do it itself. */
  private async perform(what: "run" | "interrupt" | "input", work: (feed: SessionFeed) => Promise<unknown>, detail: object = {}): Promise<void> {
    this.problem = "";
    if (!this.dispatch(what, detail) || !this.feed) return;
    await this.attempt(work(this.feed));
  }

  private async attempt(work: Promise<unknown>): Promise<boolean> {
    try {
      await work;
      return true;
    } catch (error) {
      this.problem = error instanceof Error ? error.message : String(error);
      this.dispatch("error", { message: this.problem });
      return false;
    }
  }

  /** Runs the cell again. */
  run(): Promise<void> {
    return this.perform("run", (feed) => feed.run(this.cell));
  }

  /** Interrupts the cell, or removes it from the queue. */
  stop(): Promise<void> {
    this.stopping = this.state.state === "running";
    return this.perform("interrupt", (feed) => feed.stop(this.cell));
  }

  private editor?: { state: { doc: { toString(): string } }; focus(): void; destroy(): void };

  private async saveEdit(andRun: boolean): Promise<void> {
    const source = this.editor?.state.doc.toString();
    if (source === undefined || !this.feed) return;
    if (!(await this.attempt(this.feed.edit(this.cell, source)))) return;
    this.state.source = source;
    this.closeEditor();
    if (andRun && this.state.type === "code") await this.run();
  }

  /** Loads the editor first, so that it replaces the source in one step. */
  private async openEditor(): Promise<void> {
    if (!this.feed || this.readonly || this.editing) return;
    const { openEditor } = await import("./editor.js");
    this.collapsed = false;
    this.editing = true;
    await this.updateComplete;
    const parent = this.renderRoot.querySelector<HTMLElement>(".editor");
    if (!parent || this.editor) return;
    const complete = (code: string, cursor_pos: number) => this.feed?.complete<CompleteReply>(code, cursor_pos).catch(() => ({})) ?? Promise.resolve({});
    const language = this.state.type === "code" ? this.language : "";
    this.editor = openEditor({
      parent, language, complete, root: this.renderRoot as ShadowRoot, source: this.state.source, label: "Source",
      run: () => void this.saveEdit(true),
      leave: () => this.closeEditor(),
    });
    this.editor.focus();
  }

  private closeEditor(): void {
    this.editor?.destroy();
    this.editor = undefined;
    this.editing = false;
    void this.updateComplete.then(() => this.renderRoot.querySelector<HTMLElement>(".source")?.focus({ preventScroll: true }));
  }

  private async answer(event: Event): Promise<void> {
    event.preventDefault();
    const input = this.renderRoot.querySelector<HTMLInputElement>(".question input");
    const value = input?.value ?? "";
    await this.perform("input", (feed) => feed.answer(this.cell, value), { value: this.state.question?.password ? undefined : value });
  }

  /** The phase that the chip shows; a key of `PHASES`. */
  private get phase(): string {
    const { state, status, question } = this.state;
    if (this.feed?.connection === "lost" && state !== "finished") return "lost";
    if (question && state === "running") return "input";
    if (this.stopping && state === "running") return "stopping";
    return state === "finished" ? (status ?? "") : state;
  }

  override render(): TemplateResult | typeof nothing {
    const { state } = this;
    if (this.feed && !this.feed.isListed && state.outputs.size === 0) return html`<article aria-busy="true"><header>…</header></article>`;
    const phase = this.phase;
    const kind = state.type === "code" ? this.language || "code" : state.type;
    const label = `Cell${state.count ? ` ${state.count}` : ""}, ${kind}${phase ? `, ${PHASES[phase]?.[0] ?? phase}` : ""}`;
    return html`<article part="cell" aria-label=${label} class=${state.type}>
      ${this.renderHeader(phase)}
      ${this.collapsed ? nothing : state.type === "markdown" && !this.editing ? this.renderProse() : this.renderSource()}
      ${this.renderOutputs(phase)}
      <div class="silent" role="status">${phase && phase !== "ok" ? (PHASES[phase]?.[0] ?? phase) : ""}</div>
    </article>`;
  }

  private renderHeader(phase: string): TemplateResult {
    const { state } = this;
    const [text, look] = PHASES[phase] ?? [phase, "warn"];
    const time = state.state === "running" && state.startedAt ? Math.max(0, Date.now() - state.startedAt) : state.wallMs;
    const fold = () => {
      if (!this.editing) this.collapsed = !this.collapsed;
    };
    return html`<header part="bar">
      <button class="collapse" aria-expanded=${this.collapsed ? "false" : "true"} aria-label=${this.collapsed ? "Show cell" : "Collapse cell"} @click=${fold}></button>
      ${state.type === "code" ? html`<span class="count" aria-hidden="true">[${state.state === "running" ? "*" : (state.count ?? " ")}]</span>` : nothing}
      ${phase ? html`<span part="chip" class="chip ${look}" data-phase=${phase}>${text}${time !== undefined ? html` · ${formatDuration(time)}` : nothing}</span>` : nothing}
      ${this.collapsed ? html`<code class="line" dir="auto">${state.source.trim().split("\n", 1)[0]?.slice(0, 200)}</code>` : nothing}
      <span class="space"></span>
      <slot name="toolbar"></slot>
      ${this.feed && !this.readonly ? this.renderActions() : nothing}
    </header>`;
  }

  private renderActions(): TemplateResult {
    const { state } = this;
    const active = state.state !== "finished";
    const pressed = (on: boolean) => (on ? "true" : "false");
    return html`<span class="actions" part="actions">
      ${active
        ? html`<button @click=${() => this.stop()}>Stop</button>`
        : state.type === "code"
          ? html`<button @click=${() => this.run()}>Run again</button>`
          : nothing}
      ${state.previous ? html`<button @click=${() => (this.earlier = !this.earlier)} aria-pressed=${pressed(this.earlier)}>Previous run</button>` : nothing}
      <button @click=${() => (this.editing ? this.closeEditor() : this.openEditor())} aria-pressed=${pressed(this.editing)}>Edit</button>
      ${active ? nothing : html`<button @click=${() => this.feed && this.attempt(this.feed.remove(this.cell))} aria-label="Delete cell">Delete</button>`}
    </span>`;
  }

  private renderSource(): TemplateResult | typeof nothing {
    const { source } = this.state;
    if (!this.editing) {
      const enter = (event: KeyboardEvent) => {
        if (event.key !== "Enter") return;
        event.preventDefault();
        void this.openEditor();
      };
      return html`<pre class="source" part="source" tabindex="0" role="group" aria-label="Source" @dblclick=${() => this.openEditor()} @keydown=${enter}>${this.colouredNodes(source)}</pre>`;
    }
    return html`<div class="editor" part="source" @keydown=${(event: KeyboardEvent) => event.key === "Escape" && event.stopPropagation()}></div>
      <div class="edit"><button class="primary" @click=${() => this.saveEdit(true)}>${this.state.type === "code" ? "Run" : "Save"}</button>
        ${this.state.type === "code" ? html`<button @click=${() => this.saveEdit(false)}>Save only</button>` : nothing}
        <button @click=${() => this.closeEditor()}>Cancel</button></div>`;
  }

  private colours?: { key: string; nodes: Node[] };
  /** Created once for each source, so that nothing is drawn again while the cell runs. */
  private colouredNodes(source: string): Node[] {
    const key = `${this.state.type === "code" ? this.language : ""} ${source}`;
    if (this.colours?.key !== key) this.colours = { key, nodes: [...highlightCode(source, key.slice(0, key.indexOf(" "))).childNodes] };
    return this.colours.nodes;
  }

  private renderProse(): TemplateResult {
    return html`<div class="outputs" @dblclick=${() => this.openEditor()}><cellkeep-output bare .output=${this.proseOutput()} .access=${this.access}></cellkeep-output></div>`;
  }

  private proseOf = "";
  private proseMade?: Output;
  private proseOutput(): Output {
    if (!this.proseMade || this.proseOf !== this.state.source) {
      this.proseOf = this.state.source;
      this.proseMade = { output_type: "display_data", data: { "text/markdown": this.state.source } };
    }
    return this.proseMade;
  }

  private renderOutputs(phase: string): TemplateResult | typeof nothing {
    const { state } = this;
    const stale = state.outputs.size === 0 ? state.stale : undefined;
    const list = inOrder(stale ?? state.outputs).filter(([, output]) => !this.collapsed || isPlot(output));
    const hint = this.collapsed ? undefined : HINTS[phase];
    const earlier = this.earlier && !this.collapsed ? state.previous : undefined;
    if (list.length === 0 && !hint && !state.question && !this.problem && !state.lost && !earlier) return nothing;
    return html`<div class="outputs ${stale ? "stale" : ""}" part="outputs">
      ${repeat(list, ([index]) => index, ([index, output]) => this.renderOutput(index, output, stale === undefined))}
      ${state.lost ? html`<p class="note">${state.lost} messages of the kernel were lost here.</p>` : nothing}
      ${state.question && !this.readonly ? keyed(state.question, this.renderQuestion(state.question)) : nothing}
      ${hint ? html`<p class="note">${phase === "kernel_died" && state.why ? html`<bdi>${state.why}</bdi>. ` : nothing}${hint}</p>` : nothing}
      ${this.problem ? html`<p class="note" role="alert" dir="auto">${this.problem}</p>` : nothing}
      ${earlier
        ? html`<section class="earlier" aria-label="Previous run"><p class="note">The run before showed:</p>
            ${repeat(inOrder(earlier), ([index]) => index, ([index, output]) => this.renderOutput(index, output, false))}</section>`
        : nothing}
    </div>`;
  }

  private renderOutput(index: number, output: CellOutput, isCurrent: boolean): TemplateResult {
    const name = `cell-${this.state.count ?? this.state.id}-${index + 1}`;
    const { feed, state } = this;
    const isStream = output instanceof Stream;
    const libraries = isStream ? undefined : preludeOf(output, state, feed ? feed.order.map((id) => feed.cell(id)) : [state]);
    return html`<cellkeep-output .output=${output} .access=${feed ? this.access : undefined} .server=${this.access.server} .theme=${this.theme ?? ""} .name=${name} .version=${isStream ? output.version : 0} exportparts="text, image, tools"
      .read=${isStream && feed && isCurrent ? (from: number, to: number) => feed.text(this.cell, index, from, to) : undefined}
      .prelude=${libraries} .code=${!isStream && output.output_type === "error" ? { source: state.source, language: this.language } : undefined}
      data-kind=${isStream ? output.name : output.output_type}></cellkeep-output>`;
  }

  private renderQuestion({ prompt, password }: { prompt: string; password: boolean }): TemplateResult {
    return html`<form class="question" @submit=${this.answer}>
      <label for="answer"><pre dir="auto">${prompt || "The code asks:"}</pre></label>
      <input id="answer" type=${password ? "password" : "text"} autocomplete="off" spellcheck="false">
      <button class="primary">Send</button>
    </form>`;
  }
}

const inOrder = (outputs: Map<number, CellOutput>) => [...outputs.entries()].sort(([a], [b]) => a - b);

const PLOTS = ["plotly", "vega", "geo", "svg", "image"];
/** Plots stay visible in a collapsed cell. */
function isPlot(output: CellOutput): boolean {
  const kind = output instanceof Stream ? undefined : rankedTypes(output.data ?? {})[0];
  return kind !== undefined && PLOTS.includes(displayKindOf(kind));
}

function fromNotebook(content: NotebookCell): CellState {
  const cell = newCell(String(content.id ?? ""));
  cell.type = content.cell_type;
  cell.source = joinText(content.source);
  cell.count = content.execution_count;
  (Array.isArray(content.outputs) ? content.outputs : []).forEach((output, index) => cell.outputs.set(index, toCellOutput(output, true)));
  return cell;
}

if (!customElements.get("cellkeep-cell")) customElements.define("cellkeep-cell", CellkeepCell);

declare global {
  interface HTMLElementTagNameMap {
    "cellkeep-cell": CellkeepCell;
  }
}
