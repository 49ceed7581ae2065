// Styles of a cell and its outputs. Host pages change them by properties that begin with --cellkeep-, and by parts.
import { css } from "lit";

const dark = css`
  --ck-scheme: dark; --ck-darkest: 0.72; --ck-lightest: 1;
  --ck-paper: var(--cellkeep-paper, #14171b);
  --ck-raised: var(--cellkeep-raised, #1c2026);
  --ck-ink: var(--cellkeep-ink, #e3e7ec);
  --ck-quiet: var(--cellkeep-quiet, #9aa5b1);
  --ck-line: var(--cellkeep-line, #2c333c);
  --ck-accent: var(--cellkeep-accent, #86aaff);
  --ck-on-accent: var(--cellkeep-on-accent, #10141c);
  --ck-good: #6fcf97; --ck-bad: #ff9b92; --ck-bad-paper: #2a1a1a; --ck-warn: #f0b95a;
  --ck-ansi-0: #828d9a; --ck-ansi-1: #ff8a80; --ck-ansi-2: #6fcf97; --ck-ansi-3: #f0b95a;
  --ck-ansi-4: #86aaff; --ck-ansi-5: #d79bf0; --ck-ansi-6: #62cbd9; --ck-ansi-7: #c3cbd4;
  --ck-ansi-8: #9aa5b1; --ck-ansi-9: #ffa8a0; --ck-ansi-10: #8fdfb0; --ck-ansi-11: #f7cd83;
  --ck-ansi-12: #a8c2ff; --ck-ansi-13: #e4b8f7; --ck-ansi-14: #8adde8; --ck-ansi-15: #ffffff;
`;

/** Colours and fonts, inherited by all elements inside. */
export const tokens = css`
  :host {
    --ck-scheme: light; --ck-darkest: 0; --ck-lightest: 0.5;
    --ck-paper: var(--cellkeep-paper, #ffffff);
    --ck-raised: var(--cellkeep-raised, #f6f7f9);
    --ck-ink: var(--cellkeep-ink, #1c2127);
    --ck-quiet: var(--cellkeep-quiet, #59636f);
    --ck-line: var(--cellkeep-line, #e1e5ea);
    --ck-accent: var(--cellkeep-accent, #2457d6);
    --ck-on-accent: var(--cellkeep-on-accent, #ffffff);
    --ck-good: #1a6e3c;
    --ck-bad: #b3261e;
    --ck-bad-paper: #fdf1f0;
    --ck-warn: #815300;
    --ck-radius: var(--cellkeep-radius, 10px);
    --ck-font: var(--cellkeep-font, system-ui, -apple-system, "Segoe UI", sans-serif);
    --ck-mono: var(--cellkeep-mono, ui-monospace, "SF Mono", "JetBrains Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace);
    --ck-ansi-0: #1c2127; --ck-ansi-1: #b3261e; --ck-ansi-2: #1a6e3c; --ck-ansi-3: #815300;
    --ck-ansi-4: #2457d6; --ck-ansi-5: #8b2fa8; --ck-ansi-6: #0a6775; --ck-ansi-7: #59636f;
    --ck-ansi-8: #59636f; --ck-ansi-9: #c9302c; --ck-ansi-10: #1f7a45; --ck-ansi-11: #8a5b00;
    --ck-ansi-12: #3366e0; --ck-ansi-13: #9d3fbb; --ck-ansi-14: #0d7482; --ck-ansi-15: #3c454f;
    color: var(--ck-ink);
    font: 15px/1.55 var(--ck-font);
  }
  @media (prefers-color-scheme: dark) {
    :host(:not([theme="light"])) {
      ${dark}
    }
  }
  :host([theme="dark"]) { ${dark} }
`;

/** Buttons, links and fields. */
export const base = css`
  * { box-sizing: border-box; }
  button, input, textarea, select { font: inherit; color: inherit; }
  button { cursor: pointer; border: 0; background: none; border-radius: 7px; padding: 4px 9px; min-height: 30px; color: var(--ck-quiet); }
  button:hover { background: var(--ck-raised); color: var(--ck-ink); }
  button:disabled { opacity: 0.5; cursor: default; }
  :focus-visible { outline: 2px solid var(--ck-accent); outline-offset: 2px; }
  .primary { background: var(--ck-accent); color: var(--ck-on-accent); font-weight: 550; padding: 6px 14px; }
  .primary:hover { background: var(--ck-accent); color: var(--ck-on-accent); filter: brightness(1.08); }
  a { color: var(--ck-accent); }
  @media (pointer: coarse) { button { min-height: 40px; min-width: 40px; } }
  @media (prefers-reduced-motion: reduce) { *, *::before { animation: none !important; transition: none !important; } }
`;

