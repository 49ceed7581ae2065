// The token of the page: taken from the link, kept for the browser tab, removed when the server rejects it.

const TOKEN_KEY = "cellkeep-token";
/** Holds the id of the only session that a share link shows. */
const SHARED_SESSION_KEY = "cellkeep-only";

/** The token from the link, or the one of this tab. It does not stay in the address bar. */
export function takeToken(): string {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const linked = fragment.get("token") ?? new URLSearchParams(location.search).get("token");
  if (linked) {
    storeToken(linked);
    const session = fragment.get("session");
    sessionStorage.setItem(SHARED_SESSION_KEY, session ?? "");
    history.replaceState(null, "", session ? `#/${encodeURIComponent(session)}` : location.pathname);
  }
  return linked ?? sessionStorage.getItem(TOKEN_KEY) ?? "";
}

export function storeToken(token: string): void {
  sessionStorage.setItem(TOKEN_KEY, token);
}

export function forgetToken(): void {
  sessionStorage.removeItem(TOKEN_KEY);
  sessionStorage.removeItem(SHARED_SESSION_KEY);
}

/** The only session that the link of this tab shows; `null` or empty if it was not a share link. */
export function sharedSession(): string | null {
  return sessionStorage.getItem(SHARED_SESSION_KEY);
}
