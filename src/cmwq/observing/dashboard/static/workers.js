// The table of workers: as many rows as are in sight exist, however many workers there are.

import { $, UNKNOWN, choice, duration, el, number, plural, setText } from "./words.js";

const ROW = 30; // pixels
const STATES = [["all", "All"], ["running", "Running"], ["blocked", "Blocked"], ["idle", "Idle"]];
const RANK = { blocked: 0, running: 1, creating: 2, waking: 3, idle: 4 };
const COLUMNS = [
  ["name", "Worker"], ["state", "State"], ["work", "Function"], ["queue", "Queue"], ["since", "For"], ["cpu", "CPU"], ["waits", "Waits for"],
];

export class Workers {
  constructor(open) {
    this.open = open;
    this.view = null;
    this.found = [];
    this.text = "";
    this.state = "all";
    this.sorted = { column: "since", down: true };
    this.active = 0;
    this.rows = [];
    this.head = el("div", { role: "row", class: "row heads", "aria-rowindex": 1 }, ...COLUMNS.map(([key, title]) => this.#head(key, title)));
    this.scroll = el("div", { class: "rows", tabindex: 0, role: "rowgroup", "aria-label": "Workers; arrows choose one, Enter shows its stack" });
    this.spacer = el("div", { class: "spacer", role: "presentation" });
    this.scroll.append(this.spacer);
    $("workers").append(el("div", { role: "rowgroup" }, this.head), this.scroll);
    choice($("worker-state"), "worker-state", STATES, "all", (value) => {
      this.state = value;
      this.#find();
    });
    $("filter").addEventListener("input", () => {
      this.text = $("filter").value.trim().toLowerCase();
      this.#find();
    });
    this.scroll.addEventListener("scroll", () => this.draw());
    this.scroll.addEventListener("keydown", (event) => this.#key(event));
    this.scroll.addEventListener("focus", () => this.draw());
    this.scroll.addEventListener("blur", () => this.draw());
    this.scroll.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (!row) return;
      this.active = Number(row.dataset.place);
      this.#openActive();
    });
    new ResizeObserver(() => this.draw()).observe(this.scroll);
  }

  #head(key, title) {
    const button = el("button", { type: "button" }, title);
    button.addEventListener("click", () => {
      this.sorted = { column: key, down: this.sorted.column === key ? !this.sorted.down : key === "since" || key === "cpu" };
      this.#find();
    });
    return el("span", { role: "columnheader", class: key, "data-key": key }, button);
  }

  show(view) {
    this.view = view;
    this.#find();
  }

  #word(key, i) {
    const { workers, words } = this.view;
    return key === "name" ? workers.name[i] : words[workers[key][i]];
  }

  #find() {
    if (!this.view) return;
    const { workers, words } = this.view;
    const found = [];
    for (let i = 0; i < workers.row.length; i++) {
      if (this.state !== "all" && words[workers.state[i]] !== this.state) continue;
      if (this.text && !this.#matches(i)) continue;
      found.push(i);
    }
    const { column, down } = this.sorted;
    const sign = down ? -1 : 1;
    const numeric = column === "since" || column === "cpu";
    const rank = workers.state.map((place) => RANK[words[place]] ?? 5);
    const values = numeric ? workers[column].map((n) => n ?? -1) : workers.row.map((_, i) => this.#word(column, i));
    const idle = (i) => (numeric && rank[i] === 4 ? 1 : 0); // whatever is asked for, idle workers come last
    found.sort((a, b) => idle(a) - idle(b) || (values[a] < values[b] ? -sign : values[a] > values[b] ? sign : workers.row[a] - workers.row[b]));
    this.found = found;
    for (const head of this.head.children) {
      if (head.dataset.key === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    $("workers").setAttribute("aria-rowcount", found.length + 1);
    const shown = found.length === workers.row.length ? plural(found.length, "worker") : `${number(found.length)} of ${plural(workers.row.length, "worker")}`;
    const left = this.view.workers_left_out ? `; ${number(this.view.workers_left_out)} more are not in the picture` : "";
    setText($("workers-note"), shown + left);
    this.active = Math.max(0, Math.min(this.active, found.length - 1));
    this.draw();
  }

  #matches(i) {
    const { workers, words } = this.view;
    const texts = [workers.name[i], words[workers.work[i]], words[workers.queue[i]], words[workers.waits[i]], words[workers.pool[i]]];
    return texts.some((text) => text.toLowerCase().includes(this.text));
  }

  draw() {
    if (!this.view) return;
    const total = Math.max(1, this.found.length) * ROW;
    this.spacer.style.height = `${total}px`;
    this.scroll.style.height = `${Math.min(total, 14 * ROW) + 2}px`;
    const first = Math.max(0, Math.floor(this.scroll.scrollTop / ROW) - 2);
    const wanted = Math.min(this.found.length - first, Math.ceil(this.scroll.clientHeight / ROW) + 5);
    while (this.rows.length < wanted) this.rows.push(this.#row());
    this.rows.forEach((row, k) => {
      row.hidden = k >= wanted;
      if (k < wanted) this.#fill(row, first + k);
    });
    if (!this.none) this.scroll.append((this.none = el("p", { class: "none" }, "No worker is like that.")));
    this.none.hidden = this.found.length > 0;
    setText(this.none, this.view.workers.row.length ? "No worker is like that." : "There is no worker yet.");
  }

  #row() {
    const row = el("div", { role: "row", class: "row" }, ...COLUMNS.map(([key]) => el("span", { role: "cell", class: key })));
    this.scroll.append(row);
    return row;
  }

  #fill(row, place) {
    const i = this.found[place];
    const { workers } = this.view;
    const state = this.#word("state", i);
    const focused = document.activeElement === this.scroll;
    row.style.transform = `translateY(${place * ROW}px)`;
    row.dataset.place = place;
    row.id = `worker-row-${place}`;
    row.setAttribute("aria-rowindex", place + 2);
    row.classList.toggle("active", focused && place === this.active);
    if (focused && place === this.active) this.scroll.setAttribute("aria-activedescendant", row.id);
    const texts = [
      workers.name[i],
      workers.rescuer[i] ? `${state}, rescuer` : state,
      this.#word("work", i) || UNKNOWN,
      this.#word("queue", i) || UNKNOWN,
      duration(workers.since[i]),
      duration(workers.cpu[i]),
      this.#word("waits", i) || (state === "running" ? "nothing" : UNKNOWN),
    ];
    texts.forEach((text, k) => {
      setText(row.children[k], text);
      if (k === 6 || k === 2) row.children[k].title = text;
    });
    row.children[1].className = `state is-${state}`;
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.scroll.clientHeight / ROW) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key === "Enter") return this.#openActive();
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.active = Math.max(0, Math.min(this.found.length - 1, this.active + moves[event.key]));
    const top = this.active * ROW;
    if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
    else if (top + ROW > this.scroll.scrollTop + this.scroll.clientHeight) this.scroll.scrollTop = top + ROW - this.scroll.clientHeight;
    this.draw();
  }

  #openActive() {
    const i = this.found[this.active];
    if (i !== undefined) this.open(this.view.workers.name[i]);
  }
}
