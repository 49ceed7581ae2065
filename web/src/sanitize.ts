// HTML and markdown of others, as elements that cannot act. Loaded when it is needed.
import DOMPurify from "dompurify";
import { Marked } from "marked";
import { safeLink } from "./ansi.js";
import { enhance, long } from "./table.js";

const TAGS = [
  "a", "abbr", "b", "blockquote", "br", "caption", "code", "col", "colgroup", "dd", "del", "details", "div", "dl", "dt", "em", "figcaption",
  "figure", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "ins", "kbd", "li", "mark", "ol", "p", "pre", "q", "s", "samp", "small", "span",
  "strong", "sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "time", "tr", "tt", "u", "ul", "var", "wbr", "center", "font",
];
const ATTRIBUTES = ["align", "alt", "class", "cols", "colspan", "dir", "height", "href", "lang", "open", "reversed", "rowspan", "scope", "span", "src", "start", "title", "valign", "width"];

/** Formulas are found before markdown would take their underscores for its own; they are drawn when all is sanitised. */
const FORMULA = "cellkeep-formula";
const escaped = (text: string) => text.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);
const formula = (level: "block" | "inline", pattern: RegExp) => ({
  name: `${level}-formula`,
  level,
  // A paragraph ends where a block may start: only at the beginning of a line.
  start(text: string) {
    const at = level === "inline" ? text.indexOf("$") : text.search(/^\$\$/m);
    return at < 0 ? undefined : at;
  },
  tokenizer(text: string) {
    const raw = pattern.exec(text)?.[0];
    return raw ? { type: `${level}-formula`, raw } : undefined;
  },
  renderer: ({ raw }: { raw: string }) => `<code class="${FORMULA}">${escaped(raw.trim())}</code>${level === "block" ? "\n" : ""}`,
});
const reader = new Marked({ gfm: true, async: false, extensions: [formula("block", /^\$\$[\s\S]+?\$\$(?:\n|$)/), formula("inline", /^\$\$[^$]+\$\$|^\$(?!\s)(?:\\.|[^$\\\n])+?(?<!\s)\$(?!\d)/)] });

const purify = DOMPurify(window);
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node instanceof HTMLAnchorElement) {
    const href = safeLink(node.getAttribute("href") ?? "");
    node.removeAttribute("href");
    if (href) Object.assign(node, { href, target: "_blank", rel: "noopener noreferrer nofollow" });
  } else if (node instanceof HTMLImageElement && !/^data:image\/(png|jpeg|gif|webp|avif|bmp);base64,/.test(node.getAttribute("src") ?? "")) {
    // Loading it would tell somebody that it was looked at.
    const source = node.getAttribute("src") ?? "";
    node.replaceWith(document.createTextNode(`[picture not loaded: ${node.alt || source.slice(0, 200)}]`));
  }
});

/** Pandas writes the same three rules before each table; ours serve as well. */
const withoutScopedStyles = (text: string) => text.replace(/<style scoped>[^<]*<\/style>/gi, "");
/** Styles and handlers are forbidden by our own policy, which would complain of each. Whatever this misses is removed all the same. */
const withoutInline = (text: string) =>
  text.replace(/<[a-z][^<>]*>/gi, (tag) => tag.replace(/\s(?:style|on[a-z]+)\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'>]+)/gi, ""));

function clean(text: string): DocumentFragment {
  const fragment = purify.sanitize(withoutInline(text), {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  // The corner of a data frame heads nothing, and screen readers stumble over it.
  for (const head of fragment.querySelectorAll("th")) if (!head.textContent?.trim()) head.replaceWith(document.createElement("td"));
  return fragment;
}

/** Longer HTML is read piece by piece, if it is a table. */
const LONG = 200_000;

/** Foreign HTML for our own page, or nothing if it holds more than text, tables and pictures: then it needs a frame. */
export function plainHtml(text: string): DocumentFragment | undefined {
  const unscoped = withoutScopedStyles(text);
  const table = unscoped.length > LONG ? long(unscoped) : undefined;
  const fragment = simple(table?.around ?? unscoped);
  if (fragment) enhance(fragment, clean, table?.rows);
  return fragment;
}

function simple(text: string): DocumentFragment | undefined {
  const names = [...text.matchAll(/<([a-z][^\s/>]*)/gi)].map((match) => (match[1] as string).toLowerCase());
  if (names.some((name) => !TAGS.includes(name) && !["html", "head", "body", "meta", "title"].includes(name))) return undefined;
  if (/<[^>]*\son[a-z]+\s*=/i.test(text) || /<[^>]*style\s*=[^>]*(position\s*:|background|color\s*:)/i.test(text)) return undefined;
  return clean(text);
}

/** Markdown: first rendered, then sanitised; formulas last, which makes elements of text only. */
export async function markdown(text: string): Promise<DocumentFragment> {
  const fragment = clean(reader.parse(text, { async: false }));
  const found = [...fragment.querySelectorAll(`.${FORMULA}`)];
  if (found.length > 0) {
    const { formulas } = await import("./latex.js");
    for (const one of found) one.replaceWith(formulas(one.textContent ?? ""));
  }
  enhance(fragment, clean);
  return fragment;
}
