// Code with quiet colours, by a handful of rules for all our languages. A real grammar would cost more than all else that is loaded
// at first (CodeMirror: 105 kB, highlight.js: 16 kB gzip).

const WORDS: Record<string, string> = {
  python: "and as assert async await break class continue def del elif else except finally for from global if import in is lambda nonlocal not or pass raise return try while with yield match case None True False",
  r: "if else repeat while function for in next break TRUE FALSE NULL NA NaN Inf library return",
  julia: "abstract baremodule begin break catch const continue do else elseif end export finally for function global if import let local macro module mutable quote return struct try using while true false nothing",
  bash: "if then else elif fi case esac for select while until do done in function time local export return set unset echo cd",
  typescript: "abstract as async await break case catch class const continue default delete do else enum export extends false finally for from function if implements import in instanceof interface let new null of return static super switch this throw true try type typeof undefined var void while yield",
};
const NAMES: Record<string, string> = { javascript: "typescript", js: "typescript", ts: "typescript", deno: "typescript", sh: "bash" };
/** Longer than this, colours are not worth their elements. */
const MOST_CHARS = 20_000;

const hash = String.raw`#[^\n]*`;
const slashes = String.raw`\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$)`;
const strings = String.raw`"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:\\[\s\S]|[^"\\\n])*"?|'(?:\\[\s\S]|[^'\\\n])*'?`;
const template = "`(?:\\\\[\\s\\S]|[^`\\\\])*`?";
const rest = String.raw`(\b\d[\w.]*)|([A-Za-z_]\w*)`;
const rules = (comment: string, string: string) => new RegExp(`(${comment})|(${string})|${rest}`, "g");
const HASHED = rules(hash, strings);
const SLASHED = rules(slashes, `${strings}|${template}`);

const sets = new Map(Object.entries(WORDS).map(([language, words]) => [language, new Set(words.split(" "))]));

/** The code as elements. */
export function highlighted(code: string, language: string): DocumentFragment {
  const target = document.createDocumentFragment();
  const name = NAMES[language.toLowerCase()] ?? language.toLowerCase();
  const words = sets.get(name);
  if (!words || code.length > MOST_CHARS) {
    target.append(code);
    return target;
  }
  let at = 0;
  for (const match of code.matchAll(name === "typescript" ? SLASHED : HASHED)) {
    const [text, comment, string, number, word] = match;
    const look = comment ? "comment" : string ? "string" : number ? "number" : word && words.has(word) ? "word" : "";
    if (!look) continue;
    target.append(code.slice(at, match.index));
    const span = document.createElement("span");
    span.className = `c-${look}`;
    span.textContent = text;
    target.append(span);
    at = match.index + text.length;
  }
  target.append(code.slice(at));
  return target;
}
