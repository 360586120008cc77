"""cmwq.contrib.prometheus: what a registry says is what the picture says, and counters only grow."""

from __future__ import annotations

import gc
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pictures
import pytest
from conftest import HANG

import cmwq

client = pytest.importorskip("prometheus_client", reason="prometheus_client can't be imported here")
parser = pytest.importorskip("prometheus_client.parser")

from cmwq.contrib._measures import QUEUE, TIMES, Kept  # noqa: E402 (after what it needs is there)
from cmwq.contrib.prometheus import Collector, expose, share  # noqa: E402 (likewise)


class Process:
    """A process whose pictures are what the test says."""

    def __init__(self, *queues: dict[str, Any], **said: Any) -> None:
        self.queues = list(queues)
        self.said = said
        self.names = 100
        self.registry = client.CollectorRegistry()

    def __call__(self) -> dict[str, Any]:
        return pictures.picture(queues=self.queues, **self.said)

    def registered(self, **options: Any) -> Process:
        expose(self.registry, picture=self, **options)
        return self

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def of(self, name: str, queue: str) -> float | None:
        return self.value(name, queue=queue)


def test_each_number_of_a_queue_is_said() -> None:
    said = {"active": 3, "inactive": 4, "unfinished": 7, "started": 50, "completed": 47, "failed": 2, "hogs": 5,
            "cpu_seconds": 1.5, "wakeups": 11, "maydays": 6, "rescued": 8, "max_active": 16}  # fmt: skip
    process = Process(pictures.queue("mail", **said)).registered()
    names = {"active": "active_works", "inactive": "inactive_works", "unfinished": "unfinished_works",
             "started": "works_started_total", "completed": "works_completed_total", "failed": "works_failed_total",
             "hogs": "hogs_total", "cpu_seconds": "cpu_seconds_total", "wakeups": "wakeups_total",
             "maydays": "maydays_total", "rescued": "works_rescued_total", "max_active": "max_active"}  # fmt: skip
    assert {field: process.of(f"cmwq_queue_{names[field]}", "mail") for field in said} == said
    assert process.of("cmwq_queue_queues", "mail") == 1


def test_each_number_of_a_pool_is_said() -> None:
    said = {"target": 2, "workers": 9, "idle": 3, "running": 2, "blocked": 4, "pending": 5, "inactive": 6,
            "created": 12, "culled": 3, "refused": 1, "started": 70, "completed": 64, "wakeups": 40,
            "cpu_seconds": 8.25, "peak_workers": 11, "held": True, "disassociated": False}  # fmt: skip
    process = Process(pools=[pictures.pool("u0", **said)]).registered()
    names = {"target": "target_workers", "workers": "workers", "idle": "idle_workers", "running": "running_workers",
             "blocked": "blocked_workers", "pending": "pending_works", "inactive": "inactive_works",
             "created": "workers_created_total", "culled": "workers_culled_total", "refused": "workers_refused_total",
             "started": "works_started_total", "completed": "works_completed_total", "wakeups": "wakeups_total",
             "cpu_seconds": "cpu_seconds_total", "peak_workers": "peak_workers", "held": "held",
             "disassociated": "disassociated"}  # fmt: skip
    assert {field: process.value(f"cmwq_pool_{names[field]}", pool="u0") for field in said} == said


def test_the_process_is_described() -> None:
    process = Process(
        frozen=True, stalls=[{"time": 1.0, "over": False, "text": "", "pool": "u0", "queue": ""},
                             {"time": 2.0, "over": False, "text": "", "pool": "u0", "queue": "mail"},
                             {"time": 3.0, "over": True, "text": "", "pool": "u0", "queue": ""}],
    ).registered()  # fmt: skip
    assert process.value("cmwq_frozen") == 1
    assert process.value("cmwq_stalls") == 1  # of the two one is over
    assert process.value("cmwq_start_time_seconds") == 1_700_000_000 - 100
    assert (process.value("cmwq_memory_used_bytes"), process.value("cmwq_memory_limit_bytes")) == (
        512 << 20,
        2048 << 20,
    )
    assert process.value("cmwq_cpu_limit") == 2
    assert process.value("cmwq_info", sensor="sentinel", gil="true") == 1


