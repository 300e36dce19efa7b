// Builds `page/` from the sources: `npm ci && node build.mjs [FOLDER]`, or `make dashboard`.
// What comes out is committed, so that nobody needs Node to use it; tests/dashboard/test_bundle.py compares.

import { build } from "esbuild";
import { cpSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const page = process.argv[2] ?? join(here, "page");
const SHIPPED = ["@nats-io/nats-core", "@nats-io/nkeys", "@nats-io/nuid", "tweetnacl", "uplot"];

mkdirSync(page, { recursive: true });
await build({
  absWorkingDir: here,
  entryPoints: { dashboard: "src/main.js" },
  outdir: page,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022"],
  legalComments: "none",
  charset: "utf8",
});
cpSync(join(here, "index.html"), join(page, "index.html"));
writeFileSync(join(page, "LICENSES.txt"), SHIPPED.map(licence).join("\n"));

function licence(name) {
  const folder = join(here, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  return `${name} ${version} (${license})\n\n${readFileSync(join(folder, file), "utf8").trim()}\n`;
}
