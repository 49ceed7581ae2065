// <cellkeep-cell>: a cell of a session, live, or a cell of a notebook file.
import { LitElement, type TemplateResult, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";
import type { Access } from "./api.js";
import { type CellState, type Output, type Shown, Stream, joined, newCell, shown } from "./cells.js";
import { type SessionFeed, feedOf } from "./feed.js";
import { highlighted } from "./highlight.js";
import "./output.js";
import { base, cellStyle, tokens } from "./style.js";

/** A cell as nbformat 4 has it. */
export interface NotebookCell {
  id?: string;
  cell_type: string;
  source: string | string[];
  outputs?: Output[];
  execution_count?: number | null;
}

/** Where a cell is in its life, for people. */
const STATES: Record<string, [text: string, look: string]> = {
  queued: ["queued", "warn"],
  running: ["running", "busy"],
  ok: ["done", "ok"],
  error: ["failed", "bad"],
  interrupted: ["interrupted", "warn"],
  timeout: ["ran out of time", "bad"],
  memory_exceeded: ["out of memory", "bad"],
  output_exceeded: ["too much output", "bad"],
  kernel_died: ["kernel died", "bad"],
  cancelled: ["cancelled", "warn"],
  input: ["waiting for input", "warn"],
  lost: ["connection lost", "warn"],
};

/** What a person can do about it. */
const HINTS: Record<string, string> = {
  timeout: "The cell ran longer than it may. What it had shown is kept; the session goes on.",
  memory_exceeded: "The cell took more memory than the session has. Its kernel was started anew: variables are gone, files and cells stay.",
  output_exceeded: "The cell produced more output than it may. What came until then is kept.",
  kernel_died: "The kernel ended while it ran this cell and was started anew: variables are gone, files and cells stay.",
  interrupted: "The cell was interrupted; what it had shown is kept.",
  cancelled: "The cell was taken out of the queue before it began.",
};

const seconds = (ms: number) => (ms < 1000 ? `${Math.round(ms)} ms` : ms < 60_000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.floor(ms / 60_000)} min ${Math.floor((ms % 60_000) / 1000)} s`);

/** A cell. */
export class CellkeepCell extends LitElement {
  static override properties = {
    server: {},
    session: {},
    cell: {},
    token: {},
    content: { attribute: false },
    language: {},
    readonly: { type: Boolean },
    editing: { state: true },
    problem: { state: true },
  };
  static override styles = [tokens, base, cellStyle];
  /** The server's origin; left out: that of the page. */
  declare server: string;
  /** The session's id. */
  declare session: string;
  /** The cell's id. */
  declare cell: string;
  /** A token for the server. */
  declare token: string;
  /** A cell of a notebook, instead of server, session and cell. */
  declare content: NotebookCell | undefined;
  /** For labels only. */
  declare language: string;
  /** Nothing can be run, edited or answered here. */
  declare readonly: boolean;
  declare editing: boolean;
  declare problem: string;
  private feed?: SessionFeed;
  private unfollow?: () => void;
  private state: CellState = newCell("");
  private clock = 0;
  private asked = false;

  constructor() {
    super();
    Object.assign(this, { server: "", session: "", cell: "", token: "", language: "", readonly: false, editing: false, problem: "" });
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

  private access: Access = { server: "", token: "" };

  override willUpdate(changed: Map<string, unknown>): void {
    if (["server", "session", "cell", "token", "content"].some((name) => changed.has(name))) this.attach();
    if (this.feed) this.state = this.feed.cell(this.cell);
    const runs = this.state.state === "running" && this.isConnected;
    if (runs && !this.clock) this.clock = window.setInterval(() => this.requestUpdate(), 200);
    else if (!runs && this.clock) {
      clearInterval(this.clock);
      this.clock = 0;
    }
  }

  private attach(): void {
    this.leave();
    this.seen = "";
    this.access = { server: this.server.replace(/\/$/, ""), token: this.token };
    if (this.content) this.state = fromNotebook(this.content);
    else if (this.isConnected && this.session && this.cell) {
      this.feed = feedOf(this.access, this.session);
      this.unfollow = this.feed.follow(() => this.noticed());
    }
  }

  override updated(): void {
    // A question is answered at once; it takes the focus only from a person who is in this cell or nowhere.
    const asks = this.state.question !== undefined;
    if (asks && !this.asked && (document.activeElement === document.body || this.matches(":focus-within"))) {
      this.renderRoot.querySelector<HTMLInputElement>(".question input")?.focus({ preventScroll: true });
    }
    if (asks && !this.asked) this.tell("input", { prompt: this.state.question?.prompt });
    this.asked = asks;
  }

  private seen = "";
  /** Other cells change, too: only what concerns this one is drawn. */
  private noticed(): void {
    if (!this.feed) return;
    const now = `${this.feed.cell(this.cell).version} ${this.feed.connection} ${this.feed.isListed}`;
    if (now !== this.seen) this.requestUpdate();
    this.seen = now;
  }

  private tell(what: "run" | "interrupt" | "input" | "artifact" | "error", detail: object = {}): boolean {
    const event = new CustomEvent(`cellkeep-${what}`, { bubbles: true, composed: true, cancelable: true, detail: { session: this.session, cell: this.cell, ...detail } });
    return this.dispatchEvent(event);
  }

  /** Does something on the server; a host may do it itself by preventing the event's default. */
  private async act(what: "run" | "interrupt" | "input", work: (feed: SessionFeed) => Promise<unknown>, detail: object = {}): Promise<void> {
    this.problem = "";
    if (!this.tell(what, detail) || !this.feed) return;
    await this.trying(work(this.feed));
  }

  private async trying(work: Promise<unknown>): Promise<boolean> {
    try {
      await work;
      return true;
    } catch (error) {
      this.problem = error instanceof Error ? error.message : String(error);
      this.tell("error", { message: this.problem });
      return false;
    }
  }

  /** Runs the cell again. */
  run(): Promise<void> {
    return this.act("run", (feed) => feed.run(this.cell));
  }

  /** Interrupts it, or takes it out of the queue. */
  stop(): Promise<void> {
    return this.act("interrupt", (feed) => feed.stop(this.cell));
  }

  private async edited(andRun: boolean): Promise<void> {
    const source = this.renderRoot.querySelector<HTMLTextAreaElement>("textarea")?.value;
    if (source === undefined || !this.feed) return;
    if (!(await this.trying(this.feed.edit(this.cell, source)))) return;
    this.state.source = source;
    this.editing = false;
    if (andRun && this.state.type === "code") await this.run();
  }

  private async edit(): Promise<void> {
    if (!this.feed || this.readonly) return;
    this.editing = true;
    await this.updateComplete;
    const area = this.renderRoot.querySelector("textarea");
    area?.focus();
  }

  private keys(event: KeyboardEvent): void {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey || event.shiftKey)) {
      event.preventDefault();
      void this.edited(true);
    } else if (event.key === "Escape") {
      event.stopPropagation();
      this.editing = false;
    } else if (event.key === "Tab" && !event.shiftKey) {
      event.preventDefault();
      (event.target as HTMLTextAreaElement).setRangeText("    ", (event.target as HTMLTextAreaElement).selectionStart, (event.target as HTMLTextAreaElement).selectionEnd, "end");
    }
  }

  private async answer(event: Event): Promise<void> {
    event.preventDefault();
    const input = this.renderRoot.querySelector<HTMLInputElement>(".question input");
    const value = input?.value ?? "";
    await this.act("input", (feed) => feed.answer(this.cell, value), { value: this.state.question?.password ? undefined : value });
  }

  /** What the chip says. */
  private get phase(): string {
    const { state, status, question } = this.state;
    if (this.feed?.connection === "lost" && state !== "finished") return "lost";
    if (question && state === "running") return "input";
    return state === "finished" ? (status ?? "") : state;
  }

  override render(): TemplateResult | typeof nothing {
    const { state } = this;
    if (this.feed && !this.feed.isListed && state.outputs.size === 0) return html`<article aria-busy="true"><header>…</header></article>`;
    const phase = this.phase;
    const kind = state.type === "code" ? this.language || "code" : state.type;
    const label = `Cell${state.count ? ` ${state.count}` : ""}, ${kind}${phase ? `, ${STATES[phase]?.[0] ?? phase}` : ""}`;
    return html`<article part="cell" aria-label=${label} class=${state.type}>
      ${this.header(phase)}
      ${state.type === "markdown" && !this.editing ? this.prose() : this.source()}
      ${this.outputs(phase)}
      <div class="silent" role="status">${phase && phase !== "ok" ? (STATES[phase]?.[0] ?? phase) : ""}</div>
    </article>`;
  }

  private header(phase: string): TemplateResult {
    const { state } = this;
    const [text, look] = STATES[phase] ?? [phase, "warn"];
    const active = state.state !== "finished";
    const time = state.state === "running" && state.startedAt ? Math.max(0, Date.now() - state.startedAt) : state.wallMs;
    return html`<header part="bar">
      ${state.type === "code" ? html`<span class="count" aria-hidden="true">[${state.state === "running" ? "*" : (state.count ?? " ")}]</span>` : nothing}
      ${phase ? html`<span part="chip" class="chip ${look}" data-phase=${phase}>${text}${time !== undefined ? html` · ${seconds(time)}` : nothing}</span>` : nothing}
      <span class="space"></span>
      <slot name="toolbar"></slot>
      ${this.feed && !this.readonly
        ? html`<span class="actions" part="actions">
            ${active
              ? html`<button @click=${() => this.stop()}>Stop</button>`
              : state.type === "code"
                ? html`<button @click=${() => this.run()}>Run again</button>`
                : nothing}
            <button @click=${() => (this.editing ? (this.editing = false) : this.edit())} aria-pressed=${this.editing ? "true" : "false"}>Edit</button>
            ${active ? nothing : html`<button @click=${() => this.feed && this.trying(this.feed.remove(this.cell))} aria-label="Delete cell">Delete</button>`}
          </span>`
        : nothing}
    </header>`;
  }

  private source(): TemplateResult | typeof nothing {
    const { source } = this.state;
    if (!this.editing) return html`<pre class="source" part="source" tabindex="0" role="group" aria-label="Source" @dblclick=${() => this.edit()} @keydown=${(event: KeyboardEvent) => event.key === "Enter" && this.edit()}>${this.coloured(source)}</pre>`;
    return html`<textarea class="source" part="source" aria-label="Source" spellcheck="false" autocapitalize="off" autocomplete="off"
        rows=${Math.min(Math.max(source.split("\n").length, 3), 24)} .defaultValue=${source} @keydown=${this.keys}></textarea>
      <div class="edit"><button class="primary" @click=${() => this.edited(true)}>${this.state.type === "code" ? "Run" : "Save"}</button>
        ${this.state.type === "code" ? html`<button @click=${() => this.edited(false)}>Save only</button>` : nothing}
        <button @click=${() => (this.editing = false)}>Cancel</button></div>`;
  }

  private colours?: { of: string; nodes: Node[] };
  /** Made once for each source, so that nothing is drawn anew while the cell runs. */
  private coloured(source: string): Node[] {
    const of = `${this.state.type === "code" ? this.language : ""} ${source}`;
    if (this.colours?.of !== of) this.colours = { of, nodes: [...highlighted(source, of.slice(0, of.indexOf(" "))).childNodes] };
    return this.colours.nodes;
  }

  private prose(): TemplateResult {
    return html`<div class="outputs" @dblclick=${() => this.edit()}><cellkeep-output bare .output=${this.proseOutput()} .access=${this.access}></cellkeep-output></div>`;
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

  private outputs(phase: string): TemplateResult | typeof nothing {
    const { state } = this;
    const stale = state.outputs.size === 0 ? state.stale : undefined;
    const list = [...(stale ?? state.outputs).entries()].sort(([a], [b]) => a - b);
    const hint = HINTS[phase];
    if (list.length === 0 && !hint && !state.question && !this.problem && !state.lost) return nothing;
    return html`<div class="outputs ${stale ? "stale" : ""}" part="outputs" dir="auto">
      ${repeat(list, ([index]) => index, ([index, output]) => this.output(index, output))}
      ${state.lost ? html`<p class="note">${state.lost} messages of the kernel were lost here.</p>` : nothing}
      ${state.question && !this.readonly ? this.question(state.question) : nothing}
      ${hint ? html`<p class="note">${hint}</p>` : nothing}
      ${this.problem ? html`<p class="note" role="alert">${this.problem}</p>` : nothing}
    </div>`;
  }

  private output(index: number, output: Shown): TemplateResult {
    const name = `cell-${this.state.count ?? this.state.id}-${index + 1}`;
    return html`<cellkeep-output .output=${output} .access=${this.feed ? this.access : undefined} .name=${name} .version=${output instanceof Stream ? output.version : 0} exportparts="text, image, tools"
      data-kind=${output instanceof Stream ? output.name : output.output_type}></cellkeep-output>`;
  }

  private question({ prompt, password }: { prompt: string; password: boolean }): TemplateResult {
    return html`<form class="question" @submit=${this.answer}>
      <label for="answer"><pre>${prompt || "The code asks:"}</pre></label>
      <input id="answer" type=${password ? "password" : "text"} autocomplete="off" spellcheck="false">
      <button class="primary">Send</button>
    </form>`;
  }
}

function fromNotebook(content: NotebookCell): CellState {
  const cell = newCell(String(content.id ?? ""));
  cell.type = content.cell_type;
  cell.source = joined(content.source);
  cell.count = content.execution_count;
  (Array.isArray(content.outputs) ? content.outputs : []).forEach((output, index) => cell.outputs.set(index, shown(output)));
  return cell;
}

if (!customElements.get("cellkeep-cell")) customElements.define("cellkeep-cell", CellkeepCell);
