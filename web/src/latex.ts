// Formulas as MathML. Loaded when it is needed.
import temml from "temml";

/** The text with its formulas; what is no formula stays text. */
export function formulas(text: string): DocumentFragment {
  const target = document.createDocumentFragment();
  let at = 0;
  for (const match of text.matchAll(/\$\$([\s\S]+?)\$\$|\$([^$\n]+?)\$|\\\[([\s\S]+?)\\\]|\\\(([\s\S]+?)\\\)|\\begin\{[\s\S]+\\end\{[^}]+\}/g)) {
    target.append(text.slice(at, match.index));
    const displayMode = match[1] !== undefined || match[3] !== undefined || match[0].startsWith("\\begin");
    const place = document.createElement(displayMode ? "div" : "span");
    const source = match.slice(1).find((one) => one !== undefined) ?? match[0];
    temml.render(source, place, { displayMode, trust: false, throwOnError: false, maxExpand: 500, maxSize: [20, 500] });
    target.append(place);
    at = match.index + match[0].length;
  }
  target.append(text.slice(at));
  return target;
}
