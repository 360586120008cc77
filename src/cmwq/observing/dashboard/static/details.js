// The dialog that shows one worker with its stack, as it is when one looks.

import { $, UNKNOWN, clock, duration, el, setText } from "./words.js";

export class Details {
  constructor() {
    this.dialog = $("details");
    this.shown = null;
    $("details-close").addEventListener("click", () => this.dialog.close());
    $("details-again").addEventListener("click", () => this.#look());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
  }

  open(process, name) {
    this.shown = { process, name };
    setText($("details-title"), name);
    $("details-facts").replaceChildren();
    setText($("details-stack"), "The process is asked …");
    if (!this.dialog.open) this.dialog.showModal();
    this.#look();
  }

  async #look() {
    const asked = this.shown;
    try {
      const answer = await fetch(`/worker?process=${asked.process}&name=${encodeURIComponent(asked.name)}`);
      if (!answer.ok) throw new Error(`the dashboard answered ${answer.status}`);
      const told = await answer.json();
      if (asked === this.shown) this.#show(told);
    } catch (error) {
      setText($("details-stack"), `This could not be asked: ${error.message}.`);
    }
  }

  #show({ worker, time }) {
    if (!worker) {
      setText($("details-stack"), "There is no such worker any more, or its process does not answer.");
      return;
    }
    const idle = worker.state === "idle";
    const facts = [
      ["State", worker.rescuer ? `${worker.state} (a rescuer)` : worker.state],
      ["Function", worker.work || UNKNOWN],
      ["Queue", worker.queue || UNKNOWN],
      [idle ? "Idle for" : "Since", idle ? duration(worker.since) : `${clock(time - worker.since)}, for ${duration(worker.since)}`],
      ["CPU time", duration(worker.cpu_seconds)],
      ["Waits for", worker.waits_for || (worker.state === "running" ? "nothing: it runs" : UNKNOWN)],
      ["Pool", worker.pool],
      ["Thread", String(worker.tid)],
      ["Seen", clock(time)],
    ];
    $("details-facts").replaceChildren(...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
    const stack = worker.stack.join("");
    setText($("details-stack"), stack || (idle ? "It is idle." : "The process told no stack."));
  }
}
