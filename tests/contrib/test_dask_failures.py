"""cmwq.contrib.dask where something dies: workers, results, the scheduler. Each has a clear outcome.

Every named pipe that a work waits at is opened in a `finally`, before the queue of the work is closed: a work that
waits for ever holds up the end of its queue, and of its worker.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, until

distributed = pytest.importorskip("distributed", reason="Dask distributed can't be imported here")
contrib = pytest.importorskip("cmwq.contrib.dask")

from .dask_works import await_notes, cluster_of_processes, note_and_wait, notes  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # Dask's own


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Of a cluster of two worker processes, with the plugin."""
    with cluster_of_processes() as (_, client):
        client.register_plugin(contrib.CmwqPlugin())
        yield client


@contextmanager
def pipe_in(folder: Path) -> Iterator[str]:
    """A named pipe. At the end whoever waits there goes on, and whoever comes later doesn't wait."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    try:
        yield str(pipe)
    finally:
        let_go(str(pipe))


def let_go(pipe: str) -> None:
    with suppress(FileNotFoundError):
        fd = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        Path(pipe + ".empty").touch()
        os.replace(pipe + ".empty", pipe)  # who opens it from now on reads an empty file
        os.write(fd, b"x" * 100)
        time.sleep(0.2)  # whoever is about to open the pipe must find this end open
        os.close(fd)


def kill_the_worker_of(line: str) -> None:
    os.kill(int(line.partition(":")[2]), signal.SIGKILL)


def test_a_work_whose_worker_is_killed_is_lost_and_not_run_again(client: Any, tmp_path: Path) -> None:
    effects = str(tmp_path / "effects")
    with contrib.ClusterWorkQueue("once", client=client) as queue, pipe_in(tmp_path) as pipe:
        future = queue.submit(note_and_wait, effects, "begun", pipe)
        (line,) = await_notes(effects, 1)
        kill_the_worker_of(line)
        with pytest.raises(contrib.WorkLost, match="may have begun"):
            future.result(HANG)
        assert len(notes(effects)) == 1


def test_a_repeatable_work_whose_worker_is_killed_is_run_again(client: Any, tmp_path: Path) -> None:
    effects = str(tmp_path / "effects")
    with contrib.ClusterWorkQueue("again", client=client, repeatable=True) as queue, pipe_in(tmp_path) as pipe:
        future = queue.submit(note_and_wait, effects, "begun", pipe)
        (line,) = await_notes(effects, 1)
        kill_the_worker_of(line)
        await_notes(effects, 2)
        let_go(pipe)
        assert future.result(HANG) == "begun"


def test_an_ordered_queue_stays_ordered_when_its_worker_is_killed(client: Any, tmp_path: Path) -> None:
    effects = str(tmp_path / "effects")
    with contrib.ClusterWorkQueue("ordered", client=client, ordered=True) as queue, pipe_in(tmp_path) as pipe:
        futures = [queue.submit(note_and_wait, effects, number, pipe) for number in range(4)]
        (line,) = await_notes(effects, 1)
        kill_the_worker_of(line)
        await_notes(effects, 2)
        let_go(pipe)
        with pytest.raises(contrib.WorkLost):
            futures[0].result(HANG)
        assert [future.result(HANG) for future in futures[1:]] == [1, 2, 3]
        assert [line.partition(":")[0] for line in notes(effects)] == ["0", "1", "2", "3"]


def test_a_result_larger_than_the_workers_memory_is_lost_and_the_cluster_goes_on(tmp_path: Path) -> None:
    with cluster_of_processes(n_workers=1, threads_per_worker=1, memory_limit="256MiB") as (_, client):
        client.register_plugin(contrib.CmwqPlugin())
        with contrib.ClusterWorkQueue("large", client=client) as queue:
            with pytest.raises(contrib.WorkLost):
                queue.submit(fill, 1 << 30).result(HANG)
            assert queue.submit(abs, -1).result(HANG) == 1


def fill(size: int) -> object:
    parts = []
    while size > 0:
        parts.append(os.urandom(1 << 20) * 8)
        size -= 8 << 20
        time.sleep(0.02)
    return parts


def test_when_the_scheduler_is_lost_works_are_lost_and_repeatable_ones_are_run_by_the_next(tmp_path: Path) -> None:
    effects = str(tmp_path / "effects")
    with scheduler_process(0) as (scheduler, address), worker_process(address) as worker:
        client = distributed.Client(address, timeout=HANG, set_as_default=False)
        try:
            client.wait_for_workers(1, timeout=HANG)
            client.register_plugin(contrib.CmwqPlugin())
            with pipe_in(tmp_path) as pipe:
                once = contrib.ClusterWorkQueue("once", client=client)
                again = contrib.ClusterWorkQueue("again", client=client, repeatable=True)
                lost = once.submit(note_and_wait, effects, "once", pipe)
                repeated = again.submit(note_and_wait, effects, "again", pipe)
                await_notes(effects, 2)
                kill(scheduler)
                worker.kill()
                with pytest.raises(contrib.WorkLost, match="scheduler"):
                    lost.result(HANG)
                assert not repeated.done()
                port = int(address.rpartition(":")[2])
                with scheduler_process(port), worker_process(address):
                    await_notes(effects, 3)
                    let_go(pipe)
                    assert repeated.result(HANG) == "again"
                    assert once.submit(abs, -5).result(HANG) == 5
                    assert [line.partition(":")[0] for line in notes(effects)].count("once") == 1
                    once.close(HANG)
                    again.close(HANG)
        finally:
            client.close()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(HANG)


@contextmanager
def scheduler_process(port: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A scheduler of its own; port 0: any."""
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen([*command, "--no-dashboard", "--dashboard-address", ":0"], stderr=subprocess.PIPE)
    try:
        yield process, address_of(process)
    finally:
        kill(process)
        assert process.stderr is not None
        process.stderr.close()


def address_of(process: subprocess.Popen[bytes]) -> str:
    """As it says in its log; what it says afterwards fits into the pipe."""
    assert process.stderr is not None
    for line in process.stderr:
        if b"Scheduler at:" in line:
            return line.split()[-1].decode()
    raise AssertionError("the scheduler did not start")


@contextmanager
def worker_process(address: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "2"]
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [*command, "--no-dashboard"], stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        yield process
    finally:
        kill(process)


def test_what_was_lost_with_a_worker_after_it_ended_is_told(client: Any, tmp_path: Path) -> None:
    """The result is kept by a worker until it is fetched. Here it is not fetched before the worker is dead."""
    effects = str(tmp_path / "effects")
    with pipe_in(tmp_path) as pipe:
        let_go(pipe)
        with contrib.ClusterWorkQueue("result", client=client) as queue:
            queue.submit(abs, -1).result(HANG)  # the scheduler has the plugin
            import dask

            with dask.annotate(cmwq_once=True):
                call = contrib.calls.Call.of("noting", note_and_wait, (effects, "ended", pipe), {})
                future = client.submit(contrib.calls.perform, call, pure=False)
            until(future.done)
            (line,) = notes(effects)
            kill_the_worker_of(line)
            until(lambda: future.status == "error")
            with pytest.raises(contrib.WorkLost, match="result was lost"):
                future.result(HANG)
            assert len(notes(effects)) == 1