def test_a_histogram_is_cumulative_and_counts_the_works_that_were_measured() -> None:
    process = Process(pictures.queue("mail", waiting=pictures.histogram(0.0005, 0.05, 0.07, 100.0))).registered()
    found = [process.value("cmwq_queue_waiting_seconds_bucket", queue="mail", le=le)
             for le in ("0.001", "0.01", "0.1", "1.0", "10.0", "+Inf")]  # fmt: skip
    assert found == [1, 1, 3, 3, 3, 4]
    assert process.of("cmwq_queue_waiting_seconds_count", "mail") == 4
    assert process.of("cmwq_queue_waiting_seconds_sum", "mail") == pytest.approx(100.1205)
    assert process.of("cmwq_queue_running_seconds_count", "mail") == 0


def test_what_a_picture_does_not_say_is_left_out_and_not_zero() -> None:
    queue = pictures.queue("mail", waiting=None, running=None, cpu_seconds=None)
    del queue["failed"]
    process = Process(queue, pools=[pictures.pool("u0", cpu_seconds=None)], memory={"used": None, "limit": None})
    process.registered()
    text = client.generate_latest(process.registry).decode()
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert not [line for line in samples if "failed" in line or "cpu_seconds" in line or "waiting" in line]
    assert not [line for line in samples if "memory" in line]
    assert process.of("cmwq_queue_works_started_total", "mail") == 0


def test_queues_of_the_same_name_are_added_up() -> None:
    times = pictures.histogram(0.05)
    process = Process(*[pictures.queue("mail", started=10, active=2, waiting=times) for _ in range(3)]).registered()
    assert process.of("cmwq_queue_works_started_total", "mail") == 30
    assert process.of("cmwq_queue_active_works", "mail") == 6
    assert process.of("cmwq_queue_queues", "mail") == 3
    assert process.of("cmwq_queue_waiting_seconds_count", "mail") == 3


def test_a_queue_that_goes_leaves_its_counters_and_not_its_gauges() -> None:
    one, other = (pictures.queue("mail", started=n, active=2, waiting=pictures.histogram(0.05)) for n in (100, 40))
    process = Process(one, other).registered()
    counter, gauge = "cmwq_queue_works_started_total", "cmwq_queue_active_works"
    assert (process.of(counter, "mail"), process.of(gauge, "mail")) == (140, 4)
    process.queues = [other]
    assert (process.of(counter, "mail"), process.of(gauge, "mail")) == (140, 2)
    other["started"] = 47
    assert process.of(counter, "mail") == 147
    process.queues = []
    for _ in range(3):  # and it stays so
        assert (process.of(counter, "mail"), process.of(gauge, "mail")) == (147, 0)
        assert process.of("cmwq_queue_waiting_seconds_count", "mail") == 2
        assert process.of("cmwq_queue_waiting_seconds_bucket", "mail") is None  # it has a bound, too
    process.queues = [pictures.queue("mail", started=5)]
    assert process.of(counter, "mail") == 152


@pytest.mark.parametrize("name", ["mail", "(others)"])
def test_a_queue_that_is_made_anew_under_its_name_goes_on_counting(name: str) -> None:
    """One for each batch: the one before it is gone at the next look, and this one has counted as much."""
    process = Process(pictures.queue("first")).registered(names=1 if name == "(others)" else 100)
    process.of("cmwq_queue_works_started_total", "first")
    for batch in range(1, 6):
        done = {"started": 100, "active": 1, "running": pictures.histogram_of({0.5: 90})}
        process.queues = [pictures.queue("mail", serial=batch, **done)]
        for _ in range(2):
            assert process.of("cmwq_queue_works_started_total", name) == 100 * batch
            assert process.of("cmwq_queue_active_works", name) == 1
            assert process.of("cmwq_queue_running_seconds_count", name) == 90 * batch
            assert process.of("cmwq_queue_running_seconds_sum", name) == pytest.approx(45 * batch)


def test_what_is_kept_of_queues_that_are_gone_is_bounded() -> None:
    kept = Kept(QUEUE, TIMES)
    for serial in range(1000):
        rows = kept.add([("mail", serial, pictures.queue(started=1))])
    assert rows["mail"].numbers["started"] == 1000
    assert (len(kept._last), len(kept._gone)) == (1, 1)


