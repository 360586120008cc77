"""The directive `picture NAME`: an SVG that is part of the page, so that it takes the page's colours, light and dark.

`timeline-1`, `timeline-2`, `timeline-3`, `timeline-intensive` and `submit` are drawn from runs of the simulator
(`simulated`), so they cannot disagree with the code. `noticing` and `layers` are drawn by hand, and say so. The text
below the directive is the caption.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import simulated
from docutils import nodes
from docutils.parsers.rst import Directive

LEFT, TOP, LANE, GAP, WIDTH = 104, 18, 26, 12, 720


class Drawing:
    """Lanes below each other, with a common axis of time to the right."""

    def __init__(self, until: float, lanes: list[str], title: str, *, every: float = 0, unit: str = "ms") -> None:
        self.until, self.lanes, self.title = until, lanes, title
        self.parts: list[str] = []
        self.bottom = TOP + len(lanes) * (LANE + GAP)
        for number, lane in enumerate(lanes):
            y = TOP + number * (LANE + GAP)
            self.add(f'<rect class="lane" x="{LEFT}" y="{y}" width="{WIDTH - LEFT - 12}" height="{LANE}" rx="3"/>')
            self.text(LEFT - 8, y + 17, lane, anchor="end")
        tick = 0.0
        while every and tick <= until:
            x = self.x(tick)
            self.add(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{self.bottom - 4}"/>')
            self.text(x, self.bottom + 10, f"{tick:g}" if tick else f"0 {unit}", kind="small", anchor="middle")
            tick += every

    def x(self, time: float) -> float:
        return LEFT + time / self.until * (WIDTH - LEFT - 24)

    def y(self, lane: str) -> int:
        return TOP + self.lanes.index(lane) * (LANE + GAP)

    def add(self, part: str) -> None:
        self.parts.append(part)

    def text(self, x: float, y: float, words: str, *, kind: str = "", anchor: str = "start") -> None:
        self.add(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>')

    def bar(self, lane: str, kind: str, begin: float, end: float, words: str = "") -> None:
        x, y, width = self.x(begin), self.y(lane), self.x(end) - self.x(begin)
        self.add(f'<rect class="{kind}" x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="{LANE - 6}" rx="2"/>')
        if words:
            self.text(x + width / 2, y + 17, words, kind="on" if kind in ("burn", "warm") else "small", anchor="middle")

    def arrow(self, begin: float, lane: str, end: float, other: str) -> None:
        down = self.lanes.index(other) > self.lanes.index(lane)
        y1 = self.y(lane) + (LANE if down else 0)
        y2 = self.y(other) + (0 if down else LANE)
        self.add(f'<path class="arrow" d="M{self.x(begin):.1f} {y1} L{self.x(end):.1f} {y2}"/>')

    def legend(self, *items: tuple[str, str]) -> None:
        self.bottom += 22
        x = float(LEFT)
        for kind, words in items:
            self.add(f'<rect class="{kind}" x="{x:.1f}" y="{self.bottom - 2}" width="14" height="12" rx="2"/>')
            self.text(x + 20, self.bottom + 8, words, kind="small")
            x += 34 + 6.3 * len(words)

    def svg(self) -> str:
        height = self.bottom + 18
        head = (
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path class="head" d="M0 0 L8 4 L0 8 z"/></marker></defs>'
        )
        return (
            f'<svg class="picture" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(self.title)}" '
            f'xmlns="http://www.w3.org/2000/svg"><title>{escape(self.title)}</title>{head}{"".join(self.parts)}</svg>'
        )


def timeline(max_active: int, cpu_intensive: bool = False) -> str:
    spans = simulated.kernel_timeline(max_active, cpu_intensive)
    what = "w1 and w2 on a cpu_intensive queue" if cpu_intensive else f"max_active={max_active}"
    drawing = Drawing(50, ["w0", "w1", "w2"], f"Three works on one CPU, {what}", every=5)
    for span in spans:
        drawing.bar(span.work, span.kind, span.begin, span.end)
    drawing.legend(("burn", "computes" + (" (or waits for the CPU)" if cpu_intensive else "")), ("sleep", "blocked"))
    return drawing.svg()


def submit() -> str:
    moments, spans = simulated.two_submits()
    workers = list(dict.fromkeys(span.work for span in sorted(spans, key=lambda span: span.begin)))
    begun = {moment.work: moment.time for moment in moments if moment.kind == "started"}
    blocked = next(moment.time for moment in moments if moment.kind == "blocked")
    end = max(span.end for span in spans)
    drawing = Drawing(end, ["the list", *workers], "Two works on one CPU, as the simulator ran them", every=1)
    drawing.bar("the list", "wait", 0, begun["hash"], "hash waits")
    for span in spans:
        words = {"burn": "computes", "sleep": "load is blocked"}[span.kind]
        if span.kind == "burn":
            words = "load" if span.work == workers[0] else "hash"
        drawing.bar(span.work, span.kind, span.begin, span.end, words)
    drawing.arrow(blocked, workers[0], begun["hash"] + 0.12, workers[1])
    drawing.legend(("burn", "on the CPU"), ("sleep", "blocked"), ("wait", "listed, no worker yet"))
    return drawing.svg()


def noticing() -> str:
    drawing = Drawing(100, ["worker 0", "sentinel", "worker 1"], "How the sentinel notices that a worker blocks")
    drawing.bar("worker 0", "burn", 0, 38, "computes")
    drawing.bar("worker 0", "sleep", 38, 100, "waits for a socket")
    drawing.bar("sentinel", "wait", 0, 40, "kept off the CPU: idle priority")
    drawing.bar("sentinel", "warm", 40, 50, "looks")
    drawing.bar("sentinel", "wait", 50, 100, "kept off again")
    drawing.bar("worker 1", "wait", 0, 52, "parked: the reserve")
    drawing.bar("worker 1", "burn", 52, 100, "takes the next work")
    drawing.arrow(39, "worker 0", 41, "sentinel")
    drawing.arrow(49, "sentinel", 52.5, "worker 1")
    words = "one CPU; drawn by hand, not to scale: a look takes microseconds"
    drawing.text(LEFT, drawing.bottom + 8, words, kind="small")
    return drawing.svg()


LAYERS = (
    ("your program", "Executor · WorkQueue · Work · aio · cmwq exec", "burn"),
    ("named queues", "max_active, order, delays, flush, cancel: a share of each pool", "sleep"),
    ("pools", "a list of works; workers: running, blocked, idle; the rules as predicates", "sleep"),
    ("two ports", "Host: threads, locks, time, CPUs        Sensor: who is blocked", "wait"),
    ("the world", "real threads and sentinels     or     the simulator, with virtual time", "wait"),
)


def layers() -> str:
    drawing = Drawing(100, [name for name, _, _ in LAYERS], "The layers of cmwq, from your program down to the system")
    for name, words, kind in LAYERS:
        drawing.bar(name, kind, 0, 100, words)
    drawing.bottom -= 14
    return drawing.svg()


PICTURES: dict[str, Callable[[], str]] = {
    "timeline-1": lambda: timeline(1),
    "timeline-2": lambda: timeline(2),
    "timeline-3": lambda: timeline(3),
    "timeline-intensive": lambda: timeline(256, cpu_intensive=True),
    "submit": submit,
    "noticing": noticing,
    "layers": layers,
}


class Picture(Directive):
    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in PICTURES:
            raise self.error(f"there is no picture {name!r}; there are {', '.join(PICTURES)}")
        figure = nodes.container(classes=["picture-frame"])
        caption = nodes.paragraph()
        if self.content:
            parsed = nodes.Element()
            self.state.nested_parse(self.content, self.content_offset, parsed)
            caption += parsed.children[0].children if parsed.children else []
        figure += nodes.raw("", f'<figure class="picture">{PICTURES[name]()}<figcaption>', format="html")
        figure += caption
        figure += nodes.raw("", "</figcaption></figure>", format="html")
        return [figure]


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
