// The editor of a cell's source. Loaded when a person starts to edit: it is larger than all other code together.
import { type CompletionContext, type CompletionResult, autocompletion, closeBrackets, closeBracketsKeymap, completionKeymap, completionStatus, startCompletion } from "@codemirror/autocomplete";
import { defaultKeymap, history, historyKeymap, indentLess, indentMore } from "@codemirror/commands";
import { javascript } from "@codemirror/lang-javascript";
import { python } from "@codemirror/lang-python";
import { HighlightStyle, StreamLanguage, bracketMatching, indentOnInput, indentUnit, syntaxHighlighting } from "@codemirror/language";
import { julia } from "@codemirror/legacy-modes/mode/julia";
import { r } from "@codemirror/legacy-modes/mode/r";
import { shell } from "@codemirror/legacy-modes/mode/shell";
import { EditorState, type Extension, Prec } from "@codemirror/state";
import { EditorView, keymap } from "@codemirror/view";
import { tags } from "@lezer/highlight";
import { languageOf } from "./languages.js";

/** A `complete_reply` of a kernel; positions in characters. */
export interface CompleteReply {
  matches?: string[];
  cursor_start?: number;
  cursor_end?: number;
}

export interface EditorOptions {
  parent: HTMLElement;
  root: ShadowRoot;
  source: string;
  language: string;
  label: string;
  complete(code: string, cursor: number): Promise<CompleteReply>;
  run(): void;
  leave(): void;
}

/** The modes that a language's row can name (`editor.mode`). */
const MODES: Record<string, () => Extension> = {
  python,
  r: () => StreamLanguage.define(r),
  shell: () => StreamLanguage.define(shell),
  julia: () => StreamLanguage.define(julia),
  typescript: () => javascript({ typescript: true }),
};

function modeOf(language: string): Extension {
  const editor = languageOf(language)?.editor;
  const indent = editor?.indent ? indentUnit.of(" ".repeat(editor.indent)) : [];
  return [MODES[editor?.mode ?? ""]?.() ?? [], indent];
}

// The same colours as outside the editor (highlight.ts).
const colours = HighlightStyle.define([
  { tag: [tags.keyword, tags.bool, tags.null, tags.self], color: "var(--ck-ansi-5)" },
  { tag: [tags.string, tags.special(tags.string), tags.regexp], color: "var(--ck-ansi-2)" },
  { tag: tags.number, color: "var(--ck-ansi-6)" },
  { tag: tags.comment, color: "var(--ck-quiet)", fontStyle: "italic" },
]);

// The same position as outside the editor, to the pixel.
const theme = EditorView.theme({
  "&": { fontSize: "13px", backgroundColor: "var(--ck-raised)", color: "var(--ck-ink)", maxHeight: "28em" },
  "&.cm-focused": { outline: "2px solid var(--ck-accent)", outlineOffset: "-2px" },
  ".cm-scroller": { fontFamily: "var(--ck-mono)", lineHeight: "1.55", overflowY: "auto" },
  ".cm-content": { padding: "10px 14px", caretColor: "var(--ck-ink)" },
  ".cm-line": { padding: "0" },
  ".cm-cursor": { borderLeftColor: "var(--ck-ink)" },
  "&.cm-focused .cm-matchingBracket": { backgroundColor: "transparent", outline: "1px solid var(--ck-quiet)" },
  ".cm-tooltip": { backgroundColor: "var(--ck-paper)", border: "1px solid var(--ck-line)", borderRadius: "8px", overflow: "hidden" },
  ".cm-tooltip-autocomplete > ul > li": { padding: "3px 10px", fontFamily: "var(--ck-mono)" },
  ".cm-tooltip-autocomplete > ul > li[aria-selected]": { backgroundColor: "var(--ck-accent)", color: "var(--ck-on-accent)" },
});

const characters = (text: string) => [...text].length;
const units = (text: string, count: number) => [...text].slice(0, count).join("").length;

function completion(options: EditorOptions) {
  return async (context: CompletionContext): Promise<CompletionResult | null> => {
    const code = context.state.doc.toString();
    const { matches = [], cursor_start = 0, cursor_end } = await options.complete(code, characters(code.slice(0, context.pos)));
    if (matches.length === 0) return null;
    const to = cursor_end === undefined ? context.pos : units(code, cursor_end);
    return { from: units(code, cursor_start), to, options: matches.slice(0, 500).map((label) => ({ label })), validFor: /^[\w.]*$/ };
  };
}

/** Tab completes after a name, and indents elsewhere. */
function tab(view: EditorView): boolean {
  const { from, empty } = view.state.selection.main;
  const line = view.state.doc.lineAt(from);
  if (empty && /[\w.)\]]$/.test(line.text.slice(0, from - line.from))) return startCompletion(view);
  return indentMore(view);
}

/** Creates an editor in its parent element. */
export function openEditor(options: EditorOptions): EditorView {
  const act = (work: () => void) => () => (work(), true);
  const leave = (view: EditorView) => completionStatus(view.state) === null && act(options.leave)();
  const state = EditorState.create({
    doc: options.source,
    selection: { anchor: options.source.length },
    extensions: [
      Prec.highest(keymap.of(["Shift-Enter", "Mod-Enter"].map((key) => ({ key, run: act(options.run) })))),
      history(),
      indentOnInput(),
      bracketMatching(),
      closeBrackets(),
      autocompletion({ override: [completion(options)], activateOnTyping: false, icons: false, interactionDelay: 0 }),
      keymap.of([...closeBracketsKeymap, ...completionKeymap, { key: "Tab", run: tab, shift: indentLess }, { key: "Escape", run: leave }, ...defaultKeymap, ...historyKeymap]),
      syntaxHighlighting(colours),
      modeOf(options.language),
      theme,
      EditorView.lineWrapping,
      EditorView.contentAttributes.of({ "aria-label": options.label, autocapitalize: "off", spellcheck: "false" }),
    ],
  });
  return new EditorView({ state, parent: options.parent, root: options.root });
}
