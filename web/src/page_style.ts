// Styles of the page around its cells.
import { css } from "lit";

export const pageStyle = css`
  :host { background: var(--ck-paper); overflow: hidden; position: relative; }
  [hidden] { display: none !important; }
  .frame { display: grid; grid-template-columns: 248px minmax(0, 1fr); height: 100%; }
  .frame.with-panel { grid-template-columns: 248px minmax(0, 1fr) 290px; }
  aside { background: var(--ck-raised); border-inline-end: 1px solid var(--ck-line); display: flex; flex-direction: column; min-height: 0; }
  .brand { font-size: 16px; letter-spacing: -0.01em; margin: 0; padding: 16px 18px 10px; font-weight: 650; }
  .new { display: flex; gap: 6px; padding: 4px 14px 14px; }
  select, .field { border: 1px solid var(--ck-line); border-radius: 8px; background: var(--ck-paper); padding: 6px 8px; min-width: 0; }
  .new select { flex: 1; }
  nav { overflow-y: auto; flex: 1; padding: 0 8px; }
  nav ul { list-style: none; margin: 0; padding: 0; }
  nav li { display: flex; align-items: center; border-radius: 8px; }
  nav li:hover, nav li.here { background: color-mix(in srgb, var(--ck-accent) 10%, transparent); }
  nav .open { flex: 1; min-width: 0; text-align: start; padding: 7px 10px; color: var(--ck-ink); background: none; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
  nav small { color: var(--ck-quiet); display: block; font-size: 12px; }
  .panel { border-inline-start: 1px solid var(--ck-line); overflow-y: auto; }
  .panel > button { margin: 8px 8px 0; }
  .frame.with-terminal { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); } .frame.with-terminal > aside { display: none; }
  .panel.terminal { display: flex; flex-direction: column; overflow: hidden; } .panel.terminal > button { align-self: start; } .panel.terminal > cellkeep-terminal { flex: 1; min-height: 0; }
  main { display: grid; grid-template-columns: minmax(0, 1fr); grid-template-rows: auto minmax(0, 1fr) auto; min-width: 0; min-height: 0; }
  .bar { display: flex; align-items: center; gap: 4px; padding: 7px 16px; border-bottom: 1px solid var(--ck-line); min-height: 50px; font-size: 14px; }
  /* The name of the session shrinks first. */
  .bar h1 { font-size: inherit; margin: 0; min-width: 5em; flex: 0 1000 auto; display: flex; } .bar h1 button { color: inherit; padding: 2px 6px; margin-inline-start: -6px; min-width: 0; }
  .bar strong { font-weight: 600; margin-inline-end: 6px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; display: block; }
  .bar .space { flex: 1; }
  .usage { color: var(--ck-quiet); font-size: 12px; white-space: nowrap; font-variant-numeric: tabular-nums; margin-inline: 8px; }
  .state { display: inline-flex; gap: 6px; align-items: center; font-size: 13px; color: var(--ck-quiet); white-space: nowrap; }
  .state::before { content: ""; width: 8px; height: 8px; border-radius: 50%; background: var(--ck-quiet); }
  .state[data-state="idle"]::before { background: var(--ck-good); }
  .state[data-state="busy"]::before, .state[data-state="starting"]::before { background: var(--ck-accent); }
  .state[data-state="lost"]::before, .state[data-state="restarting"]::before, .state[data-state="interrupting"]::before { background: var(--ck-warn); }
  .state[data-state="gone"]::before { background: var(--ck-bad); }
  .cells { overflow-y: auto; overflow-x: hidden; padding: 20px 16px 28px; position: relative; scrollbar-gutter: stable both-edges; scrollbar-width: thin; }
  .column { max-width: 860px; margin: 0 auto; display: grid; gap: 14px; grid-template-columns: minmax(0, 1fr); }
  .composer { padding: 10px 16px 16px; background: var(--ck-paper); }
  .box { max-width: 860px; margin: 0 auto; border: 1px solid var(--ck-line); border-radius: 14px; background: var(--ck-paper); box-shadow: 0 2px 14px #0000000d; }
  .box:focus-within { border-color: var(--ck-accent); }
  .box textarea { display: block; width: 100%; border: 0; background: none; resize: none; padding: 12px 16px 4px; font: 14px/1.55 var(--ck-mono); outline: 0; min-height: 58px; max-height: 40vh; tab-size: 4; field-sizing: content; }
  .box .row { display: flex; gap: 6px; align-items: center; padding: 4px 8px 8px 10px; }
  .row .space { flex: 1; }
  .box small { color: var(--ck-quiet); font-size: 12px; }
  .kinds { display: flex; background: var(--ck-raised); border-radius: 9px; padding: 2px; min-width: 0; }
  .kinds label { position: relative; cursor: pointer; font-size: 13px; min-width: 0; flex: none; } .kinds label:first-child { flex: 0 1 auto; }
  .kinds input { position: absolute; inset: 0; opacity: 0; cursor: pointer; margin: 0; }
  .kinds span { display: block; padding: 3px 11px; border-radius: 7px; color: var(--ck-quiet); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; max-width: 14em; }
  .kinds input:checked + span { background: var(--ck-paper); color: var(--ck-ink); box-shadow: 0 1px 3px #0000001f; }
  .kinds input:focus-visible + span { outline: 2px solid var(--ck-accent); }
  .box textarea.ask, .box textarea.markdown { font: 15px/1.55 var(--ck-font); }
  .tools { display: flex; align-items: center; gap: 2px; min-width: 0; overflow-x: auto; scrollbar-width: none; padding: 3px; margin: -3px; } .tools > * { white-space: nowrap; flex: none; }
  .tools button[aria-pressed="true"] { background: color-mix(in srgb, var(--ck-accent) 12%, transparent); color: var(--ck-ink); }
  .reader { color: var(--ck-quiet); font-size: 13px; padding: 2px 10px; border: 1px solid var(--ck-line); border-radius: 99px; margin-inline-end: 6px; white-space: nowrap; }
  .text { position: relative; }
  /* The buttons of text cells appear on hover. */
  .text cellkeep-cell::part(cell) { overflow: visible; }
  .text cellkeep-cell::part(bar) { position: absolute; inset-block-start: -14px; inset-inline-end: 4px; z-index: 1; min-height: 0; padding: 0; background: var(--ck-paper); border-radius: 8px; box-shadow: 0 1px 5px #0000002e; opacity: 0; }
  .text:hover cellkeep-cell::part(bar), .text:focus-within cellkeep-cell::part(bar) { opacity: 1; }
  .said { justify-self: end; max-width: 85%; }
  .said cellkeep-cell { background: var(--ck-raised); border-radius: 16px 16px 4px 16px; }
  .said cellkeep-cell::part(cell) { background: none; }
  .answers { margin: 0; color: var(--ck-quiet); font-size: 14px; display: flex; align-items: center; gap: 10px; padding-inline-start: 14px; }
  .dots { width: 9px; height: 9px; border-radius: 50%; background: var(--ck-accent); animation: breathe 1.2s ease-in-out infinite; }
  @keyframes breathe { 50% { opacity: 0.25; transform: scale(0.8); } }
  .chips { display: flex; gap: 8px; flex-wrap: wrap; justify-content: center; }
  .chips button { border: 1px solid var(--ck-line); border-radius: 99px; padding: 7px 16px; color: var(--ck-ink); }
  .welcome { text-align: center; padding: 12vh 0 20px; }
  .welcome h2 { font-size: 24px; letter-spacing: -0.02em; margin: 0 0 6px; font-weight: 620; }
  .welcome p { color: var(--ck-quiet); margin: 0 auto 22px; max-width: 34em; }
  .notice { margin: 0 auto; max-width: 860px; width: 100%; color: var(--ck-warn); font-size: 13px; }
  .text + .notice { padding-inline: 15px; }
  .notice.bad { color: var(--ck-bad); }
  .enter { max-width: 26em; margin: 16vh auto; padding: 0 20px; display: grid; gap: 12px; }
  .menu, .shade { display: none; }
  .file { position: absolute; opacity: 0; width: 1px; height: 1px; }
  .file:focus-visible + label { outline: 2px solid var(--ck-accent); }
  label.button { cursor: pointer; border-radius: 7px; padding: 4px 9px; color: var(--ck-quiet); }
  label.button:hover { background: var(--ck-raised); color: var(--ck-ink); }
  .drag .cells { outline: 2px dashed var(--ck-accent); outline-offset: -10px; }
  @media (max-width: 1100px) { .frame.with-panel:not(.with-terminal) { grid-template-columns: minmax(0, 1fr) 300px; } .frame.with-panel > aside { display: none; } }
  .with-panel .usage { display: none; }
  @media (max-width: 760px) {
    .usage { display: none; }
    .frame, .frame.with-panel:not(.with-terminal), .frame.with-terminal { grid-template-columns: minmax(0, 1fr); }
    aside, .panel { position: fixed; inset: 0 56px 0 0; z-index: 3; display: none; box-shadow: 0 0 0 100vmax #0005; }
    .panel { inset: 0 0 0 56px; background: var(--ck-paper); }
    .side aside { display: flex; } .with-panel .panel { display: block; } .with-panel .panel.terminal { display: flex; inset: 0; }
    .shade { display: block; position: fixed; inset: 0; background: #0005; z-index: 2; border-radius: 0; }
    .menu { display: inline-flex; align-items: center; }
    .box small { display: none; } .kinds span { padding: 3px 8px; }
    .bar { padding: 5px 8px; gap: 0; flex-wrap: wrap; } .bar h1 { flex: 0 1 auto; max-width: calc(100% - 9.5em); } .tools { flex-basis: 100%; } .cells { padding: 12px 10px; } .composer { padding: 6px 10px 10px; }
    .welcome { padding-top: 6vh; }
  }
`;
