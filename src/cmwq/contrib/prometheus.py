"""Prometheus: the numbers of pools and queues, at each scrape.

    import cmwq.contrib.prometheus

    cmwq.contrib.prometheus.expose()                   # the process's metrics have cmwq's from now on
    prometheus_client.start_http_server(8000)          # or as the process's metrics are served already

Guarantees: a scrape takes one picture of the runtime, starts nothing, and waits for no work. Before the first work it
says that there are no pools. `queue` is the only label of queues, and `pool` that of pools; the number of names is
bounded, and a counter never falls (`_measures` says how). Where several processes serve one address, as under gunicorn,
`share` writes their numbers to the folder in which prometheus_client adds up those of all processes.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import prometheus_client
import prometheus_client.values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector as _Collector
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString

import cmwq
from cmwq.contrib._measures import NAMES, POOL, PROCESS, QUEUE, TIMES, Measure, Picture, Reading, Row, Sums, pictures

__all__ = ("Collector", "Shared", "expose", "share")

_log = logging.getLogger("cmwq")

_words: Callable[[float], str] = floatToGoString
"""A bound as Prometheus writes it."""
_KINDS = (("pool", POOL), ("queue", QUEUE))

PATIENCE = 5.0
"""Seconds after which a fork waits no longer for a writing to end: the disk hangs."""


class Collector(_Collector):
    """Collects the metrics of one runtime. `expose` makes one and registers it. Thread-safe.

    runtime: whose pools and queues; by default those of the process.
    picture: a function that returns a picture in its stead, as `Snapshot.to_dict` makes it: for another process.
    names: so many names of queues are told apart; those that come later are "(others)".
    Raises TypeError if both a runtime and a picture are given, ValueError if names is less than 1.
    """

    def __init__(
        self,
        runtime: cmwq.Runtime | None = None,
        *,
        picture: Callable[[], Picture] | None = None,
        names: int = NAMES,
    ) -> None:
        self._sums = Sums(pictures(runtime, picture), names)

    def describe(self) -> Iterator[Metric]:
        """The metrics without their values, so that a registry can see which names are taken."""
        return _families(None)

    def collect(self) -> Iterator[Metric]:
        """The metrics. Raises what the function raises that takes the pictures."""
        return _families(self._sums.look())


def expose(
    registry: CollectorRegistry = prometheus_client.REGISTRY,
    runtime: cmwq.Runtime | None = None,
    *,
    picture: Callable[[], Picture] | None = None,
    names: int = NAMES,
) -> Collector:
    """Add the metrics of a runtime to a registry, by default to that of the process. `Collector` explains the rest.

    Returns the collector, which `registry.unregister` takes. Raises ValueError if the registry has these metrics
    already. Starts nothing. Thread-safe.
    """
    collector = Collector(runtime, picture=picture, names=names)
    registry.register(collector)
    return collector


def _families(reading: Reading | None) -> Iterator[Metric]:
    for measure in PROCESS:
        family = GaugeMetricFamily(_name("", measure), measure.text)
        if reading is not None and measure.field in reading.process:
            family.add_metric([], reading.process[measure.field])
        yield family
    for label, measures in _KINDS:
        for measure in measures:
            make = CounterMetricFamily if measure.grows else GaugeMetricFamily
            of_rows = make(_name(label, measure), measure.text, labels=[label])
            for name, row in _rows(reading, label):
                if measure.field in row.numbers:
                    of_rows.add_metric([name], row.numbers[measure.field])
            yield of_rows
    for measure in TIMES:
        yield _histogram(measure, reading)
    info = InfoMetricFamily("cmwq", "The sensor that notices blocked workers, and whether this Python has a GIL.")
    if reading is not None:
        info.add_metric([], {"sensor": reading.sensor, "gil": str(reading.gil).lower()})
    yield info


def _histogram(measure: Measure, reading: Reading | None) -> HistogramMetricFamily:
    family = HistogramMetricFamily(_name("queue", measure), measure.text, labels=["queue"])
    for name, row in _rows(reading, "queue"):
        if times := row.times.get(measure.field):
            below, buckets = 0.0, []
            for bound, count in zip((*times.bounds, float("inf")), times.counts, strict=True):
                below += count
                buckets.append((_words(bound), below))
            family.add_metric([name], buckets, times.sum)
    return family


def _rows(reading: Reading | None, label: str) -> list[tuple[str, Row]]:
    if reading is None:
        return []
    return sorted((reading.pools if label == "pool" else reading.queues).items())


def _name(label: str, measure: Measure) -> str:
    return "_".join(filter(None, ("cmwq", label, measure.name, measure.unit)))


# ------------------------------------------------------------------------------------- several processes


class Shared:
    """Writes the numbers of this process to prometheus_client's folder, again and again. `share` makes it.

    Thread-safe. It goes on in the children of a fork, each with numbers of its own. A fork waits for a writing to end,
    for up to PATIENCE: a child could never take prometheus_client's lock if a thread held it at the fork. (Nobody waits
    for the program's own metrics.)
    """

    def __init__(self, sums: Sums, every: float) -> None:
        self._sums = sums
        self._every = every
        self._over = False
        self._writer = 0  # the ident of the thread that writes
        self._begin()

    def write(self) -> None:
        """Write the numbers now. Starts nothing, and waits for no work."""
        if self._pid != os.getpid():
            self._begin()
        if self._writer == threading.get_ident():
            return  # a finaliser or a handler calls this, within a writing
        with self._lock:
            self._writer = threading.get_ident()
            try:
                self._write_all(self._pid)
            finally:
                self._writer = 0

    def _write_all(self, pid: int) -> None:
        for key, number in _flat(self._sums.look()):
            if self._pid != pid:
                return  # a handler has forked, and this is the child
            cell = self._cells.get(key)
            if cell is None:
                value = prometheus_client.values.ValueClass(*key[:-1], multiprocess_mode=key[-1])
                # A process that had the same number may have left its counters there: go on from them.
                cell = self._cells[key] = (value, value.get() if key[0] != "gauge" else 0.0)
            value, before = cell
            value.set(before + number)

    def close(self) -> None:
        """Write a last time, and then no more. Does no harm if it is over."""
        if not self._over:
            self._over = True
            self._wake.set()
            self.write()
            atexit.unregister(self.close)

    def _begin(self) -> None:
        """Begin in a process: this one, or the child of a fork, where the thread is gone and locks may be taken."""
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a finaliser or a handler may fork within a writing
        self._writer = 0
        self._wake = threading.Event()
        self._cells: dict[tuple[Any, ...], tuple[Any, float]] = {}
        if not self._over:
            threading.Thread(target=self._write_until_over, name="cmwq/metrics", daemon=True).start()

    def _write_until_over(self) -> None:
        wake = self._wake
        while not wake.wait(self._every):
            try:
                self.write()
            except Exception:
                _log.exception("the metrics could not be written, and are tried again")

    def _pause(self) -> None:
        self._lock.acquire(timeout=PATIENCE)

    def _go_on(self) -> None:
        with suppress(RuntimeError):  # it took too long
            self._lock.release()

    def _go_on_in_child(self) -> None:
        self._begin()


def share(
    runtime: cmwq.Runtime | None = None,
    *,
    every: float = 5.0,
    picture: Callable[[], Picture] | None = None,
    names: int = NAMES,
) -> Shared:
    """Write this process's numbers to the folder in which prometheus_client adds up those of all processes.

    That folder is `PROMETHEUS_MULTIPROC_DIR`, to be set before prometheus_client is imported. Counters and histograms
    of processes that ended stay in the sum. Gauges are sums over the processes that live; the server calls
    `prometheus_client.multiprocess.mark_process_dead` when one ends, as prometheus_client asks of it.

    every: seconds from one writing to the next, by a thread of its own, "cmwq/metrics". It also writes at the end of
    the process, after the last work. `Collector` explains the rest. Call it once, in each process or before they are
    forked. Raises RuntimeError if the folder isn't set, ValueError for times that are not above 0.
    """
    if not getattr(prometheus_client.values.ValueClass, "_multiprocess", False):
        raise RuntimeError("set PROMETHEUS_MULTIPROC_DIR to an empty folder before prometheus_client is imported")
    if not every > 0:
        raise ValueError(f"every must be a number of seconds above 0, not {every}")
    shared = Shared(Sums(pictures(runtime, picture), names), every)
    atexit.register(shared.close)
    there = weakref.ref(shared)

    def told(method: Callable[[Shared], None]) -> Callable[[], None]:  # it is kept for ever, and must not keep `shared`
        def tell() -> None:
            if (shared := there()) is not None:
                method(shared)

        return tell

    os.register_at_fork(
        before=told(Shared._pause), after_in_parent=told(Shared._go_on), after_in_child=told(Shared._go_on_in_child)
    )
    return shared


def _flat(reading: Reading) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Each sample: the arguments of prometheus_client's value, and the number. Buckets are not cumulative there."""
    for measure in PROCESS:
        if measure.field in reading.process:
            name = _name("", measure)
            mode = "livemin" if measure.field == "started_at" else "livesum"
            yield ("gauge", name, name, (), (), measure.text, mode), reading.process[measure.field]
    for label, measures in _KINDS:
        for measure in measures:
            name = _name(label, measure)
            kind, suffix, mode = ("counter", "_total", "") if measure.grows else ("gauge", "", "livesum")
            for which, row in _rows(reading, label):
                if measure.field in row.numbers:
                    key = (kind, name, name + suffix, (label,), (which,), measure.text, mode)
                    yield key, row.numbers[measure.field]
    for measure in TIMES:
        name = _name("queue", measure)
        for which, row in _rows(reading, "queue"):
            if times := row.times.get(measure.field):
                yield ("histogram", name, name + "_sum", ("queue",), (which,), measure.text, ""), times.sum
                for bound, count in zip((*times.bounds, float("inf")), times.counts, strict=True):
                    labels = (which, _words(bound))
                    yield ("histogram", name, name + "_bucket", ("queue", "le"), labels, measure.text, ""), count
