// The page that `cellkeep serve` shows: a session as a conversation with its kernel. This element connects the parts of the
// page.
import { LitElement, type TemplateResult, html, nothing } from "lit";
import { type Access, ApiError, requestJson } from "./api.js";
import { Composer } from "./composer.js";
import { ConversationView } from "./conversation_view.js";
import { NotebookFiles } from "./notebook_files.js";
import type { PageContext, Rights } from "./page_context.js";
import { pageStyle } from "./page_style.js";
import { forgetToken, sharedSession, storeToken, takeToken } from "./page_token.js";
import { type SessionFeed, feedOf } from "./session_feed.js";
import { type Kernel, type Session, SessionList } from "./session_list.js";
import { SidePanels } from "./side_panels.js";
import { base, tokens } from "./style.js";

/** Between two listings of the sessions, with the usage of the selected one. */
const REFRESH_EVERY_MS = 4000;

const STATE_PROPERTIES = ["access", "rights", "selected", "isListOpen", "problem", "busy", "isDragging"];

class CellkeepPage extends LitElement implements PageContext {
  static override properties = {
    theme: { reflect: true },
    ...Object.fromEntries(STATE_PROPERTIES.map((name) => [name, { state: true }])),
  };
  static override styles = [tokens, base, pageStyle];
  /** `light` or `dark`; absent: as the system. */
  declare theme: string | undefined;
  declare access: Access;
  declare rights: Rights | undefined;
  declare selected: string;
  /** Whether the list of sessions lies over the page, on a narrow screen. */
  declare isListOpen: boolean;
  declare problem: string;
  declare busy: string;
  /** Whether a file is being dragged over the page. */
  declare isDragging: boolean;
  private feed?: SessionFeed;
  private unfollow?: () => void;
  private list = new SessionList(this, (id) => this.select(id));
  private conversation = new ConversationView(this);
  private panels = new SidePanels(this);
  private notebooks = new NotebookFiles(this, () => this.list.create(), () => this.feed?.list());
  private composer = new Composer(this, {
    feed: () => this.feed,
    createSession: () => this.list.create(),
    nameSession: async (name) => {
      if (this.session && !this.session.name) await this.list.setName(this.selected, name);
    },
    followEnd: () => this.conversation.followEnd(),
  });

  constructor() {
    super();
    Object.assign(this, { access: { server: "", token: takeToken() }, selected: "", isListOpen: false, problem: "", busy: "", isDragging: false });
  }

  override connectedCallback(): void {
    super.connectedCallback();
    void this.enter();
    setInterval(() => {
      if (document.visibilityState === "visible" && this.list.sessions) this.refresh().catch((error: unknown) => this.report(error));
    }, REFRESH_EVERY_MS);
  }

  async attempt(action: () => Promise<void>): Promise<void> {
    this.problem = "";
    try {
      await action();
    } catch (error) {
      this.report(error);
    }
  }

  private report(error: unknown): void {
    if (error instanceof ApiError && error.status === 401) this.leave();
    this.problem = error instanceof Error ? error.message : String(error);
  }

  /** Back to the form that asks for a token. */
  private leave(): void {
    forgetToken();
    this.access = { ...this.access, token: "" };
    this.list.clear();
    this.select("");
  }

  private async enter(): Promise<void> {
    if (!this.access.token) return;
    await this.attempt(async () => {
      const linked = decodeURIComponent(location.hash.slice(2));
      // The requests run at the same time: the wait is that of the slowest, not their sum.
      const rights = requestJson<Rights>(this.access, "GET", "/v1/token").then((rights) => this.setRights(rights));
      const kernels = requestJson<{ kernels: Kernel[] }>(this.access, "GET", "/v1/kernels").then(({ kernels }) => this.list.setKernels(kernels));
      if (linked) this.select(linked);
      // A share token cannot list sessions. If the link did not name its session, the rights do.
      const sessions = this.refresh().catch(() => rights.then(() => this.refresh()));
      await Promise.all([rights, sessions]);
      storeToken(this.access.token);
      if (!this.session) this.select(this.list.sessions?.find((session) => session.state !== "gone")?.id ?? "");
      await kernels;
    });
  }

  private setRights(rights: Rights): void {
    this.rights = rights;
    if (this.model) this.composer.setKind("ask");
  }

  get model(): string {
    return this.rights?.model ?? "";
  }

  get isReadOnly(): boolean {
    return this.rights?.scope === "read";
  }

  private refresh(): Promise<void> {
    return this.list.refresh(this.rights?.session ?? sharedSession());
  }

  private select(id: string): void {
    this.unfollow?.();
    this.selected = id;
    this.isListOpen = false;
    this.feed = id ? feedOf(this.access, id) : undefined;
    this.conversation.open(this.feed);
    this.unfollow = this.feed?.follow(() => this.requestUpdate());
    history.replaceState(null, "", id ? `#/${encodeURIComponent(id)}` : location.pathname);
  }

  private get session(): Session | undefined {
    return this.list.find(this.selected);
  }

  /** The feed knows the state of the kernel first; without a feed, the listing does. */
  private get kernelState(): string {
    const { feed } = this;
    if (!feed) return "";
    if (feed.connection === "lost") return "lost";
    if (feed.connection === "ended") return "gone";
    return feed.connection === "live" && feed.isListed ? feed.kernel : (this.session?.state ?? "starting");
  }

