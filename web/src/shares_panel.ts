// <cellkeep-shares>: links with which others can read the session.
import { type TemplateResult, css, html, nothing } from "lit";
import { requestJson } from "./api.js";
import { SessionPanel } from "./session_panel.js";
import { base } from "./style.js";

interface Share {
  id: string;
  name?: string | null;
  expires_at: string;
  path?: string;
}

export class CellkeepShares extends SessionPanel {
  static override properties = { ...SessionPanel.properties, shares: { state: true }, made: { state: true }, copied: { state: true } };
  static override styles = [
    base,
    css`
      :host { display: block; padding: 12px 16px; font-size: 14px; background: var(--ck-paper); }
      h2 { font-size: 14px; margin: 4px 0 10px; }
      form { display: grid; gap: 8px; margin: 10px 0 14px; }
      .pair { display: flex; gap: 8px; } .primary { white-space: nowrap; }
      input, select { border: 1px solid var(--ck-line); border-radius: 8px; background: var(--ck-paper); padding: 6px 10px; min-width: 0; width: 100%; }
      .made { border: 1px solid var(--ck-accent); border-radius: 10px; padding: 10px 12px; display: grid; gap: 8px; margin-bottom: 14px; }
      ul { list-style: none; margin: 0; padding: 0; }
      li { display: flex; align-items: center; gap: 6px; border-bottom: 1px solid var(--ck-line); min-height: 44px; }
      li span { flex: 1; overflow-wrap: anywhere; }
      small { color: var(--ck-quiet); display: block; } p { color: var(--ck-quiet); margin: 8px 0; }
    `,
  ];
  declare shares: Share[] | undefined;
  declare made: string;
  declare copied: boolean;

  constructor() {
    super();
    Object.assign(this, { made: "", copied: false });
  }

  override willUpdate(changed: Map<string, unknown>): void {
    if (!changed.has("session")) return;
    this.shares = undefined;
    this.made = "";
  }

  override updated(changed: Map<string, unknown>): void {
    if (changed.has("session")) void this.load();
  }

  protected override get path(): string {
    return `${super.path}/shares`;
  }

  private load(): Promise<void> {
    const { session } = this;
    return this.attempt(async () => {
      const { shares } = await requestJson<{ shares: Share[] }>(this.access, "GET", this.path);
      if (session === this.session) this.shares = shares;
    });
  }

  private make(event: Event): Promise<void> {
    event.preventDefault();
    const form = new FormData(event.target as HTMLFormElement);
    const name = String(form.get("name") ?? "").trim();
    const { session } = this;
    return this.attempt(async () => {
      const share = await requestJson<Share>(this.access, "POST", this.path, { days: Number(form.get("days")), ...(name ? { name } : {}) });
      if (session !== this.session) return;
      this.made = `${this.access.server || location.origin}${share.path ?? ""}`;
      this.copied = false;
      await this.load();
      await this.updateComplete;
      this.renderRoot.querySelector<HTMLInputElement>("#link")?.select();
    });
  }

  private async copy(): Promise<void> {
    try {
      await navigator.clipboard.writeText(this.made);
      this.copied = true;
    } catch {
      // Without access to the clipboard, the link is selected, so that the person can copy it by key.
      this.renderRoot.querySelector<HTMLInputElement>("#link")?.select();
    }
  }

  private revoke(share: Share): Promise<void> {
    return this.attempt(async () => {
      const { session } = this;
      await requestJson(this.access, "DELETE", `${this.path}/${encodeURIComponent(share.id)}`);
      if (session !== this.session) return;
      this.made = "";
      await this.load();
    });
  }

  override render(): TemplateResult {
    const until = (share: Share) => new Date(share.expires_at).toLocaleDateString(undefined, { dateStyle: "medium" });
    return html`<h2>Share</h2>
      <p>Whoever has a link reads this session live: its cells and plots, not its files. They change nothing and see nothing else.</p>
      <form @submit=${this.make}>
        <label><small>For whom (only you see this)</small><input name="name" maxlength="200" autocomplete="off"></label>
        <div class="pair"><select name="days" aria-label="How long the link is good for"><option value="1">One day</option><option value="7" selected>A week</option><option value="30">30 days</option><option value="365">A year</option></select>
          <button class="primary" id="share">Make link</button></div>
      </form>
      ${this.made
        ? html`<div class="made" role="status"><small>It is shown this once:</small><input id="link" readonly aria-label="The link" .value=${this.made}>
            <button class="primary" @click=${this.copy}>${this.copied ? "Copied" : "Copy link"}</button></div>`
        : nothing}
      <ul>${this.shares?.map((one) => html`<li><span>${one.name || "A link"}<small>until ${until(one)}</small></span><button aria-label=${`Revoke ${one.name || "link"}`} @click=${() => this.revoke(one)}>Revoke</button></li>`)}</ul>
      ${this.problem ? html`<p role="alert">${this.problem}</p>` : nothing}`;
  }
}

if (!customElements.get("cellkeep-shares")) customElements.define("cellkeep-shares", CellkeepShares);
