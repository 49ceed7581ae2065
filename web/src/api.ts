// Requests to the HTTP API, with the token in a header.

export interface Access {
  /** The server's origin; empty: that of this page. */
  server: string;
  token: string;
}

/** An error response of the server. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
  ) {
    super(detail);
  }
}

export async function request(access: Access, method: string, path: string, body?: unknown): Promise<Response> {
  const headers: Record<string, string> = { authorization: `Bearer ${access.token}` };
  let content: BodyInit | undefined;
  if (body instanceof Blob) content = body;
  else if (body !== undefined) {
    headers["content-type"] = "application/json";
    content = JSON.stringify(body);
  }
  const response = await fetch(`${access.server}${path}`, { method, headers, body: content, referrerPolicy: "no-referrer" });
  if (response.ok) return response;
  const problem = (await response.json().catch(() => ({}))) as { code?: string; detail?: string };
  throw new ApiError(response.status, problem.code ?? "", problem.detail ?? `the server answered ${response.status}`);
}

export async function requestJson<T>(access: Access, method: string, path: string, body?: unknown): Promise<T> {
  const response = await request(access, method, path, body);
  return (response.status === 204 ? undefined : await response.json().catch(() => undefined)) as T;
}

/** All items of a list that is read in pages. `path` has a query. */
export async function requestAll<T>(access: Access, path: string, items: string): Promise<T[]> {
  const all: T[] = [];
  let cursor = "";
  for (;;) {
    const page = await requestJson<Record<string, unknown>>(access, "GET", `${path}&limit=1000${cursor}`);
    all.push(...(page[items] as T[]));
    if (typeof page.next_cursor !== "string") return all;
    cursor = `&cursor=${encodeURIComponent(page.next_cursor)}`;
  }
}

/** Opens a WebSocket of the API. A browser sends no headers with it, so the token is in the query. */
export function openSocket(access: Access, path: string, query: string): WebSocket {
  const address = new URL(access.server || location.origin);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  address.pathname = path;
  address.search = `${query}&token=${encodeURIComponent(access.token)}`;
  return new WebSocket(address);
}

/** Milliseconds until a lost connection is tried again, after so many attempts that failed. */
export function retryDelay(failed: number): number {
  return Math.min(250 * 2 ** failed, 3000);
}

const blobs = new Map<string, Promise<Blob>>();

/** The bytes of an artifact; the latest 200 are cached. */
export function loadArtifact(access: Access, sha256: string): Promise<Blob> {
  const key = `${access.server} ${sha256}`;
  let blob = blobs.get(key);
  if (!blob) {
    blob = request(access, "GET", `/v1/artifacts/${encodeURIComponent(sha256)}`).then((response) => response.blob());
    blob.catch(() => blobs.delete(key));
    blobs.set(key, blob);
    if (blobs.size > 200) blobs.delete(blobs.keys().next().value as string);
  }
  return blob;
}

/** Saves a file through the browser. */
export function save(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
