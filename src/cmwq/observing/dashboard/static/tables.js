// The tables of queues and functions: rows that are made once and then changed where their text changes.

import { $, UNKNOWN, duration, el, number, plural, rate, setText } from "./words.js";

// columns: { title, help, text(row), sort(row), fill(cell, row) }; rows are told apart by key(row).
export class Table {
  constructor(table, caption, columns, key, sorted) {
    this.columns = columns;
    this.key = key;
    this.sorted = { column: sorted, down: true };
    this.rows = new Map();
    this.values = [];
    this.heads = columns.map((column, place) => this.#head(column, place));
    this.body = el("tbody");
    const heads = el("tr", {}, ...this.heads);
    table.append(el("caption", { class: "unseen" }, caption), el("thead", {}, heads), this.body);
    this.none = el("tr", {}, el("td", { colspan: columns.length, class: "none" }, "None so far."));
    this.#mark();
  }

  #head(column, place) {
    const button = el("button", { type: "button", title: column.help ?? null }, column.title);
    button.addEventListener("click", () => {
      const same = this.sorted.column === place;
      this.sorted = { column: place, down: same ? !this.sorted.down : column.sort !== undefined };
      this.#mark();
      this.show(this.values);
    });
    return el("th", { scope: "col", class: column.left ? null : "number" }, button);
  }

