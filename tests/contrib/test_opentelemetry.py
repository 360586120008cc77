"""cmwq.contrib.opentelemetry: what a reader collects is what the picture says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pictures
import pytest
from conftest import HANG

import cmwq

pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry's SDK can't be imported here")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from cmwq.contrib.opentelemetry import observe


def collected(reader: InMemoryMetricReader) -> dict[tuple[str, str], Any]:
    """Each value by instrument and name."""
    data = reader.get_metrics_data()
    found = {}
    for resource in data.resource_metrics if data else []:
        for scope in resource.scope_metrics:
            assert scope.scope.name == "cmwq"
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    assert len(point.attributes) <= 1
                    found[metric.name, str(next(iter(point.attributes.values()), ""))] = point.value
    return found


def test_each_number_is_said_and_no_other() -> None:
    queue = pictures.queue("mail", started=50, active=3, cpu_seconds=None, waiting=pictures.histogram(0.5, 1.5))
    picture = pictures.picture(queues=[queue], pools=[pictures.pool("u0", workers=4, cpu_seconds=2.5)], frozen=True)
    reader = InMemoryMetricReader()
    observe(MeterProvider([reader]), picture=lambda: picture)
    found = collected(reader)
    assert found["cmwq.queue.works_started", "mail"] == 50
    assert found["cmwq.queue.active_works", "mail"] == 3
    assert ("cmwq.queue.cpu", "mail") not in found
    assert found["cmwq.queue.waiting.time", "mail"] == 2.0
    assert found["cmwq.queue.waiting.measured", "mail"] == 2
    assert found["cmwq.pool.workers", "u0"] == 4
    assert found["cmwq.pool.cpu", "u0"] == 2.5
    assert found["cmwq.frozen", ""] == 1


def test_a_collection_takes_one_picture_and_the_next_another() -> None:
    queue, taken = pictures.queue("mail", started=1), []

    def picture() -> dict[str, Any]:
        taken.append(queue["started"])
        return pictures.picture(queues=[queue])

    reader, other = InMemoryMetricReader(), InMemoryMetricReader()
    observe(MeterProvider([reader, other]), picture=picture)
    assert collected(reader)["cmwq.queue.works_started", "mail"] == 1
    assert taken == [1]
    queue["started"] = 2
    assert collected(reader)["cmwq.queue.works_started", "mail"] == 2
    assert taken == [1, 2]
    queue["started"] = 3
    assert collected(other)["cmwq.queue.works_started", "mail"] == 3
    assert taken == [1, 2, 3]


def test_counters_keep_what_a_queue_counted_that_is_gone() -> None:
    queues = [pictures.queue("mail", started=7)]
    reader = InMemoryMetricReader()
    observe(MeterProvider([reader]), picture=lambda: pictures.picture(queues=queues))
    assert collected(reader)["cmwq.queue.works_started", "mail"] == 7
    queues.clear()
    assert collected(reader)["cmwq.queue.works_started", "mail"] == 7


def test_H1_a_real_runtime_is_observed(universe: cmwq.Runtime) -> None:
    reader = InMemoryMetricReader()
    observe(MeterProvider([reader]), universe)
    assert ("cmwq.pool.workers", "u0") not in collected(reader)
    assert universe.pools() == []  # it started nothing
    with cmwq.WorkQueue("sums", runtime=universe) as queue:
        for call in [queue.submit(sum, [n]) for n in range(20)]:
            call.result(HANG)
        queue.flush(HANG)
        found = collected(reader)
    assert found["cmwq.pool.works_completed", "u0"] == 20
    assert found["cmwq.queue.queues", "sums"] == 1


def test_without_a_provider_it_is_the_global_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr("cmwq.contrib.opentelemetry.get_meter_provider", lambda: provider)
    observe(picture=pictures.picture)
    assert collected(reader)["cmwq.cpu_limit", ""] == 2


def test_the_example_says_what_it_shows() -> None:
    example = Path(__file__).resolve().parents[2] / "examples/opentelemetry_metrics.py"
    if not example.exists():
        pytest.skip("no examples here")  # only a part of the tree was copied (tools/trees.py)
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=HANG, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^cmwq\.pool\.works_completed +pool=u0 +40 $", done.stdout, re.MULTILINE), done.stdout
