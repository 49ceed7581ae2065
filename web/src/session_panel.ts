// What panels beside a session have in common.
import { LitElement } from "lit";
import type { Access } from "./api.js";

/** A panel about one session, which may be another's when an answer comes. */
export abstract class SessionPanel extends LitElement {
  static override properties: Record<string, object> = { access: { attribute: false }, session: {}, problem: { state: true } };
  declare access: Access;
  declare session: string;
  /** What went wrong with this session. */
  declare problem: string;

  constructor() {
    super();
    this.problem = "";
  }

  protected get path(): string {
    return `/v1/sessions/${encodeURIComponent(this.session)}`;
  }

  /** Says what went wrong, unless another session is looked at by then. */
  protected async trying(work: () => Promise<void>): Promise<void> {
    const { session } = this;
    this.problem = "";
    try {
      await work();
    } catch (error) {
      if (session === this.session) this.problem = error instanceof Error ? error.message : String(error);
    }
  }
}
