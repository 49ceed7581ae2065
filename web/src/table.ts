// A table that a person can sort, page through and copy. The rows of a long table are created when their page is shown.

/** A table with more rows than this is shown in pages. */
const MAX_ROWS = 100;
const PAGE_ROWS = 50;

/** A row as an element, or as HTML that is not parsed yet. */
type Row = HTMLTableRowElement | string;

/** Sanitises foreign HTML. */
type Clean = (text: string) => DocumentFragment;

const collator = new Intl.Collator(undefined, { numeric: true });
const ENTITIES: Record<string, string> = { lt: "<", gt: ">", amp: "&", quot: '"', "#39": "'", nbsp: " " };

const squeezed = (text: string) => text.trim().replace(/\s+/g, " ");

/** The text of a cell that is still HTML. */
const textOf = (cell: string) => squeezed(cell.replace(/<[^<>]*>/g, "").replace(/&(#?\w+);/g, (all, name: string) => ENTITIES[name] ?? all));

/** The texts of a row. */
function cellTexts(row: Row): string[] {
  if (typeof row !== "string") return [...row.cells].map((cell) => squeezed(cell.textContent ?? ""));
  return row.split(/<t[hd][^<>]*>/i).slice(1).map(textOf);
}

/** The texts of one column. Of unparsed rows only that cell is parsed. */
function columnOf(rows: Row[], column: number): string[] {
  return rows.map((row) => {
    if (typeof row !== "string") return squeezed(row.cells[column]?.textContent ?? "");
    const cells = /<t[hd][^<>]*>/gi;
    for (let at = 0; at <= column; at += 1) if (!cells.test(row)) return "";
    const end = row.slice(cells.lastIndex).search(/<\/?t[hdr]\b/i);
    return textOf(row.slice(cells.lastIndex, end < 0 ? undefined : cells.lastIndex + end));
  });
}

/** The number in a cell; `undefined` for a missing value, NaN for text. */
function numberOf(text: string): number | undefined {
  if (text === "" || /^(nan|none|na|nat|<na>|null|missing)$/i.test(text)) return undefined;
  return Number(text.replace(/,(?=\d{3}\b)|%$/g, ""));
}

/** The indices of rows in the order of one column: numbers by value, missing values last. */
export function sorted(column: string[], descending: boolean): number[] {
  const numbers = column.map(numberOf);
  const areNumbers = numbers.every((number) => number === undefined || !Number.isNaN(number));
  const sign = descending ? -1 : 1;
  const compare = (a: number, b: number) => {
    const [one, other] = [numbers[a], numbers[b]];
    if (one === undefined || other === undefined) return one === other ? a - b : one === undefined ? 1 : -1;
    return sign * (areNumbers ? one - other : collator.compare(column[a] as string, column[b] as string)) || a - b;
  };
  return column.map((_, index) => index).sort(compare);
}

class Sortable {
  private order: number[];
  private page = 0;
  private sort?: { column: number; descending: boolean };
  private body: HTMLTableSectionElement;
  private pager?: HTMLElement;

  constructor(
    private table: HTMLTableElement,
    private rows: Row[],
    private clean: Clean,
  ) {
    this.order = rows.map((_, index) => index);
    this.body = table.tBodies[0] ?? table.createTBody();
    const isFlat = rows.every((row) => (typeof row === "string" ? !/rowspan/i.test(row) : [...row.cells].every((cell) => cell.rowSpan === 1)));
    if (isFlat && rows.length > 1) this.addSortButtons();
    if (rows.length > MAX_ROWS) this.pager = table.ownerDocument.createElement("div");
    this.pager?.classList.add("pager");
    this.pager?.setAttribute("role", "group");
    this.pager?.setAttribute("aria-label", "Rows of the table");
    if (this.pager) table.after(this.pager);
    this.draw();
  }

  /** The first header row with one cell per column gets buttons for sorting. */
  private addSortButtons(): void {
    const columns = cellTexts(this.rows[0] as Row).length;
    const line = [...(this.table.tHead?.rows ?? [])].find((row) => row.cells.length === columns && [...row.cells].every((cell) => cell.colSpan === 1));
    [...(line?.cells ?? [])].forEach((cell, column) => {
      const label = squeezed(cell.textContent ?? "");
      if (!label) return;
      const head = cell.ownerDocument.createElement("th");
      head.scope = "col";
      head.ariaSort = "none";
      const button = head.appendChild(head.ownerDocument.createElement("button"));
      button.textContent = label;
      button.addEventListener("click", () => this.sortBy(column, head));
      cell.replaceWith(head);
    });
  }

  private sortBy(column: number, head: HTMLTableCellElement): void {
    const again = this.sort?.column === column ? this.sort : undefined;
    this.sort = again?.descending ? undefined : { column, descending: again !== undefined };
    for (const other of this.table.tHead?.querySelectorAll("[aria-sort]") ?? []) other.ariaSort = "none";
    if (this.sort) head.ariaSort = this.sort.descending ? "descending" : "ascending";
    const plain = this.rows.map((_, index) => index);
    this.order = this.sort ? sorted(columnOf(this.rows, this.sort.column), this.sort.descending) : plain;
    this.page = 0;
    this.draw();
  }

  private draw(): void {
    const from = this.page * PAGE_ROWS;
    const shown = this.pager ? this.order.slice(from, from + PAGE_ROWS) : this.order;
    const rows = shown.map((index) => this.rows[index] as Row);
    const made = rows.filter((row) => typeof row === "string");
    const elements = made.length > 0 ? [...this.clean(`<table><tbody>${made.join("")}</tbody></table>`).querySelectorAll("tr")] : [];
    this.body.replaceChildren(...rows.map((row) => (typeof row === "string" ? (elements.shift() as Node) : row)));
    if (this.pager) this.drawPager(this.pager, from, from + shown.length);
  }

  private drawPager(pager: HTMLElement, from: number, to: number): void {
    const last = Math.ceil(this.rows.length / PAGE_ROWS) - 1;
    const format = (number: number) => number.toLocaleString("en");
    if (!pager.firstChild) {
      const step = (label: string, text: string, page: () => number) => {
        const button = pager.ownerDocument.createElement("button");
        Object.assign(button, { textContent: text, ariaLabel: label });
        button.addEventListener("click", () => {
          this.page = page();
          this.draw();
        });
        return button;
      };
      const range = pager.ownerDocument.createElement("span");
      range.role = "status";
      const back = [step("First rows", "«", () => 0), step("Rows before", "‹", () => Math.max(this.page - 1, 0))];
      pager.append(...back, range, step("Next rows", "›", () => Math.min(this.page + 1, last)), step("Last rows", "»", () => last));
    }
    (pager.querySelector("span") as HTMLElement).textContent = `${format(from + 1)}–${format(to)} of ${format(this.rows.length)} rows`;
    const [first, before, next, end] = [...pager.querySelectorAll("button")] as HTMLButtonElement[];
    for (const one of [first, before]) one?.setAttribute("aria-disabled", String(this.page === 0));
    for (const one of [next, end]) one?.setAttribute("aria-disabled", String(this.page === last));
  }

  /** The whole table as tab-separated values, in the order that is shown. */
  tsv(): string {
    const heads = [...(this.table.tHead?.rows ?? [])].map((row) => cellTexts(row));
    return [...heads, ...this.order.map((index) => cellTexts(this.rows[index] as Row))].map((row) => row.join("\t")).join("\n");
  }
}

const tables = new WeakMap<HTMLTableElement, Sortable>();

/** Makes the tables in a fragment sortable. `rows`: the unparsed rows of its only table. */
export function makeSortable(fragment: ParentNode, clean: Clean, rows?: string[]): void {
  for (const table of fragment.querySelectorAll("table")) {
    if (table.querySelector("table")) continue;
    const body = table.tBodies[0];
    const tableRows = rows ?? [...(body?.rows ?? [])];
    if (!table.tHead || table.tBodies.length > 1 || tableRows.length === 0) continue;
    tables.set(table, new Sortable(table, tableRows, clean));
  }
}

/** A table as tab-separated values, as spreadsheets paste them. */
export function tsvOf(table: HTMLTableElement): string {
  return tables.get(table)?.tsv() ?? [...table.rows].map((row) => cellTexts(row).join("\t")).join("\n");
}

/**
 * Splits HTML with one long table: the HTML with two of its rows, and all rows unparsed. Undefined if there is not exactly
 * one body.
 */
export function splitLongTable(text: string): { around: string; rows: string[] } | undefined {
  const start = text.indexOf("<tbody>");
  const end = text.lastIndexOf("</tbody>");
  if (start < 0 || end < start || text.indexOf("<tbody", start + 1) >= 0) return undefined;
  const rows = text.slice(start + 7, end).split(/(?<=<\/tr>)/i);
  if (!rows[rows.length - 1]?.includes("<t")) rows.pop();
  return { around: `${text.slice(0, start)}<tbody>${rows.slice(0, 2).join("")}</tbody>${text.slice(end + 8)}`, rows };
}
