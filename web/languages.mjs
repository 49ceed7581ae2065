// Generates a module from the rows in languages/*.toml, for the page: names, words, comments and strings for colours, the editor's mode,
// and examples. The server reads the same rows (src/languages.rs).
import { readdir, readFile } from "node:fs/promises";
import { basename } from "node:path";
import { parse } from "smol-toml";

const folder = new URL("../languages/", import.meta.url);

/** All rows by name; a row with `like` takes missing sections from that row. */
async function rows() {
  const files = (await readdir(folder)).filter((name) => name.endsWith(".toml"));
  const read = async (file) => [basename(file, ".toml"), parse(await readFile(new URL(file, folder), "utf8"))];
  const all = Object.fromEntries(await Promise.all(files.map(read)));
  return Object.fromEntries(Object.entries(all).map(([name, row]) => [name, row.like ? { ...all[row.like], ...row } : row]));
}

const trimmed = (source) => source.replace(/^\n/, "");

/** The part of a row that the page needs. */
function forPage(name, { aliases, line_comment, lexer, editor, examples = [] }) {
  return {
    names: [name, ...aliases],
    words: [lexer.keywords, lexer.constants].filter(Boolean).join(" ").split(/\s+/),
    comment: line_comment,
    block: lexer.block_comment && [lexer.block_comment.open, lexer.block_comment.close],
    strings: lexer.strings?.map(({ open, close, escapes, multiline }) => ({ open, close, escapes, multiline })),
    editor: editor && { mode: editor.mode, indent: editor.indent },
    examples: examples.map(({ title, source }) => ({ title, source: trimmed(source) })),
  };
}

/** For esbuild: `import languages from "cellkeep:languages"`. Languages without colours are left out. */
export const languages = {
  name: "languages",
  setup(build) {
    build.onResolve({ filter: /^cellkeep:languages$/ }, ({ path }) => ({ path, namespace: "languages" }));
    build.onLoad({ filter: /.*/, namespace: "languages" }, async () => {
      const known = Object.entries(await rows()).filter(([, row]) => row.lexer);
      return { contents: JSON.stringify(known.map(([name, row]) => forPage(name, row))), loader: "json" };
    });
  },
};
