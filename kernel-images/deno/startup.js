// Runs silently when the kernel starts. Deno's kernel queues all text in its memory, and loses what is written by other ways than
// `console`. Here text goes to the process's own stdout and stderr at once, so it outlives the process.
(() => {
  // Deno finds the packages of a package set in its cache, which stays writable for others: it gets links to them.
  const linkInto = (cache, folder) => {
    const entries = [...Deno.readDirSync(folder)];
    // All versions of one package of npm.
    const isPackage = entries.some(({ name }) => name === "registry.json");
    Deno.mkdirSync(cache, { recursive: true });
    for (const { name, isDirectory } of entries) {
      if (isDirectory && !isPackage) linkInto(`${cache}/${name}`, `${folder}/${name}`);
      else Deno.symlinkSync(`${folder}/${name}`, `${cache}/${name}`);
    }
  };
  for (const name of ["npm", "remote"]) {
    try {
      linkInto(`${Deno.env.get("DENO_DIR")}/${name}`, `/opt/packages/deno/${name}`);
    } catch {
      // There is none, or the kernel was restarted.
    }
  }

  // The original, for the end marker (kernel.json): code may replace the public one.
  Deno.jupyter[Symbol.for("cellkeep.broadcast")] = Deno.jupyter.broadcast;

  // The environment variables and the working folder of an execution: set by code in front of the cell's, set back by the end marker.
  const workspace = Deno.cwd();
  let restore = () => {};
  Deno.jupyter[Symbol.for("cellkeep.enter")] = ({ env = {}, cwd }) => {
    const former = Object.keys(env).map((name) => [name, Deno.env.get(name)]);
    const folder = Deno.cwd();
    restore = () => {
      for (const [name, value] of former) value === undefined ? Deno.env.delete(name) : Deno.env.set(name, value);
      if (cwd !== undefined) Deno.chdir(folder);
      restore = () => {};
    };
    for (const [name, value] of Object.entries(env)) Deno.env.set(name, value);
    if (cwd !== undefined) Deno.chdir(`${workspace}/${cwd}`);
  };
  Deno.jupyter[Symbol.for("cellkeep.leave")] = () => restore();

  const encoder = new TextEncoder();
  const open = (stream) => Deno.openSync(`/proc/self/fd/${stream}`, { write: true });
  const files = { stdout: open(1), stderr: open(2) };
  const writeAll = (file, bytes) => {
    for (let rest = bytes; rest.length > 0; ) rest = rest.subarray(file.writeSync(rest));
    return bytes.length;
  };

  const print = (text, level) => writeAll(level > 1 ? files.stderr : files.stdout, encoder.encode(text));
  Object.assign(console, new Deno[Deno.internal].Console(print));

  for (const [name, file] of Object.entries(files)) {
    const stream = Deno[name];
    const writable = new WritableStream({ write: (chunk) => void writeAll(file, chunk) });
    Object.defineProperties(stream, {
      writeSync: { value: (bytes) => writeAll(file, bytes) },
      write: { value: async (bytes) => writeAll(file, bytes) },
      writable: { get: () => writable },
    });
  }

  // The streams of Node.js. Its `process` takes 200 ms to load, so they are changed when it is used.
  const adapt = (process) => {
    for (const [name, file] of Object.entries(files)) {
      process[name].write = (chunk, encoding, callback) => {
        const named = typeof encoding === "string" ? encoding : undefined;
        writeAll(file, typeof chunk === "string" ? Buffer.from(chunk, named) : chunk);
        const done = typeof encoding === "function" ? encoding : callback;
        if (done) queueMicrotask(done);
        return true;
      };
    }
    return process;
  };
  const { get: loadProcess } = Object.getOwnPropertyDescriptor(globalThis, "process");
  const define = (property) => Object.defineProperty(globalThis, "process", { configurable: true, ...property });
  define({
    get() {
      const process = loadProcess.call(globalThis);
      define({ value: process, writable: true });
      return adapt(process);
    },
    set: (value) => define({ value, writable: true }),
  });
})();
