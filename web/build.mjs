// Builds the files for browsers: the page with its elements from src/, and one file per plotting library, a plain script that sets one
// global. Run by `make web`. The result is git-ignored and embedded into the binary.
import { build } from "esbuild";
import { copyFile, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { execFile } from "node:child_process";
import { basename } from "node:path";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";
import { languages } from "./languages.mjs";

const dist = new URL("dist/", import.meta.url);
await mkdir(dist, { recursive: true });
for (const name of await readdir(dist)) {
  if (name.endsWith(".js") || name === "page") await rm(new URL(name, dist), { recursive: true });
}

// Plotly publishes minified bundles for sets of trace types.
const plotly = {
  "plotly-basic.js": "plotly.js-basic-dist-min/plotly-basic.min.js",
  "plotly-cartesian.js": "plotly.js-cartesian-dist-min/plotly-cartesian.min.js",
  "plotly-full.js": "plotly.js-dist-min/plotly.min.js",
};
for (const [name, source] of Object.entries(plotly)) {
  await copyFile(new URL(`node_modules/${source}`, import.meta.url), new URL(name, dist));
}

await build({
  stdin: { contents: 'export { default } from "vega-embed";', resolveDir: new URL(".", import.meta.url).pathname },
  outfile: new URL("vega.js", dist).pathname,
  bundle: true,
  minify: true,
  format: "iife",
  globalName: "vegaEmbed",
  footer: { js: "vegaEmbed=vegaEmbed.default;" },
  target: "es2022",
  // The script is also inlined into exported pages, so it must not contain its end tag.
  supported: { "inline-script": false },
  charset: "ascii",
  legalComments: "eof",
});

// Limit of the first load, after gzip: the document, its style, and all scripts that it imports statically.
const MAX_FIRST_LOAD_BYTES = 60_000;

const here = new URL(".", import.meta.url).pathname;
/** Options for our own code, for the page and for npm. */
const COMMON_OPTIONS = {
  absWorkingDir: here,
  chunkNames: "part-[hash]",
  bundle: true,
  splitting: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "eof",
  plugins: [languages],
};
const page = new URL("dist/page/", import.meta.url);
const entries = { outdir: page.pathname, entryNames: "[name]-[hash]", ...COMMON_OPTIONS, metafile: true };
const { metafile } = await build({ ...entries, entryPoints: ["src/page.ts", "src/cell.ts", "src/page.css", "src/frame.css", "src/holder.css", "src/terminal.css"] });
// Scripts of frames are IIFEs: they share no names with foreign code in the frame.
const frames = await build({ ...entries, entryPoints: ["src/frame.ts", "src/holder.ts", "src/terminal.ts"], format: "iife", splitting: false });

const built = Object.entries({ ...metafile.outputs, ...frames.metafile.outputs });
const outputOf = (source) => basename(built.find(([, output]) => output.entryPoint === source)[0]);
const staticImports = (path) =>
  metafile.outputs[path].imports.filter((one) => one.kind === "import-statement").flatMap((one) => [one.path, ...staticImports(one.path)]);
const pagePath = built.find(([, output]) => output.entryPoint === "src/page.ts")[0];
const importedFiles = [...new Set(staticImports(pagePath))].map((path) => basename(path));

const fillTemplate = async (template, values) => {
  let text = await readFile(new URL(`src/${template}`, import.meta.url), "utf8");
  for (const [name, value] of Object.entries(values)) text = text.replaceAll(`{${name}}`, value);
  await writeFile(new URL(template, page), text);
};
const preloads = importedFiles.map((file) => `<link rel="modulepreload" href="/-/assets/${file}">`).join("\n");
await fillTemplate("index.html", { style: outputOf("src/page.css"), script: outputOf("src/page.ts"), preloads });
for (const name of ["frame", "holder", "terminal"]) await fillTemplate(`${name}.html`, { style: outputOf(`src/${name}.css`), script: outputOf(`src/${name}.ts`) });
// A stable name without hash, for other sites.
await writeFile(new URL("cellkeep-cell.js", page), `export * from "./${outputOf("src/cell.ts")}";\n`);

const gzipBytes = {};
for (const name of await readdir(page)) {
  const bytes = gzipSync(await readFile(new URL(name, page)), { level: 9 });
  gzipBytes[name] = bytes.length;
  await writeFile(new URL(`${name}.gz`, page), bytes);
}
const firstLoad = ["index.html", outputOf("src/page.css"), outputOf("src/page.ts"), ...importedFiles];
const total = firstLoad.reduce((sum, name) => sum + gzipBytes[name], 0);
console.log(`first load of the page: ${(total / 1000).toFixed(1)} kB gzip (at most ${MAX_FIRST_LOAD_BYTES / 1000})`);
if (total > MAX_FIRST_LOAD_BYTES) throw new Error(`the page's first load is too large: ${firstLoad.map((name) => `${name} ${gzipBytes[name]}`).join(", ")}`);

// The element as an npm package, outside dist/, since the binary does not embed it. Its scripts import their chunks by relative paths.
// `lit` is a dependency and not bundled, so that a page has it once.
const npm = new URL("npm/", import.meta.url);
await rm(npm, { recursive: true, force: true });
await build({
  entryPoints: { "cellkeep-cell": "src/cell.ts" },
  outdir: npm.pathname,
  ...COMMON_OPTIONS,
  external: ["lit", "lit/*"],
});
await promisify(execFile)("npx", ["--no-install", "tsc", "-p", "tsconfig.npm.json"], { cwd: here });
const { devDependencies } = JSON.parse(await readFile(new URL("package.json", import.meta.url), "utf8"));
const version = /^version = "(.+)"/m.exec(await readFile(new URL("../Cargo.toml", import.meta.url), "utf8"))[1];
const manifest = {
  name: "cellkeep-cell",
  version,
  description: "<cellkeep-cell>: cells of a cellkeep server, or of a notebook file, in any page",
  license: "MIT OR Apache-2.0",
  type: "module",
  main: "./cellkeep-cell.js",
  types: "./types/cell.d.ts",
  exports: { ".": { types: "./types/cell.d.ts", default: "./cellkeep-cell.js" } },
  sideEffects: true,
  dependencies: { lit: `^${devDependencies.lit}` },
};
await writeFile(new URL("package.json", npm), `${JSON.stringify(manifest, null, 2)}\n`);
await copyFile(new URL("npm.md", import.meta.url), new URL("README.md", npm));