export const cellStyle = css`
  :host { display: block; min-width: 0; }
  :host([hidden]) { display: none; }
  article { border: 1px solid var(--ck-line); border-radius: var(--ck-radius); background: var(--ck-paper); overflow: clip; position: relative; }
  article.markdown { border-color: transparent; }
  header { display: flex; align-items: center; gap: 4px; padding: 4px 6px 4px 14px; min-height: 40px; color: var(--ck-quiet); font-size: 13px; flex-wrap: wrap; }
  .count { font-family: var(--ck-mono); font-size: 12px; }
  .space { flex: 1; }
  .actions { display: flex; margin-inline-start: auto; }
  @media (max-width: 480px) { header { gap: 2px; padding-inline-end: 2px; } .actions button { padding-inline: 7px; } }
  .chip { display: inline-flex; align-items: center; gap: 6px; padding: 1px 9px; border-radius: 99px; border: 1px solid var(--ck-line); font-variant-numeric: tabular-nums; }
  .chip::before { content: ""; width: 7px; height: 7px; border-radius: 50%; background: currentColor; }
  .ok { color: var(--ck-good); } .bad { color: var(--ck-bad); } .warn { color: var(--ck-warn); } .busy { color: var(--ck-accent); }
  .busy::before { animation: pulse 1.4s ease-in-out infinite; }
  @keyframes pulse { 50% { opacity: 0.25; } }
  pre { margin: 0; font: 13px/1.55 var(--ck-mono); white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; unicode-bidi: plaintext; }
  .source { display: block; width: 100%; padding: 10px 14px; background: var(--ck-raised); border: 0; border-radius: 0; text-align: start; overflow-x: auto; max-height: 28em; overflow-y: auto; }
  .collapse { min-width: 30px; padding: 0; margin-inline-start: -8px; }
  .collapse::before { content: ""; display: inline-block; width: 7px; height: 7px; border: solid currentColor; border-width: 0 2px 2px 0; transform: translateY(-2px) rotate(45deg); }
  .collapse[aria-expanded="false"]::before { transform: translateX(-1px) rotate(-45deg); }
  .line { font: 12px/1.4 var(--ck-mono); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; min-width: 0; flex: 0 1 auto; max-width: 60%; color: var(--ck-ink); }
  .edit { display: flex; gap: 6px; padding: 6px 10px; background: var(--ck-raised); font-size: 13px; }
  .outputs { padding: 12px 14px; display: grid; gap: 10px; grid-template-columns: minmax(0, 1fr); }
  .outputs:empty { display: none; }
  .stale > cellkeep-output, .earlier > cellkeep-output { opacity: 0.55; }
  .earlier { display: grid; gap: 10px; grid-template-columns: minmax(0, 1fr); border-top: 1px dashed var(--ck-line); padding-top: 8px; }
  .note { color: var(--ck-quiet); font-size: 13px; margin: 0; overflow-wrap: anywhere; }
  .question { display: flex; gap: 8px; align-items: center; flex-wrap: wrap; }
  .question input { flex: 1; min-width: 8em; padding: 6px 10px; border: 1px solid var(--ck-accent); border-radius: 8px; background: var(--ck-paper); font-family: var(--ck-mono); font-size: 13px; }
  .c-word { color: var(--ck-ansi-5); } .c-string { color: var(--ck-ansi-2); } .c-number { color: var(--ck-ansi-6); } .c-comment { color: var(--ck-quiet); font-style: italic; }
  .silent { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
`;

