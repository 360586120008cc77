"""cmwq.contrib.apscheduler, with the real APScheduler 3."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import HANG, AtOnce, Gate

import cmwq

pytest.importorskip("apscheduler.executors.pool", reason="APScheduler 3 can't be imported here")

from apscheduler.schedulers.background import BackgroundScheduler

import cmwq.contrib.apscheduler

HOWEVER_LATE = {"misfire_grace_time": None}
"""As of jobs: by default one that begins more than a second late is dropped, as on a busy machine."""


@pytest.fixture
def scheduler() -> Iterator[Any]:
    scheduler = BackgroundScheduler(
        executors={"default": cmwq.contrib.apscheduler.PoolExecutor()}, timezone="UTC", job_defaults=HOWEVER_LATE
    )
    scheduler.start()
    yield scheduler
    if scheduler.running:
        shut_down(scheduler)


def shut_down(scheduler: Any) -> None:
    """Its thread must have no job in hand: APScheduler removes a job that ran last, and looks for it elsewhere, and
    fails, if the scheduler was stopped meanwhile.
    """
    scheduler.remove_all_jobs()  # waits for that thread
    scheduler.shutdown()


def test_jobs_that_wait_for_each_other_run_at_once_on_however_few_cpus(scheduler: Any) -> None:
    barrier = threading.Barrier(31)
    for _ in range(30):
        scheduler.add_job(barrier.wait, args=[HANG])
    barrier.wait(HANG)


def test_a_bound_is_kept() -> None:
    scheduler = BackgroundScheduler(
        executors={"default": cmwq.contrib.apscheduler.PoolExecutor(max_active=2)},
        timezone="UTC",
        job_defaults=HOWEVER_LATE,
    )
    scheduler.start()
    at_once, ended = AtOnce(), threading.Semaphore(0)

    def job() -> None:
        with at_once:
            threading.Event().wait(0.002)
        ended.release()

    for _ in range(20):
        scheduler.add_job(job)
    assert all(ended.acquire(timeout=HANG) for _ in range(20))
    shut_down(scheduler)
    assert 1 <= at_once.most <= 2


@pytest.mark.parametrize(("option", "limit"), [("max_workers", "20"), ("max_active", "20"), ("max_active", 20)])
def test_a_bound_may_be_a_text_as_in_a_file(option: str, limit: Any) -> None:
    path = "cmwq.contrib.apscheduler:PoolExecutor"
    scheduler = BackgroundScheduler({"apscheduler.executors.default": {"class": path, option: limit}})
    assert scheduler._executors["default"]._pool._max_workers == 20
    assert cmwq.contrib.apscheduler.PoolExecutor(max_active="auto")
    with pytest.raises(ValueError, match="many"):
        cmwq.contrib.apscheduler.PoolExecutor(max_workers="many")


def test_max_instances_of_a_job_is_up_to_the_scheduler(scheduler: Any, gate: Gate) -> None:
    from apscheduler.events import EVENT_JOB_MAX_INSTANCES

    refused = threading.Event()
    scheduler.add_listener(lambda _: refused.set(), EVENT_JOB_MAX_INSTANCES)
    scheduler.add_job(gate, "interval", seconds=0.01, max_instances=1)
    gate.await_arrivals(1)
    assert refused.wait(HANG)
    assert not gate.arrived.acquire(blocking=False)
    scheduler.remove_all_jobs()
    gate.open.set()


def test_what_a_job_raises_is_told_to_listeners(scheduler: Any) -> None:
    from apscheduler.events import EVENT_JOB_ERROR

    told: list[Any] = []
    heard = threading.Event()
    scheduler.add_listener(lambda event: (told.append(event.exception), heard.set()), EVENT_JOB_ERROR)
    scheduler.add_job(int, args=["on purpose"])
    assert heard.wait(HANG)
    assert isinstance(told[0], ValueError)


def test_shutdown_waits_for_the_runs_and_ends_nothing_else(scheduler: Any, gate: Gate) -> None:
    ended = threading.Event()

    def job() -> None:
        gate()
        ended.set()

    scheduler.add_job(job)
    gate.await_arrivals(1)
    threading.Timer(0.05, gate.open.set).start()
    shut_down(scheduler)  # wait=True, as by default
    assert ended.is_set()
    assert cmwq.system.submit(abs, -1).result(HANG) == 1


def test_nothing_leaks_from_one_run_into_the_next(scheduler: Any) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    seen: list[int] = []
    enough = threading.Event()

    def job() -> None:
        seen.append(variable.get())
        variable.set(1)
        if len(seen) >= 10:
            enough.set()

    scheduler.add_job(job, "interval", seconds=0.01, max_instances=5)
    assert enough.wait(HANG)
    assert set(seen) == {0}
