// Runs inside an output's frame, which has no origin and may ask no network: draws what comes through a port.
import { guard, tamed, watchFrames } from "./guard.js";
import { FLAGS, inner, narrow } from "./nesting.js";

interface Task {
  kind: "html" | "page" | "script" | "plotly" | "vega";
  content: unknown;
  library?: string;
  mode?: string;
  /** What other outputs have put down for this one, in order. */
  before?: { html?: string; script?: string }[];
  dark: boolean;
}

interface Plotly {
  react(box: Element, data: unknown, layout: unknown, config: unknown): Promise<unknown>;
  addFrames(box: Element, frames: unknown): Promise<unknown>;
}

type VegaEmbed = (box: Element, spec: unknown, options: unknown) => Promise<unknown>;
type Globals = { Plotly?: Plotly; vegaEmbed?: VegaEmbed };

/** Frames within each other. What is deeper is left out. */
const MOST_DEPTH = 3;

(() => {
  const depth = Number(location.search.slice(1)) || 0;
  narrow(document, inner(0));
  const write = guard();
  const root = document.documentElement;
  const box = document.getElementById("output") as HTMLElement;
  const assets = (document.currentScript as HTMLScriptElement).src;
  const isRemote = (address: string) => /^\s*(https?:)?\/\//i.test(address) && URL.canParse(address, assets) && new URL(address, assets).origin !== new URL(assets).origin;
  /** What of others' servers is here, too. */
  const local = (address: string) => {
    if (!isRemote(address)) return undefined;
    const name = /\/vega(-lite|-embed|-lib)?[@./]/.test(address) ? "vega.js" : /\/plotly[^/]*\.js/.test(address) ? "plotly-full.js" : undefined;
    return name && new URL(name, assets).href;
  };
  /** Whose parts were not loaded. */
  const remote = new Set<string>();
  let tellRemote = () => {};
  const missed = (address: string) => {
    const { size } = remote;
    remote.add(new URL(address, assets).host);
    if (remote.size > size) tellRemote();
  };
  // Scripts that load libraries load ours.
  const source = Object.getOwnPropertyDescriptor(HTMLScriptElement.prototype, "src");
  Object.defineProperty(HTMLScriptElement.prototype, "src", { ...source, set(this: HTMLScriptElement, address: string) { source?.set?.call(this, local(address) ?? address) } });

  /** What is told of a document: who writes another in its place calls this again. */
  const listen = (port: MessagePort) => {
    document.addEventListener("securitypolicyviolation", (event) => isRemote(event.blockedURI) && missed(event.blockedURI));
    // Links lead out of the frame only if a person follows them once more in the parent, which shows the whole address.
    addEventListener("click", (event) => {
      const link = (event.target as Element | null)?.closest?.("a[href]");
      if (!(link instanceof HTMLAnchorElement) || link.getAttribute("href")?.startsWith("#") || link.download) return;
      event.preventDefault();
      port.postMessage({ link: link.href });
    });
  };

  const start = (port: MessagePort, task: Task) => {
    tellRemote = () => port.postMessage({ remote: [...remote].slice(0, 20) });
    const themes = new Set<(dark: boolean) => void>();
    watchFrames((frame, text) => themes.add(nested(frame, text, task.dark, port)));
    listen(port);
    if (task.kind === "page") {
      port.onmessage = ({ data }) => themes.forEach((theme) => theme(data?.dark === true));
      return page(String(task.content), port);
    }
    let reported = -1;
    const measure = () => {
      const height = Math.ceil(Math.max(root.offsetHeight, document.body.scrollHeight));
      if (height !== reported) port.postMessage({ height: (reported = height) });
    };
    const dress = (dark: boolean) => (root.dataset.theme = dark ? "dark" : "light");
    const done = () => {
      port.postMessage({ drawn: task.kind });
      measure();
    };
    const failed = (error: unknown) => {
      const note = document.createElement("p");
      note.className = "failed";
      note.textContent = `This output could not be drawn: ${error instanceof Error ? error.message : String(error)}`;
      box.append(note);
      port.postMessage({ failed: note.textContent });
      measure();
    };
    port.onmessage = ({ data }) => {
      if (typeof data?.dark !== "boolean" || data.dark === task.dark) return;
      task.dark = data.dark;
      dress(task.dark);
      for (const theme of themes) theme(task.dark);
      if (task.kind === "plotly" || task.kind === "vega") draw(task, box).then(done, failed);
    };
    dress(task.dark);
    new ResizeObserver(measure).observe(root);
    draw(task, box).then(done, failed);
  };

  addEventListener("message", function first(event) {
    const port = event.ports[0];
    if (event.source !== parent || !port) return;
    removeEventListener("message", first);
    port.onmessage = ({ data }) => start(port, data as Task);
  });

  /** A page of a frame in here: a frame of ours shows it, one level down. Gives what tells it of another theme. */
  function nested(frame: HTMLIFrameElement, text: string, dark: boolean, above: MessagePort): (dark: boolean) => void {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = ({ data }) => {
      const { link, remote: hosts } = data as { link?: unknown; remote?: unknown };
      if (typeof link === "string") above.postMessage({ link });
      if (Array.isArray(hosts)) for (const host of hosts) remote.add(String(host));
      if (Array.isArray(hosts)) tellRemote();
    };
    if (depth < MOST_DEPTH) {
      frame.setAttribute("sandbox", FLAGS);
      frame.addEventListener("load", () => frame.contentWindow?.postMessage("begin", "*", [port2]), { once: true });
      frame.src = inner(depth + 1);
      port1.postMessage({ kind: "page", content: text, dark });
    }
    return (dark) => port1.postMessage({ dark });
  }

  /** A whole document in place of ours. */
  function page(text: string, port: MessagePort): void {
    const parsed = new DOMParser().parseFromString(tamed(text), "text/html");
    withoutRemote(parsed);
    document.open();
    listen(port);
    write.call(document, `<!doctype html>${parsed.documentElement.outerHTML}`);
    document.close();
  }

  // Plotly would fetch the outlines of countries from its makers: it is given none.
  const topology = { type: "Topology", arcs: [], objects: new Proxy({}, { get: () => ({ type: "GeometryCollection", geometries: [] }) }) };
  Object.assign(window, { PlotlyGeoAssets: { topojson: new Proxy({}, { get: () => topology }) } });

  async function draw(task: Task, box: HTMLElement): Promise<void> {
    if (task.library) await load(task.library);
    for (const one of task.before ?? []) {
      if (one.html !== undefined) await html(one.html, box.appendChild(document.createElement("div")));
      if (one.script !== undefined) await script(one.script, box.appendChild(document.createElement("div")));
    }
    const { Plotly, vegaEmbed } = window as unknown as Globals;
    if (task.kind === "html") await html(String(task.content), box);
    else if (task.kind === "script") await script(String(task.content), box);
    else if (task.kind === "plotly" && Plotly) await plotly(Plotly, task, box);
    else if (task.kind === "vega" && vegaEmbed) await vega(vegaEmbed, task, box);
    else throw new Error("its library is not in this build of cellkeep");
  }

  function load(source: string): Promise<void> {
    if (document.querySelector(`script[src="${source}"]`)) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const element = document.createElement("script");
      element.src = source;
      element.onload = () => resolve();
      element.onerror = () => reject(new Error("its library is not in this build of cellkeep"));
      document.head.append(element);
    });
  }

  /** Foreign HTML. Scripts that come with it do not run by themselves: each is put in again, in order. */
  async function html(text: string, box: HTMLElement): Promise<void> {
    const template = document.createElement("template");
    template.innerHTML = tamed(text);
    withoutRemote(template.content);
    box.replaceChildren(template.content);
    for (const dead of [...box.querySelectorAll("script")]) {
      const alive = document.createElement("script");
      for (const { name, value } of [...dead.attributes]) alive.setAttribute(name, value);
      alive.textContent = dead.textContent;
      const loaded = alive.src ? new Promise((resolve) => (alive.onload = alive.onerror = resolve)) : undefined;
      dead.replaceWith(alive);
      await loaded;
    }
  }

  /** Nothing of it could be loaded; saying so is better than a page full of complaints. */
  function withoutRemote(content: ParentNode): void {
    for (const element of content.querySelectorAll("link[href], [src]")) {
      const address = element.getAttribute("src") ?? element.getAttribute("href") ?? "";
      const ours = element instanceof HTMLScriptElement ? local(address) : undefined;
      if (ours) {
        element.setAttribute("src", ours);
        element.removeAttribute("integrity");
      } else if (isRemote(address)) {
        missed(address);
        element.removeAttribute("src");
      }
    }
    // What they ask for is forbidden, but browsers open connections for some of them before they look.
    for (const element of content.querySelectorAll("link, meta, base")) element.remove();
  }

  async function script(source: string, box: HTMLElement): Promise<void> {
    // What Jupyter's front ends call the place that a script may write into.
    await new Function("element", source)(box);
  }

  function plotly(library: Plotly, task: Task, box: HTMLElement): Promise<unknown> {
    type Record_ = Record<string, Record<string, unknown> | undefined>;
    const figure = JSON.parse(JSON.stringify(task.content)) as { data?: unknown; layout?: Record_; config?: object; frames?: unknown };
    const [ink, line] = task.dark ? ["#e3e7ec", "#38414d"] : ["#1c2127", "#dfe3e8"];
    const template = (figure.layout?.template ?? {}) as Record_;
    const own = (template.layout ?? {}) as Record_;
    const axis = (of: object | undefined) => ({ ...of, gridcolor: line, linecolor: line, zerolinecolor: line });
    const clear = "rgba(0,0,0,0)";
    const look = { paper_bgcolor: clear, plot_bgcolor: clear, font: { ...own.font, color: ink }, xaxis: axis(own.xaxis), yaxis: axis(own.yaxis) };
    const margin = { t: figure.layout?.title ? 60 : 30, r: 20, b: 50, l: 60 };
    const bare = { style: "white-bg" };
    const layout = { margin, map: bare, mapbox: bare, ...figure.layout, template: { ...template, layout: { ...own, ...look } }, autosize: !figure.layout?.width };
    for (const [name, part] of Object.entries(layout)) if (/^map(box)?\d*$/.test(name)) Object.assign(part as object, bare);
    const config = { responsive: true, displaylogo: false, ...figure.config, plotlyServerURL: "", sendData: false };
    return library.react(box, figure.data ?? [], layout, config).then(() => figure.frames && library.addFrames(box, figure.frames));
  }

  function vega(embed: VegaEmbed, task: Task, box: HTMLElement): Promise<unknown> {
    const isLocal = (uri: string) => /^(data:|#)/.test(uri);
    const refuse = (uri: string) => Promise.reject(new Error(`not loaded from the network: ${uri}`));
    const loader = {
      load: (uri: string) => (isLocal(uri) ? fetch(uri).then((response) => response.text()) : refuse(uri)),
      sanitize: (uri: string) => (isLocal(uri) ? Promise.resolve({ href: uri }) : refuse(uri)),
      http: refuse,
      file: refuse,
    };
    const options = { mode: task.mode, actions: false, renderer: "svg", ast: true, loader, logLevel: 0, theme: task.dark ? "dark" : undefined };
    return embed(box, JSON.parse(JSON.stringify(task.content)), { ...options, config: { background: "transparent" } });
  }
})();