/** Outputs. */
export const outputStyle = css`
  .stderr pre { color: var(--ck-warn); }
  .output { position: relative; min-width: 0; }
  .scroll { overflow-x: auto; overflow-y: hidden; padding-block: 1px; }
  math { font-size: 1.15em; padding-block: 4px; }
  .tools { display: flex; gap: 2px; justify-content: flex-end; font-size: 12px; flex-wrap: wrap; }
  .tools button, .below button { padding: 2px 8px; min-height: 26px; font-size: 12px; }
  .tools select { border: 1px solid var(--ck-line); border-radius: 7px; background: var(--ck-paper); font-size: 12px; max-width: 14em; min-height: 26px; }
  /* With a pointer, tools lie over the output and appear on hover, so nothing moves. */
  @media (hover: hover) { .tools { position: absolute; inset: -4px 0 auto auto; background: var(--ck-paper); border-radius: 8px; box-shadow: 0 0 0 1px var(--ck-line); opacity: 0; transition: opacity 0.12s; } }
  .tools.slight { position: absolute; inset: -4px 0 auto auto; background: var(--ck-paper); border-radius: 8px; box-shadow: 0 0 0 1px var(--ck-line); opacity: 0; transition: opacity 0.12s; }
  .output:hover > .tools, .output:focus-within > .tools { opacity: 1; }
  /* Pictures are drawn for a white background: a light one keeps transparent pictures readable in the dark theme. */
  img:not(.sized) { height: auto; }
  img { max-width: 100%; display: block; background: #fff; border-radius: 4px; cursor: zoom-in; }
  img.on-dark { background: #14171b; }
  img.large { max-width: none; cursor: zoom-out; }
  .wait { min-height: 12rem; background: var(--ck-raised); border-radius: 8px; }
  table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
  th, td { padding: 4px 12px 4px 0; text-align: start; border-bottom: 1px solid var(--ck-line); vertical-align: top; }
  td { text-align: end; } th { font-weight: 600; } thead th { text-align: end; }
  th button { font-weight: 600; padding: 2px 4px; margin-inline: -4px; min-height: 24px; min-width: 0; color: inherit; }
  th button { position: relative; }
  th button::after { content: ""; position: absolute; inset-inline-start: calc(100% - 3px); }
  [aria-sort="ascending"] button::after { content: "↑"; } [aria-sort="descending"] button::after { content: "↓"; }
  .pager { display: flex; align-items: center; gap: 2px; font-size: 12px; color: var(--ck-quiet); padding-top: 4px; position: sticky; inset-inline-start: 0; width: max-content; }
  .pager [aria-disabled="true"] { opacity: 0.5; cursor: default; } .pager span { padding-inline: 6px; font-variant-numeric: tabular-nums; }
  .markdown td, .markdown thead th { text-align: start; }
  .prose { max-width: 46em; overflow-wrap: anywhere; }
  .prose > :first-child { margin-top: 0; } .prose > :last-child { margin-bottom: 0; }
  .prose pre { background: var(--ck-raised); padding: 10px; border-radius: 8px; overflow-x: auto; }
  .prose code { font-family: var(--ck-mono); font-size: 0.88em; }
  .prose blockquote { margin-inline-start: 0; padding-inline-start: 1em; border-inline-start: 3px solid var(--ck-line); color: var(--ck-quiet); }
  .error { background: var(--ck-bad-paper); border-radius: 8px; padding: 10px 12px; }
  .error strong { display: block; color: var(--ck-bad); overflow-wrap: anywhere; white-space: pre-wrap; font-weight: 600; }
  .error summary { cursor: pointer; color: var(--ck-quiet); font-size: 13px; padding: 4px 0; }
  .where { padding-block: 4px; } .frames { display: grid; gap: 8px; } .below { display: flex; gap: 2px; margin: 4px -8px -4px; flex-wrap: wrap; }
  .fold { display: block; width: 100%; font-size: 12px; border: 1px dashed var(--ck-line); margin: 6px 0; }
  .tree { font: 13px/1.6 var(--ck-mono); overflow-wrap: anywhere; }
  .tree details { padding-inline-start: 1em; } .tree summary { cursor: pointer; margin-inline-start: -1em; }
  .tree div { padding-inline-start: 1em; } .key { color: var(--ck-accent); } .value { color: var(--ck-good); }
  .map svg { max-width: 100%; width: 640px; background: var(--ck-raised); border-radius: 8px; }
  .map circle { fill: var(--ck-accent); stroke: var(--ck-paper); } .map path { fill: none; stroke: var(--ck-accent); stroke-width: 2; }
  .map .area { fill: var(--ck-accent); fill-opacity: 0.25; fill-rule: evenodd; stroke-width: 1; }
  .t-far { color: oklch(from var(--far) clamp(var(--ck-darkest), l, var(--ck-lightest)) c h); }
  .t-bold { font-weight: 650; } .t-faint { opacity: 0.7; } .t-italic { font-style: italic; } .t-underline { text-decoration: underline; }
  .t-strike { text-decoration: line-through; } .t-hidden { visibility: hidden; }
`;
