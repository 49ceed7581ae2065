// The live events of a session: one socket for all of its cells, which resumes by event number after a disconnect.
import { type Access, ApiError, openSocket, request, requestAll, requestJson, retryDelay } from "./api.js";
import { type CellState, type Event, applyEvent, newCell } from "./cell_state.js";

export type Connection = "connecting" | "live" | "lost" | "ended" | "refused";

interface ListedCell {
  id: string;
  cell_type: string;
  source: string;
  metadata?: Record<string, unknown>;
}

const feeds = new Map<string, SessionFeed>();

/** The feed of a session, shared by all elements that show it. */
export function feedOf(access: Access, session: string): SessionFeed {
  const key = JSON.stringify([access.server, access.token, session]);
  let feed = feeds.get(key);
  if (!feed) {
    feed = new SessionFeed(access, session, () => feeds.delete(key));
    feeds.set(key, feed);
  }
  return feed;
}

export class SessionFeed {
  cells = new Map<string, CellState>();
  /** The ids of the cells in the notebook's order. */
  order: string[] = [];
  /** Whether the cells were listed at least once. */
  isListed = false;
  connection: Connection = "connecting";
  kernel = "starting";
  /** How many executions have finished since the feed was opened. */
  runs = 0;
  notice = "";
  why = "";
  private lastSeq = 0;
  private socket?: WebSocket;
  private retry = 0;
  /** Cells whose source is being loaded, and whether to load it again then. */
  private refreshing = new Map<string, boolean>();
  private listTimer = 0;
  private timer = 0;
  private isDrawPending = false;
  private isListing = false;
  /** Whether something changed while a listing was on its way. */
  private listAgain = false;
  private followers = new Set<() => void>();

  constructor(
    readonly access: Access,
    readonly session: string,
    private forget: () => void,
  ) {}

  get path(): string {
    return `/v1/sessions/${encodeURIComponent(this.session)}`;
  }

  /** Calls back on changes, at most once per animation frame. Returns the function that unsubscribes. */
  follow(follower: () => void): () => void {
    this.followers.add(follower);
    if (this.followers.size === 1) {
      addEventListener("offline", this.offline);
      addEventListener("online", this.online);
      this.connect();
    }
    return () => {
      this.followers.delete(follower);
      if (this.followers.size === 0) this.close();
    };
  }

  /** A socket may need minutes to notice that the network is gone. */
  private offline = () => this.socket?.close();

  /** Reconnects at once instead of after the back-off. */
  private online = () => {
    if (this.connection !== "lost") return;
    clearTimeout(this.timer);
    this.retry = 0;
    this.connect();
  };

  private close(): void {
    removeEventListener("offline", this.offline);
    removeEventListener("online", this.online);
    clearTimeout(this.timer);
    clearTimeout(this.listTimer);
    const socket = this.socket;
    this.socket = undefined;
    socket?.close();
    this.forget();
  }

  private connect(): void {
    this.socket?.close();
    const socket = openSocket(this.access, `${this.path}/socket`, `after=${this.lastSeq}&outputs=refs`);
    this.socket = socket;
    socket.onopen = () => {
      this.retry = 0;
      this.setConnection("live");
      this.list();
    };
    socket.onmessage = (message) => this.receive(JSON.parse(message.data as string) as Event);
    socket.onclose = (close) => {
      if (this.socket !== socket) return;
      if (close.code === 1000) this.setConnection("ended");
      else if (close.code === 1008) this.setConnection("refused");
      else void this.reconnect();
    };
  }

  /**
   * A socket does not report why it was closed, so the API is asked. Retries with back-off unless the session or the token
   * is gone.
   */
  private async reconnect(): Promise<void> {
    this.setConnection("lost");
    const wait = retryDelay(this.retry);
    this.retry += 1;
    try {
      await request(this.access, "GET", this.path);
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return this.setConnection("ended");
      if (error instanceof ApiError && error.status === 401) return this.setConnection("refused");
    }
    if (this.followers.size > 0) this.timer = window.setTimeout(() => this.connect(), wait);
  }

  private setConnection(connection: Connection): void {
    this.connection = connection;
    this.changed();
  }