  #mark() {
    this.heads.forEach((head, place) => {
      if (place === this.sorted.column) head.setAttribute("aria-sort", this.sorted.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }

  show(values) {
    this.values = values;
    const column = this.columns[this.sorted.column];
    const by = column.sort ?? column.text;
    const sign = this.sorted.down ? -1 : 1;
    const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    const sorted = [...values].sort((a, b) => sign * order(by(a) ?? -1, by(b) ?? -1) || order(this.key(a), this.key(b)));
    const seen = new Set();
    sorted.forEach((value, place) => {
      const key = this.key(value);
      seen.add(key);
      let row = this.rows.get(key);
      if (!row) this.rows.set(key, (row = this.#row()));
      this.columns.forEach((each, index) => {
        if (each.fill) each.fill(row.cells[index], value);
        else setText(row.cells[index], each.text(value));
      });
      if (this.body.children[place] !== row) this.body.insertBefore(row, this.body.children[place] ?? null);
    });
    for (const [key, row] of this.rows) {
      if (!seen.has(key)) {
        row.remove();
        this.rows.delete(key);
      }
    }
    if (values.length) this.none.remove();
    else this.body.append(this.none);
  }

  #row() {
    const cells = this.columns.map((column, place) =>
      place ? el("td", { class: column.left ? null : "number" }) : el("th", { scope: "row" }),
    );
    return el("tr", {}, ...cells);
  }
}

// ------------------------------------------------------------------------------------------ pictures in cells

const PITCH = 2.5; // pixels from one bar of a histogram to the next
const SVG = "http://www.w3.org/2000/svg";

// A histogram as bars, and the percentiles in words.
function shape(cell, histogram) {
  if (!histogram) {
    setText(cell, UNKNOWN);
    cell.title = "Nothing was measured yet.";
    return;
  }
  const most = Math.max(...histogram.counts);
  const drawn = histogram.counts.map((n) => (n ? Math.max(1, Math.round((14 * n) / most)) : 0)).join();
  const more = (name) => (histogram[`${name}_beyond`] ? "> " : "") + duration(histogram[name]);
  const text = `${more("p50")} · ${more("p95")}`;
  if (cell.dataset.drawn !== drawn) {
    cell.dataset.drawn = drawn;
    const width = PITCH * histogram.counts.length;
    const svg = document.createElementNS(SVG, "svg");
    for (const [name, value] of [["viewBox", `0 0 ${width} 16`], ["width", width], ["height", 16], ["aria-hidden", "true"]]) {
      svg.setAttribute(name, value);
    }
    const base = document.createElementNS(SVG, "rect");
    for (const [name, value] of [["class", "base"], ["x", 0], ["y", 15], ["width", width], ["height", 1]]) {
      base.setAttribute(name, value);
    }
    svg.append(base);
    drawn.split(",").forEach((height, place) => {
      const bar = document.createElementNS(SVG, "rect");
      for (const [name, value] of [["x", PITCH * place], ["y", 15 - height], ["width", PITCH - 0.5], ["height", height]]) {
        bar.setAttribute(name, value);
      }
      svg.append(bar);
    });
    cell.replaceChildren(svg, el("span", {}));
    cell.classList.add("shape");
  }
  setText(cell.lastChild, text);
  const rest = `mean ${duration(histogram.mean)}, 99 % within ${more("p99")}; ${plural(histogram.sampled, "work")} measured`;
  cell.title = `Half within ${more("p50")}, 95 % within ${more("p95")}; ${rest}`;
}

// A name with a sentence below it.
function named(cell, name, below, mark) {
  if (!cell.firstChild) cell.append(el("span", { class: "name" }), el("span", { class: "mark" }), el("span", { class: "below" }));
  setText(cell.children[0], name);
  setText(cell.children[1], mark);
  setText(cell.children[2], below);
  cell.children[1].hidden = !mark;
  cell.children[2].hidden = !below;
}

// Of the time of a function: how much of it computed, how much waited.
function split(cell, share) {
  if (share === null) {
    setText(cell, UNKNOWN);
    return;
  }
  if (!cell.querySelector(".split")) {
    cell.replaceChildren(el("span", { class: "split", "aria-hidden": "true" }, el("i")), el("span"));
  }
  cell.querySelector("i").style.width = `${(share * 100).toFixed(1)}%`;
  setText(cell.lastChild, `${Math.round(share * 100)} %`);
}

// ------------------------------------------------------------------------------------------ the two tables

const cores = (n) => (n === null || n === undefined ? UNKNOWN : n < 0.005 ? "0" : n < 9.95 ? n.toFixed(2) : number(n));
const state = (q) => (q.state === "open" ? "" : q.state);
const word = (row) => row.name;

const MAX_COUNT = 2 ** 31 - 1; // as a max_active: no limit
const limit = (q) => (q.max_active < MAX_COUNT ? `of ${number(q.max_active)}` : "(unlimited)");
const flight = (q) => `${number(q.active)} ${limit(q)}${q.learns ? ", learned" : ""}`;
const rescue = (q) => (q.rescuer ? `${number(q.maydays)}, ${number(q.rescued)}` : "no rescuer");

const QUEUE_COLUMNS = [
  { title: "Queue", left: true, fill: (cell, q) => named(cell, q.name, q.why ?? "", state(q)), text: word },
  { title: "In flight", help: "Works with a place under max_active, and max_active: the queue's limit", text: flight, sort: (q) => q.active },
  { title: "No place", help: "Works that wait for a place under max_active", text: (q) => number(q.inactive), sort: (q) => q.inactive },
  { title: "Per second", help: "Works that ended, in the last five seconds", text: (q) => rate(q.rates.completed), sort: (q) => q.rates.completed },
  { title: "Total", help: "Works that ended since the queue was made", text: (q) => number(q.completed), sort: (q) => q.completed },
  { title: "Failed", help: "Works that raised", text: (q) => number(q.failed), sort: (q) => q.failed },
  { title: "CPUs now", help: "How many CPUs were in use, in the last five seconds", text: (q) => cores(q.rates.cpu), sort: (q) => q.rates.cpu },
  { title: "CPU time", help: "Of all its works that ended", text: (q) => duration(q.cpu_seconds), sort: (q) => q.cpu_seconds },
  { title: "Hogs", help: "Works that computed for more than 10 ms while others waited", text: (q) => number(q.hogs), sort: (q) => q.hogs },
  { title: "Wake-ups", help: "Workers that were woken because another blocked (concurrency-managed)", text: (q) => number(q.wakeups), sort: (q) => q.wakeups },
  { title: "Mayday, rescued", help: "How often its rescuer was called, and how many works that began", text: rescue, sort: (q) => q.maydays + q.rescued },
  { title: "Waited", help: "From queueing to its start: half and 95 % within", left: true, fill: (cell, q) => shape(cell, q.waiting), sort: (q) => q.waiting?.p95 },
  { title: "Ran for", help: "From start to end: half and 95 % within", left: true, fill: (cell, q) => shape(cell, q.running), sort: (q) => q.running?.p95 },
];

const computed = (f) => (f.seconds > 0 && f.cpu_seconds !== null ? Math.min(1, f.cpu_seconds / f.seconds) : null);

const FUNCTION_COLUMNS = [
  { title: "Function", left: true, fill: (cell, f) => named(cell, f.name, `in ${f.queue || "no queue"}`, ""), text: word },
  { title: "Now", help: "How many workers are in it", text: (f) => number(f.running), sort: (f) => f.running },
  { title: "CPUs now", help: "How many CPUs were in use, in the last five seconds", text: (f) => cores(f.rates.cpu), sort: (f) => f.rates.cpu },
  { title: "Per second", help: "How many ended, in the last five seconds", text: (f) => rate(f.rates.ended), sort: (f) => f.rates.ended },
  { title: "Ended", text: (f) => number(f.ended), sort: (f) => f.ended },
  { title: "Failed", text: (f) => number(f.failed), sort: (f) => f.failed },
  { title: "Mean", help: "Mean time from start to end", text: (f) => duration(f.ended ? f.seconds / f.ended : null), sort: (f) => (f.ended ? f.seconds / f.ended : 0) },
  { title: "Total", help: "Sum of the times from start to end", text: (f) => duration(f.seconds), sort: (f) => f.seconds },
  { title: "Computing", help: "Of that time: how much used a CPU. The rest is waiting.", fill: (cell, f) => split(cell, computed(f)), sort: computed },
];

export class Tables {
  constructor() {
    this.queues = new Table($("queues"), "Queues", QUEUE_COLUMNS, (q) => q.name, 1);
    this.functions = new Table($("functions"), "Functions", FUNCTION_COLUMNS, (f) => `${f.name} ${f.queue}`, 7);
  }

  show(view) {
    this.queues.show(view.queues);
    setText($("queues-note"), view.queues_left_out ? `${plural(view.queues_left_out, "queue")} with less to do not shown` : "");
    this.functions.show(view.functions);
  }
}
