// The connection to the shell of a session's terminal: started once by its key, read by event numbers, written by offsets. So it
// survives reloads of the page and restarts of the server: nothing is shown or typed twice.
import { type Access, ApiError, openSocket, requestJson, retryDelay } from "./api.js";

/** Output that the server sends ahead of what the terminal has drawn, bytes. */
const WINDOW = 128 << 10;
/** Input that waits for the server, bytes. More is dropped: nobody types that. */
const MAX_INPUT = 1 << 20;
/** The most input of one command, bytes. */
const MAX_COMMAND_INPUT = 32 << 10;
/** Milliseconds until a command is sent again that the server had no room for. */
const BUSY_DELAY = 200;
/** Milliseconds between two acknowledgements. */
const ACK_DELAY = 10;

export interface Size {
  rows: number;
  cols: number;
}

interface Process {
  id: string;
  state: "running" | "exited";
  exit: Exit | null;
  last_seq: number;
  input_bytes: number;
}

export interface Exit {
  exit_code: number | null;
  signal: number | null;
  out_of_memory: boolean;
}

export type ShellState = { name: "connecting" | "live" | "lost" } | { name: "ended"; exit: Exit } | { name: "failed"; why: string };

export interface ShellListener {
  changed(state: ShellState): void;
  /** What follows is the output of a shell from its beginning. */
  began(): void;
  /** `isRepeated`: the output was there before this connection, so that another page may have shown it. */
  output(bytes: Uint8Array, seq: number, isRepeated: boolean): void;
  /** Output is missing before what follows. */
  lost(): void;
}

/** The number of the session's terminal: each shell that is started after the end of another has the next one. */
const numberKey = (session: string) => `cellkeep-terminal-${session}`;

interface Message {
  type: "output" | "lost" | "exited" | "reply";
  seq: number;
  data: string;
  exit: Exit;
  id: string | null;
  ok: boolean;
  input_bytes: number;
  error?: { code: string; detail: string };
}

export class ShellConnection {
  private process?: Process;
  private socket?: WebSocket;
  private lastSeq = 0;
  private drawnSeq = 0;
  private ackTimer = 0;
  /** The number of the newest event when the connection was opened for the first time. */
  private repeatedUntil = 0;
  private size?: Size;
  private queue: Uint8Array[] = [];
  private queued = 0;
  /** The input that is on its way. The next one follows its reply. */
  private sent?: { offset: number; bytes: Uint8Array; isRetry: boolean };
  private accepted = 0;
  private retry = 0;
  private timer = 0;
  private isClosed = false;

  constructor(
    private access: Access,
    private session: string,
    private listener: ShellListener,
  ) {}

  private get processes(): Promise<string> {
    const session = requestJson<{ sandbox: string | null }>(this.access, "GET", `/v1/sessions/${encodeURIComponent(this.session)}`);
    return session.then(({ sandbox }) => `/v1/sandboxes/${encodeURIComponent(sandbox ?? this.session)}/processes`);
  }

  /** Starts the shell unless it runs already, and connects. */
  async open(): Promise<void> {
    this.listener.changed({ name: "connecting" });
    Object.assign(this, { process: undefined, lastSeq: 0, sent: undefined, queue: [], queued: 0 });
    try {
      const path = await this.processes;
      const process = await this.start(path);
      if (this.isClosed) return;
      this.process = process;
      this.accepted = process.input_bytes;
      this.repeatedUntil = process.last_seq;
      this.listener.began();
      this.connect(path);
    } catch (error) {
      this.fail(error);
    }
  }

  /** The shell with the number of this terminal, or with the next one if that is forgotten. */
  private async start(path: string): Promise<Process> {
    let number = Number(localStorage.getItem(numberKey(this.session)) ?? 1);
    for (;;) {
      try {
        // A retry must be the same, so the size is that of no screen. It is changed at once.
        return await requestJson<Process>(this.access, "POST", path, { command: ["/bin/bash"], pty: { rows: 24, cols: 80 }, key: `page-terminal-${number}` });
      } catch (error) {
        if (!(error instanceof ApiError && error.code === "process_conflict")) throw error;
        number += 1;
        localStorage.setItem(numberKey(this.session), String(number));
      }
    }
  }

  /** Starts another shell, after the end of this one. */
  next(): void {
    const number = Number(localStorage.getItem(numberKey(this.session)) ?? 1);
    localStorage.setItem(numberKey(this.session), String(number + 1));
    void this.open();
  }

  close(): void {
    this.isClosed = true;
    clearTimeout(this.timer);
    this.socket?.close();
  }

