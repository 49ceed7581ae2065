// Formulas as MathML. Loaded when it is needed.
import temml from "temml";

/** Each takes a millisecond or more: of a text with more of them, the others stay as they are written. */
export const MOST_FORMULAS = 1000;

interface Formula {
  source: string;
  end: number;
  displayMode: boolean;
}

/** What ends a formula, by what begins it. */
const ENDS: Record<string, string> = { "$$": "$$", "$": "$", "\\[": "\\]", "\\(": "\\)" };

/** The formula that begins here, if it ends. An end that is nowhere is looked for once: `missing` holds those. */
function formulaAt(text: string, at: number, begin: string, missing: Set<string>): Formula | undefined {
  const inner = at + begin.length;
  const close = ENDS[begin] as string;
  if (missing.has(close)) return undefined;
  const end = text.indexOf(close, inner + 1);
  if (end < 0) missing.add(close);
  const source = end < 0 ? "" : text.slice(inner, end);
  if (!source || (begin === "$" && /[$\n]/.test(source))) return undefined;
  return { source, end: end + close.length, displayMode: begin === "$$" || begin === "\\[" };
}

/** Environments may hold others: they are taken together, up to where the last ends. */
function environmentAt(text: string, at: number): Formula | undefined {
  const last = text.lastIndexOf("\\end{", text.lastIndexOf("}"));
  const close = last > at ? text.indexOf("}", last) : -1;
  return close < 0 ? undefined : { source: text.slice(at, close + 1), end: close + 1, displayMode: true };
}

/** The text with its formulas; what is no formula stays text. */
export function formulas(text: string): DocumentFragment {
  const target = document.createDocumentFragment();
  const missing = new Set<string>();
  const begins = /\$\$?|\\[[(]|\\begin\{/g;
  let [at, drawn] = [0, 0];
  for (let match = begins.exec(text); match && drawn < MOST_FORMULAS; match = begins.exec(text)) {
    const [begin] = match;
    const found = begin in ENDS ? formulaAt(text, match.index, begin, missing) : missing.has("\\end") ? undefined : environmentAt(text, match.index);
    if (!found) {
      if (!(begin in ENDS)) missing.add("\\end");
      begins.lastIndex = match.index + 1;
      continue;
    }
    target.append(text.slice(at, match.index));
    const place = document.createElement(found.displayMode ? "div" : "span");
    temml.render(found.source, place, { displayMode: found.displayMode, trust: false, throwOnError: false, maxExpand: 500, maxSize: [20, 500] });
    target.append(place);
    drawn += 1;
    begins.lastIndex = at = found.end;
  }
  target.append(text.slice(at));
  return target;
}