  private control(action: "interrupt" | "restart"): Promise<void> {
    return this.attempt(async () => void (await requestJson(this.access, "POST", `/v1/sessions/${this.selected}/${action}`, {})));
  }

  private dragged(event: DragEvent): void {
    event.preventDefault();
    this.isDragging = true;
  }

  /** A notebook dropped on an empty session is imported; other files are uploaded. */
  private async dropped(event: DragEvent): Promise<void> {
    event.preventDefault();
    this.isDragging = false;
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!this.selected || this.isReadOnly || files.length === 0) return;
    const isNotebook = files.length === 1 && files[0]?.name.endsWith(".ipynb") && this.feed?.order.length === 0;
    await (isNotebook ? this.notebooks.import(files[0]) : this.panels.upload(files));
  }

  /** Escape closes the list of sessions if it lies over the page, otherwise the panel that has the focus. */
  private pressed(event: KeyboardEvent): void {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    if (this.isListOpen) this.isListOpen = false;
    else this.panels.closeByKey(event.target as Node);
  }

  override updated(): void {
    this.conversation.updated(this.kernelState);
  }

  override render(): TemplateResult {
    if (!this.access.token) return this.renderTokenForm();
    // Readers may open the panel of plots only. Until the rights of the token are known, no panel opens.
    const isPermitted = this.rights && (!this.isReadOnly || this.panels.open === "artifacts");
    const panel = this.selected && isPermitted && this.panels.open;
    const classes = `frame ${panel ? `with-panel with-${panel}` : ""} ${this.isListOpen ? "side" : ""} ${this.isDragging ? "drag" : ""}`;
    return html`<div class=${classes} @dragover=${this.dragged} @dragleave=${() => (this.isDragging = false)} @drop=${this.dropped} @keydown=${this.pressed}>
      ${this.list.render()}
      ${this.isListOpen ? html`<button class="shade" aria-label="Close" @click=${() => (this.isListOpen = false)}></button>` : nothing}
      <main>${this.renderBar()}${this.renderConversation()}${this.isReadOnly ? nothing : this.renderComposer()}</main>
      ${panel ? this.panels.render(panel, this.kernelState === "idle", this.feed?.runs ?? 0) : nothing}
    </div>`;
  }

  private renderTokenForm(): TemplateResult {
    const submit = (event: Event) => {
      event.preventDefault();
      const token = this.renderRoot.querySelector<HTMLInputElement>("#token")?.value.trim() ?? "";
      this.access = { ...this.access, token };
      void this.enter();
    };
    return html`<main><form class="enter" @submit=${submit}><h1>Cellkeep</h1>
      <label for="token">Open the link that <code>cellkeep serve</code> printed, or enter a token. <code>cellkeep token create NAME</code> makes one.</label>
      <input id="token" class="field" type="password" autocomplete="off" required>
      <button class="primary">Enter</button>${this.problem ? html`<p class="notice bad" role="alert">${this.problem}</p>` : nothing}</form></main>`;
  }

  private renderBar(): TemplateResult {
    const { session, kernelState: state } = this;
    const menu = html`<button class="menu" aria-label="Sessions" aria-expanded=${this.isListOpen ? "true" : "false"} @click=${() => (this.isListOpen = !this.isListOpen)}>☰</button>`;
    if (!session) return html`<div class="bar">${menu}<h1><strong>No session</strong></h1></div>`;
    return html`<div class="bar">${menu}<h1>${this.renderTitle(session)}</h1>
      <span class="state" data-state=${state} role="status">${state === "lost" ? "connection lost, trying again" : state}</span>
      ${this.renderUsage(session)}
      <span class="space"></span>
      <div class="tools" role="toolbar" aria-label="Session">${this.isReadOnly ? html`<span class="reader">read only</span>${this.panels.renderButton("artifacts")}` : this.renderTools(state)}
      ${this.notebooks.renderExport(session.name || "session")}
      </div></div>`;
  }

  private renderTitle(session: Session): TemplateResult {
    const title = html`<strong>${this.list.titleOf(session)}</strong>`;
    return this.isReadOnly ? title : html`<button title="Rename" @click=${() => this.list.rename(session)}>${title}</button>`;
  }

  private renderUsage({ usage }: Session): TemplateResult | typeof nothing {
    if (!usage?.memory_bytes) return nothing;
    return html`<span class="usage">${(usage.memory_bytes / 1e6).toFixed(0)} MB · ${(usage.cpu_seconds ?? 0).toFixed(1)} s CPU</span>`;
  }

  private renderTools(state: string): TemplateResult {
    return html`<button ?disabled=${state !== "busy"} @click=${() => this.control("interrupt")}>Interrupt</button>
      <button ?disabled=${state === "gone"} @click=${() => this.control("restart")}>Restart</button>
      ${this.panels.renderButtons()}
      ${this.notebooks.renderImport()}`;
  }

  private renderConversation(): TemplateResult {
    const { session, theme, problem } = this;
    const kernel = session?.kernel ?? this.list.kernel;
    return this.conversation.render({
      theme, session, problem, kernel,
      kernelTitle: this.list.kernelTitle(kernel),
      runExample: (source) => void this.composer.submit(source, "code"),
      retry: (message) => void this.composer.suggest(message),
    });
  }

  private renderComposer(): TemplateResult {
    const language = this.session?.language || this.session?.kernel || this.list.kernel || "code";
    return this.composer.render(language, this.kernelState === "gone");
  }
}

customElements.define("cellkeep-page", CellkeepPage);
