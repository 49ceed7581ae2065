// The outer end of an output's frame.
import { LitElement, type TemplateResult, css, html, nothing } from "lit";
import { safeLink } from "./ansi.js";
import { FLAGS } from "./nesting.js";
import { type Living, alive } from "./living.js";

const MOST_HEIGHT = 20_000;
/** A longer address is not one that a person can read. */
const MOST_LINK = 2000;

export type FrameKind = "html" | "script" | "plotly" | "vega";

/** Shows foreign content in a frame without an origin, which may ask no network: made when it comes near the view, given up when many others came since. */
export class CellkeepFrame extends LitElement implements Living {
  static override properties = {
    kind: {},
    content: { attribute: false },
    library: {},
    prelude: { attribute: false },
    mode: {},
    server: {},
    label: {},
    theme: {},
    lives: { state: true },
    hasLeft: { state: true },
    link: { state: true },
  };
  static override styles = css`
    :host { display: block; }
    iframe { display: block; width: 100%; height: 0; border: 0; background: transparent; color-scheme: light; }
    .wait { min-height: 3rem; } .wait.plot { min-height: 22rem; }
    p { margin: 0; font-size: 0.85em; opacity: 0.75; }
    .link { opacity: 1; overflow-wrap: anywhere; } .link button { font: inherit; }
  `;
  declare kind: FrameKind;
  declare content: unknown;
  declare library: string;
  /** What other outputs have put down for this one, in order. */
  declare prelude: { html?: string; script?: string }[];
  declare mode: string;
  declare server: string;
  declare label: string;
  /** As its cell is told to look; else as the system does. */
  declare theme: string;
  declare lives: boolean;
  /** Whether what was in it has led it elsewhere. */
  declare hasLeft: boolean;
  /** Where a click in the frame would lead, until a person has answered. */
  declare link: string;
  private port?: MessagePort;
  private height = 0;
  private watcher?: IntersectionObserver;
  private themes = matchMedia("(prefers-color-scheme: dark)");
  private dress = () => this.port?.postMessage({ dark: this.isDark() });

  override connectedCallback(): void {
    super.connectedCallback();
    this.watcher = new IntersectionObserver((seen) => {
      if (seen.at(-1)?.isIntersecting) alive.near(this);
      else alive.far(this);
    }, { rootMargin: "400px" });
    this.watcher.observe(this);
    this.themes.addEventListener("change", this.dress);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.watcher?.disconnect();
    this.themes.removeEventListener("change", this.dress);
    alive.gone(this);
    this.forget();
  }

  /** Its state is lost: the frame of this output, if it comes again, begins anew. */
  forget(): void {
    this.port?.close();
    this.port = undefined;
    this.link = "";
    delete this.dataset.drawn;
  }

  live(): void {
    this.lives = true;
  }

  rest(): void {
    this.forget();
    this.lives = false;
  }

  /** Whether a person is in it. */
  get isUsed(): boolean {
    return this.renderRoot.contains((this.renderRoot as ShadowRoot).activeElement);
  }

  override updated(changed: Map<string, unknown>): void {
    // Where this stood before, it stands again until its document says otherwise: nothing around it moves.
    const place = this.renderRoot.querySelector<HTMLElement>(".place");
    if (place && this.height) this.size(place);
    if (changed.has("theme")) this.dress();
    if (!changed.has("content") || changed.get("content") === undefined) return;
    this.hasLeft = false;
    const frame = this.renderRoot.querySelector("iframe");
    if (!frame || !this.port) return;
    this.forget();
    frame.src = this.address;
  }

  private size(place: HTMLElement): void {
    place.classList.remove("wait");
    place.style.height = `${this.height}px`;
  }

  private get address(): string {
    return new URL("/-/frame", this.server || new URL(import.meta.url).origin).href;
  }

  private isDark(): boolean {
    return getComputedStyle(this).getPropertyValue("--ck-scheme").trim() === "dark";
  }

  private loaded(event: Event): void {
    const frame = event.target as HTMLIFrameElement;
    this.forget();
    const [content, report] = [new MessageChannel(), new MessageChannel()];
    this.port = content.port1;
    content.port1.onmessage = ({ data }) => this.heard(frame, data as Record<string, unknown>);
    report.port1.onmessage = () => {
      this.hasLeft = true;
      report.port1.close();
    };
    const origin = this.server || new URL(import.meta.url).origin;
    const library = this.library ? new URL(`/-/assets/${this.library}`, origin).href : undefined;
    content.port1.postMessage({ kind: this.kind, content: this.content, library, mode: this.mode, before: this.prelude, dark: this.isDark() });
    // It has no origin that could be named; whoever is in this frame gets this output and no more.
    frame.contentWindow?.postMessage("begin", "*", [content.port2, report.port2]);
  }

  private heard(frame: HTMLIFrameElement, message: Record<string, unknown>): void {
    const { height, link, drawn, remote } = message;
    if (typeof height === "number" && height >= 0) {
      this.height = Math.min(height, MOST_HEIGHT);
      this.size(frame);
    }
    if (typeof drawn === "string") this.dataset.drawn = drawn.slice(0, 20);
    if (Array.isArray(remote)) this.dispatchEvent(new CustomEvent("cellkeep-remote", { detail: remote.slice(0, 20).map((host) => String(host).slice(0, 100)) }));
    // Scripts in there can click, too: only a person's click out here, on the whole address, opens it.
    if (typeof link === "string") this.link = safeLink(link).slice(0, MOST_LINK + 1);
  }

  override render() {
    if (this.hasLeft) return html`<p>This output tried to load another page.</p>`;
    // About as high as what will be drawn: many low ones would all be near the view, and come to life at once.
    const look = `place wait ${this.kind === "plotly" || this.kind === "vega" ? "plot" : ""}`;
    if (!this.lives) return html`<div class=${look}></div>`;
    return html`<iframe class=${look} sandbox=${FLAGS} src=${this.address} title=${this.label || "Output"} referrerpolicy="no-referrer" @load=${this.loaded}></iframe>${this.asked()}`;
  }

  private asked(): TemplateResult | typeof nothing {
    const { link } = this;
    if (!link) return nothing;
    const leave = () => (this.link = "");
    if (link.length > MOST_LINK) return html`<p class="link" role="status">This output has a link whose address is too long to open. <button @click=${leave}>Close</button></p>`;
    return html`<p class="link" role="status">This output links to <a href=${link} target="_blank" rel="noopener noreferrer nofollow" @click=${() => setTimeout(leave)}><bdi>${link}</bdi></a> <button @click=${leave}>Close</button></p>`;
  }
}

if (!customElements.get("cellkeep-frame")) customElements.define("cellkeep-frame", CellkeepFrame);
