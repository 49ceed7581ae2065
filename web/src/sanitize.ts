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
const MOST_FORMULA = 4000;
const escaped = (text: string) => text.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);
const formula = (level: "block" | "inline", start: (text: string) => number, find: (text: string) => string | undefined) => ({
  name: `${level}-formula`,
  level,
  start(text: string) {
    const at = start(text);
    return at < 0 ? undefined : at;
  },
  tokenizer(text: string) {
    const raw = find(text);
    return raw ? { type: `${level}-formula`, raw } : undefined;
  },
  renderer: ({ raw }: { raw: string }) => `<code class="${FORMULA}">${escaped(raw.trim())}</code>${level === "block" ? "\n" : ""}`,
});

/** A block of formulas, if it ends with a line. It has a longest length: many beginnings would each look for an end up to the last. */
function blockFormula(text: string): string | undefined {
  if (!text.startsWith("$$")) return undefined;
  const near = text.slice(0, MOST_FORMULA);
  const end = near.indexOf("$$\n", 3);
  if (end > 0) return near.slice(0, end + 3);
  return text.length <= MOST_FORMULA && text.length > 4 && text.endsWith("$$") ? text : undefined;
}

/** Where one ends a paragraph: it begins a line of it. Every cut costs what is behind it, so none is made where no formula is. */
function blockStart(text: string): number {
  const paragraph = text.slice(0, text.indexOf("\n\n") + 1 || undefined);
  for (let at = paragraph.indexOf("\n$$"); at >= 0; at = paragraph.indexOf("\n$$", at + 1)) {
    if (blockFormula(text.slice(at + 1, at + 1 + MOST_FORMULA))) return at + 1;
  }
  return -1;
}

const INLINE = /^\$\$[^$]{1,4000}\$\$|^\$(?!\s)(?:\\.|[^$\\\n]){1,1000}?(?<!\s)\$(?!\d)/;
const block = formula("block", blockStart, blockFormula);
const inline = formula("inline", (text) => text.indexOf("$"), (text) => INLINE.exec(text)?.[0]);
const reader = new Marked({ gfm: true, async: false, extensions: [block, inline] });

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

/** What only a frame shows as it was meant. Each tag is looked at by itself, so that no text takes longer than its length. */
function isAlive(tag: string): boolean {
  const style = tag.search(/style\s*=/i);
  return /\son[a-z]+\s*=/i.test(tag) || (style >= 0 && /position\s*:|background|color\s*:/i.test(tag.slice(style)));
}

function simple(text: string): DocumentFragment | undefined {
  for (const [, name = ""] of text.matchAll(/<([a-z][^\s/>]*)/gi)) {
    if (!TAGS.includes(name.toLowerCase()) && !["html", "head", "body", "meta", "title"].includes(name.toLowerCase())) return undefined;
  }
  for (const [tag] of text.matchAll(/<[^<>]*>/g)) if (isAlive(tag)) return undefined;
  return clean(text);
}

/** Reading markdown takes the square of its length where it is made for that: what is longer is shown as it is written. */
const MOST_MARKDOWN = 40_000;
/** Stars and the like in a paragraph, times its length: the reader of markdown goes over it for each of them. So much is half a second. */
const MOST_WORK = 30_000_000;

/** Whether reading it takes too long. Rows of tables and points of lists are read by themselves, as paragraphs are. */
function isHard(text: string): boolean {
  if (text.length > MOST_MARKDOWN) return true;
  const parts = text.split(/\n[ \t]*(?:\n|(?=[|>]|[-*+] |\d+[.)] ))/);
  return parts.reduce((sum, part) => sum + part.length * (part.match(/[*_!]/g)?.length ?? 0), 0) > MOST_WORK;
}

function asWritten(text: string): DocumentFragment {
  const fragment = document.createDocumentFragment();
  fragment.append(Object.assign(document.createElement("pre"), { textContent: text }));
  return fragment;
}

/** Markdown: first rendered, then sanitised; formulas last, which makes elements of text only. */
export async function markdown(text: string): Promise<DocumentFragment> {
  if (isHard(text)) return asWritten(text);
  const fragment = clean(reader.parse(text, { async: false }));
  const found = [...fragment.querySelectorAll(`.${FORMULA}`)];
  if (found.length > 0) {
    const { MOST_FORMULAS, formulas } = await import("./latex.js");
    for (const one of found.slice(0, MOST_FORMULAS)) one.replaceWith(formulas(one.textContent ?? ""));
  }
  enhance(fragment, clean);
  return fragment;
}
