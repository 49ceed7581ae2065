// The page that `cellkeep serve` shows: a session as a conversation with its kernel.
import { LitElement, type TemplateResult, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";
import { type Access, Refused, ask, askJson, save } from "./api.js";
import { pageStyle } from "./appstyle.js";
import "./cell.js";
import { type Mark, conversation, markOf } from "./chat.js";
import { languageOf } from "./languages.js";
import { type SessionFeed, feedOf } from "./feed.js";
import type { CellkeepPanel } from "./panel.js";
import { base, tokens } from "./style.js";

interface Session {
  id: string;
  name?: string | null;
  kernel: string;
  language?: string;
  state: string;
  why?: string | null;
  usage?: { memory_bytes?: number; cpu_seconds?: number };
}
interface Kernel {
  name: string;
  display_name: string;
  ready: boolean;
}

const KEY = "cellkeep-token";
/** The one session that a shared link shows. */
const ONLY = "cellkeep-only";
/** Between two looks at the sessions, and at what the chosen one uses. */
const LOOK_EVERY = 4000;
/** After a session's end its answer is written down at once, or never. */
const SETTLE_FOR = 60_000;
/** Nearer to the end than this, the view follows what comes. */
const NEAR_END = 120;
const EXPORTS: Record<string, string> = { ipynb: "ipynb", html: "html", markdown: "md", script: "txt" };

type Kind = "code" | "markdown" | "ask";
type Panel = "files" | "artifacts" | "variables" | "shares";
const PANELS: Record<Panel, string> = { files: "Files", artifacts: "Plots", variables: "Variables", shares: "Share" };

/** What the token may do. One of a link shows one session. */
interface Rights {
  scope: "read" | "use" | "admin";
  session?: string | null;
  model?: string | null;
}

/** The token comes in the link, and does not stay in the address bar. */
function takeToken(): string {
  const inHash = new URLSearchParams(location.hash.slice(1));
  const given = inHash.get("token") ?? new URLSearchParams(location.search).get("token");
  if (given) {
    sessionStorage.setItem(KEY, given);
    const session = inHash.get("session");
    sessionStorage.setItem(ONLY, session ?? "");
    history.replaceState(null, "", session ? `#/${encodeURIComponent(session)}` : location.pathname);
  }
  return given ?? sessionStorage.getItem(KEY) ?? "";
}

/** How a cell stands in the conversation. */
const placeOf = (mark: Mark, type: string | undefined): string => (type !== "markdown" ? "" : mark.role === "user" ? "text said" : "text");

class CellkeepPage extends LitElement {
  static override properties = {
    theme: { reflect: true },
    ...Object.fromEntries(["access", "rights", "model", "sessions", "kernels", "kernel", "here", "panel", "side", "problem", "busy", "kind", "drag"].map((name) => [name, { state: true }])),
  };
  static override styles = [tokens, base, pageStyle];
  /** `light` or `dark`; else as the system has it. */
  declare theme: string | undefined;
  declare access: Access;
  declare sessions: Session[] | undefined;
  declare kernels: Kernel[];
  declare kernel: string;
  declare here: string;
  declare rights: Rights | undefined;
  /** The name of the model, if there is one. */
  declare model: string;
  declare panel: "" | Panel;
  declare side: boolean;
  declare problem: string;
  declare busy: string;
  declare kind: Kind;
  declare drag: boolean;
  private feed?: SessionFeed;
  private unfollow?: () => void;
  private atEnd = true;
  /** Whether a message is answered, as its cell says. */
  private answering = false;
  /** Whose ends are asked for, or were in vain. */
  private settled = new WeakSet<SessionFeed>();
  private resized = new ResizeObserver(() => this.keepEnd());

  constructor() {
    super();
    Object.assign(this, { access: { server: "", token: takeToken() }, kernels: [], model: "", kernel: "", here: "", panel: "", side: false, problem: "", busy: "", kind: "code", drag: false });
  }

  override connectedCallback(): void {
    super.connectedCallback();
    void this.enter();
    setInterval(() => document.visibilityState === "visible" && this.sessions && this.look().catch((error: unknown) => this.failed(error)), LOOK_EVERY);
  }

  private async trying(work: () => Promise<void>): Promise<void> {
    this.problem = "";
    try {
      await work();
    } catch (error) {
      this.failed(error);
    }
  }

  private failed(error: unknown): void {
    if (error instanceof Refused && error.status === 401) this.leave();
    this.problem = error instanceof Error ? error.message : String(error);
  }

  private leave(): void {
    sessionStorage.removeItem(KEY);
    sessionStorage.removeItem(ONLY);
    this.access = { ...this.access, token: "" };
    this.sessions = undefined;
    this.choose("");
  }

  private async enter(): Promise<void> {
    if (!this.access.token) return;
    await this.trying(async () => {
      const wanted = decodeURIComponent(location.hash.slice(2));
      // Asked at once: a person waits for the slowest of them, and not for one after the other.
      const rights = askJson<Rights>(this.access, "GET", "/v1/token").then((told) => this.may(told));
      const kernels = askJson<{ kernels: Kernel[] }>(this.access, "GET", "/v1/kernels").then((told) => this.know(told.kernels));
      if (wanted) this.choose(wanted);
      // Who came by a link without its session's name is told it with the rights.
      const sessions = this.look().catch(() => rights.then(() => this.look()));
      await Promise.all([rights, sessions]);
      sessionStorage.setItem(KEY, this.access.token);
      const there = (id: string) => this.sessions?.some((one) => one.id === id);
      if (!there(this.here)) this.choose(this.sessions?.find((one) => one.state !== "gone")?.id ?? "");
      await kernels;
    });
  }

  private may(rights: Rights): void {
    this.rights = rights;
    this.model = rights.model ?? "";
    if (this.model) this.kind = "ask";
  }

  private know(kernels: Kernel[]): void {
    this.kernels = kernels;
    this.kernel = (kernels.find((one) => one.ready && one.name === "python") ?? kernels.find((one) => one.ready))?.name ?? "";
  }

  /** Whether all of this can only be looked at. */
  private get isReader(): boolean {
    return this.rights?.scope === "read";
  }

  /** What there is now. A server that is away for a moment is no reason to say so twice: the feed does. */
  private async look(): Promise<void> {
    try {
      const only = this.rights?.session ?? sessionStorage.getItem(ONLY);
      if (only) {
        this.sessions = [await askJson<Session>(this.access, "GET", `/v1/sessions/${encodeURIComponent(only)}`)];
        return;
      }
      this.sessions = (await askJson<{ sessions: Session[] }>(this.access, "GET", "/v1/sessions")).sessions;
      if (this.here) {
        const one = await askJson<Session>(this.access, "GET", `/v1/sessions/${this.here}`);
        this.sessions = this.sessions.map((listed) => (listed.id === one.id ? one : listed));
      }
    } catch (error) {
      if (error instanceof Refused && error.status === 401) throw error;
      if (this.sessions === undefined) throw error;
    }
  }

  private choose(id: string): void {
    this.unfollow?.();
    this.here = id;
    this.side = false;
    this.atEnd = true;
    this.feed = id ? feedOf(this.access, id) : undefined;
    this.unfollow = this.feed?.follow(() => this.requestUpdate());
    history.replaceState(null, "", id ? `#/${encodeURIComponent(id)}` : location.pathname);
  }

  private get session(): Session | undefined {
    return this.sessions?.find((one) => one.id === this.here);
  }

  private nameOf(session: Session): string {
    return session.name || this.display(session.kernel);
  }

  private display(kernel: string): string {
    return this.kernels.find((one) => one.name === kernel)?.display_name ?? kernel;
  }

  private create(): Promise<void> {
    return this.trying(async () => {
      this.busy = "Starting a kernel…";
      try {
        const made = await askJson<Session>(this.access, "POST", "/v1/sessions", { kernel: this.kernel });
        this.sessions = [made, ...(this.sessions ?? [])];
        this.choose(made.id);
        await this.updateComplete;
        this.renderRoot.querySelector<HTMLTextAreaElement>("#composer")?.focus();
      } finally {
        this.busy = "";
      }
    });
  }

  private delete(session: Session): Promise<void> {
    if (!confirm(`Delete ${session.name || `this ${this.display(session.kernel)} session`} with its cells and files?`)) return Promise.resolve();
    return this.trying(async () => {
      await askJson(this.access, "DELETE", `/v1/sessions/${session.id}`);
      this.sessions = this.sessions?.filter((one) => one.id !== session.id);
      if (this.here === session.id) this.choose("");
    });
  }

  private async add(source: string, kind: Kind = this.kind): Promise<void> {
    if (!source.trim() || this.busy) return;
    if (!this.feed) await this.create();
    const feed = this.feed;
    if (!feed) return;
    const isFirst = feed.order.length === 0;
    await this.trying(async () => {
      this.atEnd = true;
      if (kind === "ask") {
        await askJson(this.access, "POST", `${feed.path}/chat`, { text: source });
        if (isFirst && this.session && !this.session.name) await this.name(source.trim().split("\n", 1)[0]?.slice(0, 60) ?? "");
      }
      else await askJson(this.access, "POST", `${feed.path}/cells`, { source, cell_type: kind, ...(kind === "code" ? { allow_stdin: true } : {}) });
      const area = this.renderRoot.querySelector<HTMLTextAreaElement>("#composer");
      if (area && area.value === source) area.value = "";
      feed.list();
    });
  }

  private name(name: string): Promise<void> {
    return this.trying(async () => {
      const { here } = this;
      await askJson(this.access, "PATCH", `/v1/sessions/${here}`, { name });
      this.sessions = this.sessions?.map((one) => (one.id === here ? { ...one, name } : one));
    });
  }

  private rename(session: Session): void {
    const name = prompt("What is this session called?", this.nameOf(session))?.trim();
    if (name) void this.name(name.slice(0, 200));
  }

  private keys(event: KeyboardEvent): void {
    const area = event.target as HTMLTextAreaElement;
    // Code has many lines, a message mostly one. While a method of input composes a character, Enter is its own.
    const sends = event.ctrlKey || event.metaKey || event.shiftKey !== (this.kind === "ask");
    if (event.key === "Enter" && sends && !event.isComposing) {
      event.preventDefault();
      void this.add(area.value);
    } else if (event.key === "Tab" && !event.shiftKey && area.value && this.kind === "code") {
      event.preventDefault();
      area.setRangeText("    ", area.selectionStart, area.selectionEnd, "end");
    }
  }

  private stopAnswer(): Promise<void> {
    return this.trying(async () => void (await askJson(this.access, "POST", `/v1/sessions/${this.here}/chat/cancel`, {})));
  }

  /** Puts a text into the composer, to be asked once more. */
  private async propose(text: string): Promise<void> {
    this.kind = "ask";
    await this.updateComplete;
    const area = this.renderRoot.querySelector<HTMLTextAreaElement>("#composer");
    if (!area) return;
    area.value = text;
    area.focus();
  }

  /** A session that ends takes its answer with it, of which no event tells: the server is asked for a while whether it is written down. */
  private async settle(): Promise<void> {
    const { feed } = this;
    if (!feed || this.settled.has(feed)) return;
    this.settled.add(feed);
    const end = Date.now() + SETTLE_FOR;
    for (let wait = 250; this.feed === feed && this.answering && Date.now() < end; wait = Math.min(wait * 2, LOOK_EVERY)) {
      const told = await askJson<{ state: string }>(this.access, "GET", `${feed.path}/chat`).catch(() => undefined);
      if (told?.state !== "answering") feed.list();
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
    // Whoever comes back to it later may ask again.
    if (this.feed !== feed) this.settled.delete(feed);
  }

  private tell(what: "interrupt" | "restart"): Promise<void> {
    return this.trying(async () => void (await askJson(this.access, "POST", `/v1/sessions/${this.here}/${what}`, {})));
  }

  private async import(file: File | undefined): Promise<void> {
    if (!file) return;
    if (!this.here) await this.create();
    await this.trying(async () => {
      await askJson(this.access, "PUT", `/v1/sessions/${this.here}/notebook`, JSON.parse(await file.text()) as unknown);
      this.feed?.list();
    });
  }

  private async export(event: Event): Promise<void> {
    const select = event.target as HTMLSelectElement;
    const to = select.value;
    select.value = "";
    if (!to) return;
    await this.trying(async () => {
      const response = await ask(this.access, "GET", `/v1/sessions/${this.here}/notebook?to=${to}`);
      const named = /filename="([^"]+)"/.exec(response.headers.get("content-disposition") ?? "")?.[1];
      save(await response.blob(), named ?? `${this.session?.name || "session"}.${EXPORTS[to]}`);
    });
  }

  private async dropped(event: DragEvent): Promise<void> {
    event.preventDefault();
    this.drag = false;
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!this.here || this.isReader || files.length === 0) return;
    const notebook = files.length === 1 && files[0]?.name.endsWith(".ipynb") && this.feed?.order.length === 0;
    if (notebook) return this.import(files[0]);
    if (this.panel !== "files") await this.open("files");
    await this.renderRoot.querySelector<CellkeepPanel>("cellkeep-panel")?.upload(files);
  }

  private async open(panel: Panel): Promise<void> {
    await (panel === "variables" ? import("./variables.js") : panel === "shares" ? import("./shares.js") : import("./panel.js"));
    this.panel = this.panel === panel ? "" : panel;
    await this.updateComplete;
  }

  /** Closes what lies over the page, or beside it with the focus in it. */
  private escaped(event: KeyboardEvent): void {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    const inPanel = this.renderRoot.querySelector(".panel")?.contains(event.target as Node) ?? false;
    if (this.side) this.side = false;
    else if (inPanel) {
      const name = this.panel && PANELS[this.panel];
      this.panel = "";
      [...this.renderRoot.querySelectorAll<HTMLButtonElement>(".tools button")].find((button) => button.textContent === name)?.focus();
    }
  }

  private keepEnd(): void {
    const cells = this.renderRoot.querySelector(".cells");
    if (cells && this.atEnd) cells.scrollTop = cells.scrollHeight;
  }

  private scrolled(event: Event): void {
    const cells = event.target as HTMLElement;
    this.atEnd = cells.scrollHeight - cells.scrollTop - cells.clientHeight < NEAR_END;
  }

  override updated(): void {
    const column = this.renderRoot.querySelector(".column");
    if (column) this.resized.observe(column);
    if (this.answering && this.state === "gone") void this.settle();
  }

  override render(): TemplateResult {
    if (!this.access.token) return this.askToken();
    const classes = `frame ${this.panel && this.here ? "with-panel" : ""} ${this.side ? "side" : ""} ${this.drag ? "drag" : ""}`;
    return html`<div class=${classes} @dragover=${(event: DragEvent) => {
      event.preventDefault();
      this.drag = true;
    }} @dragleave=${() => (this.drag = false)} @drop=${this.dropped} @keydown=${this.escaped}>
      ${this.aside()}
      ${this.side ? html`<button class="shade" aria-label="Close" @click=${() => (this.side = false)}></button>` : nothing}
      <main>${this.bar()}${this.cells()}${this.isReader ? nothing : this.composer()}</main>
      ${this.panel && this.here
        ? html`<section class="panel" aria-label=${PANELS[this.panel]}><button @click=${() => (this.panel = "")}>✕ Close</button>${this.inPanel(this.panel)}</section>`
        : nothing}
    </div>`;
  }

  private inPanel(panel: Panel): TemplateResult {
    const { access, here, state } = this;
    if (panel === "variables") return html`<cellkeep-variables .access=${access} .session=${here} .idle=${state === "idle"} .runs=${this.feed?.runs ?? 0}></cellkeep-variables>`;
    if (panel === "shares") return html`<cellkeep-shares .access=${access} .session=${here}></cellkeep-shares>`;
    return html`<cellkeep-panel .access=${access} .session=${here} .show=${panel}></cellkeep-panel>`;
  }

  private askToken(): TemplateResult {
    const entered = (event: Event) => {
      event.preventDefault();
      const token = this.renderRoot.querySelector<HTMLInputElement>("#token")?.value.trim() ?? "";
      this.access = { ...this.access, token };
      void this.enter();
    };
    return html`<main><form class="enter" @submit=${entered}><h1>Cellkeep</h1>
      <label for="token">Open the link that <code>cellkeep serve</code> printed, or enter a token. <code>cellkeep token create NAME</code> makes one.</label>
      <input id="token" class="field" type="password" autocomplete="off" required>
      <button class="primary">Enter</button>${this.problem ? html`<p class="notice bad" role="alert">${this.problem}</p>` : nothing}</form></main>`;
  }

  private aside(): TemplateResult {
    return html`<aside aria-label="Sessions"><div class="brand">Cellkeep</div>
      ${this.isReader ? nothing : html`<div class="new">
        <select aria-label="Kernel" @change=${(event: Event) => (this.kernel = (event.target as HTMLSelectElement).value)}>
          ${this.kernels.map((one) => html`<option value=${one.name} ?selected=${one.name === this.kernel} ?disabled=${!one.ready}>${one.display_name}${one.ready ? "" : " (not installed)"}</option>`)}
        </select>
        <button class="primary" id="create" ?disabled=${!this.kernel || this.busy !== ""} @click=${this.create}>New</button>
      </div>`}
      <nav><ul>${this.sessions?.map(
        (one) => html`<li class=${one.id === this.here ? "here" : ""}>
          <button class="open" aria-current=${one.id === this.here ? "true" : "false"} @click=${() => this.choose(one.id)}>${this.nameOf(one)}<small>${one.state}${one.name ? ` · ${one.kernel}` : ""} · ${one.id.slice(0, 8)}</small></button>
          ${this.isReader ? nothing : html`<button aria-label="Delete session" @click=${() => this.delete(one)}>✕</button>`}</li>`,
      )}</ul></nav></aside>`;
  }

  /** The feed knows the kernel's state first; without it, the listing does. */
  private get state(): string {
    const { feed } = this;
    if (!feed) return "";
    if (feed.connection === "lost") return "lost";
    if (feed.connection === "ended") return "gone";
    return feed.connection === "live" && feed.isListed ? feed.kernel : (this.session?.state ?? "starting");
  }

  private bar(): TemplateResult {
    const { session, state } = this;
    const menu = html`<button class="menu" aria-label="Sessions" aria-expanded=${this.side ? "true" : "false"} @click=${() => (this.side = !this.side)}>☰</button>`;
    if (!session) return html`<div class="bar">${menu}<h1><strong>No session</strong></h1></div>`;
    const memory = session.usage?.memory_bytes;
    return html`<div class="bar">${menu}<h1>${this.isReader ? html`<strong>${this.nameOf(session)}</strong>` : html`<button title="Rename" @click=${() => this.rename(session)}><strong>${this.nameOf(session)}</strong></button>`}</h1>
      <span class="state" data-state=${state} role="status">${state === "lost" ? "connection lost, trying again" : state}</span>
      ${memory ? html`<span class="usage">${(memory / 1e6).toFixed(0)} MB · ${(session.usage?.cpu_seconds ?? 0).toFixed(1)} s CPU</span>` : nothing}
      <span class="space"></span>
      <div class="tools" role="toolbar" aria-label="Session">${this.isReader ? html`<span class="reader">read only</span>${this.toggle("artifacts")}` : this.tools(state)}
      <select aria-label="Export" @change=${this.export}><option value="">Export</option>
        <option value="ipynb">Notebook</option><option value="html">Page</option><option value="markdown">Markdown</option><option value="script">Script</option></select>
      </div></div>`;
  }

  private toggle(panel: Panel): TemplateResult {
    return html`<button aria-pressed=${this.panel === panel ? "true" : "false"} @click=${() => this.open(panel)}>${PANELS[panel]}</button>`;
  }

  private tools(state: string): TemplateResult {
    return html`<button ?disabled=${state !== "busy"} @click=${() => this.tell("interrupt")}>Interrupt</button>
      <button ?disabled=${state === "gone"} @click=${() => this.tell("restart")}>Restart</button>
      ${(["files", "artifacts", "variables", "shares"] as const).map((panel) => this.toggle(panel))}
      <input class="file" id="import" type="file" accept=".ipynb" @change=${(event: Event) => this.import((event.target as HTMLInputElement).files?.[0])}>
      <label class="button" for="import">Import</label>`;
  }

  private cells(): TemplateResult {
    const { feed, session, access } = this;
    const talk = conversation(feed?.order ?? [], feed?.cells ?? new Map());
    this.answering = talk.answering !== undefined;
    const notice = this.busy || feed?.notice || session?.why || "";
    return html`<div class="cells" @scroll=${this.scrolled}><div class="column">
      ${this.problem ? html`<p class="notice bad" role="alert">${this.problem}</p>` : nothing}
      ${!feed || (feed.isListed && feed.order.length === 0) ? this.welcome() : nothing}
      ${repeat(feed?.order ?? [], (id) => `${this.here}/${id}`, (id) => {
        const mark = markOf(feed?.cells.get(id));
        const note = talk.notes.get(id);
        return html`<div class=${placeOf(mark, feed?.cells.get(id)?.type)}><cellkeep-cell .theme=${this.theme} .session=${this.here} .cell=${id} .token=${access.token} .language=${session?.language ?? ""} .readonly=${this.isReader}></cellkeep-cell></div>
          ${note ? html`<p class="notice ${note.bad ? "bad" : ""}" role=${note.bad ? "alert" : "status"}>${note.text}${note.again && this.model ? html` <button @click=${() => this.propose(note.again ?? "")}>Ask again</button>` : nothing}</p>` : nothing}`;
      })}
      ${talk.answering ? html`<p class="answers" role="status"><span class="dots" aria-hidden="true"></span>${this.model || "The model"} answers${this.isReader ? nothing : html` <button @click=${this.stopAnswer}>Stop</button>`}</p>` : nothing}
      ${notice ? html`<p class="notice" role="status">${notice}</p>` : nothing}
    </div></div>`;
  }

  private welcome(): TemplateResult {
    const kernel = this.session?.kernel ?? this.kernel;
    return html`<div class="welcome"><h2>What shall we run?</h2>
      <p>${this.isReader ? "Nothing has been run here yet." : html`${this.model ? `Ask ${this.model}, or write` : "Write"} code below, or begin with one of these. It runs on a real ${this.display(kernel) || "Jupyter"} kernel, in a sandbox of its own, and nothing it says is lost.`}</p>
      <div class="chips" ?hidden=${this.isReader}>${(languageOf(kernel)?.examples ?? []).map((one) => html`<button ?disabled=${this.busy !== ""} @click=${() => this.add(one.source, "code")}>${one.title}</button>`)}</div></div>`;
  }

  private composer(): TemplateResult {
    const language = this.session?.language || this.session?.kernel || this.kernel || "code";
    const send = () => this.add(this.renderRoot.querySelector<HTMLTextAreaElement>("#composer")?.value ?? "");
    const ended = this.state === "gone";
    const kinds: [Kind, string][] = [["code", language], ["markdown", "markdown"]];
    if (this.model) kinds.unshift(["ask", this.model]);
    const { kind } = this;
    const label = kind === "ask" ? `Message to ${this.model}` : kind === "code" ? `Code, ${language}` : "Markdown";
    const hint = ended ? "This session has ended" : kind === "ask" ? `Ask ${this.model}${this.feed?.order.length ? " about this session" : ""}` : kind === "code" ? `Write ${language} here` : "Write markdown here";
    return html`<div class="composer"><div class="box">
      <textarea id="composer" class=${kind} rows="2" aria-label=${label} placeholder=${hint} aria-keyshortcuts=${kind === "ask" ? "Enter" : "Shift+Enter"}
        ?disabled=${ended} spellcheck=${kind === "code" ? "false" : "true"} autocapitalize="off" autocomplete="off" @keydown=${this.keys}></textarea>
      <div class="row"><div class="kinds" role="radiogroup" aria-label="Kind of cell">${kinds.map(
        ([one, name]) => html`<label><input type="radio" name="kind" .value=${one} .checked=${one === kind} @change=${() => this.choosesKind(one)}><span>${name}</span></label>`,
      )}</div>
        <span class="space"></span><small>${kind === "ask" ? "Enter sends" : "Shift+Enter runs"}</small>
        <button class="primary" id="run" ?disabled=${ended || this.busy !== ""} @click=${send}>${kind === "ask" ? "Send" : kind === "code" ? "Run" : "Add"}</button></div>
    </div></div>`;
  }

  private choosesKind(kind: Kind): void {
    this.kind = kind;
  }
}

customElements.define("cellkeep-page", CellkeepPage);
