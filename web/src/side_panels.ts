// The panels beside the conversation: files, plots, variables and shares. Their code is loaded when one is opened.
import { type TemplateResult, html } from "lit";
import type { CellkeepPanel } from "./files_panel.js";
import type { PageContext } from "./page_context.js";

type Panel = "files" | "artifacts" | "variables" | "terminal" | "shares";
const TITLES: Record<Panel, string> = { files: "Files", artifacts: "Plots", variables: "Variables", terminal: "Terminal", shares: "Share" };

const LOADERS: Record<Panel, () => Promise<unknown>> = {
  files: () => import("./files_panel.js"),
  artifacts: () => import("./files_panel.js"),
  variables: () => import("./variables_panel.js"),
  terminal: () => import("./terminal_panel.js"),
  shares: () => import("./shares_panel.js"),
};

/** Holds the open panel of this tab, which a reload opens again. */
const PANEL_KEY = "cellkeep-panel";

function isPanel(name: string | null): name is Panel {
  return name !== null && Object.hasOwn(TITLES, name);
}

export class SidePanels {
  /** The open panel; empty if none is. */
  open: "" | Panel = "";

  constructor(private page: PageContext) {
    const kept = sessionStorage.getItem(PANEL_KEY);
    if (isPanel(kept)) void this.toggle(kept);
  }

  private setOpen(panel: "" | Panel): void {
    this.open = panel;
    sessionStorage.setItem(PANEL_KEY, panel);
    this.page.requestUpdate();
  }

  /** Opens a panel, or closes it if it is open. */
  private async toggle(panel: Panel): Promise<void> {
    await LOADERS[panel]();
    this.setOpen(this.open === panel ? "" : panel);
    await this.page.updateComplete;
  }

  /** Uploads files into the folder that the files panel shows, and opens it. */
  async upload(files: File[]): Promise<void> {
    if (this.open !== "files") await this.toggle("files");
    await this.page.renderRoot.querySelector<CellkeepPanel>("cellkeep-panel")?.upload(files);
  }

  /** Closes the panel if the focus is in it, and moves the focus to its button. */
  closeByKey(target: Node): void {
    const { renderRoot } = this.page;
    if (!renderRoot.querySelector(".panel")?.contains(target)) return;
    const title = this.open && TITLES[this.open];
    this.setOpen("");
    [...renderRoot.querySelectorAll<HTMLButtonElement>(".tools button")].find((button) => button.textContent === title)?.focus();
  }

  /** Moves the focus out of the terminal, which takes all keys but one. */
  private leave = () => this.page.renderRoot.querySelector<HTMLButtonElement>(".panel > button")?.focus();

  renderButton(panel: Panel): TemplateResult {
    return html`<button aria-pressed=${this.open === panel ? "true" : "false"} @click=${() => this.toggle(panel)}>${TITLES[panel]}</button>`;
  }

  renderButtons(): TemplateResult[] {
    return (["files", "artifacts", "variables", "terminal", "shares"] as const).map((panel) => this.renderButton(panel));
  }

  /** `finishedRuns`: how many executions have finished; the variables are loaded again when it changes. */
  render(panel: Panel, isIdle: boolean, finishedRuns: number): TemplateResult {
    return html`<section class="panel ${panel}" aria-label=${TITLES[panel]}><button @click=${() => this.setOpen("")}>✕ Close</button>${this.renderContent(panel, isIdle, finishedRuns)}</section>`;
  }

  private renderContent(panel: Panel, isIdle: boolean, finishedRuns: number): TemplateResult {
    const { access, selected, theme } = this.page;
    if (panel === "variables") return html`<cellkeep-variables .access=${access} .session=${selected} .idle=${isIdle} .runs=${finishedRuns}></cellkeep-variables>`;
    if (panel === "terminal") return html`<cellkeep-terminal .access=${access} .session=${selected} .theme=${theme} @cellkeep-leave=${this.leave}></cellkeep-terminal>`;
    if (panel === "shares") return html`<cellkeep-shares .access=${access} .session=${selected}></cellkeep-shares>`;
    return html`<cellkeep-panel .access=${access} .session=${selected} .show=${panel}></cellkeep-panel>`;
  }
}
