// Resolves and installs packages of npm and JSR for a package set, in a sandbox of its own; the manager calls it
// (src/manager/package_sets).
//
// Usage, in an empty workspace with `requirements.txt` (one `npm:chalk@5` or `jsr:@std/csv@1` a line), and `lock.txt` if the versions are
// decided already:
//
// - `deno run -A install_packages.ts resolve` writes `lock.txt` (a deno.lock) and `packages.json`.
// - `deno run -A install_packages.ts install` fills the cache `set/deno`, which sandboxes see as /opt/packages/deno;
//   startup.js links it into the cache of a session.
//
// Scripts of npm packages are not run.

const fail = (message: string): never => {
  console.error(message);
  Deno.exit(1);
};

// The lock file of `deno cache`, as far as it is read here.
type Lock = { specifiers: Record<string, string>; npm?: Record<string, unknown>; jsr?: Record<string, unknown> };
const readLock = (): Lock => JSON.parse(Deno.readTextFileSync("lock.txt"));

const cache = (specifiers: string[], folder: string, ...options: string[]) => {
  const command = new Deno.Command(Deno.execPath(), {
    args: ["cache", "--no-config", "--node-modules-dir=none", "--lock=lock.txt", ...options, ...specifiers],
    env: { DENO_DIR: `${Deno.cwd()}/${folder}`, TMPDIR: Deno.cwd() },
  });
  const { success, stdout, stderr } = command.outputSync();
  Deno.stdout.writeSync(stdout);
  Deno.stderr.writeSync(stderr);
  if (!success) Deno.exit(1);
};

const requirements = () => Deno.readTextFileSync("requirements.txt").split("\n").filter((line) => line !== "");
const isLocked = () => {
  try {
    return Deno.statSync("lock.txt").isFile;
  } catch {
    return false;
  }
};

// `@std/csv@1.0.3` → name and version; npm adds its peers behind an underscore.
const split = (entry: string) => {
  const at = entry.lastIndexOf("@", entry.includes("_") ? entry.indexOf("_") : undefined);
  return { name: entry.slice(0, at), version: entry.slice(at + 1).split("_")[0] };
};

// Only these are packages: other addresses have no names that rules could permit.
const check = (specifiers: string[]) => {
  const other = specifiers.find((specifier) => !/^(npm|jsr):@?[\w.-]+(\/[\w.-]+)?(@[\w.^~<>=*| -]+)?$/.test(specifier));
  if (other !== undefined) fail(`${other}: write npm:NAME@VERSION or jsr:@SCOPE/NAME@VERSION`);
  return specifiers;
};

const resolve = () => {
  if (!isLocked()) cache(check(requirements()), "cache");
  const lock = readLock();
  check(Object.keys(lock.specifiers));
  if ("remote" in lock) fail("lock.txt: packages of npm and JSR only");
  const { npm = {}, jsr = {} } = lock;
  const packages = [...Object.keys(npm), ...Object.keys(jsr)].map((entry) => ({ ...split(entry), installed: true }));
  Deno.writeTextFileSync("packages.json", JSON.stringify(packages));
};

const install = () => cache(Object.keys(readLock().specifiers), "set/deno", "--frozen");

const step = { resolve, install }[Deno.args[0]] ?? fail("usage: install_packages.ts resolve|install");
step();
