"""A process whose pools and queues Prometheus can scrape, at http://127.0.0.1:PORT/metrics.

    python examples/prometheus_metrics.py [PORT [SECONDS]]

It fetches and resizes pictures of a made-up shop for some seconds; at most 4 mails are sent at a time. A Prometheus
that is to scrape it needs no more than this:

    scrape_configs:
      - job_name: shop
        static_configs: [{targets: ["127.0.0.1:8000"]}]
"""

from __future__ import annotations

import sys
import time
import zlib

import prometheus_client

import cmwq
import cmwq.contrib.prometheus

PICTURE = bytes(range(256)) * 400


def resize(number: int) -> int:
    time.sleep(0.02)  # fetched from somewhere
    return len(zlib.compress(PICTURE, 1 + number % 9))


def send(number: int) -> None:
    time.sleep(0.1)
    if number % 10 == 0:
        raise ConnectionError("the mail server is gone")


def main(port: int, seconds: float) -> None:
    cmwq.contrib.prometheus.expose()
    server, thread = prometheus_client.start_http_server(port, "127.0.0.1")
    print(f"http://127.0.0.1:{server.server_port}/metrics for {seconds:g} s", flush=True)
    until, number = time.monotonic() + seconds, 0
    with cmwq.WorkQueue("pictures") as pictures, cmwq.WorkQueue("mail", max_active=4) as mail:
        while time.monotonic() < until:
            number += 1
            pictures.submit(resize, number)
            if number % 4 == 0:
                mail.submit(send, number).add_done_callback(lambda call: call.exception())
            time.sleep(0.01)
        pictures.flush()
        mail.flush()
        resized = prometheus_client.REGISTRY.get_sample_value("cmwq_pool_works_completed_total", {"pool": "u0"})
        print(f"{number} pictures and {number // 4} mails; Prometheus is told of {resized:.0f} works")
    server.shutdown()
    thread.join()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8000, float(sys.argv[2]) if len(sys.argv) > 2 else 60.0)
