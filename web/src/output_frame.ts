// <cellkeep-frame>: the frame of an output with active content, as its page sees it.
import { LitElement, type TemplateResult, css, html, nothing } from "lit";
import { safeLink } from "./ansi.js";
import { SANDBOX_FLAGS } from "./frame_sandbox.js";
import { type PooledFrame, framePool } from "./frame_pool.js";

/** Pixels. */
const MAX_HEIGHT = 20_000;
/** Longer addresses are not offered: a person could not read them. */
const MAX_LINK_CHARS = 2000;

export type FrameKind = "html" | "script" | "plotly" | "vega";

/**
 * Shows foreign content in a frame without origin and network. It is loaded near the view, and unloaded when the pool is
 * full.
 */
export class CellkeepFrame extends LitElement implements PooledFrame {
  static override properties = {
    kind: {},
    content: { attribute: false },
    library: {},
    prelude: { attribute: false },
    mode: {},
    server: {},
    label: {},
    theme: {},
    isLoaded: { state: true },
    hasNavigated: { state: true },
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
  /** What earlier outputs provide for this one, in order. */
  declare prelude: { html?: string; script?: string }[];
  declare mode: string;
  declare server: string;
  declare label: string;
  /** The theme of its cell: `light` or `dark`; empty: as the system. */
  declare theme: string;
  declare isLoaded: boolean;
  /** Whether its content tried to load another document in its place. */
  declare hasNavigated: boolean;
  /** The address of a link that was clicked in the frame, until the person opens or closes it. */
  declare link: string;
  private port?: MessagePort;
  private height = 0;
  private watcher?: IntersectionObserver;
  private systemTheme = matchMedia("(prefers-color-scheme: dark)");
  private sendTheme = () => this.port?.postMessage({ dark: this.isDark() });

  override connectedCallback(): void {
    super.connectedCallback();
    this.watcher = new IntersectionObserver((entries) => {
      if (entries.at(-1)?.isIntersecting) framePool.entered(this);
      else framePool.left(this);
    }, { rootMargin: "400px" });
    this.watcher.observe(this);
    this.systemTheme.addEventListener("change", this.sendTheme);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.watcher?.disconnect();
    this.systemTheme.removeEventListener("change", this.sendTheme);
    framePool.remove(this);
    this.reset();
  }

  /** Drops the connection to the frame's document, whose state is lost. */
  private reset(): void {
    this.port?.close();
    this.port = undefined;
    this.link = "";
    delete this.dataset.drawn;
  }

  load(): void {
    this.isLoaded = true;
  }

  unload(): void {
    this.reset();
    this.isLoaded = false;
  }

  get hasFocus(): boolean {
    return this.renderRoot.contains((this.renderRoot as ShadowRoot).activeElement);
  }

  override updated(changed: Map<string, unknown>): void {
    // It keeps its last height until its document reports one, so that nothing around it moves.
    const place = this.renderRoot.querySelector<HTMLElement>(".place");
    if (place && this.height) this.setHeight(place);
    if (changed.has("theme")) this.sendTheme();
    if (!changed.has("content") || changed.get("content") === undefined) return;
    this.hasNavigated = false;
    const frame = this.renderRoot.querySelector("iframe");
    if (!frame || !this.port) return;
    this.reset();
    frame.src = this.address;
  }

  private setHeight(place: HTMLElement): void {
    place.classList.remove("wait");
    place.style.height = `${this.height}px`;
  }

  private get address(): string {
    return new URL("/-/frame", this.server || new URL(import.meta.url).origin).href;
  }

  private isDark(): boolean {
    return getComputedStyle(this).getPropertyValue("--ck-scheme").trim() === "dark";
  }

  private frameLoaded(event: Event): void {
    const frame = event.target as HTMLIFrameElement;
    this.reset();
    const [content, report] = [new MessageChannel(), new MessageChannel()];
    this.port = content.port1;
    content.port1.onmessage = ({ data }) => this.receive(frame, data as Record<string, unknown>);
    report.port1.onmessage = () => {
      this.hasNavigated = true;
      report.port1.close();
    };
    const origin = this.server || new URL(import.meta.url).origin;
    const library = this.library ? new URL(`/-/assets/${this.library}`, origin).href : undefined;
    content.port1.postMessage({ kind: this.kind, content: this.content, library, mode: this.mode, before: this.prelude, dark: this.isDark() });
    // The frame has no origin to address. Whatever document is in it gets this output and nothing else.
    frame.contentWindow?.postMessage("begin", "*", [content.port2, report.port2]);
  }

  private receive(frame: HTMLIFrameElement, message: Record<string, unknown>): void {
    const { height, link, drawn, remote } = message;
    if (typeof height === "number" && height >= 0) {
      this.height = Math.min(height, MAX_HEIGHT);
      this.setHeight(frame);
    }
    if (typeof drawn === "string") this.dataset.drawn = drawn.slice(0, 20);
    if (Array.isArray(remote)) this.dispatchEvent(new CustomEvent("cellkeep-remote", { detail: remote.slice(0, 20).map((host) => String(host).slice(0, 100)) }));
    // Scripts in the frame can click, too. Only a click of the person out here, on the whole address, opens the link.
    if (typeof link === "string") this.link = safeLink(link).slice(0, MAX_LINK_CHARS + 1);
  }

  override render() {
    if (this.hasNavigated) return html`<p>This output tried to load another page.</p>`;
    // The placeholder is about as high as a plot: many low ones would all be near the view and load at once.
    const classes = `place wait ${this.kind === "plotly" || this.kind === "vega" ? "plot" : ""}`;
    if (!this.isLoaded) return html`<div class=${classes}></div>`;
    return html`<iframe class=${classes} sandbox=${SANDBOX_FLAGS} src=${this.address} title=${this.label || "Output"} referrerpolicy="no-referrer" @load=${this.frameLoaded}></iframe>${this.renderLink()}`;
  }

  private renderLink(): TemplateResult | typeof nothing {
    const { link } = this;
    if (!link) return nothing;
    const close = () => (this.link = "");
    if (link.length > MAX_LINK_CHARS) return html`<p class="link" role="status">This output has a link whose address is too long to open. <button @click=${close}>Close</button></p>`;
    return html`<p class="link" role="status">This output links to <a href=${link} target="_blank" rel="noopener noreferrer nofollow" @click=${() => setTimeout(close)}><bdi>${link}</bdi></a> <button @click=${close}>Close</button></p>`;
  }
}

if (!customElements.get("cellkeep-frame")) customElements.define("cellkeep-frame", CellkeepFrame);
