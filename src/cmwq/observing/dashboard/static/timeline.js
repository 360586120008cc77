// What each worker did when: one row per worker, or how many workers each queue had.
//
// Only the rows in sight are drawn, whatever their number. Memory: at most MOST segments, of the last ten minutes.

import { $, choice, choose, clock, colour, duration, el, hueOf, number, plural, setText } from "./words.js";

const MOST = 50000;
const KEPT = 600; // seconds
const ROW = 18; // pixels
const TOP = 22;
const MANY = 200; // from so many workers on, queues are shown first

export class Timeline {
  constructor() {
    this.process = null;
    this.mode = "workers";
    this.chosen = false;
    this.by = "queue";
    this.span = 120;
    this.loads = 0;
    this.meanwhile = [];
    this.clear();
    this.box = $("timeline");
    this.canvas = $("timeline-canvas");
    choice($("timeline-mode"), "mode", [["workers", "Workers"], ["queues", "Queues", "How many workers each queue had"]], this.mode, (value) => {
      [this.mode, this.chosen] = [value, true];
      this.draw();
    });
    choice($("timeline-colour"), "by", [["queue", "Colour by queue"], ["work", "by function"]], this.by, (value) => {
      this.by = value;
      this.draw();
    });
    choice($("timeline-span"), "span", [["30", "30 s"], ["120", "2 min"], ["600", "10 min"]], String(this.span), (value) => {
      this.span = Number(value);
      this.draw();
    });
    this.box.addEventListener("scroll", () => this.draw());
    this.box.addEventListener("mousemove", (event) => this.#hover(event));
    this.box.addEventListener("mouseleave", () => this.#hideTip());
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  clear() {
    this.rows = new Map(); // number -> { name, segments, seen }
    this.sums = [];
    this.now = 0;
    this.count = 0;
    this.trimmed = 0;
    this.interval = 1;
  }

  // ---------------------------------------------------------------------------------------- data

  async load(process) {
    if (process !== this.process) this.clear();
    this.process = process;
    if (process === null) return;
    const load = ++this.loads;
    this.meanwhile = [];
    this.loading = true;
    try {
      const answer = await fetch(`/timeline?process=${process}`);
      if (load !== this.loads || !answer.ok) return;
      const told = await answer.json();
      if (load !== this.loads) return;
      this.#take(told);
      for (const view of this.meanwhile) if (view.sequence > told.sequence) this.#apply(view);
    } catch {
      // The stream is told too when the dashboard can't be reached.
    } finally {
      if (load === this.loads) {
        this.loading = false;
        this.meanwhile = [];
        this.draw();
      }
    }
  }

  #take({ rows, segments, sums, words }) {
    this.clear();
    for (const [row, name] of Object.entries(rows)) this.rows.set(Number(row), { name, segments: [], seen: 0 });
    segments.row.forEach((row, i) => {
      const queue = words[segments.queue[i]];
      const segment = { begin: segments.begin[i], end: segments.end[i], state: words[segments.state[i]], queue, work: words[segments.work[i]] };
      this.rows.get(row)?.segments.push(segment);
      this.now = Math.max(this.now, segment.end);
    });
    // Segments that were moved back because they went on are not in the order of their beginnings.
    for (const row of this.rows.values()) row.segments.sort((a, b) => a.begin - b.begin);
    this.count = segments.row.length;
    this.sums = sums;
    this.now = Math.max(this.now, sums.at(-1)?.[0] ?? 0);
    for (const row of this.rows.values()) row.seen = this.now;
  }

  add(view) {
    if (this.loading) {
      if (this.meanwhile.push(view) > 10) this.meanwhile.shift();
    } else {
      this.#apply(view);
    }
  }

  #apply(view) {
    const { workers, words, time } = view;
    const back = time < this.now - 1; // the clock was set back: what is kept now is asked for anew
    this.now = time;
    if (back) {
      this.trimmed = time;
      this.load(this.process);
      return;
    }
    this.interval = Math.max(0.2, view.interval);
    workers.row.forEach((number, i) => {
      let row = this.rows.get(number);
      if (!row) this.rows.set(number, (row = { name: workers.name[i], segments: [], seen: time }));
      row.seen = time;
      const state = words[workers.state[i]];
      const last = row.segments.at(-1);
      if (state === "idle" || state === "waking") return;
      if (last && !workers.fresh[i]) {
        last.end = time;
        return;
      }
      row.segments.push({ begin: workers.begin[i], end: time, state, queue: words[workers.queue[i]], work: words[workers.work[i]] });
      this.count++;
    });
    this.sums.push([time, view.sums]);
    if (time - this.trimmed > 10 || this.count > MOST) this.#trim(time);
    if (!this.chosen) {
      this.mode = workers.row.length >= MANY ? "queues" : "workers";
      choose($("timeline-mode"), this.mode);
    }
  }

  #trim(time) {
    this.trimmed = time;
    for (let kept = KEPT; ; kept /= 2) {
      this.count = 0;
      for (const [number, row] of this.rows) {
        const old = row.segments.findIndex((segment) => segment.end >= time - kept);
        row.segments.splice(0, old < 0 ? row.segments.length : old);
        if (!row.segments.length && row.seen < time - 30) this.rows.delete(number);
        this.count += row.segments.length;
      }
      if (this.count <= MOST * 0.9 || kept < 2) break;
    }
    const old = this.sums.findIndex(([at]) => at >= time - KEPT);
    if (old > 0) this.sums.splice(0, old);
  }

