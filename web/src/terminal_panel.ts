// <cellkeep-terminal>: a shell in the sandbox of a session. The terminal is drawn in a frame of its own, whose policy permits what the
// page's does not; this element connects it with the shell.
import { type TemplateResult, css, html, nothing } from "lit";
import { SessionPanel } from "./session_panel.js";
import { type Exit, ShellConnection, type ShellListener, type ShellState, type Size } from "./shell_connection.js";
import { base } from "./style.js";
import { type Colours, type FromTerminal, LEAVE_KEY, type ToTerminal } from "./terminal_messages.js";

/** Characters of one message of the frame. */
const MAX_INPUT = 1 << 20;
const ANSI = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];
const BRIGHT = ANSI.map((name) => `bright${name[0]?.toUpperCase()}${name.slice(1)}`);
const encoder = new TextEncoder();

export class CellkeepTerminal extends SessionPanel {
  static override properties = { ...SessionPanel.properties, theme: {}, state: { state: true }, isCut: { state: true }, isSpoken: { state: true } };
  static override styles = [
    base,
    css`
      :host { display: flex; flex-direction: column; min-height: 0; font-size: 14px; background: var(--ck-paper); }
      .head { display: flex; align-items: center; flex-wrap: wrap; gap: 4px 8px; padding: 2px 12px 6px; color: var(--ck-quiet); font-size: 13px; }
      h2 { font-size: 14px; margin: 0; color: var(--ck-ink); }
      p { margin: 0; padding: 0 12px 6px; color: var(--ck-quiet); font-size: 13px; }
      .space { flex: 1; }
      iframe { flex: 1; min-height: 0; width: 100%; border: 0; border-block-start: 1px solid var(--ck-line); background: var(--ck-paper); }
      iframe:focus { outline: 2px solid var(--ck-accent); outline-offset: -2px; }
      button[aria-pressed="true"] { background: color-mix(in srgb, var(--ck-accent) 12%, transparent); color: var(--ck-ink); }
      kbd { font: 12px var(--ck-mono); border: 1px solid var(--ck-line); border-radius: 4px; padding: 0 4px; }
      @media (pointer: coarse) { .key { display: none; } }
    `,
  ];
  /** `light` or `dark`; absent: as the system. */
  declare theme: string | undefined;
  declare state: ShellState;
  /** Whether output is missing that is not kept any more. */
  declare isCut: boolean;
  /** Whether the terminal describes itself to screen readers, which costs speed. */
  declare isSpoken: boolean;
  private shell?: ShellConnection;
  private port?: MessagePort;
  private size?: Size;
  private systemTheme = matchMedia("(prefers-color-scheme: dark)");
  private sendColours = () => this.tell({ colours: this.colours(), font: getComputedStyle(this).getPropertyValue("--ck-mono") });

  constructor() {
    super();
    Object.assign(this, { state: { name: "connecting" }, isCut: false, isSpoken: false });
  }

  override connectedCallback(): void {
    super.connectedCallback();
    this.systemTheme.addEventListener("change", this.sendColours);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.systemTheme.removeEventListener("change", this.sendColours);
    this.shell?.close();
    this.port?.close();
  }

  override updated(changed: Map<string, unknown>): void {
    if (changed.has("theme")) this.sendColours();
    // Of the first session, the frame is still loading.
    if (changed.has("session") && this.port) this.connect();
  }

  /** Connects the terminal with the shell of the session. */
  private connect(): void {
    this.shell?.close();
    const startsAgain = (isCut: boolean) => {
      this.isCut = isCut;
      this.tell({ reset: true });
    };
    const listener: ShellListener = {
      changed: (state) => (this.state = state),
      began: () => startsAgain(false),
      output: (output, seq, isRepeated) => this.tell({ output, seq, isRepeated }, [output.buffer]),
      lost: () => startsAgain(true),
    };
    this.shell = new ShellConnection(this.access, this.session, listener);
    if (this.size) this.shell.resize(this.size);
    void this.shell.open();
  }

