// The composer below the conversation: sends code, markdown and messages to the model.
import { type TemplateResult, html } from "lit";
import { requestJson } from "./api.js";
import type { PageContext } from "./page_context.js";
import type { SessionFeed } from "./session_feed.js";

export type CellKind = "code" | "markdown" | "ask";

/** What the composer needs of the selected session. */
export interface ComposerTarget {
  /** The feed of the selected session. */
  feed(): SessionFeed | undefined;
  createSession(): Promise<void>;
  /** Names the selected session, if it has no name yet. */
  nameSession(name: string): Promise<void>;
  /** Something will be added at the end of the conversation. */
  followEnd(): void;
}

export class Composer {
  private kind: CellKind = "code";

  constructor(
    private page: PageContext,
    private target: ComposerTarget,
  ) {}

  setKind(kind: CellKind): void {
    this.kind = kind;
    this.page.requestUpdate();
  }

  private get area(): HTMLTextAreaElement | null {
    return this.page.renderRoot.querySelector<HTMLTextAreaElement>("#composer");
  }

  /** Adds a cell, or asks the model. Creates a session if none is selected. */
  async submit(source: string, kind: CellKind = this.kind): Promise<void> {
    const { page, target } = this;
    if (!source.trim() || page.busy) return;
    if (!target.feed()) await target.createSession();
    const feed = target.feed();
    if (!feed) return;
    const isFirst = feed.order.length === 0;
    await page.attempt(async () => {
      target.followEnd();
      if (kind === "ask") {
        await requestJson(page.access, "POST", `${feed.path}/chat`, { text: source });
        if (isFirst) await target.nameSession(source.trim().split("\n", 1)[0]?.slice(0, 60) ?? "");
      } else {
        const stdin = kind === "code" ? { allow_stdin: true } : {};
        await requestJson(page.access, "POST", `${feed.path}/cells`, { source, cell_type: kind, ...stdin });
      }
      const { area } = this;
      if (area && area.value === source) area.value = "";
      feed.list();
    });
  }

  /** Puts a message into the composer, so that the person can send it again. */
  async suggest(message: string): Promise<void> {
    this.setKind("ask");
    await this.page.updateComplete;
    const { area } = this;
    if (!area) return;
    area.value = message;
    area.focus();
  }

  private pressed(event: KeyboardEvent): void {
    const area = event.target as HTMLTextAreaElement;
    // Code has many lines, a message mostly one. While an input method composes a character, Enter belongs to it.
    const sends = event.ctrlKey || event.metaKey || event.shiftKey !== (this.kind === "ask");
    if (event.key === "Enter" && sends && !event.isComposing) {
      event.preventDefault();
      void this.submit(area.value);
    } else if (event.key === "Tab" && !event.shiftKey && area.value && this.kind === "code") {
      event.preventDefault();
      area.setRangeText("    ", area.selectionStart, area.selectionEnd, "end");
    }
  }

  render(language: string, hasEnded: boolean): TemplateResult {
    const { kind } = this;
    const { model, busy } = this.page;
    const label = kind === "ask" ? `Message to ${model}` : kind === "code" ? `Code, ${language}` : "Markdown";
    const action = kind === "ask" ? "Send" : kind === "code" ? "Run" : "Add";
    return html`<div class="composer"><div class="box">
      <textarea id="composer" class=${kind} rows="2" aria-label=${label} placeholder=${this.placeholder(language, hasEnded)} aria-keyshortcuts=${kind === "ask" ? "Enter" : "Shift+Enter"}
        ?disabled=${hasEnded} spellcheck=${kind === "code" ? "false" : "true"} autocapitalize="off" autocomplete="off" @keydown=${(event: KeyboardEvent) => this.pressed(event)}></textarea>
      <div class="row">${this.renderKinds(language)}
        <span class="space"></span><small>${kind === "ask" ? "Enter sends" : "Shift+Enter runs"}</small>
        <button class="primary" id="run" ?disabled=${hasEnded || busy !== ""} @click=${() => this.submit(this.area?.value ?? "")}>${action}</button></div>
    </div></div>`;
  }

  private placeholder(language: string, hasEnded: boolean): string {
    if (hasEnded) return "This session has ended";
    if (this.kind === "ask") return `Ask ${this.page.model}${this.target.feed()?.order.length ? " about this session" : ""}`;
    return this.kind === "code" ? `Write ${language} here` : "Write markdown here";
  }

  private renderKinds(language: string): TemplateResult {
    const kinds: [CellKind, string][] = [["code", language], ["markdown", "markdown"]];
    if (this.page.model) kinds.unshift(["ask", this.page.model]);
    return html`<div class="kinds" role="radiogroup" aria-label="Kind of cell">${kinds.map(
      ([kind, name]) => html`<label><input type="radio" name="kind" .value=${kind} .checked=${kind === this.kind} @change=${() => this.setKind(kind)}><span>${name}</span></label>`,
    )}</div>`;
  }
}