  // ---------------------------------------------------------------------------------------- drawing

  draw() {
    const begin = this.now - this.span;
    this.order = [...this.rows].filter(([, row]) => row.seen >= this.now - 1 || (row.segments.at(-1)?.end ?? 0) > begin).sort((a, b) => a[0] - b[0]).map(([, row]) => row);
    const height = this.mode === "queues" ? 220 : Math.min(22, Math.max(3, this.order.length)) * ROW + TOP;
    if (this.box.style.height !== `${height}px`) this.box.style.height = `${height}px`;
    const total = this.mode === "queues" ? height : Math.max(height, TOP + ROW * this.order.length);
    $("timeline-spacer").style.height = `${total - height}px`;
    const width = this.box.clientWidth;
    const scale = window.devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * scale) || this.canvas.height !== Math.round(height * scale)) {
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
      this.canvas.style.width = `${width}px`;
      this.canvas.style.height = `${height}px`;
    }
    this.left = width < 520 ? 74 : 118;
    this.width = width;
    this.height = height;
    const ink = this.canvas.getContext("2d");
    ink.setTransform(scale, 0, 0, scale, 0, 0);
    ink.clearRect(0, 0, width, height);
    this.colours = this.#colours();
    ink.font = "11px system-ui, sans-serif";
    ink.textBaseline = "middle";
    if (this.mode === "queues") this.#drawQueues(ink);
    else this.#drawWorkers(ink);
    this.#legend();
  }

  #colours() {
    const hues = Array.from({ length: 10 }, (_, i) => colour(`hue-${i}`));
    const inks = hues.map((hue) => {
      const [r, g, b] = hue.match(/[\d.]+/g).map(Number);
      return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#12161c" : "#ffffff";
    });
    return { hues, inks, text: colour("text"), muted: colour("muted"), line: colour("line"), idle: colour("idle"), card: colour("card") };
  }

  x(time) {
    return this.left + ((time - (this.now - this.span)) / this.span) * (this.width - this.left - 8);
  }

  #step() {
    return [5, 10, 15, 30, 60, 120].find((s) => (this.width - this.left) / (this.span / s) > 76) ?? 300;
  }

  #drawGrid(ink) {
    const step = this.#step();
    ink.fillStyle = this.colours.line;
    for (let t = Math.ceil((this.now - this.span) / step) * step; t <= this.now; t += step) {
      ink.fillRect(Math.round(this.x(t)), TOP - 4, 1, this.height - TOP + 4);
    }
  }

  #drawTimes(ink) {
    const step = this.#step();
    ink.fillStyle = this.colours.card;
    ink.fillRect(0, 0, this.width, TOP - 4);
    ink.textAlign = "center";
    ink.fillStyle = this.colours.muted;
    for (let t = Math.ceil((this.now - this.span) / step) * step; t <= this.now; t += step) {
      const x = Math.round(this.x(t));
      if (x > this.left + 26 && x < this.width - 26) ink.fillText(clock(t), x, 9);
    }
  }

  #drawWorkers(ink) {
    const { text, muted, line } = this.colours;
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW));
    const last = Math.min(this.order.length, first + Math.ceil((this.height - TOP) / ROW) + 1);
    const shift = TOP - this.box.scrollTop;
    this.#drawGrid(ink);
    for (let i = first; i < last; i++) {
      const y = shift + i * ROW;
      const row = this.order[i];
      ink.fillStyle = line;
      ink.fillRect(this.left, y + ROW / 2, this.width - this.left - 8, 1);
      this.#drawRow(ink, row, y + 2, ROW - 4);
      ink.textAlign = "left";
      ink.fillStyle = row.segments.at(-1)?.end >= this.now ? text : muted;
      ink.fillText(fit(ink, this.left < 100 ? row.name.replace(/^cmwq\//, "") : row.name, this.left - 10), 2, y + ROW / 2);
    }
    this.#drawTimes(ink);
    if (!this.order.length) {
      ink.textAlign = "center";
      ink.fillStyle = muted;
      ink.fillText("There is no worker yet.", this.width / 2, this.height / 2 + 8);
    }
  }

  #drawRow(ink, row, y, height) {
    const begin = this.now - this.span;
    const { segments } = row;
    const right = this.x(this.now);
    let busy = -Infinity; // until when it was seen busy
    for (let i = after(segments, begin); i < segments.length; i++) {
      const segment = segments[i];
      if (segment.begin > this.now) break;
      const x = Math.max(this.left, this.x(segment.begin));
      const width = Math.max(1, Math.min(right, this.x(segment.end)) - x - 0.5);
      const hue = segment.work ? hueOf(segment[this.by]) : -1;
      const runs = segment.state === "running";
      // Busy at two looks, one after the other: what came between was not seen.
      if (segment.begin > busy && segment.begin - busy < 1.5 * this.interval) {
        ink.fillStyle = this.colours.idle;
        ink.fillRect(this.x(busy), y + height / 2 - 1, x - this.x(busy), 2);
      }
      busy = segment.end;
      ink.globalAlpha = runs || hue < 0 ? 1 : 0.34;
      ink.fillStyle = hue < 0 ? this.colours.idle : this.colours.hues[hue];
      ink.fillRect(x, y, width, height);
      ink.globalAlpha = 1;
      if (!runs && hue >= 0) ink.fillRect(x, y + height - 2, width, 2);
      if (width > 46) {
        ink.fillStyle = runs && hue >= 0 ? this.colours.inks[hue] : this.colours.text;
        ink.textAlign = "left";
        ink.fillText(fit(ink, segment.work || segment.state, width - 8), x + 4, y + height / 2);
      }
    }
  }

  #drawQueues(ink) {
    const begin = this.now - this.span;
    const seen = this.sums.filter(([time]) => time >= begin - 5);
    const heights = seen.map(([, sums]) => Object.values(sums).reduce((sum, [ran, slept]) => sum + ran + slept, 0));
    const most = Math.max(4, ...heights);
    const bottom = this.height - 8;
    const unit = (bottom - TOP - 4) / most;
    this.#drawGrid(ink);
    this.#drawTimes(ink);
    ink.textAlign = "right";
    for (const part of [0, 0.5, 1]) {
      ink.fillStyle = this.colours.muted;
      ink.fillText(number(most * part), this.left - 8, bottom - most * part * unit);
      ink.fillStyle = this.colours.line;
      ink.fillRect(this.left, Math.round(bottom - most * part * unit), this.width - this.left - 8, 1);
    }
    seen.forEach(([time, sums], i) => {
      const from = i ? Math.max(seen[i - 1][0], time - 5) : time - 1;
      const x = Math.max(this.left, this.x(from));
      const width = this.x(time) - x + 0.4;
      if (width <= 0) return;
      let y = bottom;
      for (const queue of Object.keys(sums).sort()) {
        const hue = queue ? this.colours.hues[hueOf(queue)] : this.colours.muted;
        const [ran, slept] = sums[queue];
        for (const [n, alpha] of [[ran, 1], [slept, 0.42]]) {
          ink.globalAlpha = alpha;
          ink.fillStyle = hue;
          ink.fillRect(x, y - n * unit, width, n * unit);
          y -= n * unit;
        }
      }
      ink.globalAlpha = 1;
    });
  }

  #legend() {
    const by = this.mode === "queues" ? "queue" : this.by;
    const begin = this.now - this.span;
    const counts = new Map();
    for (const row of this.order) {
      for (const segment of row.segments.slice(-20)) {
        if (segment.end >= begin && segment.work) counts.set(segment[by], (counts.get(segment[by]) ?? 0) + 1);
      }
    }
    const names = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 10).map(([name]) => name).sort();
    const legend = $("timeline-legend");
    const wanted = names.map((name) => `${hueOf(name)} ${name}`).join("\n");
    if (legend.dataset.shown !== wanted) {
      legend.dataset.shown = wanted;
      const more = counts.size > 10 ? [el("span", { class: "muted" }, `and ${counts.size - 10} more`)] : [];
      const swatches = names.map((name) => el("span", {}, el("i", { class: `swatch hue-${hueOf(name)}` }), name || "no name"));
      const shades = [el("span", { class: "muted" }, el("i", { class: "swatch full" }), "runs"), el("span", { class: "muted" }, el("i", { class: "swatch pale" }), "is blocked")];
      legend.replaceChildren(...swatches, ...more, el("span", { class: "when" }, ...(names.length ? shades : [])));
    }
    const shown = `${plural(this.order.length, "worker")}, looked at every ${this.interval === 1 ? "second" : duration(this.interval)}. Shorter works are seen by chance only; a thin line joins what was seen of a worker at two looks.`;
    setText($("timeline-note"), shown);
  }

  // ---------------------------------------------------------------------------------------- the tip

  #hover(event) {
    const box = this.box.getBoundingClientRect();
    const time = this.now - this.span + ((event.clientX - box.left - this.left) / (this.width - this.left - 8)) * this.span;
    const lines = this.mode === "queues" ? this.#queuesAt(time) : this.#workAt(time, event.clientY - box.top);
    if (!lines) return this.#hideTip();
    const tip = $("tip");
    tip.replaceChildren(...lines.map((line, i) => el(i ? "span" : "b", {}, line)));
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 8)}px`;
  }

  #hideTip() {
    $("tip").hidden = true;
  }

  #workAt(time, y) {
    if (y < TOP) return null;
    const row = this.order?.[Math.floor((y - TOP + this.box.scrollTop) / ROW)];
    if (!row) return null;
    const slack = (this.span / this.width) * 2;
    const segment = row.segments.find((each) => each.begin - slack <= time && time <= each.end + slack);
    if (!segment) return [row.name, "idle, or nothing was seen"];
    const long = duration(segment.end - segment.begin);
    return [segment.work || segment.state, `queue ${segment.queue || "unknown"}, ${row.name}`, `${segment.state} for ${long}, from ${clock(segment.begin)}${segment.end >= this.now ? ", goes on" : ""}`];
  }

  #queuesAt(time) {
    const at = this.sums.find(([each]) => each >= time);
    if (!at || time < this.now - this.span) return null;
    const queues = Object.entries(at[1]).sort((a, b) => b[1][0] + b[1][1] - a[1][0] - a[1][1]);
    return [clock(at[0]), ...queues.map(([name, [ran, slept]]) => `${name || "other queues"}: ${number(ran)} run, ${number(slept)} blocked`)];
  }
}

// The first segment that ends after this time.
function after(segments, time) {
  let [low, high] = [0, segments.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (segments[middle].end < time) low = middle + 1;
    else high = middle;
  }
  return low;
}

const widths = new Map();
function fit(ink, text, width) {
  let wide = widths.get(text);
  if (wide === undefined) {
    if (widths.size > 5000) widths.clear();
    widths.set(text, (wide = ink.measureText(text).width));
  }
  if (wide <= width) return text;
  return `${text.slice(0, Math.max(1, Math.floor((text.length * width) / wide) - 1))}…`;
}
