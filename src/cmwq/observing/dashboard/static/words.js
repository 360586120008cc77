// How numbers, times and colours are written, and how elements are made. Text is only ever set as text.

export const $ = (id) => document.getElementById(id);

// el("td", { class: "number" }, "12", otherElement)
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// What is not known is shown as a dash, never as an empty cell.
export const UNKNOWN = "–";

const whole = new Intl.NumberFormat("en");
export const number = (n) => (n === null || n === undefined ? UNKNOWN : whole.format(Math.round(n)));

export function rate(n) {
  if (n === null || n === undefined) return UNKNOWN;
  if (n === 0) return "0";
  return n < 0.095 ? "< 0.1" : n < 9.95 ? n.toFixed(1) : whole.format(Math.round(n));
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return UNKNOWN;
  if (seconds === 0) return "0 s";
  if (seconds < 0.000995) return `${Math.max(1, Math.round(seconds * 1e6))} µs`;
  if (seconds < 0.00995) return `${(seconds * 1e3).toFixed(1)} ms`;
  if (seconds < 0.995) return `${Math.round(seconds * 1e3)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 99.5) return `${Math.round(seconds)} s`;
  if (seconds < 5970) return `${Math.floor(seconds / 60)} min ${String(Math.floor(seconds % 60)).padStart(2, "0")} s`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ${String(Math.floor((seconds % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

export function bytes(n) {
  if (n === null || n === undefined) return UNKNOWN;
  return n < 1 << 30 ? `${Math.round(n / 2 ** 20)} MiB` : `${(n / 2 ** 30).toFixed(1)} GiB`;
}

export function clock(epoch, seconds = true) {
  const at = new Date(epoch * 1000);
  const two = (n) => String(n).padStart(2, "0");
  return `${two(at.getHours())}:${two(at.getMinutes())}${seconds ? `:${two(at.getSeconds())}` : ""}`;
}

export const plural = (n, noun) => `${number(n)} ${noun}${n === 1 ? "" : "s"}`;

// The value of a colour of style.css, as a canvas needs it.
let probe = null;
export function colour(name) {
  if (!probe) {
    probe = el("span", { class: "unseen", "aria-hidden": "true" });
    document.body.append(probe);
  }
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

// A colour of its own for each name, in the order in which names are met; with more names colours come again.
const HUES = 10;
const given = new Map();
export function hueOf(name) {
  if (!given.has(name)) {
    if (given.size > 5000) given.clear();
    given.set(name, given.size % HUES);
  }
  return given.get(name);
}

// Buttons of which one is on: a radio group for the keyboard and for screen readers.
export function choice(box, name, options, value, change) {
  for (const [key, label, title] of options) {
    const input = el("input", { type: "radio", name, value: key, class: "unseen" });
    input.checked = key === value;
    input.addEventListener("change", () => change(key));
    box.append(el("label", { title: title ?? null }, input, el("span", {}, label)));
  }
}

export function choose(box, value) {
  for (const input of box.querySelectorAll("input")) input.checked = input.value === value;
}
