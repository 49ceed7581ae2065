// Text with terminal colours as elements. The server has applied all cursor movements: colours and links remain.

const SEQUENCE = /\x1b\[([\d;:]*)m|\x1b\]8;[^;\x07\x1b]*;([^\x07\x1b]*)(?:\x07|\x1b\\)|\x1b\[[\d;:?]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\^_]/g;
const URL_IN_TEXT = /https?:\/\/[^\s<>"'`\x1b]{3,2000}[^\s<>"'`\x1b.,;:!?)\]}]/g;
const FLAGS: Record<number, string> = { 1: "bold", 2: "faint", 3: "italic", 4: "underline", 7: "inverse", 8: "hidden", 9: "strike" };

interface Pen {
  flags: Set<string>;
  fg: string;
  bg: string;
  link: string;
}

/** The text as elements with colours and links. */
export function colourText(text: string): DocumentFragment {
  const target = document.createDocumentFragment();
  const pen: Pen = { flags: new Set(), fg: "", bg: "", link: "" };
  let at = 0;
  for (const match of text.matchAll(SEQUENCE)) {
    write(target, text.slice(at, match.index), pen);
    at = match.index + match[0].length;
    if (match[1] !== undefined) applyCodes(pen, match[1]);
    else if (match[2] !== undefined) pen.link = safeLink(match[2]);
  }
  write(target, text.slice(at), pen);
  return target;
}

/** The text without escape sequences. */
export function stripAnsi(text: string): string {
  return text.replace(SEQUENCE, "");
}

/** The address if its scheme only opens a page or a mail; otherwise empty. */
export function safeLink(link: string): string {
  try {
    const url = new URL(link);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : "";
  } catch {
    return "";
  }
}

function write(target: Node, text: string, pen: Pen): void {
  if (!text) return;
  const isPlain = pen.flags.size === 0 && !pen.fg && !pen.bg;
  const parent = isPlain ? target : target.appendChild(styled(pen));
  if (pen.link) {
    parent.appendChild(anchor(pen.link, text));
    return;
  }
  let at = 0;
  for (const match of text.includes("://") ? text.matchAll(URL_IN_TEXT) : []) {
    const link = safeLink(match[0]);
    if (!link) continue;
    parent.appendChild(document.createTextNode(text.slice(at, match.index)));
    parent.appendChild(anchor(link, match[0]));
    at = match.index + match[0].length;
  }
  parent.appendChild(document.createTextNode(text.slice(at)));
}

function anchor(link: string, text: string): HTMLAnchorElement {
  const element = document.createElement("a");
  element.href = link;
  element.target = "_blank";
  element.rel = "noopener noreferrer nofollow";
  element.textContent = text;
  return element;
}

function styled(pen: Pen): HTMLSpanElement {
  const span = document.createElement("span");
  const inverse = pen.flags.has("inverse");
  const [fg, bg] = inverse ? [pen.bg || "var(--ck-paper)", pen.fg || "var(--ck-ink)"] : [pen.fg, pen.bg];
  for (const flag of pen.flags) if (flag !== "inverse") span.classList.add(`t-${flag}`);
  // RGB colours were chosen for an unknown background. The style keeps them readable on ours.
  if (fg.startsWith("rgb") && !bg) {
    span.classList.add("t-far");
    span.style.setProperty("--far", fg);
  } else if (fg) span.style.color = fg;
  if (bg) span.style.backgroundColor = bg;
  return span;
}

function applyCodes(pen: Pen, codes: string): void {
  const numbers = codes.split(/[;:]/).map((code) => Number(code) || 0);
  for (let at = 0; at < numbers.length; at += 1) {
    const code = numbers[at] as number;
    if (code === 0) Object.assign(pen, { flags: new Set(), fg: "", bg: "" });
    else if (FLAGS[code]) pen.flags.add(FLAGS[code]);
    else if (code === 22) ["bold", "faint"].forEach((flag) => pen.flags.delete(flag));
    else if (code > 22 && code < 30) pen.flags.delete(FLAGS[code - 20] ?? "");
    else if (code >= 30 && code < 38) pen.fg = basic(code - 30);
    else if (code >= 90 && code < 98) pen.fg = basic(code - 82);
    else if (code >= 40 && code < 48) pen.bg = basic(code - 40);
    else if (code >= 100 && code < 108) pen.bg = basic(code - 92);
    else if (code === 39) pen.fg = "";
    else if (code === 49) pen.bg = "";
    else if (code === 38 || code === 48) {
      const [colour, length] = extended(numbers.slice(at + 1, at + 5));
      if (code === 38) pen.fg = colour;
      else pen.bg = colour;
      at += length;
    }
  }
}

/** One of the 16 colours of the theme. */
const basic = (number: number) => `var(--ck-ansi-${number})`;

/** A colour of 256 or RGB, and how many codes describe it. */
function extended([kind, a = 0, b = 0, c = 0]: number[]): [string, number] {
  if (kind === 2) return [`rgb(${a & 255},${b & 255},${c & 255})`, 4];
  if (kind !== 5) return ["", 1];
  if (a < 16) return [basic(a), 2];
  if (a < 232) {
    const level = (step: number) => (step === 0 ? 0 : 55 + step * 40);
    const cube = a - 16;
    return [`rgb(${level(Math.floor(cube / 36))},${level(Math.floor(cube / 6) % 6)},${level(cube % 6)})`, 2];
  }
  const grey = 8 + (Math.min(a, 255) - 232) * 10;
  return [`rgb(${grey},${grey},${grey})`, 2];
}
