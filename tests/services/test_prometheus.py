"""cmwq.contrib.prometheus: a real Prometheus scrapes the example, and answers questions about it by its HTTP API.

promtool checks the rules that docs/metrics.md offers, and tries the alerts on made-up series.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, until

from services.conftest import free_port

pytest.importorskip("prometheus_client", reason="prometheus_client can't be imported here")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/prometheus_metrics.py"
RULES = ROOT / "docs/metrics"

pytestmark = pytest.mark.skipif(not EXAMPLE.exists(), reason="no examples here")


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} here; `make test-services` installs it if it may (Debian, root)")
    return found


@pytest.fixture
def shop() -> Iterator[int]:
    """The example. Gives the port on which it shows its metrics."""
    command = [sys.executable, str(EXAMPLE), "0", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.match(r"http://127\.0\.0\.1:(\d+)/metrics", line)
            assert match is not None, line
            yield int(match[1])
        finally:
            process.kill()


class Prometheus:
    """A server that scrapes one port each second, and has the rules of docs/metrics."""

    def __init__(self, folder: Path, scraped: int) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.log = folder / "log"
        (folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: ['{RULES}/*.yml']\n"
            "scrape_configs:\n  - job_name: shop\n    static_configs: [{targets: ['127.0.0.1:%d']}]\n" % scraped
        )
        command = [program("prometheus"), f"--config.file={folder}/prometheus.yml",
                   f"--storage.tsdb.path={folder}/data", f"--web.listen-address={self.address}"]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def ask(self, path: str, **parameters: str) -> Any:
        """What its HTTP API answers; None while it does not answer yet."""
        assert self.process.poll() is None, self.log.read_text()
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=HANG) as answer:
                said = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it begins
                return None
            raise AssertionError(error.read()) from None
        except urllib.error.URLError:
            return None
        assert said["status"] == "success"
        return said["data"]

    def values(self, query: str) -> dict[str, float]:
        """The answer to a query, by queue or by pool."""
        data = self.ask("query", query=query)
        found = data["result"] if data else []
        return {
            each["metric"].get("queue") or each["metric"].get("pool", ""): float(each["value"][1]) for each in found
        }

    def found(self, query: str, name: str) -> float:
        """The value of this queue or pool, as soon as there is one: after a scrape that took too long there is none."""
        found: dict[str, float] = {}

        def is_there() -> bool:
            found.update(self.values(query))
            return name in found

        until(is_there)
        return found[name]


@pytest.fixture
def prometheus(tmp_path: Path, shop: int) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path, shop)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(HANG)


def test_a_real_prometheus_scrapes_the_example(prometheus: Prometheus) -> None:
    until(lambda: prometheus.values("up").get("") == 1)
    until(lambda: prometheus.values("rate(cmwq_pool_works_completed_total[10s])").get("u0", 0) > 5)
    until(lambda: {"pictures", "mail", "system"} <= set(prometheus.values("cmwq_queue_queues")))
    assert prometheus.found("cmwq_queue_max_active", "mail") == 4
    assert prometheus.found("cmwq_pool_target_workers", "u0") >= 1
    assert 1 <= prometheus.found("cmwq_pool_workers", "u0") < 100
    assert prometheus.found("max(cmwq_queue_active_works{queue='mail'})", "") <= 4

    # Types, units and texts arrived; Prometheus calls a metric that it could not read unknown.
    metadata = prometheus.ask("metadata")
    ours = {name: each[0] for name, each in metadata.items() if name.startswith("cmwq_")}
    assert len(ours) > 30
    assert {each["type"] for each in ours.values()} <= {"gauge", "counter", "histogram"}
    assert all(each["help"].endswith(".") for each in ours.values())
    until(lambda: [target["lastError"] for target in prometheus.ask("targets")["activeTargets"]] == [""])


def test_the_alerts_and_the_recorded_series_are_evaluated_on_it(prometheus: Prometheus) -> None:
    until(lambda: prometheus.values("up").get("") == 1)

    def evaluated() -> bool:
        data = prometheus.ask("rules")
        rules = [rule for group in data["groups"] for rule in group["rules"]] if data else []
        return len(rules) == 14 and all(rule["health"] == "ok" for rule in rules)

    until(evaluated)
    firing = [alert["labels"]["alertname"] for alert in prometheus.ask("alerts")["alerts"]]
    assert "CmwqStalled" not in firing
    assert "CmwqWorkersRefused" not in firing


def test_promtool_accepts_the_rules() -> None:
    command = [program("promtool"), "check", "rules", *map(str, sorted(RULES.glob("*.yml")))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout.count("9 rules found"), done.stdout.count("5 rules found")) == (1, 1)


def test_what_a_scrape_says_is_well_formed_by_promtool() -> None:
    import prometheus_client
    from pictures import Story

    from cmwq.contrib.prometheus import expose

    registry = prometheus_client.CollectorRegistry()
    expose(registry, picture=Story().next)
    text = prometheus_client.generate_latest(registry)
    command = [program("promtool"), "check", "metrics"]
    done = subprocess.run(command, input=text, capture_output=True, timeout=HANG, check=False)
    complaints = (done.stdout + done.stderr).decode().splitlines()
    assert (done.returncode, complaints) == (0, [])


SERIES = {
    "CmwqStalled": ("cmwq_stalls", "1+0x60"),
    "CmwqWorkersRefused": ('cmwq_pool_workers_refused_total{pool="u0"}', "0+2x60"),
    "CmwqRescuerAtWork": ('cmwq_queue_works_rescued_total{queue="mail"}', "0+1x60"),
    "CmwqWorksWait": ('cmwq_pool_pending_works{pool="u0"}', "3+0x60"),
    "CmwqQueueAtItsLimit": ('cmwq_queue_inactive_works{queue="mail"}', "3+0x60"),
    "CmwqMemoryShort": ('cmwq_pool_held{pool="u0"}', "1+0x60"),
    "CmwqFrozen": ("cmwq_frozen", "1+0x60"),
}


@pytest.mark.parametrize("calm", [False, True])
@pytest.mark.parametrize("alert", SERIES)
def test_the_alert_fires_when_it_should_and_not_when_all_is_well(alert: str, calm: bool, tmp_path: Path) -> None:
    series, values = SERIES[alert]
    found = fired(tmp_path, alert, {series: "0+0x60" if calm else values})
    assert found is not calm


@pytest.mark.parametrize(("fast", "fires"), [(90, True), (98, False)])
def test_the_alert_of_works_that_wait_long_looks_at_one_in_twenty(fast: int, fires: bool, tmp_path: Path) -> None:
    buckets = {
        'cmwq_queue_waiting_seconds_bucket{queue="mail",le="1.0"}': f"0+{fast}x60",
        'cmwq_queue_waiting_seconds_bucket{queue="mail",le="10.0"}': "0+100x60",
        'cmwq_queue_waiting_seconds_bucket{queue="mail",le="+Inf"}': "0+100x60",
    }
    assert fired(tmp_path, "CmwqWaitsLong", buckets) is fires


@pytest.mark.parametrize(("failed", "fires"), [(20, True), (5, False)])
def test_the_alert_of_works_that_fail_looks_at_their_share(failed: int, fires: bool, tmp_path: Path) -> None:
    series = {
        'cmwq_queue_works_failed_total{queue="mail"}': f"0+{failed}x60",
        'cmwq_queue_works_completed_total{queue="mail"}': "0+100x60",
    }
    assert fired(tmp_path, "CmwqWorksFail", series) is fires


def fired(folder: Path, alert: str, series: dict[str, str]) -> bool:
    """Whether the alert fires within an hour of these series. promtool says which alerts it got instead of none."""
    test = {
        "rule_files": [str(RULES / "alerts.yml")],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [{"eval_time": "55m", "alertname": alert, "exp_alerts": []}],
            }
        ],
    }
    path = folder / "test.yml"
    path.write_text(json.dumps(test))  # JSON is YAML, too
    command = [program("promtool"), "test", "rules", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    got = done.stdout + done.stderr
    assert done.returncode == 0 or f'alertname="{alert}"' in got, got
    return done.returncode != 0
