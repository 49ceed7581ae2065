// A session followed live: one socket for all of its cells, resumed by number after a cut.
import { type Access, ApiError, request, requestJson } from "./api.js";
import { type CellState, type Event, apply, newCell } from "./cell_state.js";

export type Connection = "connecting" | "live" | "lost" | "ended" | "refused";

interface ListedCell {
  id: string;
  cell_type: string;
  source: string;
  metadata?: Record<string, unknown>;
}

const feeds = new Map<string, SessionFeed>();

/** The feed of a session, shared by all who show something of it. */
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
  /** The cells' ids as the notebook has them. */
  order: string[] = [];
  connection: Connection = "connecting";
  kernel = "starting";
  /** How many runs have ended since it is followed. */
  runs = 0;
  notice = "";
  why = "";
  private last = 0;
  private listed = 0;
  private socket?: WebSocket;
  private retry = 0;
  private timer = 0;
  private painting = false;
  private listing = false;
  private stale = false;
  private readers = new Set<() => void>();

  constructor(
    readonly access: Access,
    readonly session: string,
    private forget: () => void,
  ) {}

  get path(): string {
    return `/v1/sessions/${encodeURIComponent(this.session)}`;
  }

  /** Calls back at most once a frame. Gives what ends that. */
  follow(reader: () => void): () => void {
    this.readers.add(reader);
    if (this.readers.size === 1) {
      addEventListener("offline", this.offline);
      addEventListener("online", this.online);
      this.connect();
    }
    return () => {
      this.readers.delete(reader);
      if (this.readers.size === 0) this.close();
    };
  }

  /** A socket does not notice for minutes that its network is gone. */
  private offline = () => this.socket?.close();

  /** Back again: no longer waiting for the next try. */
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
    clearTimeout(this.quiet);
    const socket = this.socket;
    this.socket = undefined;
    socket?.close();
    this.forget();
  }

  private connect(): void {
    const base = new URL(this.access.server || location.origin);
    base.protocol = base.protocol === "https:" ? "wss:" : "ws:";
    base.pathname = `${this.path}/socket`;
    base.search = `after=${this.last}&outputs=refs&token=${encodeURIComponent(this.access.token)}`;
    this.socket?.close();
    const socket = new WebSocket(base);
    this.socket = socket;
    socket.onopen = () => {
      this.retry = 0;
      this.become("live");
      this.list();
    };
    socket.onmessage = (message) => this.take(JSON.parse(message.data as string) as Event);
    socket.onclose = (close) => {
      if (this.socket !== socket) return;
      if (close.code === 1000) this.become("ended");
      else if (close.code === 1008) this.become("refused");
      else void this.again();
    };
  }

  /** Asks why it was cut, which a socket does not tell, and tries again if that may help. */
  private async again(): Promise<void> {
    this.become("lost");
    const wait = Math.min(250 * 2 ** this.retry, 3000);
    this.retry += 1;
    try {
      await request(this.access, "GET", this.path);
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return this.become("ended");
      if (error instanceof ApiError && error.status === 401) return this.become("refused");
    }
    if (this.readers.size > 0) this.timer = window.setTimeout(() => this.connect(), wait);
  }

  private become(connection: Connection): void {
    this.connection = connection;
    this.changed();
  }

  private take(event: Event): void {
    if (typeof event.seq !== "number") return;
    this.last = Math.max(this.last, event.seq);
    if (event.type === "session.state") {
      this.kernel = event.state ?? this.kernel;
      this.notice = event.notice ?? "";
      this.why = event.why ?? "";
    } else if (event.type === "notebook.changed") {
      // Its id may be used again, by a cell that has shown nothing yet; versions go on, so that who shows it sees that.
      const deleted = event.change === "deleted" && event.cell !== undefined ? this.cells.get(event.cell) : undefined;
      if (deleted) this.cells.set(deleted.id, { ...newCell(deleted.id), version: deleted.version + 1 });
      // A text that grows is edited again and again: only its cell is asked for.
      if (event.change === "edited" && event.cell !== undefined && this.order.includes(event.cell)) this.refresh(event.cell);
      else this.list();
    }
    if (event.type === "cell.finished") this.runs += 1;
    if (event.cell !== undefined) {
      if (!this.cells.has(event.cell)) this.list();
      apply(this.cell(event.cell), event);
    }
    this.changed();
  }

  cell(id: string): CellState {
    let cell = this.cells.get(id);
    if (!cell) this.cells.set(id, (cell = newCell(id)));
    return cell;
  }

  private told(one: ListedCell): void {
    const cell = this.cell(one.id);
    cell.version += 1;
    cell.type = one.cell_type;
    cell.source = one.source;
    cell.metadata = one.metadata;
  }

  private refreshing = new Map<string, boolean>();

  /** Asks for one cell's source, once at a time. An edit may also have moved it: the listing follows when all is quiet. */
  private refresh(id: string): void {
    if (this.refreshing.has(id)) {
      this.refreshing.set(id, true);
      return;
    }
    this.refreshing.set(id, false);
    requestJson<ListedCell>(this.access, "GET", `${this.path}/cells/${encodeURIComponent(id)}?outputs=none`)
      .then((one) => {
        this.told(one);
        this.changed();
      })
      .catch(() => undefined)
      .finally(() => {
        const again = this.refreshing.get(id);
        this.refreshing.delete(id);
        if (again) this.refresh(id);
        else {
          clearTimeout(this.quiet);
          this.quiet = window.setTimeout(() => this.list(), 1000);
        }
      });
  }

  private quiet = 0;

  /** Events do not tell cells' sources and order: they are asked for, once for many changes. */
  list(): void {
    if (this.listing) {
      this.stale = true;
      return;
    }
    this.listing = true;
    requestJson<{ cells: ListedCell[] }>(this.access, "GET", `${this.path}/cells?outputs=none`)
      .then(({ cells }) => {
        for (const one of cells) {
          this.told(one);
        }
        this.order = cells.map((one) => one.id);
        this.listed += 1;
        this.changed();
      })
      .catch(() => undefined)
      .finally(() => {
        this.listing = false;
        if (this.stale) {
          this.stale = false;
          this.list();
        }
      });
  }

  /** Whether the cells have been told at least once. */
  get isListed(): boolean {
    return this.listed > 0;
  }

  changed(): void {
    if (this.painting) return;
    this.painting = true;
    requestAnimationFrame(() => {
      this.painting = false;
      for (const reader of [...this.readers]) reader();
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

  /** How a name goes on, by the kernel. */
  complete<T>(code: string, cursor_pos: number): Promise<T> {
    return requestJson(this.access, "POST", `${this.path}/complete`, { code, cursor_pos });
  }

  /** A part of a stream's text, in bytes. */
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