def test_no_counter_ever_falls_whatever_queues_come_and_go() -> None:
    import random

    chance = random.Random(1)
    process = Process().registered()
    before: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for _ in range(200):
        process.queues = [
            pictures.queue(chance.choice("abc"), serial=chance.choice([None, 1, 2]), started=chance.randrange(100),
                           cpu_seconds=chance.random(),
                           running=pictures.histogram(*[chance.random() * 9 for _ in range(chance.randrange(9))]))
            for _ in range(chance.randrange(5))
        ]  # fmt: skip
        now = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in process.registry.collect()
            if family.type in ("counter", "histogram")
            for sample in family.samples
        }
        fallen = {key: (value, now.get(key)) for key, value in before.items() if now.get(key, -1.0) < value - 1e-9}
        assert fallen == {}
        before = now


def test_names_beyond_the_bound_are_others_and_who_has_a_name_keeps_it() -> None:
    process = Process(*[pictures.queue(f"q{n}", started=1) for n in range(3)]).registered(names=3)
    assert process.of("cmwq_queue_works_started_total", "q2") == 1
    process.queues = [pictures.queue(f"q{n}", started=2) for n in (9, 8, 7, 2, 1, 0)]
    assert [process.of("cmwq_queue_works_started_total", name) for name in ("q0", "q1", "q2")] == [2, 2, 2]
    assert process.of("cmwq_queue_works_started_total", "(others)") == 6
    assert process.of("cmwq_queue_works_started_total", "q7") is None


def test_a_name_that_is_no_text_does_not_break_the_scrape() -> None:
    process = Process(pictures.queue("half \udcff", active=3), pictures.queue('a\n"b"\\', active=4)).registered()
    text = client.generate_latest(process.registry).decode()
    read = {
        sample.labels["queue"]: sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "cmwq_queue_active_works"
    }
    assert read == {"half \\udcff": 3, 'a\n"b"\\': 4}


def test_a_registry_refuses_the_same_metrics_twice() -> None:
    process = Process().registered()
    with pytest.raises(ValueError, match="cmwq_pool_workers"):
        process.registered()


def test_what_is_given_wrongly_is_refused(universe: cmwq.Runtime) -> None:
    with pytest.raises(TypeError, match="not both"):
        Collector(universe, picture=dict)
    with pytest.raises(ValueError, match="names must be at least 1"):
        Collector(names=0)
    with pytest.raises(RuntimeError, match="PROMETHEUS_MULTIPROC_DIR"):
        share()


def test_what_taking_a_picture_raises_does_no_harm_to_the_counters() -> None:
    process = Process(pictures.queue("mail", started=10)).registered()
    assert process.of("cmwq_queue_works_started_total", "mail") == 10
    del process.queues[0]["name"]
    with pytest.raises(KeyError):
        list(process.registry.collect())
    process.queues = [pictures.queue("mail", started=12)]
    assert process.of("cmwq_queue_works_started_total", "mail") == 12


# ------------------------------------------------------------------------------------- of a real runtime


def test_H1_a_real_runtime_is_said_as_it_is(universe: cmwq.Runtime) -> None:
    registry = client.CollectorRegistry()
    expose(registry, universe)
    with cmwq.WorkQueue("sums", runtime=universe) as queue:
        for call in [queue.submit(sum, [n]) for n in range(50)]:
            call.result(HANG)
        queue.flush(HANG)
        assert registry.get_sample_value("cmwq_queue_queues", {"queue": "sums"}) == 1
        assert registry.get_sample_value("cmwq_queue_unfinished_works", {"queue": "sums"}) == 0
        assert registry.get_sample_value("cmwq_pool_works_completed_total", {"pool": "u0"}) == 50
    families = list(parser.text_string_to_metric_families(client.generate_latest(registry).decode()))
    assert len([family for family in families if family.name.startswith("cmwq")]) > 30


def test_H1_each_batch_of_a_real_queue_that_is_made_anew_is_counted(universe: cmwq.Runtime) -> None:
    registry = client.CollectorRegistry()
    expose(registry, runtime=universe)
    for batch in range(1, 4):
        with cmwq.WorkQueue("mail", runtime=universe) as queue:
            for future in [queue.submit(int) for _ in range(100)]:
                future.result(HANG)
            queue.flush(HANG)
            assert registry.get_sample_value("cmwq_queue_works_completed_total", {"queue": "mail"}) == 100 * batch
        del future, queue
        gc.collect()


def test_G1_a_scrape_starts_nothing(universe: cmwq.Runtime) -> None:
    registry = client.CollectorRegistry()
    before = set(threading.enumerate())
    expose(registry, universe)
    text = client.generate_latest(registry).decode()
    assert 'gil="' in text
    assert "cmwq_pool_workers{" not in text
    assert (universe.pools(), set(threading.enumerate()) - before) == ([], set())


