// LaTeX formulas as MathML. Loaded on demand.
import temml from "temml";

/** Each formula takes a millisecond or more. Further formulas of a text stay as written. */
export const MAX_FORMULAS = 1000;

interface Formula {
  source: string;
  end: number;
  displayMode: boolean;
}

/** Closing delimiters by opening ones. */
const ENDS: Record<string, string> = { "$$": "$$", "$": "$", "\\[": "\\]", "\\(": "\\)" };

/**
 * The formula that begins here, if it is closed. `missing` holds closing delimiters that do not occur: each is searched only
 * once.
 */
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

/** Environments can be nested, so everything up to the end of the last one is taken together. */
function environmentAt(text: string, at: number): Formula | undefined {
  const last = text.lastIndexOf("\\end{", text.lastIndexOf("}"));
  const close = last > at ? text.indexOf("}", last) : -1;
  return close < 0 ? undefined : { source: text.slice(at, close + 1), end: close + 1, displayMode: true };
}

/** The text with its formulas as MathML. */
export function renderFormulas(text: string): DocumentFragment {
  const target = document.createDocumentFragment();
  const missing = new Set<string>();
  const begins = /\$\$?|\\[[(]|\\begin\{/g;
  let [at, drawn] = [0, 0];
  for (let match = begins.exec(text); match && drawn < MAX_FORMULAS; match = begins.exec(text)) {
    const [begin] = match;
    const formula = begin in ENDS ? formulaAt(text, match.index, begin, missing) : missing.has("\\end") ? undefined : environmentAt(text, match.index);
    if (!formula) {
      if (!(begin in ENDS)) missing.add("\\end");
      begins.lastIndex = match.index + 1;
      continue;
    }
    target.append(text.slice(at, match.index));
    const element = document.createElement(formula.displayMode ? "div" : "span");
    temml.render(formula.source, element, { displayMode: formula.displayMode, trust: false, throwOnError: false, maxExpand: 500, maxSize: [20, 500] });
    target.append(element);
    drawn += 1;
    begins.lastIndex = at = formula.end;
  }
  target.append(text.slice(at));
  return target;
}
