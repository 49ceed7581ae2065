// Builds what exported pages carry: one file per plotting library, each a plain script that sets one global.
// Run by `make web`. The result is git-ignored and embedded into the binary.
import { build } from "esbuild";
import { copyFile, mkdir, readdir, rm } from "node:fs/promises";

const dist = new URL("dist/", import.meta.url);
await mkdir(dist, { recursive: true });
for (const name of await readdir(dist)) {
  if (name.endsWith(".js")) await rm(new URL(name, dist));
}

// Plotly publishes minified bundles of its own, by the kinds of traces they can draw.
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
  // A script that stands inside a page must not hold its end tag.
  supported: { "inline-script": false },
  charset: "ascii",
  legalComments: "eof",
});
