"""The page's way to count several processes, with a real gunicorn: what docs/metrics.md says is what is run."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HANG, until

pytest.importorskip("prometheus_client", reason="prometheus_client can't be imported here")
pytest.importorskip("gunicorn", reason="gunicorn can't be imported here")
parser = pytest.importorskip("prometheus_client.parser")

PAGE = Path(__file__).resolve().parents[2] / "docs/metrics.md"

# Absent where only a part of the tree was copied (tools/trees.py).
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="no docs here")

SHOP = """
import os
import cmwq, prometheus_client
from prometheus_client import multiprocess

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/metrics":
        registry = prometheus_client.CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        return [prometheus_client.generate_latest(registry)]
    cmwq.system.submit(len, "abc").result()
    return [str(os.getpid()).encode()]
"""


class Shop:
    def __init__(self, folder: Path) -> None:
        self.works = 0
        (folder / "shop.py").write_text(SHOP)
        (conf,) = re.findall(r"```python\n(# gunicorn\.conf\.py.*?)```", PAGE.read_text(), re.DOTALL)
        (folder / "gunicorn.conf.py").write_text(conf.replace("share()", "share(every=0.2)"))
        metrics = folder / "metrics"
        metrics.mkdir()
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = int(found.getsockname()[1])
        command = [sys.executable, "-m", "gunicorn", "-w", "2", "-b", f"127.0.0.1:{self.port}", "shop"]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.master = subprocess.Popen(
                command,
                cwd=folder,
                stdout=log,
                stderr=log,
                env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics)},
            )

    def get(self, path: str) -> str:
        assert self.master.poll() is None, self.log.read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=HANG) as answer:
            return str(answer.read().decode())

    def work(self) -> str:
        """Let one work be done. Returns by which process; empty: nobody answers."""
        try:
            pid = self.get("/")
        except OSError:
            return ""
        self.works += 1
        return pid

    def value(self, name: str) -> float:
        """The sum of the samples of this name; -1 if the scrape failed, as prometheus_client's may at that moment when
        another process has just made a file and not yet written to it.
        """
        try:
            text = self.get("/metrics")
        except urllib.error.HTTPError:
            assert "buffer size is 0" in self.log.read_text()
            return -1
        families = parser.text_string_to_metric_families(text)
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    try:
        yield shop
    finally:
        shop.master.terminate()
        shop.master.wait(HANG)


def test_each_worker_tells_of_all_and_a_reload_loses_nothing(shop: Shop) -> None:
    pids: set[str] = set()

    def both() -> bool:
        pids.update(filter(None, [shop.work()]))
        return len(pids) == 2

    until(both)
    works = "cmwq_pool_works_completed_total"
    until(lambda: shop.value(works) == shop.works)
    shop.master.send_signal(signal.SIGHUP)  # both are replaced
    until(lambda: not any(map(alive, pids)))
    until(lambda: shop.work() not in {"", *pids})
    until(lambda: shop.value(works) == shop.works)
    until(lambda: shop.value("cmwq_cpu_limit") > 0)
    until(lambda: not list((shop.log.parent / "metrics").glob(f"gauge_live*_{min(pids)}.db")))  # of the dead


def alive(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()
