// What the parts of the page share: access to the server, what the token permits, and how errors and progress are reported.
import type { Access } from "./api.js";

/** What the token permits, as `GET /v1/token` returns it. */
export interface Rights {
  scope: "read" | "use" | "admin";
  /** The only session that a share token can read. */
  session?: string | null;
  /** The name of the model, if the server has one. */
  model?: string | null;
}

export interface PageContext {
  readonly access: Access;
  readonly renderRoot: ParentNode;
  readonly updateComplete: Promise<boolean>;
  /** The id of the selected session; empty if there is none. */
  readonly selected: string;
  /** `light` or `dark`; absent: as the system. */
  readonly theme: string | undefined;
  /** The name of the model; empty if there is none. */
  readonly model: string;
  /** Whether the token permits reading only. */
  readonly isReadOnly: boolean;
  /** What the page is waiting for; empty if nothing. */
  busy: string;
  /** Draws the page again. Parts call it after they change their own state. */
  requestUpdate(): void;
  /** Runs an action and shows its error on the page. */
  attempt(action: () => Promise<void>): Promise<void>;
}