def test_a_scrape_does_not_wait_for_works_that_hang(universe: cmwq.Runtime) -> None:
    registry = client.CollectorRegistry()
    expose(registry, universe)
    gate = threading.Event()
    with cmwq.WorkQueue("hanging", runtime=universe, max_active=2) as queue:
        calls = [queue.submit(gate.wait, HANG) for _ in range(5)]
        try:
            assert registry.get_sample_value("cmwq_queue_unfinished_works", {"queue": "hanging"}) == 5
        finally:
            gate.set()
        assert all(call.result(HANG) for call in calls)


FORKING = """
    import os, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
    import cmwq, prometheus_client
    from cmwq.contrib.prometheus import expose
    registry = prometheus_client.CollectorRegistry()
    collector = expose(registry)
    def completed():
        return registry.get_sample_value("cmwq_pool_works_completed_total", {"pool": "u0"})
    cmwq.system.submit(len, "abc").result(); cmwq.system.flush()
    assert completed() == 1, completed()
    collector._sums._lock.acquire()  # as if another thread were scraping at the moment of the fork
    if os.fork() == 0:
        assert completed() is None, completed()
        for _ in range(3): cmwq.system.submit(len, "abc").result()
        cmwq.system.flush()
        assert completed() == 3, completed()
        print("child", flush=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    print("parent")
"""


def test_G2_the_child_of_a_fork_counts_from_zero(python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = python(FORKING)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "child\nparent\n")


STALLED = """
    import logging, os, threading, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    logging.disable()
    import cmwq
    from cmwq.contrib._measures import Sums, pictures
    reported, gate = threading.Event(), threading.Event()
    cmwq.configure(watchdog_thresh=1, watch_period=0.05, on_stall=lambda stall: stall.over or reported.set())
    queue = cmwq.WorkQueue("imports", max_active=1)
    first, second = queue.submit(gate.wait), queue.submit(int)
    assert reported.wait(60)
    stalls = lambda: (Sums(pictures(None, None)).look().process["stalls"], len(cmwq.snapshot().stalls))
    assert stalls() == (1, 1), stalls()
    if os.fork() == 0:
        print("child", *stalls(), flush=True)
        os._exit(0)
    os.wait()
    gate.set()
    queue.close()
    while stalls()[0] or stalls()[1] < 2:  # on a busy machine there may be others
        cmwq.system.submit(int).result()
    print("parent")
"""


def test_G2_the_child_of_a_fork_has_no_stalls(python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = python(STALLED)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "child 0 0\nparent\n")


# ------------------------------------------------------------------------------------- several processes

SHARING = """
    import os, struct, sys, threading, time, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    import cmwq, prometheus_client
    from prometheus_client import multiprocess
    from cmwq.contrib.prometheus import share
    works = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    def total(name, **labels):
        registry = prometheus_client.CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        while True:
            try: return registry.get_sample_value(name, labels)
            except struct.error: pass  # prometheus_client has just made a file, and not filled it yet
    def until(condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.01)
    def work(number):
        for _ in range(number): cmwq.system.submit(len, "abc").result()
        cmwq.system.flush()
    COMPLETED = ("cmwq_pool_works_completed_total", "u0")
"""


def multiprocess_folder(folder: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}


def test_processes_that_share_are_added_up_and_stay_in_the_sum(
    python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    forks = """
    shared = share(every=0.05)
    children = []
    for number in (2, 5):
        if (pid := os.fork()) == 0:  # as gunicorn does, with an application loaded before
            work(number)
            if number == 2: sys.exit()  # the last numbers are written at exit
            shared.write()
            os._exit(0)  # killed, as far as anybody can see
        children.append(pid)
    for pid in children:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert total("cmwq_pool_works_completed_total", pool="u0") == 7, total("cmwq_pool_works_completed_total", pool="u0")
    work(10)  # and this process goes on by itself
    until(lambda: total("cmwq_pool_works_completed_total", pool="u0") == 17)
    alive = total("cmwq_pool_workers", pool="u0")
    for pid in children: multiprocess.mark_process_dead(pid)
    assert 0 < total("cmwq_pool_workers", pool="u0") < alive
    assert total("cmwq_pool_works_completed_total", pool="u0") == 17  # of the dead, too
    shared.close()
    work(1)
    time.sleep(0.2)
    assert total("cmwq_pool_works_completed_total", pool="u0") == 17  # it is over
    print("ok")
    """
    done = python(SHARING, forks, env=multiprocess_folder(tmp_path))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "ok\n")


