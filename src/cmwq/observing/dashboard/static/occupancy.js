// How many workers ran, were blocked and idle, and how many works waited, over time: two plots with one cursor.
//
// Memory: as many points as one resolution has (at most 1,440). Longer ranges are fetched again once a point of theirs
// is complete. Time without pictures is a gap.

import { $, choice, clock, colour, el, number, setText } from "./words.js";

const RANGES = [["0", "10 min"], ["1", "2 hours"], ["2", "2 days"]];
const MOST = 1500; // points
const LAYERS = [["idle", "Idle"], ["blocked", "Blocked"], ["running", "Running"]]; // the first is drawn first, and highest
const NAMES = { running: "Running", blocked: "Blocked", idle: "Idle", target: "May run", pending: "Works waiting" };
const COLUMNS = ["running", "blocked", "idle", "target", "pending"];

export class Occupancy {
  constructor() {
    this.range = "0";
    this.pool = "";
    this.process = null;
    this.data = { seconds: 1, times: [], pools: { "": empty() } };
    this.due = Infinity;
    this.loads = 0;
    choice($("range"), "range", RANGES, this.range, (value) => {
      this.range = value;
      this.load(this.process);
    });
    $("pool").addEventListener("change", () => {
      this.pool = $("pool").value;
      this.draw();
    });
    this.values = {};
    for (const key of COLUMNS) {
      const value = el("b", {}, "0");
      this.values[key] = value;
      $("occupancy-legend").append(el("span", {}, el("i", { class: `swatch ${key}` }), NAMES[key], " ", value));
    }
    this.when = el("span", { class: "when" });
    $("occupancy-legend").append(this.when);
    new ResizeObserver(() => this.#resize()).observe($("occupancy"));
    this.build();
  }

  async load(process) {
    if (process !== this.process) this.data = { seconds: 1, times: [], pools: { "": empty() } };
    this.process = process;
    if (process === null) return;
    const load = ++this.loads;
    try {
      const answer = await fetch(`/history?process=${process}&range=${this.range}`);
      if (!answer.ok || load !== this.loads) return;
      const data = await answer.json();
      if (load !== this.loads) return;
      data.pools[""] ??= empty(data.times.length);
      this.data = data;
      this.due = (data.times.at(-1) ?? 0) + 2 * data.seconds;
      this.#offer();
      this.draw();
    } catch {
      this.due = 0; // with the next picture
    }
  }

  add(view) {
    const { times, pools, seconds } = this.data;
    if (this.range !== "0") {
      if (view.time >= this.due || view.time < (times.at(-1) ?? 0)) this.load(this.process);
      return;
    }
    if (view.time === times.at(-1)) return;
    if (view.time < (times.at(-1) ?? 0) - seconds) this.#back(view.time); // the clock was set back
    const last = times.at(-1) ?? 0;
    if (view.time <= last) return;
    if (last && view.time - last > 3 * Math.max(this.data.seconds, view.interval)) this.#push((last + view.time) / 2, {});
    const now = Object.fromEntries(view.pools.map((pool) => [pool.name, pool]));
    now[""] = view.now;
    for (const name of Object.keys(now)) {
      if (!pools[name] && Object.keys(pools).length <= 64) pools[name] = empty(times.length);
    }
    this.#push(view.time, now);
    this.#offer();
  }

  #back(time) {
    const { times, pools } = this.data;
    const kept = times.findIndex((each) => each >= time);
    times.length = kept;
    for (const columns of Object.values(pools)) for (const key of COLUMNS) columns[key].length = kept;
  }

