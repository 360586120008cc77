"""OpenTelemetry: the numbers of pools and queues, at each collection.

    import cmwq.contrib.opentelemetry

    cmwq.contrib.opentelemetry.observe()               # on the global MeterProvider, or on the one given

Guarantees: a collection takes one picture of the runtime, starts nothing, and waits for no work. `queue` is the only
attribute of queues, and `pool` that of pools; the number of names is bounded, and a counter never falls (`_measures`
says how). OpenTelemetry has no histogram that is observed; of waiting and running there are the seconds and the number
of works, so that their quotient is a mean.

Needs `opentelemetry-api`, and does nothing but register callbacks until an SDK collects. Each process is a resource of
its own to OpenTelemetry (`service.instance.id`), so nothing is to be shared between processes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider

import cmwq
from cmwq.contrib._measures import NAMES, POOL, PROCESS, QUEUE, TIMES, Measure, Picture, Reading, Sums, pictures

__all__ = ("observe",)

STALE = 1.0
"""Seconds after which a picture is not used for another instrument."""
UNITS = {"seconds": "s", "bytes": "By"}
"""As OpenTelemetry writes them."""

Observations = Callable[[CallbackOptions], Iterable[Observation]]


def observe(
    provider: MeterProvider | None = None,
    runtime: cmwq.Runtime | None = None,
    *,
    picture: Callable[[], Picture] | None = None,
    names: int = NAMES,
) -> None:
    """Create the observable instruments of a runtime, on a provider or on the global one.

    runtime: whose pools and queues; by default those of the process.
    picture: a function that returns a picture in its stead, as `Snapshot.to_dict` makes it: for another process.
    names: so many names of queues are told apart; those that come later are "(others)".
    Call it once for each provider; the instruments exist as long as that. Starts nothing. Thread-safe. Raises TypeError
    if both a runtime and a picture are given, ValueError if names is less than 1.
    """
    meter = (get_meter_provider() if provider is None else provider).get_meter("cmwq", cmwq.__version__)
    looks = Looks(Sums(pictures(runtime, picture), names))
    for label, measures in (("", PROCESS), ("pool", POOL), ("queue", QUEUE)):
        for measure in measures:
            name = _name(label, measure.name)
            make = meter.create_observable_counter if measure.grows else meter.create_observable_gauge
            of_measure = _observations(looks, name, label, measure)
            make(name, [of_measure], UNITS.get(measure.unit, ""), measure.text)
    for measure in TIMES:
        for suffix, unit, text in (("time", "s", "Seconds in all. "), ("measured", "", "How many works. ")):
            name = _name("queue", f"{measure.name}.{suffix}")
            of_times = _observations_of_times(looks, name, measure, suffix == "time")
            meter.create_observable_counter(name, [of_times], unit, text + measure.text)


class Looks:
    """One look for all instruments of a collection. Thread-safe.

    An instrument that asks a second time begins the next collection.
    """

    def __init__(self, sums: Sums) -> None:
        self._sums = sums
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._asked: set[str] = set()
        self._reading: Reading | None = None
        self._since = 0.0

    def reading(self, instrument: str) -> Reading:
        """What is to be said of this instrument. Raises what taking a picture raises."""
        if self._pid != os.getpid():
            self._begin()  # in the child of a fork, where another thread's lock may have been left taken
        with self._lock:
            now = time.monotonic()
            if self._reading is None or instrument in self._asked or now - self._since > STALE:
                self._reading, self._since = self._sums.look(), now
                self._asked.clear()
            self._asked.add(instrument)
            return self._reading


def _name(label: str, name: str) -> str:
    return ".".join(filter(None, ("cmwq", label, name)))


def _observations(looks: Looks, instrument: str, label: str, measure: Measure) -> Observations:
    """The callback of one instrument."""

    def observations(options: CallbackOptions) -> Iterable[Observation]:
        reading = looks.reading(instrument)
        if not label:
            return [Observation(reading.process[measure.field])] if measure.field in reading.process else []
        rows = reading.pools if label == "pool" else reading.queues
        return [
            Observation(row.numbers[measure.field], {label: name})
            for name, row in rows.items()
            if measure.field in row.numbers
        ]

    return observations


def _observations_of_times(looks: Looks, instrument: str, measure: Measure, seconds: bool) -> Observations:
    """The callback of an instrument of a histogram: its sum in seconds, or how many works it has."""

    def observations(options: CallbackOptions) -> Iterable[Observation]:
        rows = looks.reading(instrument).queues.items()
        found = [(name, row.times[measure.field]) for name, row in rows if measure.field in row.times]
        return [Observation(times.sum if seconds else sum(times.counts), {"queue": name}) for name, times in found]

    return observations
