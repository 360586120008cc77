// The page: one stream from the dashboard, and what is drawn of it, once per frame at most.
//
// Memory is bounded: the newest picture, and what `occupancy` and `timeline` keep. While the page is hidden it has no
// stream: browsers allow six to one server, for all pages together. If pictures were left out, because this page read slowly or the network was away, the histories are fetched
// again.

import { Details } from "./details.js";
import { Occupancy } from "./occupancy.js";
import { showFacts, showFigures, showPools, showStalls, showState, showVerdict } from "./page.js";
import { Tables } from "./tables.js";
import { Timeline } from "./timeline.js";
import { Workers } from "./workers.js";
import { $, el, setText } from "./words.js";

const THEMES = ["auto", "light", "dark"];
const AGAIN = 5000; // milliseconds
const SECTIONS = ["occupancy", "timeline", "queues", "functions", "stalls", "workers"];

class Page {
  constructor() {
    this.process = null;
    this.latest = null;
    this.paused = false;
    this.fetched = 0;
    this.frame = 0;
    this.occupancy = new Occupancy();
    this.timeline = new Timeline();
    this.tables = new Tables();
    this.details = new Details();
    this.workers = new Workers((name) => this.details.open(this.process, name));
    this.#controls();
    this.#connect();
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stream.close() : this.#connect()));
  }

  // ---------------------------------------------------------------------------------------- the stream

  #connect() {
    this.stream?.close();
    const asked = this.process === null ? "" : `?process=${this.process}`;
    const stream = (this.stream = new EventSource(`/events${asked}`));
    stream.addEventListener("open", () => this.#notice(""));
    stream.addEventListener("processes", (event) => this.#processes(JSON.parse(event.data)));
    stream.addEventListener("view", (event) => this.#view(JSON.parse(event.data)));
    stream.addEventListener("error", () => this.#lost(stream));
  }

  #lost(stream) {
    this.#notice("The dashboard can't be reached. What is shown is what was seen last; this page keeps trying.");
    if (stream.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
    this.#notice("The dashboard does not let this page in any more. Open the address that `cmwq dashboard` printed.");
    setTimeout(() => stream === this.stream && this.#connect(), AGAIN);
  }

  #processes({ processes, left_out: left, trouble }) {
    const select = $("process");
    const many = new Set();
    const twice = new Set(processes.map((each) => each.command).filter((command) => many.has(command) || !many.add(command)));
    const label = (each) => `${each.command || "process"}${twice.has(each.command) || !each.command ? ` · ${each.pid}` : ""}${each.state === "live" || each.state === "waiting" ? "" : ` (${each.state})`}`;
    select.replaceChildren(...processes.map((each) => el("option", { value: each.number }, label(each))));
    if (!processes.length) {
      select.replaceChildren(el("option", {}, "no process yet"));
      this.#empty(trouble);
    } else if (!processes.some((each) => each.number === this.process)) {
      const wanted = Number(new URLSearchParams(location.hash.slice(1)).get("process") ?? -1);
      const live = processes.find((each) => each.number === wanted) ?? processes.find((each) => each.state === "live") ?? processes[0];
      this.#choose(live.number);
    }
    select.value = this.process;
    select.disabled = processes.length < 2;
    select.title = processes.find((each) => each.number === this.process)?.command ?? "";
    if (processes.length && (left || trouble)) this.#notice(trouble || `${left} more processes are not watched: there are too many.`);
  }

  #empty(trouble) {
    setText($("verdict-title"), "No process can be watched yet");
    setText($("verdict-text"), trouble || "One can be if it calls cmwq.monitor(), or was started with CMWQ_MONITOR=1. This page finds it within seconds.");
  }

  #choose(number) {
    this.process = number;
    this.latest = null;
    history.replaceState(null, "", `#process=${number}`);
    this.#connect();
    this.#fetch();
  }

  #fetch() {
    this.fetched = performance.now();
    this.occupancy.load(this.process);
    this.timeline.load(this.process);
  }

  #view(view) {
    if (view.number !== this.process) return;
    const before = this.latest;
    this.latest = view;
    if (view.seen && view.time !== before?.time) {
      const missed = before && view.sequence > before.sequence + 1;
      if (missed && performance.now() - this.fetched > AGAIN) this.#fetch();
      else {
        this.occupancy.add(view);
        this.timeline.add(view);
      }
    }
    this.#draw();
  }

  // ---------------------------------------------------------------------------------------- drawing

  #draw() {
    if (!this.frame) {
      this.frame = requestAnimationFrame(() => {
        this.frame = 0;
        this.#show(this.latest);
      });
    }
  }

  #show(view) {
    if (!view) return;
    showState(view, this.paused);
    if (this.paused) return;
    showVerdict(view);
    document.title = `${view.seen ? view.verdict.title : "cmwq"} · ${view.command || view.pid}`;
    document.body.classList.toggle("past", view.state === "ended" || view.state === "silent");
    if (!view.seen) return;
    showFacts(view);
    showFigures(view);
    showPools(view);
    showStalls(view);
    this.occupancy.draw();
    this.timeline.draw();
    this.tables.show(view);
    this.workers.show(view);
  }

  #notice(text) {
    const box = $("notice");
    setText(box, text);
    box.hidden = !text;
  }

  // ---------------------------------------------------------------------------------------- controls

  #controls() {
    $("process").addEventListener("change", () => this.#choose(Number($("process").value)));
    $("pause").addEventListener("click", () => this.#pause());
    $("theme").addEventListener("click", () => this.#theme(THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length]));
    $("keys").addEventListener("click", () => $("help").showModal());
    $("help-close").addEventListener("click", () => $("help").close());
    document.addEventListener("keydown", (event) => this.#key(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#recolour());
    let theme = "auto";
    try {
      theme = localStorage.getItem("cmwq-theme") ?? "auto";
    } catch {
      // Storage is forbidden here: the theme is the system's.
    }
    this.#theme(THEMES.includes(theme) ? theme : "auto");
  }

  #key(event) {
    const typing = event.target.closest?.("input[type=search], select");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (typing && event.key === "Escape") this.#leave(event.target);
    if (typing || document.querySelector("dialog[open]")) return;
    if (event.key === "p") this.#pause();
    else if (event.key === "t") $("theme").click();
    else if (event.key === "?") $("help").showModal();
    else if (event.key === "/") $("filter").focus();
    else if (/^[1-6]$/.test(event.key)) {
      const title = $(`${SECTIONS[Number(event.key) - 1]}-title`);
      title.setAttribute("tabindex", "-1");
      title.focus({ preventScroll: true });
      title.closest("section").scrollIntoView({ block: "start" });
    } else return;
    event.preventDefault();
  }

  // The browser empties a search by Escape as well, but without telling by "input".
  #leave(field) {
    if (field.type === "search") {
      field.value = "";
      field.dispatchEvent(new Event("input"));
    }
    field.blur();
  }

  #pause() {
    this.paused = !this.paused;
    $("pause").setAttribute("aria-pressed", String(this.paused));
    setText($("pause"), this.paused ? "Go on" : "Pause");
    this.#draw();
  }

  #theme(theme) {
    this.theme = theme;
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    setText($("theme"), `Theme: ${theme}`);
    try {
      localStorage.setItem("cmwq-theme", theme);
    } catch {
      // It holds until the page is closed.
    }
    this.#recolour();
  }

  #recolour() {
    this.occupancy.build();
    this.timeline.draw();
  }
}

window.cmwqPage = new Page();
