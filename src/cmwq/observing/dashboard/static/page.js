// The top of the page: the verdict, the figures, the pools with their reasons, the stalls.

import { $, bytes, clock, duration, el, number, plural, rate, setText } from "./words.js";

const STATES = {
  waiting: ["Waiting", "No picture has come yet."],
  live: ["Live", ""],
  silent: ["Not answering", ""],
  ended: ["Ended", ""],
  over: ["Recording over", ""],
};

export function showState(view, paused) {
  const [word] = STATES[view.state] ?? [view.state];
  const box = $("state");
  setText(box, paused && view.state === "live" ? "Paused" : word);
  box.className = `state ${paused ? "paused" : view.state}`;
  box.title = view.said;
}

export function showFacts(view) {
  const facts = [`up ${duration(view.uptime)}`, `Python ${view.python ?? "unknown"}${view.gil === false ? ", free-threaded" : ""}`];
  if (view.sensor) facts.push(`sensor ${view.sensor}`);
  if (view.memory && view.memory.used !== null) {
    const limit = view.memory.limit === null ? "" : ` of ${bytes(view.memory.limit)}`;
    facts.push(`memory ${bytes(view.memory.used)}${limit}`);
  }
  if (view.restarts) facts.push(`begun again ${view.restarts === 1 ? "once" : `${view.restarts} times`}`);
  if (!view.understood) facts.push(`its pictures have version ${view.version}, which this page does not know`);
  setText($("facts"), facts.join(" · "));
  $("facts").title = facts.join("\n");
}

// What is said of a process that is not there goes before what its last picture said.
export function showVerdict(view) {
  const box = $("verdict");
  let { tone, title, text } = view.seen ? view.verdict : { tone: "rest", title: "Waiting for the first picture", text: view.said };
  if (view.state === "ended") {
    [tone, title] = ["gone", `Process ${view.pid} has ended`];
    text = view.seen ? `This is its last picture, of ${clock(view.time)}.` : view.said;
  } else if (view.state === "silent") {
    [tone, title, text] = ["gone", `Process ${view.pid} does not answer`, view.said];
    if (view.seen) text += ` This is its last picture, of ${clock(view.time)}.`;
  } else if (view.state === "over") {
    text = `${text} ${view.said}`;
  }
  box.className = `verdict ${tone}`;
  setText($("verdict-title"), title);
  setText($("verdict-text"), text);
  // Spoken when the kind of the verdict changes, and not with each number.
  if (box.dataset.tone !== `${tone} ${view.state}`) {
    box.dataset.tone = `${tone} ${view.state}`;
    setText($("announcement"), `${title}. ${text}`);
  }
}

const FIGURES = [
  ["running", "Running", (v) => number(v.totals.running), (v) => `of ${number(v.totals.target)} that may${v.pools.length > 1 ? `, in ${number(v.pools.length)} pools` : ""}`],
  ["blocked", "Blocked", (v) => number(v.totals.blocked), () => "wait for something"],
  ["idle", "Idle", (v) => number(v.totals.idle), (v) => `of ${plural(v.totals.workers, "worker")}`],
  ["waiting", "Works waiting", (v) => number(v.totals.pending), (v) => `and ${number(v.totals.inactive)} without a place`],
  ["rate", "Works per second", (v) => rate(v.now.completed), () => "ended, over five seconds"],
  ["cpu", "CPUs in use", (v) => v.now.cpu.toFixed(1), (v) => `of ${number(v.cpu_limit || v.cpus)}`],
];

export function showFigures(view) {
  const box = $("figures");
  if (!box.firstChild) {
    for (const [key, title] of FIGURES) {
      box.append(el("div", { class: `figure ${key}` }, el("dt", {}, title), el("dd", { id: `figure-${key}` }), el("dd", { class: "below" })));
    }
  }
  FIGURES.forEach(([, , text, below], place) => {
    setText(box.children[place].children[1], text(view));
    setText(box.children[place].children[2], below(view));
  });
}

// ------------------------------------------------------------------------------------------ pools

const shown = new Map();
const places = new Map();

export function showPools(view) {
  const box = $("pools");
  showPlaces(view, box);
  const pools = [...view.pools].sort((a, b) => b.pending + b.workers - (a.pending + a.workers));
  const seen = new Set(pools.map((pool) => pool.name));
  for (const [name, card] of shown) {
    if (!seen.has(name)) {
      card.remove();
      shown.delete(name);
    }
  }
  const cards = box.getElementsByClassName("is-pool");
  pools.forEach((pool, place) => {
    let card = shown.get(pool.name);
    if (!card) shown.set(pool.name, (card = poolCard()));
    fillPool(card, pool);
    if (cards[place] !== card) box.insertBefore(card, cards[place] ?? null);
  });
  let none = $("pools-none");
  if (!pools.length && !none) box.append(el("p", { id: "pools-none", class: "none" }, "No pool yet: nothing has been queued."));
  else if (pools.length && none) none.remove();
}

