"""cmwq.contrib.celery: a real worker process, with a real Redis as broker and for the results."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, until

celery = pytest.importorskip("celery", reason="Celery can't be imported here")

APP = """
import contextvars, os, time
import celery, redis

app = celery.Celery("app", broker=os.environ["REDIS"], backend=os.environ["REDIS"])
app.conf.update(
    broker_transport_options={
        "visibility_timeout": int(os.environ["VISIBILITY"]),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
    if "VISIBILITY" in os.environ
    else {},
    worker_hijack_root_logger=False,
    task_store_eager_result=False,
    broker_connection_retry_on_startup=True,
    result_backend_thread_safe=True,
)
# One connection, made now, and known by its name: what tasks speak to Redis on, which is not the broker's.
store = redis.Redis.from_url(
    os.environ["REDIS"], decode_responses=True, client_name="store", single_connection_client=True
)
variable = contextvars.ContextVar("variable", default=None)


def hold(name):
    store.rpush("begun", name)
    if not store.exists("open"):
        store.incr("holding")
        while not store.exists("open"):
            time.sleep(0.01)
        store.decr("holding")
    store.rpush("ended", name)
    return name


@app.task
def early(name):
    return hold(name)


@app.task(acks_late=True)
def late(name):
    return hold(name)


@app.task(acks_late=True)
def meet(number):
    store.incr("present")
    while int(store.get("present")) < number:
        time.sleep(0.01)


@app.task
def count():
    store.rpush("active", store.incr("at once"))
    time.sleep(0.02)
    store.decr("at once")


@app.task
def remember(value):
    before = variable.get()
    variable.set(value)
    return before


@app.task
def fail():
    raise ValueError("on purpose")


@app.task(soft_time_limit=100)
def limited():
    return "done"


@app.task(bind=True, max_retries=3)
def retried(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries
"""

NAME = "worker@test"
ASKED: Any = {"destination": [NAME], "timeout": HANG}


class Worker:
    """A worker process of Celery."""

    def __init__(self, folder: Path, url: str, options: tuple[str, ...]) -> None:
        self.log = folder / f"log-{len(list(folder.glob('log-*')))}"
        environment = {**os.environ, "REDIS": url, "CELERY_CUSTOM_WORKER_POOL": "cmwq.contrib.celery:TaskPool"}
        quick = ("-n", NAME, "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO")
        command = [sys.executable, "-m", "celery", "-A", "app", "worker", "-P", "custom", *quick, *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        until(lambda: self.said(" ready."))

    def said(self, what: str) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return what in self.log.read_text()

    def has(self, *ids: str) -> bool:
        """Whether it has received these tasks. Until they are acknowledged, Redis counts them among those that are not.

        Without it that number says little: a task that has begun may still be among them, while another one that was
        sent later is not yet.
        """
        return all(self.said(f"[{each}] received") for each in ids)

    def end(self, number: int) -> int:
        """Its exit status after this signal. If it does not end, the error says what its threads are at."""
        self.process.send_signal(number)
        try:
            return self.process.wait(HANG)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR1)  # Celery writes where every thread is
            time.sleep(2)
            raise AssertionError(self.log.read_text()) from None


@pytest.fixture
def app(tmp_path: Path, redis_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module `app`, as the worker sees it."""
    (tmp_path / "app.py").write_text(APP)
    monkeypatch.setenv("REDIS", f"redis://127.0.0.1:{redis_port}/0")
    monkeypatch.syspath_prepend(str(tmp_path))
    import app

    yield app
    gc.collect()  # results speak to Redis when they go
    app.app.close()
    app.store.close()
    del sys.modules["app"]


@pytest.fixture
def worker(app: Any, redis: Any, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """worker(*options): begin a worker. It is killed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def begin(*options: str) -> Worker:
            begun = Worker(tmp_path, os.environ["REDIS"], options)
            stack.callback(begun.process.wait, HANG)
            stack.callback(begun.process.kill)
            return begun

        yield begin
        redis.set("open", 1)


def unacknowledged(redis: Any) -> int:
    return int(redis.hlen("unacked"))


def begun(redis: Any) -> list[str]:
    return list(redis.lrange("begun", 0, -1))


def ended(redis: Any) -> list[str]:
    return list(redis.lrange("ended", 0, -1))


def test_tasks_that_wait_for_each_other_run_at_once_on_however_few_cpus(app: Any, worker: Any) -> None:
    worker("-c", "64")
    for result in [app.meet.delay(30) for _ in range(30)]:
        result.get(HANG)


def test_the_bound_of_the_command_line_is_kept(app: Any, worker: Any, redis: Any) -> None:
    worker("-c", "3")
    for result in [app.count.delay() for _ in range(40)]:
        result.get(HANG)
    assert 1 <= max(map(int, redis.lrange("active", 0, -1))) <= 3


def test_outcomes_retries_and_failures_are_what_celery_promises(app: Any, worker: Any) -> None:
    worker("-c", "8")
    assert app.retried.delay().get(HANG) == 2
    with pytest.raises(ValueError, match="on purpose"):
        app.fail.delay().get(HANG)
    assert app.early.apply_async(["x"], countdown=0.1) is not None


@pytest.mark.parametrize("kind", ["early", "late"])
def test_what_has_not_begun_is_not_acknowledged_so_the_broker_keeps_the_rest(
    app: Any, worker: Any, redis: Any, kind: str
) -> None:
    worker("-c", "2", "--prefetch-multiplier", "2")
    task = getattr(app, kind)
    results = [task.delay(str(number)) for number in range(12)]
    held = 2 if kind == "late" else 0  # those that run are acknowledged at their end, or have been
    until(lambda: unacknowledged(redis) == 4 and redis.llen("celery") == 12 - 4 - (2 - held))
    until(lambda: len(begun(redis)) >= 2)
    assert len(begun(redis)) == 2
    redis.set("open", 1)
    assert sorted(result.get(HANG) for result in results) == sorted(map(str, range(12)))
    until(lambda: unacknowledged(redis) == 0)


def test_sigkill_in_mid_run_loses_nothing_with_late_acknowledgement_and_only_what_ran_with_early(
    app: Any, worker: Any, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = worker("-c", "4")
    for number in range(2):
        app.late.delay(f"late {number}")
        app.early.delay(f"early {number}")
    until(lambda: len(begun(redis)) == 4)
    ids = [
        task.delay(f"{kind} {n}").id for n in range(2, 6) for kind, task in (("late", app.late), ("early", app.early))
    ]
    until(lambda: first.has(*ids) and unacknowledged(redis) == 10)
    first.end(signal.SIGKILL)
    assert ended(redis) == []
    redis.set("open", 1)
    monkeypatch.setenv("VISIBILITY", "1")  # seconds after which Redis gives back what nobody acknowledged
    worker("-c", "4")
    expected = {f"late {number}" for number in range(6)} | {f"early {number}" for number in range(2, 6)}
    until(lambda: set(ended(redis)) >= expected)
    assert set(ended(redis)) == expected
    until(lambda: unacknowledged(redis) == 0)


def test_a_task_that_is_revoked_while_it_waits_does_not_run(app: Any, worker: Any, redis: Any) -> None:
    only = worker("-c", "1")
    running = app.early.delay("running")
    until(lambda: begun(redis) == ["running"])
    plain, forced, expiring = app.early.delay("a"), app.late.delay("b"), app.early.apply_async(["c"], expires=1.0)
    last = app.early.delay("last")
    until(lambda: only.has(plain.id, forced.id, expiring.id, last.id))  # perhaps too late for the third one already
    app.app.control.revoke(plain.id, reply=True, **ASKED)
    app.app.control.revoke(forced.id, terminate=True, reply=True, **ASKED)
    refused = app.app.control.revoke(running.id, terminate=True, reply=True, **ASKED)
    assert "be terminated" in str(refused), "a thread can't be stopped, and it is not said"
    time.sleep(1.0)  # so that the third one has expired
    redis.set("open", 1)
    assert last.get(HANG) == "last"
    assert running.get(HANG) == "running"
    for each in (plain, forced, expiring):
        with pytest.raises(celery.exceptions.TaskRevokedError):
            each.get(HANG)
    assert begun(redis) == ["running", "last"]
    until(lambda: unacknowledged(redis) == 0)


def test_inspect_stats_and_pool_grow(app: Any, worker: Any, redis: Any) -> None:
    only = worker("-c", "2")
    ids = [app.early.delay(str(number)).id for number in range(3)]
    until(lambda: only.has(*ids) and len(begun(redis)) == 2 and unacknowledged(redis) == 1)

    def pool() -> Any:
        ((_, stats),) = app.app.control.inspect(**ASKED).stats().items()
        return stats["pool"]

    shown = pool()
    assert shown["implementation"] == "cmwq.contrib.celery:TaskPool"
    assert (shown["max-concurrency"], shown["running"], shown["waiting"]) == (2, 2, 1)
    assert shown["threads"] >= 2
    app.app.control.pool_grow(2, reply=True, **ASKED)
    until(lambda: len(begun(redis)) == 3)
    assert pool()["max-concurrency"] == 4
    app.app.control.pool_shrink(3, reply=True, **ASKED)
    assert pool()["max-concurrency"] == 1


def test_autoscale_moves_the_bound(app: Any, worker: Any, redis: Any) -> None:
    worker("--autoscale", "10,1")
    for number in range(6):
        app.early.delay(str(number))
    until(lambda: len(begun(redis)) == 6)


def test_a_warm_shutdown_ends_what_runs_and_gives_back_what_waits(app: Any, worker: Any, redis: Any) -> None:
    first = worker("-c", "2")
    app.early.delay("early"), app.late.delay("late")
    until(lambda: len(begun(redis)) == 2)
    ids = [app.early.delay(str(number)).id for number in range(3)]
    until(lambda: first.has(*ids) and unacknowledged(redis) == 4)
    first.process.send_signal(signal.SIGTERM)
    until(lambda: first.said("waiting for 2 that run"))
    redis.set("open", 1)
    assert first.process.wait(HANG) == 0, first.log.read_text()
    assert sorted(ended(redis)) == ["early", "late"]
    assert unacknowledged(redis) == 0
    assert redis.llen("celery") == 3


def test_what_ends_during_a_long_warm_shutdown_is_acknowledged_at_once(app: Any, worker: Any, redis: Any) -> None:
    first = worker("-c", "2")
    app.late.delay("held")
    app.meet.delay(2)
    until(lambda: int(redis.get("present") or 0) == 1 and len(begun(redis)) == 1)
    assert unacknowledged(redis) == 2
    first.process.send_signal(signal.SIGTERM)
    until(lambda: first.said("Warm shutdown"))
    redis.incr("present")
    until(lambda: unacknowledged(redis) == 1)
    redis.set("open", 1)
    assert first.process.wait(HANG) == 0
    assert unacknowledged(redis) == 0
    assert redis.llen("celery") == 0


@pytest.mark.parametrize("warm_first", [False, True])
def test_a_cold_shutdown_leaves_behind_what_runs_and_its_message_is_given_back(
    app: Any, worker: Any, redis: Any, warm_first: bool
) -> None:
    first = worker("-c", "2")
    app.late.delay("late"), app.early.delay("early")
    until(lambda: len(begun(redis)) == 2)
    waits = app.early.delay("waits").id
    until(lambda: first.has(waits) and unacknowledged(redis) == 2)
    if warm_first:
        first.process.send_signal(signal.SIGTERM)
        until(lambda: first.said("Warm shutdown"))
    first.end(signal.SIGQUIT)
    assert ended(redis) == []
    assert unacknowledged(redis) == 0, first.log.read_text()
    assert redis.llen("celery") == 2, first.log.read_text()


def test_the_context_of_a_task_is_its_own(app: Any, worker: Any) -> None:
    worker("-c", "4")
    assert [app.remember.delay(number).get(HANG) for number in range(10)] == [None] * 10


def test_limits_that_threads_do_not_have_are_said_once(app: Any, worker: Any) -> None:
    begun = worker("-c", "4", "--max-tasks-per-child", "10")
    assert app.limited.delay().get(HANG) == app.limited.delay().get(HANG) == "done"
    log = begun.log.read_text()
    assert log.count("has no effect") == 2, log
    assert "maxtasksperchild=10" in log
    assert "100 s" in log


def test_a_lost_connection_runs_no_task_twice_that_had_not_begun(app: Any, worker: Any, redis: Any) -> None:
    first = worker("-c", "2")
    ids = [app.early.delay(str(number)).id for number in range(6)]
    until(lambda: first.has(*ids) and len(begun(redis)) == 2 and unacknowledged(redis) == 4)
    with redis.pipeline() as kills:  # all at a time, but for what the tasks themselves speak on: they are to go on
        for each in redis.client_list(_type="normal"):
            if each["name"] != "store":
                kills.client_kill_filter(_id=each["id"], skipme=True)
        kills.execute()
    until(lambda: first.said("Connection to broker lost"))
    until(lambda: first.log.read_text().count("Connected to redis") >= 2)
    redis.set("open", 1)
    until(lambda: len(ended(redis)) >= 6)
    until(lambda: unacknowledged(redis) == redis.llen("celery") == 0)  # what is to run once more has done so
    first.end(signal.SIGTERM)
    assert sorted(begun(redis)) == sorted(map(str, range(6)))


def test_the_example_says_what_it_shows(redis_port: int, redis: Any) -> None:
    example = Path(__file__).resolve().parents[2] / "examples/celery_app.py"
    command = [sys.executable, str(example), f"redis://127.0.0.1:{redis_port}/0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.stdout.startswith("50 tasks of 0.2 s each in "), done.stderr
