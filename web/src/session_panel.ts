// The base of the panels beside a session.
import { LitElement } from "lit";
import type { Access } from "./api.js";

/** A panel about one session. When a response arrives, another session may be selected; the panel must then ignore it. */
export abstract class SessionPanel extends LitElement {
  static override properties: Record<string, object> = { access: { attribute: false }, session: {}, problem: { state: true } };
  declare access: Access;
  declare session: string;
  /** The last error of this session; empty if none. */
  declare problem: string;

  constructor() {
    super();
    this.problem = "";
  }

  protected get path(): string {
    return `/v1/sessions/${encodeURIComponent(this.session)}`;
  }

  /** Runs an action and shows its error, unless another session is selected by then. */
  protected async attempt(action: () => Promise<void>): Promise<void> {
    const { session } = this;
    this.problem = "";
    try {
      await action();
    } catch (error) {
      if (session === this.session) this.problem = error instanceof Error ? error.message : String(error);
    }
  }
}