  private receive(event: Event): void {
    if (typeof event.seq !== "number") return;
    this.lastSeq = Math.max(this.lastSeq, event.seq);
    if (event.type === "session.state") {
      this.kernel = event.state ?? this.kernel;
      this.notice = event.notice ?? "";
      this.why = event.why ?? "";
    } else if (event.type === "notebook.changed") {
      // A new cell may reuse the id. The version continues, so that elements that show the cell notice the change.
      const deleted = event.change === "deleted" && event.cell !== undefined ? this.cells.get(event.cell) : undefined;
      if (deleted) this.cells.set(deleted.id, { ...newCell(deleted.id), version: deleted.version + 1 });
      // A streamed message is edited many times: only its cell is loaded.
      if (event.change === "edited" && event.cell !== undefined && this.order.includes(event.cell)) this.refresh(event.cell);
      else this.list();
    }
    if (event.type === "cell.finished") this.runs += 1;
    if (event.cell !== undefined) {
      if (!this.cells.has(event.cell)) this.list();
      applyEvent(this.cell(event.cell), event);
    }
    this.changed();
  }

  cell(id: string): CellState {
    let cell = this.cells.get(id);
    if (!cell) this.cells.set(id, (cell = newCell(id)));
    return cell;
  }

  private update(listed: ListedCell): void {
    const cell = this.cell(listed.id);
    cell.version += 1;
    cell.type = listed.cell_type;
    cell.source = listed.source;
    cell.metadata = listed.metadata;
  }

  /**
   * Loads the source of one cell, one request at a time. An edit may also have moved the cell, so a listing follows after a
   * second.
   */
  private refresh(id: string): void {
    if (this.refreshing.has(id)) {
      this.refreshing.set(id, true);
      return;
    }
    this.refreshing.set(id, false);
    requestJson<ListedCell>(this.access, "GET", `${this.path}/cells/${encodeURIComponent(id)}?outputs=none`)
      .then((one) => {
        this.update(one);
        this.changed();
      })
      .catch(() => undefined)
      .finally(() => {
        const again = this.refreshing.get(id);
        this.refreshing.delete(id);
        if (again) this.refresh(id);
        else {
          clearTimeout(this.listTimer);
          this.listTimer = window.setTimeout(() => this.list(), 1000);
        }
      });
  }

  /** Events do not contain the sources and the order of cells. They are listed, once for many changes. */
  list(): void {
    if (this.isListing) {
      this.listAgain = true;
      return;
    }
    this.isListing = true;
    requestAll<ListedCell>(this.access, `${this.path}/cells?outputs=none`, "cells")
      .then((cells) => {
        for (const one of cells) {
          this.update(one);
        }
        this.order = cells.map((one) => one.id);
        this.isListed = true;
        this.changed();
      })
      .catch(() => undefined)
      .finally(() => {
        this.isListing = false;
        if (this.listAgain) {
          this.listAgain = false;
          this.list();
        }
      });
  }

  changed(): void {
    if (this.isDrawPending) return;
    this.isDrawPending = true;
    requestAnimationFrame(() => {
      this.isDrawPending = false;
      for (const follower of [...this.followers]) follower();
    });
  }

  run(cell: string): Promise<unknown> {
    return requestJson(this.access, "POST", `${this.path}/cells/${encodeURIComponent(cell)}/run`, { allow_stdin: true });
  }

  edit(cell: string, source: string): Promise<unknown> {
    return requestJson(this.access, "PATCH", `${this.path}/cells/${encodeURIComponent(cell)}`, { source });
  }

  remove(cell: string): Promise<unknown> {
    return requestJson(this.access, "DELETE", `${this.path}/cells/${encodeURIComponent(cell)}`);
  }

  stop(cell: string): Promise<unknown> {
    return requestJson(this.access, "POST", `${this.path}/cells/${encodeURIComponent(cell)}/cancel`, {});
  }

  /** Completions of the code at the cursor, by the kernel. */
  complete<T>(code: string, cursor_pos: number): Promise<T> {
    return requestJson(this.access, "POST", `${this.path}/complete`, { code, cursor_pos });
  }

  /** A range of a stream's text, in bytes. */
  text(cell: string, output: number, from: number, to: number): Promise<{ from: number; to: number; text: string }> {
    return requestJson(this.access, "GET", `${this.path}/cells/${encodeURIComponent(cell)}/outputs/${output}/text?from=${from}&to=${to}`);
  }

  async answer(cell: string, value: string): Promise<void> {
    await requestJson(this.access, "POST", `${this.path}/input`, { value });
    const answered = this.cell(cell);
    answered.question = undefined;
    answered.version += 1;
    this.changed();
  }
}
