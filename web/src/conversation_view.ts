// The cells of the selected session as a conversation that follows its end while it grows.
import { type TemplateResult, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";
import { requestJson } from "./api.js";
import "./cell.js";
import { type ChatMark, type ChatNote, chatMarkOf, conversation } from "./chat.js";
import { languageOf } from "./languages.js";
import type { PageContext } from "./page_context.js";
import type { SessionFeed } from "./session_feed.js";
import type { Session } from "./session_list.js";

/** The server writes the state of an answer at once when its session ends, or never: this long it is asked for it. */
const SETTLE_TIMEOUT_MS = 60_000;
const MAX_SETTLE_PAUSE_MS = 4000;
/** The view follows new content while it is scrolled to within this distance (pixels) of the end. */
const FOLLOW_DISTANCE = 120;

interface Options {
  theme: string | undefined;
  session: Session | undefined;
  problem: string;
  /** The kernel that examples are shown for, and its title. */
  kernel: string;
  kernelTitle: string;
  runExample(source: string): void;
  retry(message: string): void;
}

const cellClass = (mark: ChatMark, type: string | undefined): string => (type !== "markdown" ? "" : mark.role === "user" ? "text said" : "text");

export class ConversationView {
  /** Whether a message is being answered, by the metadata of its cell. */
  private isAnswering = false;
  private followsEnd = true;
  /** Feeds whose last answer is being settled, or could not be. */
  private settled = new WeakSet<SessionFeed>();
  private resized = new ResizeObserver(() => this.scrollToEnd());
  private feed?: SessionFeed;

  constructor(private page: PageContext) {}

  /** Shows another session, from its end. */
  open(feed: SessionFeed | undefined): void {
    this.feed = feed;
    this.followEnd();
  }

  followEnd(): void {
    this.followsEnd = true;
  }

  /** Call it after each drawing of the page. */
  updated(kernelState: string): void {
    const column = this.page.renderRoot.querySelector(".column");
    if (column) this.resized.observe(column);
    if (this.isAnswering && kernelState === "gone") void this.settle();
  }

  private scrollToEnd(): void {
    const cells = this.page.renderRoot.querySelector(".cells");
    if (cells && this.followsEnd) cells.scrollTop = cells.scrollHeight;
  }

  private scrolled(event: Event): void {
    const cells = event.target as HTMLElement;
    this.followsEnd = cells.scrollHeight - cells.scrollTop - cells.clientHeight < FOLLOW_DISTANCE;
  }

  /**
   * An answer ends with its session, but no event reports that. So the server is asked until the state of the answer is
   * written.
   */
  private async settle(): Promise<void> {
    const { feed } = this;
    if (!feed || this.settled.has(feed)) return;
    this.settled.add(feed);
    const end = Date.now() + SETTLE_TIMEOUT_MS;
    for (let pause = 250; this.feed === feed && this.isAnswering && Date.now() < end; pause = Math.min(pause * 2, MAX_SETTLE_PAUSE_MS)) {
      const chat = await requestJson<{ state: string }>(this.page.access, "GET", `${feed.path}/chat`).catch(() => undefined);
      if (chat?.state !== "answering") feed.list();
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
    // When the session is selected again later, it is asked again.
    if (this.feed !== feed) this.settled.delete(feed);
  }

  private stopAnswer(): Promise<void> {
    const { page } = this;
    return page.attempt(async () => void (await requestJson(page.access, "POST", `/v1/sessions/${page.selected}/chat/cancel`, {})));
  }

  render(options: Options): TemplateResult {
    const { feed, page } = this;
    const { answering, notes } = conversation(feed?.order ?? [], feed?.cells ?? new Map());
    this.isAnswering = answering !== undefined;
    const notice = page.busy || feed?.notice || options.session?.why || "";
    return html`<div class="cells" @scroll=${(event: Event) => this.scrolled(event)}><div class="column">
      ${options.problem ? html`<p class="notice bad" role="alert">${options.problem}</p>` : nothing}
      ${!feed || (feed.isListed && feed.order.length === 0) ? this.renderWelcome(options) : nothing}
      ${repeat(feed?.order ?? [], (id) => `${page.selected}/${id}`, (id) => this.renderCell(id, options, notes.get(id)))}
      ${answering ? this.renderAnswering() : nothing}
      ${notice ? html`<p class="notice" role="status">${notice}</p>` : nothing}
    </div></div>`;
  }

  private renderCell(id: string, { theme, session, retry }: Options, note: ChatNote | undefined): TemplateResult {
    const { page } = this;
    const cell = this.feed?.cells.get(id);
    return html`<div class=${cellClass(chatMarkOf(cell), cell?.type)}><cellkeep-cell .theme=${theme} .session=${page.selected} .cell=${id} .token=${page.access.token} .language=${session?.language ?? ""} .readonly=${page.isReadOnly}></cellkeep-cell></div>
          ${note ? this.renderNote(note, retry) : nothing}`;
  }

  private renderNote({ text, bad, retryText }: ChatNote, retry: (message: string) => void): TemplateResult {
    const button = retryText && this.page.model ? html` <button @click=${() => retry(retryText)}>Ask again</button>` : nothing;
    return html`<p class="notice ${bad ? "bad" : ""}" role=${bad ? "alert" : "status"}>${text}${button}</p>`;
  }

  private renderAnswering(): TemplateResult {
    const { model, isReadOnly } = this.page;
    return html`<p class="answers" role="status"><span class="dots" aria-hidden="true"></span>${model || "The model"} answers${isReadOnly ? nothing : html` <button @click=${() => this.stopAnswer()}>Stop</button>`}</p>`;
  }

  private renderWelcome({ kernel, kernelTitle, runExample }: Options): TemplateResult {
    const { model, isReadOnly, busy } = this.page;
    const invitation = html`${model ? `Ask ${model}, or write` : "Write"} code below, or begin with one of these. It runs on a real ${kernelTitle || "Jupyter"} kernel, in a sandbox of its own, and nothing it says is lost.`;
    const examples = languageOf(kernel)?.examples ?? [];
    return html`<div class="welcome"><h2>What shall we run?</h2>
      <p>${isReadOnly ? "Nothing has been run here yet." : invitation}</p>
      <div class="chips" ?hidden=${isReadOnly}>${examples.map(({ title, source }) => html`<button ?disabled=${busy !== ""} @click=${() => runExample(source)}>${title}</button>`)}</div></div>`;
  }
}
