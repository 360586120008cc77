"""The numbers of pools and queues as OpenTelemetry collects them, here once, and shown on the terminal.

    python examples/opentelemetry_metrics.py

In a program of yours the provider would have a `PeriodicExportingMetricReader`, with an exporter to your collector.
"""

from __future__ import annotations

import time

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import cmwq
import cmwq.contrib.opentelemetry

WORKS = 40


def main() -> None:
    reader = InMemoryMetricReader()
    cmwq.contrib.opentelemetry.observe(MeterProvider([reader]))
    with cmwq.WorkQueue("naps") as naps:
        for _ in range(WORKS):
            naps.submit(time.sleep, 0.05)
        naps.flush()
        data = reader.get_metrics_data()
    for resource in data.resource_metrics if data else []:
        for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
            for point in metric.data.data_points:
                which = ", ".join(f"{key}={value!s}" for key, value in (point.attributes or {}).items())
                value = getattr(point, "value", None)
                print(f"{metric.name:32} {which:24} {value!s} {metric.unit}")


if __name__ == "__main__":
    main()
