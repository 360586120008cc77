"""Whoever calls an executor calls its `submit`, as its class defines it; and the class is one to who asks its name."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import pickle
from typing import Any
from unittest import mock

import pytest
from conftest import HANG, Gate

import cmwq
import cmwq.executor


class Counting(cmwq.Executor):
    """As users write it: it doubles what comes of each call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[Any] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.seen.append((fn, args))
        return super().submit(lambda: 2 * fn(*args, **kwargs))


def test_a_subclass_with_its_own_submit_is_called_by_everybody(runtime: cmwq.Runtime) -> None:
    with Counting(runtime=runtime) as executor:
        assert executor.submit(pow, 2, 3).result(HANG) == 16
        assert list(executor.map(abs, [1, -2, 3])) == [2, 4, 6]
        assert list(executor.map(abs, range(5), buffersize=2)) == [0, 2, 4, 6, 8]

        async def main() -> Any:
            return await asyncio.get_running_loop().run_in_executor(executor, abs, -4)

        assert asyncio.run(main()) == 8
        assert [fn for fn, _ in executor.seen] == [pow] + [abs] * 9


def test_a_subclass_may_return_any_future(runtime: cmwq.Runtime) -> None:
    class AtOnce(cmwq.Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            future: cf.Future[Any] = cf.Future()
            future.set_result(fn(*args, **kwargs))
            return future

    with AtOnce(runtime=runtime) as executor:
        assert list(executor.map(abs, [-1, -2], timeout=HANG)) == [1, 2]


def test_submit_is_a_method_of_the_class(runtime: cmwq.Runtime) -> None:
    with cmwq.Executor(runtime=runtime) as executor:
        assert cmwq.Executor.submit(executor, pow, 2, 5).result(HANG) == 32
        assert "submit" not in vars(executor)
        with mock.patch.object(cmwq.Executor, "submit", autospec=True, return_value="patched") as patched:
            assert executor.submit(int) == "patched"
        patched.assert_called_once_with(executor, int)
        assert executor.submit(int).result(HANG) == 0


def test_a_subclass_may_bound_what_waits_by_a_queue_of_its_own(runtime: cmwq.Runtime, gate: Gate) -> None:
    from queue import PriorityQueue, Queue

    class Bounded(cmwq.Executor):
        def __init__(self, size: int) -> None:
            super().__init__(max_active=1, runtime=runtime)
            self._work_queue = Queue(maxsize=size)

    with Bounded(3) as executor:
        executor.submit(gate)
        gate.await_arrivals(1)
        waiting = [executor.submit(pow, n, 2) for n in range(3)]
        assert executor.queue.max_pending == 3
        other = cmwq.Executor(runtime=runtime)
        blocked = other.submit(executor.submit, pow, 9, 2)  # the fourth waits for room
        assert executor._work_queue.qsize() == 3
        with pytest.raises(RuntimeError, match="before the first call"):
            executor._work_queue = Queue(maxsize=4)
        with pytest.raises(TypeError, match="order of submission"):
            executor._work_queue = PriorityQueue()
        gate.open.set()
        assert [future.result(HANG) for future in waiting] == [0, 1, 4]
        assert blocked.result(HANG).result(HANG) == 81
        other.shutdown()


@pytest.mark.parametrize("options", [{}, {"max_workers": 1}, {"initializer": int}])
def test_its_name_tells_threads_from_processes(options: dict[str, Any]) -> None:
    executor = cmwq.Executor("pages", **options)
    assert "ThreadPoolExecutor" in str(type(executor))
    assert type(executor).__name__ == "ThreadPoolExecutor"
    assert repr(executor) == "<cmwq.Executor 'pages' open>"
    assert cmwq.executor.Executor is cmwq.Executor


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_class_can_be_pickled(protocol: int) -> None:
    assert pickle.loads(pickle.dumps(cmwq.Executor, protocol)) is cmwq.Executor
