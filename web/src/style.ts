// How a cell looks. Hosts change the properties that begin with --cellkeep-, and the parts.
import { css } from "lit";

const dark = css`
  --ck-scheme: dark;
  --ck-paper: var(--cellkeep-paper, #14171b);
  --ck-raised: var(--cellkeep-raised, #1c2026);
  --ck-ink: var(--cellkeep-ink, #e3e7ec);
  --ck-quiet: var(--cellkeep-quiet, #9aa5b1);
  --ck-line: var(--cellkeep-line, #2c333c);
  --ck-accent: var(--cellkeep-accent, #86aaff);
  --ck-on-accent: var(--cellkeep-on-accent, #10141c);
  --ck-good: #6fcf97; --ck-bad: #ff9b92; --ck-bad-paper: #2a1a1a; --ck-warn: #f0b95a;
  --ck-ansi-0: #6b7683; --ck-ansi-1: #ff8a80; --ck-ansi-2: #6fcf97; --ck-ansi-3: #f0b95a;
  --ck-ansi-4: #86aaff; --ck-ansi-5: #d79bf0; --ck-ansi-6: #62cbd9; --ck-ansi-7: #c3cbd4;
  --ck-ansi-8: #9aa5b1; --ck-ansi-9: #ffa8a0; --ck-ansi-10: #8fdfb0; --ck-ansi-11: #f7cd83;
  --ck-ansi-12: #a8c2ff; --ck-ansi-13: #e4b8f7; --ck-ansi-14: #8adde8; --ck-ansi-15: #ffffff;
`;

/** Colours and fonts; what stands inside inherits them. */
export const tokens = css`
  :host {
    --ck-scheme: light;
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

/** What buttons, links and fields look like. */
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
  .actions { display: flex; }
  .chip { display: inline-flex; align-items: center; gap: 6px; padding: 1px 9px; border-radius: 99px; border: 1px solid var(--ck-line); font-variant-numeric: tabular-nums; }
  .chip::before { content: ""; width: 7px; height: 7px; border-radius: 50%; background: currentColor; }
  .ok { color: var(--ck-good); } .bad { color: var(--ck-bad); } .warn { color: var(--ck-warn); } .busy { color: var(--ck-accent); }
  .busy::before { animation: pulse 1.4s ease-in-out infinite; }
  @keyframes pulse { 50% { opacity: 0.25; } }
  pre { margin: 0; font: 13px/1.55 var(--ck-mono); white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; unicode-bidi: plaintext; }
  .source { display: block; width: 100%; padding: 10px 14px; background: var(--ck-raised); border: 0; border-radius: 0; text-align: start; overflow-x: auto; max-height: 28em; overflow-y: auto; }
  textarea.source { resize: vertical; font: 13px/1.55 var(--ck-mono); outline-offset: -2px; tab-size: 4; }
  .edit { display: flex; gap: 6px; padding: 6px 10px; background: var(--ck-raised); }
  .outputs { padding: 12px 14px; display: grid; gap: 10px; grid-template-columns: minmax(0, 1fr); }
  .outputs:empty { display: none; }
  .stale { opacity: 0.45; }
  .stderr pre { color: var(--ck-warn); }
  .output { position: relative; min-width: 0; }
  .scroll { overflow-x: auto; overflow-y: hidden; padding-block: 1px; }
  math { font-size: 1.15em; padding-block: 4px; }
  .tools { display: flex; gap: 2px; justify-content: flex-end; font-size: 12px; flex-wrap: wrap; }
  .tools button { padding: 2px 8px; min-height: 26px; }
  .tools select { border: 1px solid var(--ck-line); border-radius: 7px; background: var(--ck-paper); font-size: 12px; max-width: 14em; }
  /* Pictures are drawn for paper: what is transparent in them stays readable in the dark. */
  img { max-width: 100%; height: auto; display: block; background: #fff; border-radius: 4px; }
  img.large { max-width: none; }
  .wait { min-height: 12rem; background: var(--ck-raised); border-radius: 8px; }
  table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
  th, td { padding: 4px 12px 4px 0; text-align: start; border-bottom: 1px solid var(--ck-line); vertical-align: top; }
  td { text-align: end; } th { font-weight: 600; }
  .markdown td { text-align: start; }
  .prose { max-width: 46em; overflow-wrap: anywhere; }
  .prose > :first-child { margin-top: 0; } .prose > :last-child { margin-bottom: 0; }
  .prose pre { background: var(--ck-raised); padding: 10px; border-radius: 8px; overflow-x: auto; }
  .prose code { font-family: var(--ck-mono); font-size: 0.88em; }
  .prose blockquote { margin-inline-start: 0; padding-inline-start: 1em; border-inline-start: 3px solid var(--ck-line); color: var(--ck-quiet); }
  .error { background: var(--ck-bad-paper); border-radius: 8px; padding: 10px 12px; }
  .error strong { color: var(--ck-bad); overflow-wrap: anywhere; white-space: pre-wrap; font-weight: 600; }
  .error summary { cursor: pointer; color: var(--ck-quiet); font-size: 13px; padding: 4px 0; }
  .note { color: var(--ck-quiet); font-size: 13px; margin: 0; }
  .fold { display: block; width: 100%; font-size: 12px; border: 1px dashed var(--ck-line); margin: 6px 0; }
  .question { display: flex; gap: 8px; align-items: center; flex-wrap: wrap; }
  .question input { flex: 1; min-width: 8em; padding: 6px 10px; border: 1px solid var(--ck-accent); border-radius: 8px; background: var(--ck-paper); font-family: var(--ck-mono); font-size: 13px; }
  .tree { font: 13px/1.6 var(--ck-mono); overflow-wrap: anywhere; }
  .tree details { padding-inline-start: 1em; } .tree summary { cursor: pointer; margin-inline-start: -1em; }
  .tree div { padding-inline-start: 1em; } .key { color: var(--ck-accent); } .value { color: var(--ck-good); }
  .c-word { color: var(--ck-ansi-5); } .c-string { color: var(--ck-ansi-2); } .c-number { color: var(--ck-ansi-6); } .c-comment { color: var(--ck-quiet); font-style: italic; }
  .t-bold { font-weight: 650; } .t-faint { opacity: 0.7; } .t-italic { font-style: italic; } .t-underline { text-decoration: underline; }
  .t-strike { text-decoration: line-through; } .t-hidden { visibility: hidden; }
  .silent { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
`;