// Queues of which works wait for a place: why, before all pools.
function showPlaces(view, box) {
  const waiting = view.queues.filter((queue) => queue.inactive && queue.why);
  const seen = new Set(waiting.map((queue) => `queue ${queue.name}`));
  for (const queue of waiting) {
    const key = `queue ${queue.name}`;
    let card = places.get(key);
    if (!card) places.set(key, (card = el("article", { class: "pool waits" }, el("h3"), el("p", { class: "why" }))));
    setText(card.children[0], key);
    setText(card.children[1], `${plural(queue.inactive, "work")} ${queue.inactive === 1 ? "waits for its" : "wait for their"} place: ${queue.why}`);
    if (card.parentNode !== box) box.append(card);
  }
  for (const [key, card] of places) {
    if (!seen.has(key)) {
      card.remove();
      places.delete(key);
    }
  }
}

function poolCard() {
  const bar = el("div", { class: "shares", role: "img" }, ...["running", "blocked", "idle"].map((k) => el("i", { class: k })));
  return el("article", { class: "pool is-pool" }, el("h3"), el("p", { class: "why" }), bar, el("p", { class: "below" }));
}

function fillPool(card, pool) {
  const [name, why, bar, below] = card.children;
  const cpus = pool.cpus.length === 1 ? `CPU ${pool.cpus[0]}` : plural(pool.cpus.length, "CPU");
  setText(name, `pool ${pool.name} · ${cpus}${pool.nice ? ` · nice ${pool.nice}` : ""}${pool.disassociated ? " · its CPU has left" : ""}`);
  const waits = pool.pending > 0;
  setText(why, waits ? `${plural(pool.pending, "work")} ${pool.pending === 1 ? "waits" : "wait"}: ${pool.why || "a worker is on its way."}` : "No work waits here, so none is needed.");
  card.classList.toggle("waits", waits);
  const total = Math.max(1, pool.running + pool.blocked + pool.idle);
  for (const part of bar.children) part.style.width = `${(100 * pool[part.className]) / total}%`;
  const counts = `${number(pool.running)} run of ${number(pool.target)}, ${number(pool.blocked)} blocked, ${number(pool.idle)} idle`;
  bar.setAttribute("aria-label", counts);
  const refused = pool.refused ? `, ${number(pool.refused)} refused` : "";
  setText(below, `${counts}. At most ${number(pool.peak_workers)} so far; ${number(pool.created)} created, ${number(pool.culled)} ended${refused}.`);
}

// ------------------------------------------------------------------------------------------ stalls

let told = "";

function stallsAre(seconds) {
  if (!seconds) return "None. The process reports no stalls: its watchdog is off.";
  return `None. A stall is reported when works wait and none has begun for ${seconds} ${seconds === 1 ? "second" : "seconds"}.`;
}

export function showStalls(view) {
  const box = $("stalls");
  const now = JSON.stringify(view.stalls);
  if (now === told && box.firstChild) return;
  const open = new Set([...box.querySelectorAll("details[open]")].map((each) => each.dataset.key));
  const before = told;
  told = now;
  box.replaceChildren();
  if (!view.stalls.length) box.append(el("p", { class: "none" }, stallsAre(view.stall_after ?? 30)));
  for (const stall of view.stalls) {
    const [first, ...rest] = stall.text.split("\n");
    const key = `${stall.time} ${stall.pool} ${stall.queue}`;
    const place = stall.queue ? `queue ${stall.queue}` : `pool ${stall.pool}`;
    const word = stall.now ? "now" : stall.over ? "over" : "was";
    const head = [el("span", { class: "tag" }, word), el("b", {}, `${clock(stall.time)} · ${place}`), el("span", {}, first)];
    if (rest.length) {
      const details = el("details", { "data-key": key, class: word }, el("summary", {}, ...head), el("pre", { tabindex: 0 }, rest.join("\n")));
      details.open = open.has(key) || (stall.now && !before.includes(JSON.stringify(stall.text)));
      box.append(details);
    } else {
      box.append(el("p", { class: `stall ${word}` }, ...head));
    }
  }
}
