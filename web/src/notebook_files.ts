// Notebook files of the selected session: import, and export as a notebook, page, markdown or script.
import { type TemplateResult, html } from "lit";
import { request, requestJson, save } from "./api.js";
import type { PageContext } from "./page_context.js";

/** File extensions by the export formats of the server, for responses without a file name. */
const EXTENSIONS: Record<string, string> = { ipynb: "ipynb", html: "html", markdown: "md", script: "txt" };

export class NotebookFiles {
  constructor(
    private page: PageContext,
    private createSession: () => Promise<void>,
    /** Called when the cells were replaced. */
    private imported: () => void,
  ) {}

  /** Replaces the session's notebook by a file. */
  async import(file: File | undefined): Promise<void> {
    const { page } = this;
    if (!file) return;
    if (!page.selected) await this.createSession();
    await page.attempt(async () => {
      await requestJson(page.access, "PUT", `/v1/sessions/${page.selected}/notebook`, JSON.parse(await file.text()) as unknown);
      this.imported();
    });
  }

  private async export(select: HTMLSelectElement, sessionName: string): Promise<void> {
    const { page } = this;
    const format = select.value;
    select.value = "";
    if (!format) return;
    await page.attempt(async () => {
      const response = await request(page.access, "GET", `/v1/sessions/${page.selected}/notebook?to=${format}`);
      const fileName = /filename="([^"]+)"/.exec(response.headers.get("content-disposition") ?? "")?.[1];
      save(await response.blob(), fileName ?? `${sessionName}.${EXTENSIONS[format]}`);
    });
  }

  renderImport(): TemplateResult {
    return html`<input class="file" id="import" type="file" accept=".ipynb" @change=${(event: Event) => this.import((event.target as HTMLInputElement).files?.[0])}>
      <label class="button" for="import">Import</label>`;
  }

  renderExport(sessionName: string): TemplateResult {
    return html`<select aria-label="Export" @change=${(event: Event) => this.export(event.target as HTMLSelectElement, sessionName)}><option value="">Export</option>
        <option value="ipynb">Notebook</option><option value="html">Page</option><option value="markdown">Markdown</option><option value="script">Script</option></select>`;
  }
}
