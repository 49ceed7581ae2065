// <cellkeep-variables>: the variables in the kernel's namespace, loaded while the panel is open.
import { type TemplateResult, css, html, nothing } from "lit";
import { requestJson } from "./api.js";
import { SessionPanel } from "./session_panel.js";
import { base } from "./style.js";

interface Variable {
  name: string;
  type: string;
  summary: string;
}

export class CellkeepVariables extends SessionPanel {
  static override properties = { ...SessionPanel.properties, idle: { type: Boolean }, runs: { attribute: false }, variables: { state: true }, more: { state: true }, filter: { state: true } };
  static override styles = [
    base,
    css`
      :host { display: block; padding: 12px 16px; font-size: 14px; background: var(--ck-paper); }
      .head { display: flex; align-items: center; justify-content: space-between; }
      h2 { font-size: 14px; margin: 4px 0; }
      input { width: 100%; border: 1px solid var(--ck-line); border-radius: 8px; background: var(--ck-paper); padding: 6px 10px; margin: 6px 0 10px; }
      ul { list-style: none; margin: 0; padding: 0; }
      li { padding: 7px 0; border-bottom: 1px solid var(--ck-line); overflow-wrap: anywhere; }
      .name { font: 13px var(--ck-mono); font-weight: 600; }
      small { color: var(--ck-quiet); margin-inline-start: 6px; }
      .value { font: 12px/1.5 var(--ck-mono); color: var(--ck-quiet); display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical; overflow: hidden; }
      p { color: var(--ck-quiet); margin: 8px 0; }
    `,
  ];
  declare idle: boolean;
  /** How many executions have finished. Each may have changed variables, even if the kernel was never seen busy. */
  declare runs: number;
  declare variables: Variable[] | undefined;
  declare more: boolean;
  declare filter: string;

  constructor() {
    super();
    Object.assign(this, { idle: false, more: false, filter: "" });
  }

  override willUpdate(changed: Map<string, unknown>): void {
    if (!changed.has("session")) return;
    this.variables = undefined;
    this.problem = "";
  }

  override updated(changed: Map<string, unknown>): void {
    if (["session", "idle", "runs"].some((name) => changed.has(name)) && this.idle) void this.load();
  }

  load(): Promise<void> {
    const { session } = this;
    return this.attempt(async () => {
      const response = await requestJson<{ variables: Variable[]; truncated: boolean }>(this.access, "POST", `${this.path}/variables`, {});
      if (session !== this.session) return;
      this.variables = response.variables;
      this.more = response.truncated;
    });
  }

  override render(): TemplateResult {
    const { variables } = this;
    const wanted = this.filter.toLowerCase();
    const shown = variables?.filter((one) => one.name.toLowerCase().includes(wanted));
    return html`<div class="head"><h2>Variables</h2><button ?disabled=${!this.idle} @click=${() => this.load()}>Refresh</button></div>
      ${variables && variables.length > 8 ? html`<input type="search" placeholder="Find a name" aria-label="Find a name" @input=${(event: Event) => (this.filter = (event.target as HTMLInputElement).value)}>` : nothing}
      <ul>${shown?.map((one) => html`<li><span class="name">${one.name}</span><small>${one.type}</small>${one.summary ? html`<div class="value">${one.summary}</div>` : nothing}</li>`)}</ul>
      ${variables?.length === 0 ? html`<p>No variables yet. What cells define is listed here.</p>` : nothing}
      ${this.more ? html`<p>There are more; the first ${variables?.length} are listed.</p>` : nothing}
      ${!this.idle && !variables && !this.problem ? html`<p>They are told when the kernel is idle.</p>` : nothing}
      ${this.problem ? html`<p role="alert">${this.problem}</p>` : nothing}`;
  }
}

if (!customElements.get("cellkeep-variables")) customElements.define("cellkeep-variables", CellkeepVariables);
