// Which frames are alive. Each has a document, and a plotting library that may take tens of megabytes: a session has hundreds of them,
// of which a person looks at a few. Pure.

/** So many stay, with all that was done in them. */
const MOST = 24;

export interface Living {
  live(): void;
  rest(): void;
  /** Whether a person is in it. */
  readonly isUsed: boolean;
}

export class Lives {
  /** Those that are alive and far from the view, the longest first. */
  private away = new Set<Living>();
  private here = new Set<Living>();

  constructor(private most: number) {}

  near(one: Living): void {
    this.away.delete(one);
    this.here.add(one);
    one.live();
    this.part();
  }

  far(one: Living): void {
    if (!this.here.delete(one)) return;
    this.away.add(one);
    this.part();
  }

  gone(one: Living): void {
    this.here.delete(one);
    this.away.delete(one);
  }

  private part(): void {
    for (const one of [...this.away]) {
      if (this.here.size + this.away.size <= this.most) return;
      if (one.isUsed) continue;
      this.away.delete(one);
      one.rest();
    }
  }
}

export const alive = new Lives(MOST);
