// <cellkeep-panel>: the files of the session's workspace, or its artifacts (plots).
import { type TemplateResult, css, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";
import { loadArtifact, request, requestAll, requestJson, save } from "./api.js";
import { SessionPanel } from "./session_panel.js";
import { base } from "./style.js";

interface Entry {
  name: string;
  kind: string;
  size: number;
  modified_at: string;
}
interface Artifact {
  sha256: string;
  mime: string;
  bytes: number;
  name: string;
}

const size = (bytes: number) => (bytes < 1000 ? `${bytes} B` : bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml"];
const time = (text: string) => new Date(text).toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" });
const address = (path: string) => path.split("/").map(encodeURIComponent).join("/");

export class CellkeepPanel extends SessionPanel {
  static override properties = {
    ...SessionPanel.properties,
    show: {},
    folder: { state: true },
    entries: { state: true },
    artifacts: { state: true },
  };
  static override styles = [
    base,
    css`
      :host { display: block; padding: 12px 16px; font-size: 14px; background: var(--ck-paper); }
      h2 { font-size: 14px; margin: 4px 0 10px; }
      ul { list-style: none; margin: 0; padding: 0; }
      li { display: flex; align-items: center; gap: 6px; border-bottom: 1px solid var(--ck-line); min-height: 38px; }
      li .name { flex: 1; overflow-wrap: anywhere; text-align: start; }
      small, p { color: var(--ck-quiet); } p { margin: 8px 0; }
      .drop { border: 1px dashed var(--ck-line); border-radius: 10px; padding: 14px; text-align: center; margin-bottom: 10px; color: var(--ck-quiet); display: block; cursor: pointer; }
      .drop input { position: absolute; opacity: 0; width: 1px; }
      .drop:focus-within { outline: 2px solid var(--ck-accent); }
      .gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: 10px; }
      figure { margin: 0; border: 1px solid var(--ck-line); border-radius: 8px; overflow: hidden; }
      figure img { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: #fff; display: block; }
      figcaption { padding: 4px 8px; font-size: 12px; display: flex; justify-content: space-between; align-items: center; overflow-wrap: anywhere; }
    `,
  ];
  declare show: "files" | "artifacts";
  declare folder: string;
  declare entries: Entry[] | undefined;
  declare artifacts: (Artifact & { url?: string })[] | undefined;

  constructor() {
    super();
    this.folder = "";
  }

  /** Loads pictures when they come into view. */
  private watcher?: IntersectionObserver;

  override connectedCallback(): void {
    super.connectedCallback();
    this.watcher = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) if (isIntersecting) void this.loadPicture((target as HTMLElement).dataset.sha256 ?? "");
    }, { rootMargin: "200px" });
    if (this.hasUpdated) void this.load();
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.watcher?.disconnect();
    this.release();
  }

  private release(): void {
    for (const { url } of this.artifacts ?? []) if (url) URL.revokeObjectURL(url);
    this.artifacts = undefined;
  }

  /** Entries of another session or folder are removed at once, so that they cannot be opened or deleted by mistake. */
  override willUpdate(changed: Map<string, unknown>): void {
    if (changed.has("session")) {
      if (changed.get("session") !== undefined) this.folder = "";
      this.release();
    }
    if (changed.has("session") || changed.has("folder")) this.entries = undefined;
  }

  override updated(changed: Map<string, unknown>): void {
    if (changed.has("session") || changed.has("show") || changed.has("folder")) void this.load();
    for (const figure of this.renderRoot.querySelectorAll("figure[data-sha256]:not(:has(img))")) this.watcher?.observe(figure);
  }

  load(): Promise<void> {
    const { session, folder } = this;
    return this.attempt(async () => {
      if (this.show === "files") {
        const path = `${this.path}/files/?path=${encodeURIComponent(this.folder.slice(0, -1))}`;
        const entries = await requestAll<Entry>(this.access, path, "entries");
        if (session === this.session && folder === this.folder) this.entries = entries;
        return;
      }
      const { artifacts } = await requestJson<{ artifacts: Artifact[] }>(this.access, "GET", `${this.path}/artifacts`);
      if (session !== this.session || !this.isConnected) return;
      const known = new Map(this.artifacts?.map((one) => [one.sha256, one.url]));
      this.artifacts = artifacts.map((one) => ({ ...one, url: known.get(one.sha256) }));
    });
  }

  /** Loads a picture, and shows it if it is still listed when it arrives. */
  private loadPicture(sha256: string): Promise<void> {
    return this.attempt(async () => {
      const blob = await loadArtifact(this.access, sha256);
      for (const one of this.artifacts ?? []) {
        if (one.sha256 === sha256 && !one.url) one.url = URL.createObjectURL(new Blob([blob], { type: one.mime }));
      }
      this.requestUpdate();
    });
  }

  /** Uploads files into the folder that is shown. */
  upload(files: FileList | File[] | null | undefined): Promise<void> {
    // All go to the folder where they were dropped, even if another is opened meanwhile.
    const { path, folder } = this;
    return this.attempt(async () => {
      for (const file of [...(files ?? [])]) await request(this.access, "PUT", `${path}/files/${address(folder + file.name)}`, file);
      await this.load();
    });
  }

  private download(name: string): Promise<void> {
    return this.attempt(async () => {
      const response = await request(this.access, "GET", `${this.path}/files/${address(this.folder + name)}`);
      save(await response.blob(), name);
    });
  }

  /** Downloads a folder of the one that is shown, or that one itself, as an archive. */
  private downloadFolder(name: string): Promise<void> {
    return this.attempt(async () => {
      const folder = name ? this.folder + name : this.folder.slice(0, -1);
      const response = await request(this.access, "GET", `${this.path}/files/?format=zip&path=${encodeURIComponent(folder)}`);
      save(await response.blob(), `${folder.split("/").pop() || "workspace"}.zip`);
    });
  }

  private rename(entry: Entry): Promise<void> {
    const name = prompt("New name", entry.name);
    if (!name || name === entry.name) return Promise.resolve();
    return this.attempt(async () => {
      await request(this.access, "PATCH", `${this.path}/files/${address(this.folder + entry.name)}`, { path: this.folder + name });
      await this.load();
    });
  }

  private delete(entry: Entry): Promise<void> {
    const isFolder = entry.kind === "folder";
    if (isFolder && !confirm(`Delete the folder ${entry.name} with everything in it?`)) return Promise.resolve();
    return this.attempt(async () => {
      await request(this.access, "DELETE", `${this.path}/files/${address(this.folder + entry.name)}${isFolder ? "?recursive=true" : ""}`);
      await this.load();
    });
  }

  override render(): TemplateResult {
    return html`${this.show === "files" ? this.files() : this.gallery()}${this.problem ? html`<p role="alert">${this.problem}</p>` : nothing}`;
  }

  private files(): TemplateResult {
    const up = this.folder.replace(/[^/]+\/$/, "");
    return html`<h2>Files ${this.folder}</h2>
      <label class="drop" @dragover=${(event: DragEvent) => event.preventDefault()} @drop=${(event: DragEvent) => {
        event.preventDefault();
        event.stopPropagation();
        void this.upload(event.dataTransfer?.files);
      }}>Drop files here, or choose some<input type="file" multiple @change=${(event: Event) => this.upload((event.target as HTMLInputElement).files)}></label>
      <ul>
        ${this.folder ? html`<li><button @click=${() => (this.folder = up)}>← back</button></li>` : nothing}
        ${this.entries?.map(
          (entry) => html`<li>${
            entry.kind === "folder"
              ? html`<button class="name" @click=${() => (this.folder = `${this.folder}${entry.name}/`)}>${entry.name}/</button>
                <button aria-label=${`Download ${entry.name}`} title="Download as zip" @click=${() => this.downloadFolder(entry.name)}>↓</button>`
              : html`<button class="name" title="Download" @click=${() => this.download(entry.name)}>${entry.name}</button>
                <small title=${time(entry.modified_at)}>${size(entry.size)}</small>`
          }
            <button aria-label=${`Rename ${entry.name}`} title="Rename" @click=${() => this.rename(entry)}>✎</button>
            <button aria-label=${`Delete ${entry.name}`} title="Delete" @click=${() => this.delete(entry)}>✕</button></li>`,
        )}
      </ul>
      ${this.entries?.length ? html`<p><button @click=${() => this.downloadFolder("")}>Download all as zip</button></p>` : nothing}
      ${this.entries?.length === 0 ? html`<p>No files yet. The kernel's working folder is shown here.</p>` : nothing}`;
  }

  private gallery(): TemplateResult {
    const download = async (one: Artifact) => save(await loadArtifact(this.access, one.sha256), one.name);
    return html`<h2>Plots and artifacts</h2>
      <div class="gallery">${repeat(
        this.artifacts ?? [],
        (one, at) => `${one.sha256} ${this.artifacts?.findIndex((other) => other.sha256 === one.sha256) === at ? "" : at}`,
        (one) => html`<figure data-sha256=${PICTURES.includes(one.mime) ? one.sha256 : nothing}>${one.url ? html`<img src=${one.url} alt=${one.name}>` : nothing}
          <figcaption><span>${one.name}<br><small>${size(one.bytes)}</small></span><button aria-label=${`Download ${one.name}`} @click=${() => download(one)}>↓</button></figcaption></figure>`,
      )}</div>
      ${this.artifacts?.length === 0 ? html`<p>What cells draw is collected here.</p>` : nothing}`;
  }
}

if (!customElements.get("cellkeep-panel")) customElements.define("cellkeep-panel", CellkeepPanel);
