// JSON as a tree. The elements of a branch are created when it is opened.
import { type TemplateResult, html } from "lit";
import { until } from "lit/directives/until.js";

const MAX_CHILDREN = 200;
const MAX_TEXT = 2_000;

export function jsonTree(value: unknown, metadata?: unknown): TemplateResult {
  const { expanded, root } = (metadata ?? {}) as { expanded?: unknown; root?: unknown };
  return branch(typeof root === "string" && root !== "root" ? root : "", value, expanded === true ? 4 : 1);
}

function branch(key: string, value: unknown, open: number): TemplateResult {
  const label = key ? html`<span class="key">${key}</span>: ` : "";
  if (typeof value !== "object" || value === null) {
    const text = JSON.stringify(value) ?? "null";
    return html`<div>${label}<span class="value">${text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)}…` : text}</span></div>`;
  }
  const entries = Object.entries(value);
  const size = Array.isArray(value) ? `[${entries.length}]` : `{${entries.length}}`;
  const children = () =>
    html`${entries.slice(0, MAX_CHILDREN).map(([name, one]) => branch(name, one, open - 1))}${entries.length > MAX_CHILDREN ? html`<div class="note">${entries.length - MAX_CHILDREN} more</div>` : ""}`;
  if (open > 0) return html`<details open><summary>${label}${size}</summary>${children()}</details>`;
  let opened: (() => void) | undefined;
  const whenOpen = new Promise<void>((resolve) => (opened = resolve)).then(children);
  return html`<details @toggle=${() => opened?.()}><summary>${label}${size}</summary>${until(whenOpen, "")}</details>`;
}
