// The outer end of an output's frame.
import { LitElement, type TemplateResult, css, html, nothing } from "lit";
import { safeLink } from "./ansi.js";

/** Flags of the frame, and nothing that would give it our origin. */
const FLAGS = "allow-scripts allow-downloads allow-pointer-lock";
const MOST_HEIGHT = 20_000;
/** A longer address is not one that a person can read. */
const MOST_LINK = 2000;

export type FrameKind = "html" | "script" | "plotly" | "vega";

/** Shows foreign content in a frame without origin and network, made when it comes into view. */
export class CellkeepFrame extends LitElement {
  static override properties = {
    kind: {},
    content: { attribute: false },
    library: {},
    prelude: { attribute: false },
    mode: {},
    server: {},
    label: {},
    near: { state: true },
    link: { state: true },
  };
  static override styles = css`
    :host { display: block; }
    iframe { display: block; width: 100%; height: 0; border: 0; background: transparent; color-scheme: light; }
    .wait { min-height: 3rem; }
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
  declare near: boolean;
  /** Where a click in the frame would lead, until a person has answered. */
  declare link: string;
  private port?: MessagePort;
  private loads = 0;
  private watcher?: IntersectionObserver;
  private themes = matchMedia("(prefers-color-scheme: dark)");
  private dress = () => this.port?.postMessage({ dark: this.isDark() });

  override connectedCallback(): void {
    super.connectedCallback();
    this.watcher = new IntersectionObserver((seen) => {
      if (!seen.some((one) => one.isIntersecting)) return;
      this.near = true;
      this.watcher?.disconnect();
    }, { rootMargin: "400px" });
    this.watcher.observe(this);
    this.themes.addEventListener("change", this.dress);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.watcher?.disconnect();
    this.themes.removeEventListener("change", this.dress);
    this.port?.close();
    this.loads = 0;
  }

  override updated(changed: Map<string, unknown>): void {
    if (changed.has("content") && changed.get("content") !== undefined && this.loads > 0) {
      this.loads = 0;
      this.link = "";
      const frame = this.renderRoot.querySelector("iframe");
      if (frame) frame.src = this.address;
    }
  }

  private get address(): string {
    return new URL("/-/frame", this.server || new URL(import.meta.url).origin).href;
  }

  private isDark(): boolean {
    return getComputedStyle(this).getPropertyValue("--ck-scheme").trim() === "dark";
  }

  private loaded(event: Event): void {
    const frame = event.target as HTMLIFrameElement;
    this.loads += 1;
    if (this.loads > 1) {
      // It has left our document by itself: what is there now is not ours to show.
      frame.replaceWith(Object.assign(document.createElement("p"), { textContent: "This output tried to load another page." }));
      return;
    }
    const { port1, port2 } = new MessageChannel();
    this.port = port1;
    port1.onmessage = ({ data }) => this.heard(frame, data as Record<string, unknown>);
    const origin = this.server || new URL(import.meta.url).origin;
    const library = this.library ? new URL(`/-/assets/${this.library}`, origin).href : undefined;
    const task = { kind: this.kind, content: this.content, library, mode: this.mode, before: this.prelude, dark: this.isDark() };
    // It has no origin that could be named; whoever is in this frame gets this output and no more.
    frame.contentWindow?.postMessage(task, "*", [port2]);
  }

  private heard(frame: HTMLIFrameElement, message: Record<string, unknown>): void {
    const { height, link, drawn, remote } = message;
    if (typeof height === "number" && height >= 0) frame.style.height = `${Math.min(height, MOST_HEIGHT)}px`;
    if (typeof drawn === "string") this.dataset.drawn = drawn.slice(0, 20);
    if (Array.isArray(remote)) this.dispatchEvent(new CustomEvent("cellkeep-remote", { detail: remote.slice(0, 20).map((host) => String(host).slice(0, 100)) }));
    // Scripts in there can click, too: only a person's click out here, on the whole address, opens it.
    if (typeof link === "string") this.link = safeLink(link).slice(0, MOST_LINK + 1);
  }

  override render() {
    if (!this.near) return html`<div class="wait"></div>`;
    return html`<iframe sandbox=${FLAGS} src=${this.address} title=${this.label || "Output"} referrerpolicy="no-referrer" @load=${this.loaded}></iframe>${this.asked()}`;
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
