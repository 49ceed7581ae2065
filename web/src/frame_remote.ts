// Addresses of other servers in an output's frame. Its policy blocks them: libraries that our server has are taken from
// there, and
// the hosts of everything else are reported to the page.

const assets = (document.currentScript as HTMLScriptElement).src;

export function isRemote(address: string): boolean {
  return /^\s*(https?:)?\/\//i.test(address) && URL.canParse(address, assets) && new URL(address, assets).origin !== new URL(assets).origin;
}

/** The address of our copy of a remote library, if we have one. */
function localCopy(address: string): string | undefined {
  if (!isRemote(address)) return undefined;
  const name = /\/vega(-lite|-embed|-lib)?[@./]/.test(address) ? "vega.js" : /\/plotly[^/]*\.js/.test(address) ? "plotly-full.js" : undefined;
  return name && new URL(name, assets).href;
}

const MAX_REPORTED_HOSTS = 20;

/** The hosts whose resources were not loaded. */
const hosts = new Set<string>();
let port: MessagePort | undefined;

const report = () => port?.postMessage({ remote: [...hosts].slice(0, MAX_REPORTED_HOSTS) });

/** Reports go to this port from now on. */
export function reportRemoteTo(target: MessagePort): void {
  port = target;
}

/** Reports hosts that a frame within this one has reported. */
export function addRemoteHosts(reported: unknown[]): void {
  for (const host of reported) hosts.add(String(host));
  report();
}

export function addBlockedAddress(address: string): void {
  const { size } = hosts;
  hosts.add(new URL(address, assets).host);
  if (hosts.size > size) report();
}

/** Scripts that load a library by its address on a CDN get our copy. */
export function redirectScripts(): void {
  const property = Object.getOwnPropertyDescriptor(HTMLScriptElement.prototype, "src");
  Object.defineProperty(HTMLScriptElement.prototype, "src", {
    ...property,
    set(this: HTMLScriptElement, address: string) {
      property?.set?.call(this, localCopy(address) ?? address);
    },
  });
}

/** Removes remote addresses, which the policy would block anyway: each would be an error in the console. */
export function removeRemote(content: ParentNode): void {
  for (const element of content.querySelectorAll("link[href], [src]")) {
    const address = element.getAttribute("src") ?? element.getAttribute("href") ?? "";
    const copy = element instanceof HTMLScriptElement ? localCopy(address) : undefined;
    if (copy) {
      element.setAttribute("src", copy);
      element.removeAttribute("integrity");
    } else if (isRemote(address)) {
      addBlockedAddress(address);
      element.removeAttribute("src");
    }
  }
  // The policy forbids what these elements load, but browsers open connections for some of them before they check it.
  for (const element of content.querySelectorAll("link, meta, base")) element.remove();
}