  #push(time, now) {
    const { times, pools, seconds } = this.data;
    times.push(time);
    for (const [name, columns] of Object.entries(pools)) {
      for (const key of COLUMNS) columns[key].push(now[name]?.[key] ?? null);
    }
    let old = Math.max(0, times.length - MOST);
    while (times[old] < time - 600 * Math.max(1, seconds)) old++;
    if (old) {
      times.splice(0, old);
      for (const columns of Object.values(pools)) for (const key of COLUMNS) columns[key].splice(0, old);
    }
  }

  #offer() {
    const names = Object.keys(this.data.pools).filter((name) => name !== "").sort();
    const select = $("pool");
    const offered = names.join("\n");
    if (select.dataset.offered === offered) return;
    select.dataset.offered = offered;
    select.replaceChildren(el("option", { value: "" }, "all"), ...names.map((name) => el("option", { value: name }, name)));
    if (!names.includes(this.pool)) this.pool = "";
    select.value = this.pool;
  }

  // ---------------------------------------------------------------------------------------- drawing

  build() {
    this.high?.destroy();
    this.low?.destroy();
    const width = Math.max(200, $("occupancy").clientWidth);
    const stepped = uPlot.paths.stepped({ align: 1 });
    const layers = LAYERS.map(([key, label]) => ({
      label, paths: stepped, stroke: colour(key), fill: colour(key), width: 0, points: { show: false },
    }));
    const target = { label: "May run", paths: stepped, stroke: colour("text"), width: 1, dash: [5, 4], points: { show: false } };
    const waits = { label: "Works waiting", paths: stepped, stroke: colour("waiting"), fill: colour("waiting-soft"), width: 1.5, points: { show: false } };
    this.high = new uPlot(this.#options(width, 208, [...layers, target], true), this.#high(), $("occupancy"));
    this.low = new uPlot(this.#options(width, 96, [waits], false), this.#low(), $("waiting"));
  }

  #options(width, height, series, upper) {
    const axis = { stroke: colour("muted"), font: "11px system-ui, sans-serif", grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
    const wide = () => this.#span();
    return {
      width, height, series: [{}, ...series], legend: { show: false }, padding: [8, 28, 0, 0],
      cursor: { sync: { key: "time" }, drag: { x: false, y: false }, points: { show: false }, y: false },
      scales: { x: { time: true, range: wide }, y: { range: (_, low, high) => [0, Math.max(upper ? 2 : 1, (high ?? 0) * 1.08)] } },
      axes: [
        { ...axis, size: upper ? 4 : 24, values: (_, splits) => splits.map((t) => (upper ? "" : this.#time(t))), space: 70 },
        { ...axis, size: 46, space: upper ? 34 : 28, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6], values: (_, splits) => splits.map((n) => number(n)) },
      ],
      hooks: { setCursor: [(plot) => this.#point(plot.cursor.idx)] },
    };
  }

  #time(t) {
    if (this.range !== "2") return clock(t, this.range === "0");
    const at = new Date(t * 1000);
    return at.getHours() + at.getMinutes() ? clock(t, false) : at.toLocaleDateString("en", { weekday: "short", day: "numeric" });
  }

  #span() {
    const { times, seconds } = this.data;
    const last = times.at(-1) ?? Date.now() / 1000;
    return [Math.min(times[0] ?? last, last - 60 * seconds), last];
  }

  #columns() {
    return this.data.pools[this.pool] ?? empty(this.data.times.length);
  }

  #high() {
    const { running, blocked, idle, target } = this.#columns();
    const over = running.map((n, i) => (n === null ? null : n + blocked[i]));
    const all = over.map((n, i) => (n === null ? null : n + idle[i]));
    return [this.data.times, all, over, running, target];
  }

  #low() {
    return [this.data.times, this.#columns().pending];
  }

  #point(place) {
    const columns = this.#columns();
    const last = this.data.times.length - 1;
    const at = place ?? last;
    for (const key of COLUMNS) setText(this.values[key], number(columns[key][at]));
    setText(this.when, place === null || place === undefined || last < 0 ? "" : `at ${clock(this.data.times[at])}`);
  }

  draw() {
    this.high.setData(this.#high());
    this.low.setData(this.#low());
    this.#point(this.high.cursor.idx);
  }

  #resize() {
    const width = Math.max(200, $("occupancy").clientWidth);
    if (this.high.width === width) return;
    this.high.setSize({ width, height: 208 });
    this.low.setSize({ width, height: 96 });
  }
}

function empty(length = 0) {
  return Object.fromEntries(COLUMNS.map((key) => [key, new Array(length).fill(null)]));
}