def test_G2_a_fork_waits_until_nothing_is_being_written(
    python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """prometheus_client's lock stays as it is in the child, where it would be held for ever."""
    during = """
    import cmwq.contrib.prometheus
    cmwq.contrib.prometheus.PATIENCE = 20
    shared = share(every=60)
    writing, within = threading.Event(), []
    class Slow(prometheus_client.values.ValueClass):
        def set(self, *values):
            within.append(1)
            writing.set()
            time.sleep(0.001)
            shared.write()  # as a finaliser might
            super().set(*values)
            within.pop()
    prometheus_client.values.ValueClass = Slow
    over = []
    def write_again_and_again():
        while not over:
            shared.write()
            time.sleep(0.005)
    writer = threading.Thread(target=write_again_and_again)
    writer.start()
    for _ in range(3):
        writing.clear()
        assert writing.wait(60)
        if (pid := os.fork()) == 0:
            os._exit(10 + len(within))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 10
    if (pid := os.fork()) == 0:
        shared.write()
        os._exit(3)
    over.append(1)
    writer.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    shared.close()
    if (pid := os.fork()) == 0:  # the last of these waits for nobody
        thread = threading.Thread(target=lambda: os.waitpid(os.fork() or os._exit(0), 0))
        begun = time.monotonic()
        thread.start()
        thread.join(60)
        os._exit(4 if time.monotonic() - begun < 15 else 5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
    print("ok")
    """
    done = python(SHARING, during, env=multiprocess_folder(tmp_path))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "ok\n")


def test_shared_histograms_are_added_up(
    python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    program = """
    histogram = {"bounds": [0.1, 1.0], "counts": [3, 2, 1], "sum": 9.5, "sampled": 6}
    picture = {"pools": [], "queues": [{"name": "mail", "waiting": histogram}]}
    share(every=60, picture=lambda: picture).write()
    if os.fork() == 0:
        share(every=60, picture=lambda: picture).write()
        os._exit(0)
    os.wait()
    counts = [total("cmwq_queue_waiting_seconds_bucket", queue="mail", le=le) for le in ("0.1", "1.0", "+Inf")]
    print(counts, total("cmwq_queue_waiting_seconds_sum", queue="mail"))
    """
    done = python(SHARING, program, env=multiprocess_folder(tmp_path))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[6.0, 10.0, 12.0] 19.0\n")


def test_a_process_that_gets_the_number_of_one_that_ended_goes_on_from_its_counters(
    python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    program = """
    from prometheus_client import values
    values.ValueClass = values.MultiProcessValue(lambda: 7)  # as in a container, where numbers come again
    shared = share(every=60)
    work(3)
    shared.write()
    work(2)
    shared.write()
    print(total("cmwq_pool_works_completed_total", pool="u0"), total("cmwq_queue_queues", queue="system"))
    """
    for said in ("5.0 1.0\n", "10.0 1.0\n"):
        done = python(SHARING, program, env=multiprocess_folder(tmp_path))
        assert (done.returncode, done.stderr, done.stdout) == (0, "", said)


def test_a_picture_that_fails_does_not_end_the_sharing(
    python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    program = """
    import logging; logging.getLogger("cmwq").addHandler(logging.NullHandler())
    pictures = iter([{"pools": []}, None, {"queues": [{"name": "mail", "started": 3}]}])
    last = {"queues": [{"name": "mail", "started": 3}]}
    share(every=0.01, picture=lambda: next(pictures, last))
    until(lambda: total("cmwq_queue_works_started_total", queue="mail") == 3)
    print("ok")
    """
    done = python(SHARING, program, env=multiprocess_folder(tmp_path))
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_the_examples_say_what_they_show() -> None:
    import re
    import sys

    examples = Path(__file__).resolve().parents[2] / "examples"
    if not examples.exists():
        pytest.skip("no examples here")  # only a part of the tree was copied (tools/trees.py)
    command = [sys.executable, str(examples / "prometheus_metrics.py"), "0", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    told = re.fullmatch(r"http://.* for 0\.5 s\n(\d+) pictures and (\d+) mails; .* of (\d+) works\n", done.stdout)
    assert told is not None, done
    assert int(told[1]) + int(told[2]) == int(told[3])
