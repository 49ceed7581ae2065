// The list of sessions beside the conversation: loads, creates, names and deletes sessions.
import { type TemplateResult, html, nothing } from "lit";
import { ApiError, requestAll, requestJson } from "./api.js";
import type { PageContext } from "./page_context.js";

export interface Session {
  id: string;
  name?: string | null;
  kernel: string;
  language?: string;
  state: string;
  why?: string | null;
  usage?: { memory_bytes?: number; cpu_seconds?: number };
}

export interface Kernel {
  name: string;
  display_name: string;
  ready: boolean;
}

/** Selects the session with this id; an empty id selects none. */
type Select = (id: string) => void;

export class SessionList {
  /** Undefined until the first listing has arrived. */
  sessions?: Session[];
  /** The kernel of the next session. */
  kernel = "";
  private kernels: Kernel[] = [];

  constructor(
    private page: PageContext,
    private select: Select,
  ) {}

  find(id: string): Session | undefined {
    return this.sessions?.find((session) => session.id === id);
  }

  setKernels(kernels: Kernel[]): void {
    this.kernels = kernels;
    this.kernel = (kernels.find((kernel) => kernel.ready && kernel.name === "python") ?? kernels.find((kernel) => kernel.ready))?.name ?? "";
    this.page.requestUpdate();
  }

  clear(): void {
    this.setSessions(undefined);
  }

  /**
   * Loads the list, or only the session `only`. The listing has no usage, so the selected session is loaded on its own.
   * After the first listing, errors are ignored: the feed reports a lost connection. A rejected token is always an error.
   */
  async refresh(only: string | null | undefined): Promise<void> {
    const { access } = this.page;
    try {
      if (only) {
        this.setSessions([await requestJson<Session>(access, "GET", `/v1/sessions/${encodeURIComponent(only)}`)]);
        return;
      }
      this.setSessions(await requestAll<Session>(access, "/v1/sessions?", "sessions"));
      if (this.page.selected) this.replace(await requestJson<Session>(access, "GET", `/v1/sessions/${this.page.selected}`));
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) throw error;
      if (this.sessions === undefined) throw error;
    }
  }

  private setSessions(sessions: Session[] | undefined): void {
    this.sessions = sessions;
    this.page.requestUpdate();
  }

  private replace(session: Session): void {
    this.setSessions(this.sessions?.map((listed) => (listed.id === session.id ? session : listed)));
  }

  titleOf(session: Session): string {
    return session.name || this.kernelTitle(session.kernel);
  }

  kernelTitle(name: string): string {
    return this.kernels.find((kernel) => kernel.name === name)?.display_name ?? name;
  }

  create(): Promise<void> {
    const { page } = this;
    return page.attempt(async () => {
      page.busy = "Starting a kernel…";
      try {
        const session = await requestJson<Session>(page.access, "POST", "/v1/sessions", { kernel: this.kernel });
        this.setSessions([session, ...(this.sessions ?? [])]);
        this.select(session.id);
        await page.updateComplete;
        page.renderRoot.querySelector<HTMLTextAreaElement>("#composer")?.focus();
      } finally {
        page.busy = "";
      }
    });
  }

  setName(id: string, name: string): Promise<void> {
    return this.page.attempt(async () => {
      await requestJson(this.page.access, "PATCH", `/v1/sessions/${id}`, { name });
      this.setSessions(this.sessions?.map((session) => (session.id === id ? { ...session, name } : session)));
    });
  }

  rename(session: Session): void {
    const name = prompt("What is this session called?", this.titleOf(session))?.trim();
    if (name) void this.setName(session.id, name.slice(0, 200));
  }

  private delete(session: Session): Promise<void> {
    if (!confirm(`Delete ${session.name || `this ${this.kernelTitle(session.kernel)} session`} with its cells and files?`)) return Promise.resolve();
    return this.page.attempt(async () => {
      await requestJson(this.page.access, "DELETE", `/v1/sessions/${session.id}`);
      this.setSessions(this.sessions?.filter((listed) => listed.id !== session.id));
      if (this.page.selected === session.id) this.select("");
    });
  }

  render(): TemplateResult {
    return html`<aside aria-label="Sessions"><div class="brand">Cellkeep</div>
      ${this.page.isReadOnly ? nothing : this.renderNewSession()}
      <nav><ul>${this.sessions?.map((session) => this.renderSession(session))}</ul></nav></aside>`;
  }

  private renderNewSession(): TemplateResult {
    const choose = (event: Event) => {
      this.kernel = (event.target as HTMLSelectElement).value;
      this.page.requestUpdate();
    };
    return html`<div class="new">
        <select aria-label="Kernel" @change=${choose}>
          ${this.kernels.map(
            (kernel) => html`<option value=${kernel.name} ?selected=${kernel.name === this.kernel} ?disabled=${!kernel.ready}>${kernel.display_name}${kernel.ready ? "" : " (not installed)"}</option>`,
          )}
        </select>
        <button class="primary" id="create" ?disabled=${!this.kernel || this.page.busy !== ""} @click=${() => this.create()}>New</button>
      </div>`;
  }

  private renderSession(session: Session): TemplateResult {
    const isSelected = session.id === this.page.selected;
    const details = `${session.state}${session.name ? ` · ${session.kernel}` : ""} · ${session.id.slice(0, 8)}`;
    return html`<li class=${isSelected ? "here" : ""}>
          <button class="open" aria-current=${isSelected ? "true" : "false"} @click=${() => this.select(session.id)}>${this.titleOf(session)}<small>${details}</small></button>
          ${this.page.isReadOnly ? nothing : html`<button aria-label="Delete session" @click=${() => this.delete(session)}>✕</button>`}</li>`;
  }
}
