// Foreign HTML and markdown as elements without active content. Loaded on demand.
import DOMPurify from "dompurify";
import { Marked } from "marked";
import { safeLink } from "./ansi.js";
import { makeSortable, splitLongTable } from "./table.js";

const TAGS = [
  "a", "abbr", "b", "blockquote", "br", "caption", "code", "col", "colgroup", "dd", "del", "details", "div", "dl", "dt", "em", "figcaption",
  "figure", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "ins", "kbd", "li", "mark", "ol", "p", "pre", "q", "s", "samp", "small", "span",
  "strong", "sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "time", "tr", "tt", "u", "ul", "var", "wbr", "center", "font",
];
const ATTRIBUTES = ["align", "alt", "class", "cols", "colspan", "dir", "height", "href", "lang", "open", "reversed", "rowspan", "scope", "span", "src", "start", "title", "valign", "width"];

/** Formulas are found before markdown interprets their underscores, and drawn after everything is sanitised. */
const FORMULA = "cellkeep-formula";
const MAX_FORMULA = 4000;
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

/**
 * A block formula, if it is closed at the end of a line. Its length is limited: otherwise each of many openings would search
 * the whole text.
 */
function blockFormula(text: string): string | undefined {
  if (!text.startsWith("$$")) return undefined;
  const near = text.slice(0, MAX_FORMULA);
  const end = near.indexOf("$$\n", 3);
  if (end > 0) return near.slice(0, end + 3);
  return text.length <= MAX_FORMULA && text.length > 4 && text.endsWith("$$") ? text : undefined;
}

/**
 * Where a block formula interrupts a paragraph, at the start of a line. Each cut costs the length of the rest, so only real
 * formulas cut.
 */
function blockStart(text: string): number {
  const paragraph = text.slice(0, text.indexOf("\n\n") + 1 || undefined);
  for (let at = paragraph.indexOf("\n$$"); at >= 0; at = paragraph.indexOf("\n$$", at + 1)) {
    if (blockFormula(text.slice(at + 1, at + 1 + MAX_FORMULA))) return at + 1;
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
    // Loading a remote picture would tell its server that it was looked at.
    const source = node.getAttribute("src") ?? "";
    node.replaceWith(document.createTextNode(`[picture not loaded: ${node.alt || source.slice(0, 200)}]`));
  }
});

/** Pandas writes the same three style rules before each table; our own style replaces them. */
const withoutScopedStyles = (text: string) => text.replace(/<style scoped>[^<]*<\/style>/gi, "");
/** Removes inline styles and handlers, since our policy would report each. Whatever this misses, the sanitiser removes. */
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
  // The empty corner of a data frame is no header; screen readers would announce it.
  for (const head of fragment.querySelectorAll("th")) if (!head.textContent?.trim()) head.replaceWith(document.createElement("td"));
  return fragment;
}

/** In characters. The rows of a table in longer HTML are parsed when they are shown. */
const LONG = 200_000;

/** Foreign HTML as elements of the page; undefined if it has more than text, tables and pictures, and so needs a frame. */
export function plainHtml(text: string): DocumentFragment | undefined {
  const unscoped = withoutScopedStyles(text);
  const table = unscoped.length > LONG ? splitLongTable(unscoped) : undefined;
  const fragment = simple(table?.around ?? unscoped);
  if (fragment) makeSortable(fragment, clean, table?.rows);
  return fragment;
}

/** Whether only a frame can show a tag as intended. Tags are checked one by one, so that the time stays linear. */
function needsFrame(tag: string): boolean {
  const style = tag.search(/style\s*=/i);
  return /\son[a-z]+\s*=/i.test(tag) || (style >= 0 && /position\s*:|background|color\s*:/i.test(tag.slice(style)));
}

function simple(text: string): DocumentFragment | undefined {
  for (const [, name = ""] of text.matchAll(/<([a-z][^\s/>]*)/gi)) {
    if (!TAGS.includes(name.toLowerCase()) && !["html", "head", "body", "meta", "title"].includes(name.toLowerCase())) return undefined;
  }
  for (const [tag] of text.matchAll(/<[^<>]*>/g)) if (needsFrame(tag)) return undefined;
  return clean(text);
}

/** Hostile markdown takes quadratic time to parse: longer text is shown as written. */
const MAX_MARKDOWN = 40_000;
/**
 * The number of emphasis signs times the length of a paragraph: the parser scans it for each of them. This much takes half a
 * second.
 */
const MAX_WORK = 30_000_000;

/** Whether parsing takes too long. Table rows and list items are parsed on their own, as paragraphs are. */
function isTooCostly(text: string): boolean {
  if (text.length > MAX_MARKDOWN) return true;
  const parts = text.split(/\n[ \t]*(?:\n|(?=[|>]|[-*+] |\d+[.)] ))/);
  return parts.reduce((sum, part) => sum + part.length * (part.match(/[*_!]/g)?.length ?? 0), 0) > MAX_WORK;
}

function asWritten(text: string): DocumentFragment {
  const fragment = document.createDocumentFragment();
  fragment.append(Object.assign(document.createElement("pre"), { textContent: text }));
  return fragment;
}

/** Renders markdown, sanitises it, then draws its formulas, which creates elements from text only. */
export async function renderMarkdown(text: string): Promise<DocumentFragment> {
  if (isTooCostly(text)) return asWritten(text);
  const fragment = clean(reader.parse(text, { async: false }));
  const found = [...fragment.querySelectorAll(`.${FORMULA}`)];
  if (found.length > 0) {
    const { MAX_FORMULAS, renderFormulas } = await import("./latex.js");
    for (const one of found.slice(0, MAX_FORMULAS)) one.replaceWith(renderFormulas(one.textContent ?? ""));
  }
  makeSortable(fragment, clean);
  return fragment;
}