  private tell(message: ToTerminal, transfer: Transferable[] = []): void {
    this.port?.postMessage(message, transfer);
  }

  /** The colours of the page's theme. */
  private colours(): Colours {
    const style = getComputedStyle(this);
    const colour = (name: string) => style.getPropertyValue(`--ck-${name}`).trim();
    const ansi = [...ANSI, ...BRIGHT].map((name, at) => [name, colour(`ansi-${at}`)]);
    const [paper, ink, accent] = [colour("paper"), colour("ink"), colour("accent")];
    return { background: paper, foreground: ink, cursor: ink, cursorAccent: paper, selectionBackground: `${accent}55`, ...Object.fromEntries(ansi) };
  }

  private frameLoaded(event: Event): void {
    const frame = event.target as HTMLIFrameElement;
    this.port?.close();
    const channel = new MessageChannel();
    this.port = channel.port1;
    channel.port1.onmessage = ({ data }) => this.receive(data as FromTerminal);
    // The frame has no origin to address. The page's policy permits no frames but of this server.
    frame.contentWindow?.postMessage("begin", "*", [channel.port2]);
    this.sendColours();
    this.tell({ screenReader: this.isSpoken });
    this.tell({ focus: true });
    this.connect();
  }

  /** The frame draws what hostile code writes, so its messages are checked. */
  private receive({ input, binary, drawn, size, leave }: FromTerminal): void {
    if (typeof input === "string" && input.length <= MAX_INPUT) this.shell?.input(encoder.encode(input));
    if (typeof binary === "string" && binary.length <= MAX_INPUT) this.shell?.input(Uint8Array.from(binary, (character) => character.charCodeAt(0)));
    if (Number.isSafeInteger(drawn)) this.shell?.drawn(drawn as number);
    const fits = (count: unknown) => Number.isInteger(count) && (count as number) >= 1 && (count as number) <= 1000;
    if (size && fits(size.rows) && fits(size.cols)) {
      this.size = { rows: size.rows, cols: size.cols };
      this.shell?.resize(this.size);
    }
    if (leave) this.dispatchEvent(new CustomEvent("cellkeep-leave"));
  }

  private toggleSpoken(): void {
    this.isSpoken = !this.isSpoken;
    this.tell({ screenReader: this.isSpoken });
  }

  override render(): TemplateResult {
    return html`<div class="head"><h2>Terminal</h2><span role="status">${stateText(this.state)}</span>${this.renderAction()}<span class="space"></span>
      <span class="key"><kbd>${LEAVE_KEY}</kbd> leaves it</span><button aria-pressed=${this.isSpoken ? "true" : "false"} @click=${this.toggleSpoken}>Screen reader</button></div>
      ${this.isCut ? html`<p role="status">The output before this is not kept any more.</p>` : nothing}
      <iframe title="Terminal" sandbox="allow-scripts" src="/-/terminal" referrerpolicy="no-referrer" @load=${this.frameLoaded}></iframe>`;
  }

  private renderAction(): TemplateResult | typeof nothing {
    const act = (action: (shell: ShellConnection) => void) => () => {
      if (this.shell) action(this.shell);
      this.tell({ focus: true });
    };
    if (this.state.name === "ended") return html`<button @click=${act((shell) => shell.next())}>Start a new shell</button>`;
    if (this.state.name === "failed") return html`<button @click=${act((shell) => void shell.open())}>Try again</button>`;
    return nothing;
  }
}

function stateText(state: ShellState): string {
  if (state.name === "ended") return `The shell has ended${howEnded(state.exit)}.`;
  if (state.name === "failed") return state.why;
  return { connecting: "connecting", live: "", lost: "connection lost, trying again" }[state.name];
}

function howEnded(exit: Exit): string {
  if (exit.out_of_memory) return ": the sandbox had exceeded its memory";
  if (exit.signal !== null) return ` by signal ${exit.signal}`;
  return exit.exit_code ? ` with exit code ${exit.exit_code}` : "";
}

if (!customElements.get("cellkeep-terminal")) customElements.define("cellkeep-terminal", CellkeepTerminal);
