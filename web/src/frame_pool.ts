// Limits the number of loaded frames. Each has a document, and a plotting library that may take tens of megabytes. A session
// can have
// hundreds, of which a person looks at a few. Pure.

/** This many frames stay loaded, with the state that a person gave them (zoom, sliders). */
const MAX_LOADED = 24;

export interface PooledFrame {
  load(): void;
  unload(): void;
  /** Whether the focus is in it. */
  readonly hasFocus: boolean;
}

export class FramePool {
  /** Loaded frames out of view, the longest away first. */
  private outOfView = new Set<PooledFrame>();
  private inView = new Set<PooledFrame>();

  constructor(private max: number) {}

  entered(frame: PooledFrame): void {
    this.outOfView.delete(frame);
    this.inView.add(frame);
    frame.load();
    this.evict();
  }

  left(frame: PooledFrame): void {
    if (!this.inView.delete(frame)) return;
    this.outOfView.add(frame);
    this.evict();
  }

  remove(frame: PooledFrame): void {
    this.inView.delete(frame);
    this.outOfView.delete(frame);
  }

  /** Unloads frames out of view until the limit is kept. Those in view, and the one with the focus, stay. */
  private evict(): void {
    for (const frame of [...this.outOfView]) {
      if (this.inView.size + this.outOfView.size <= this.max) return;
      if (frame.hasFocus) continue;
      this.outOfView.delete(frame);
      frame.unload();
    }
  }
}

export const framePool = new FramePool(MAX_LOADED);
