// HTML and markdown of others, as elements that cannot act. Loaded when it is needed.
import DOMPurify from "dompurify";
import { marked } from "marked";
import { safeLink } from "./ansi.js";

const TAGS = [
  "a", "abbr", "b", "blockquote", "br", "caption", "code", "col", "colgroup", "dd", "del", "details", "div", "dl", "dt", "em", "figcaption",
  "figure", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "ins", "kbd", "li", "mark", "ol", "p", "pre", "q", "s", "samp", "small", "span",
  "strong", "sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "time", "tr", "tt", "u", "ul", "var", "wbr", "center", "font",
];
const ATTRIBUTES = ["align", "alt", "class", "cols", "colspan", "dir", "height", "href", "lang", "open", "reversed", "rowspan", "scope", "span", "src", "start", "title", "valign", "width"];

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
  return purify.sanitize(withoutInline(text), {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
}

/** Foreign HTML for our own page, or nothing if it holds more than text, tables and pictures: then it needs a frame. */
export function plainHtml(text: string): DocumentFragment | undefined {
  const unscoped = withoutScopedStyles(text);
  const names = [...unscoped.matchAll(/<([a-z][^\s/>]*)/gi)].map((match) => (match[1] as string).toLowerCase());
  if (names.some((name) => !TAGS.includes(name) && !["html", "head", "body", "meta", "title"].includes(name))) return undefined;
  if (/<[^>]*\son[a-z]+\s*=/i.test(unscoped) || /position\s*:|background|color\s*:/i.test(unscoped)) return undefined;
  const fragment = clean(unscoped);
  // The corner of a data frame heads nothing, and screen readers stumble over it.
  for (const head of fragment.querySelectorAll("th")) if (!head.textContent?.trim()) head.replaceWith(document.createElement("td"));
  return fragment;
}

/** Markdown: first rendered, then sanitised. */
export function markdown(text: string): DocumentFragment {
  return clean(marked.parse(text, { async: false, gfm: true }));
}