  private fail(error: unknown): void {
    if (this.isClosed) return;
    // Without an answer, the server is away.
    if (!(error instanceof ApiError)) return this.reconnect(() => this.open());
    this.listener.changed({ name: "failed", why: error.message });
  }

  private reconnect(attempt: () => Promise<void>): void {
    this.listener.changed({ name: "lost" });
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => void attempt(), retryDelay(this.retry));
    this.retry += 1;
  }

  private connect(path: string): void {
    const query = `after=${this.lastSeq}&encoding=base64&window=${WINDOW}`;
    const socket = openSocket(this.access, `${path}/${this.process?.id}/socket`, query);
    this.socket = socket;
    socket.onopen = () => {
      this.retry = 0;
      this.listener.changed({ name: "live" });
      if (this.size) this.resize(this.size);
      if (this.sent) this.sent.isRetry = true;
      this.transmit();
    };
    socket.onmessage = ({ data }) => this.receive(JSON.parse(data as string) as Message);
    socket.onclose = ({ code }) => {
      if (this.isClosed || this.socket !== socket) return;
      this.socket = undefined;
      if (this.process?.state === "exited") return;
      if (code === 1008) return this.listener.changed({ name: "failed", why: "the token has been revoked or has expired" });
      this.reconnect(() => this.resume(path));
    };
  }

  /** A socket does not say why it was closed, so the process is asked for. */
  private async resume(path: string): Promise<void> {
    try {
      await requestJson<Process>(this.access, "GET", `${path}/${this.process?.id}`);
    } catch (error) {
      return this.isClosed ? undefined : error instanceof ApiError ? this.fail(error) : this.reconnect(() => this.resume(path));
    }
    if (!this.isClosed) this.connect(path);
  }

  private receive(message: Message): void {
    if (message.type === "reply") return this.replied(message);
    this.lastSeq = message.seq;
    if (message.type === "output") {
      this.listener.output(decoded(message.data), message.seq, message.seq <= this.repeatedUntil);
    } else if (message.type === "lost") this.listener.lost();
    else if (this.process) {
      this.process.state = "exited";
      this.listener.changed({ name: "ended", exit: message.exit });
    }
  }

  private send(command: object): boolean {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(command));
    return true;
  }

  /** The terminal has drawn the events up to this number: the server may send more. */
  drawn(seq: number): void {
    this.drawnSeq = seq;
    // A terminal sends many small events: one acknowledgement for several.
    this.ackTimer ||= window.setTimeout(() => this.acknowledge(), ACK_DELAY);
  }

  private acknowledge(): void {
    this.ackTimer = 0;
    this.send({ id: "ack", op: "ack", seq: this.drawnSeq });
  }

  resize(size: Size): void {
    this.size = size;
    this.send({ op: "resize", ...size });
  }

  // ---- input ---------------------------------------------------------------------------------------------------------

  input(bytes: Uint8Array): void {
    if (this.process?.state === "exited" || this.queued + bytes.length > MAX_INPUT) return;
    this.queue.push(bytes);
    this.queued += bytes.length;
    this.transmit();
  }

  /** Sends what is on its way again, or else the next input. */
  private transmit(): void {
    if (!this.sent && this.queue.length > 0) {
      const all = joined(this.queue);
      const bytes = all.slice(0, MAX_COMMAND_INPUT);
      this.queue = all.length > bytes.length ? [all.slice(bytes.length)] : [];
      this.queued = all.length - bytes.length;
      this.sent = { offset: this.accepted, bytes, isRetry: false };
    }
    if (!this.sent) return;
    const { offset, bytes } = this.sent;
    this.send({ id: "input", op: "input", data: btoa(String.fromCharCode(...bytes)), offset });
  }

  private replied({ id, ok, input_bytes: accepted, error }: Message): void {
    if (id === "ack" && !ok) setTimeout(() => this.acknowledge(), BUSY_DELAY);
    if (id !== "input" || !this.sent) return;
    const { sent } = this;
    if (ok) {
      this.accepted = accepted;
      const isOwn = accepted === sent.offset + sent.bytes.length;
      // Another page types into the same shell: what is at this place is its input, unless an earlier attempt has arrived.
      this.sent = isOwn || sent.isRetry ? undefined : { ...sent, offset: accepted };
      this.transmit();
    } else if (error?.code === "process_busy" || error?.code === "too_many_requests") {
      setTimeout(() => this.sent === sent && this.transmit(), BUSY_DELAY);
    } else {
      // The shell takes no input any more.
      this.sent = undefined;
      this.transmit();
    }
  }
}

function decoded(base64: string): Uint8Array<ArrayBuffer> {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at += 1) bytes[at] = text.charCodeAt(at);
  return bytes;
}

function joined(parts: Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
