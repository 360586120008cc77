"""What the benchmarks measure with: turns in seeded order, medians, and figures beside their targets.

Its one job: `Figure` is one number with its unit and its target; `turns` lets contenders take turns; `Report` prints
figures as they come, and keeps them. Guaranteed: what is compared was measured in turns within one run.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()
NOISE = 0.03
"""A ratio that misses its target by less is called met within noise."""


@dataclass(frozen=True)
class Figure:
    """One number. `target`: at least (or, with `at_most`, at most) so much; None: it is only shown."""

    id: str
    title: str
    value: float | None
    """None: it could not be measured here; the note says why."""
    unit: str = "x"
    target: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        """`met`, `noise` (a ratio that misses by less than NOISE), `missed`; empty: no target, or no value."""
        if self.value is None or self.target is None:
            return ""
        short = (self.value / self.target - 1) * (1 if self.at_most else -1)
        return "met" if short <= 0 else "noise" if short <= NOISE and self.unit == "x" else "missed"

    def wanted(self) -> str:
        return "" if self.target is None else f"{'<=' if self.at_most else '>='} {shown(self.target, self.unit)}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict, "wanted": self.wanted()}


def shown(value: float | None, unit: str) -> str:
    """A number with about three digits, and its unit."""
    if value is None:
        return "-"
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"{text}{'' if unit in ('x', '%') else ' '}{unit}" if unit else text


@dataclass
class Report:
    figures: list[Figure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    chart: Path | None = None
    """Where the suite is to draw its chart."""

    def heading(self, text: str) -> None:
        print(f"\n{text}\n{'-' * len(text)}", flush=True)

    def say(self, text: str) -> None:
        print(f"  {text}", flush=True)

    def add(self, id: str, title: str, value: float | None, unit: str = "x", **more: Any) -> Figure:
        figure = Figure(id, title, value, unit, **more)
        self.figures.append(figure)
        verdict = {"": "", "noise": "met within noise"}.get(figure.verdict, figure.verdict)
        wanted = figure.wanted()
        tail = f"  [{wanted}: {verdict}]" if wanted and verdict else f"  [{wanted}]" if wanted else ""
        print(f"  {title:<76} {shown(value, unit):>14}{tail}", flush=True)
        if figure.note:
            print(f"      {figure.note}", flush=True)
        return figure


def turns(contenders: Mapping[str, Callable[[], float]], rounds: int, seed: str) -> dict[str, list[float]]:
    """What each returned in each round; in every round they take turns in a new order."""
    rng = random.Random(seed)
    names = list(contenders)
    results: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        rng.shuffle(names)
        for name in names:
            gc.collect()
            results[name].append(contenders[name]())
    return results


def medians(contenders: Mapping[str, Callable[[], float]], rounds: int, seed: str) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in turns(contenders, rounds, seed).items()}


@contextmanager
def no_collections() -> Iterator[None]:
    """The cyclic collector's passes are not what is measured."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def need_charts(parser: argparse.ArgumentParser) -> None:
    """`--chart` was given: say now that it can't be drawn, not after minutes of measuring."""
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("--chart needs matplotlib: pip install 'cmwq[bench]'")
