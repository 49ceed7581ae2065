// Syntax colours of code, by a few rules for all languages. A real grammar would cost more than everything else that the
// page loads
// at first (CodeMirror: 105 kB, highlight.js: 16 kB gzip).
import { type Language, type StringSyntax, languageOf } from "./languages.js";

/** Longer code stays without colours: it would need too many elements. */
const MAX_CHARS = 20_000;
const NUMBER_OR_WORD = String.raw`(\b\d[\w.]*)|([A-Za-z_]\w*)`;
const DEFAULT_STRINGS = ['"', "'"].map((quote) => ({ open: quote, close: quote, escapes: true, multiline: false }));

interface Rules {
  pattern: RegExp;
  words: Set<string>;
}

const escaped = (text: string) => text.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");

function stringPattern({ open, close, escapes, multiline }: StringSyntax): string {
  const [start, end] = [escaped(open), escaped(close)];
  if (close.length > 1) return String.raw`${start}[\s\S]*?(?:${end}|$)`;
  const others = `[^${end}${escapes ? "\\\\" : ""}${multiline ? "" : "\\n"}]`;
  return escapes ? String.raw`${start}(?:\\[\s\S]|${others})*${end}?` : `${start}${others}*${end}?`;
}

function rulesOf({ comment, block, strings = DEFAULT_STRINGS, words }: Language): Rules {
  const comments = [String.raw`${escaped(comment)}[^\n]*`];
  if (block) comments.unshift(String.raw`${escaped(block[0])}[\s\S]*?(?:${escaped(block[1])}|$)`);
  const pattern = new RegExp(`(${comments.join("|")})|(${strings.map(stringPattern).join("|")})|${NUMBER_OR_WORD}`, "g");
  return { pattern, words: new Set(words) };
}

const cache = new Map<Language, Rules>();

function cachedRules(language: Language): Rules {
  const rules = cache.get(language) ?? rulesOf(language);
  cache.set(language, rules);
  return rules;
}

export function highlightCode(code: string, name: string): DocumentFragment {
  const target = document.createDocumentFragment();
  const language = languageOf(name);
  if (!language || code.length > MAX_CHARS) {
    target.append(code);
    return target;
  }
  const { pattern, words } = cachedRules(language);
  let at = 0;
  for (const match of code.matchAll(pattern)) {
    const [text, comment, string, number, word] = match;
    const kind = comment ? "comment" : string ? "string" : number ? "number" : word && words.has(word) ? "word" : "";
    if (!kind) continue;
    target.append(code.slice(at, match.index));
    const span = document.createElement("span");
    span.className = `c-${kind}`;
    span.textContent = text;
    target.append(span);
    at = match.index + text.length;
  }
  target.append(code.slice(at));
  return target;
}
