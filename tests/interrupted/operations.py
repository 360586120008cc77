"""The calls that are attacked. Each is one class: what is set up before, the call itself, what must be true after it.

`arrange` leaves the pool at rest, works that are in the way held by a gate, so that the call takes the same way each
time. `act` is what is attacked. `check` says what must be true if it came to its end; `check_either` what must be true
even if it did not: it happened, or it did not. What holds for every operation is checked by `settle`.
"""

from __future__ import annotations

import concurrent.futures as cf
import gc
import itertools
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

import cmwq
from interrupted.whole import LONG, Bench, Broken, Call, Flag, Gate, bounded, check_serves, check_work, until

_numbers = itertools.count()
OPERATIONS: dict[str, type[Operation]] = {}


class Operation:
    """One round of one call."""

    name: ClassVar[str] = ""
    options: ClassVar[dict[str, Any]] = {}
    warm: ClassVar[bool] = True  # the queue has its place on the pool already
    in_c: ClassVar[bool] = False  # no bytecode runs in it, if the twin serves

    def __init_subclass__(cls, name: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name:
            cls.name = name
            OPERATIONS[name] = cls

    def __init__(self, bench: Bench) -> None:
        """Starts nothing: what an interrupted `arrange` started can be found here, and let go."""
        self.bench = bench
        self.runtime = bench.runtime
        self.queue = cmwq.WorkQueue(f"q{next(_numbers)}", runtime=bench.runtime, **self.options)
        self.calls: list[Call] = []
        self.gates: list[Gate] = []
        self.futures: list[cf.Future[Any]] = []
        self.works: list[tuple[cmwq.Work, Call]] = []
        self.threads: list[threading.Thread] = []
        self.arranged = False

    def set_up(self) -> None:
        self.prepare()
        self.arranged = True

    def prepare(self) -> None:
        if self.warm:
            self.queue.submit(int).result()
        self.arrange()
        self.bench.steady(held=len(self.gates))

    def arrange(self) -> None: ...

    def act(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        """It came to its end, and whatever it started has ended."""

    def check_either(self) -> None:
        """It ended or it did not."""

    # -------------------------------------------------------------------------- what arrangements are made of

    def call(self, limit: int = 1) -> Call:
        call = Call(limit)
        self.calls.append(call)
        return call

    def work(self, limit: int = 1) -> cmwq.Work:
        call = self.call(limit + 1)  # it is queued once more when all is settled
        work = cmwq.Work(call)
        self.works.append((work, call))
        return work

    def delayed(self, limit: int = 1) -> cmwq.DelayedWork:
        call = self.call(limit + 1)
        work = cmwq.DelayedWork(call)
        self.works.append((work, call))
        return work

    def close_gate(self) -> cf.Future[Any]:
        """A work that holds a worker, and a place, until the round is settled."""
        gate = Gate()
        self.gates.append(gate)
        future = self.queue.submit(gate)
        gate.arrived.wait()
        return future

    def keep(self, future: cf.Future[Any]) -> cf.Future[Any]:
        self.futures.append(future)
        return future

    def thread_waiting(self, future: cf.Future[Any]) -> None:
        """A thread that waits for it. Returns when it sleeps."""

        def wait() -> None:
            with suppress(cf.CancelledError):
                future.result()

        thread = threading.Thread(target=wait, daemon=True)
        self.threads.append(thread)
        thread.start()
        until(lambda: _sleeps(thread), self.bench.patience, lambda: "a thread in result() does not sleep")

    # -------------------------------------------------------------------------- afterwards

    def let_go(self) -> None:
        for gate in self.gates:
            gate.open()

    def settle(self, *, ended: bool) -> None:
        """Let go of everything, and check that it is whole. Raises Broken, or whatever a broken pool raises."""
        bench, patience = self.bench, self.bench.patience
        self.let_go()
        for future in self.futures:
            if cf.wait([future], patience).not_done:
                raise Broken(f"nobody is told of its end: {future!r}")
            if not future.cancelled() and future.exception(0) is not None:
                raise Broken(f"a call that can't fail failed: {future.exception(0)!r}")
        for thread in self.threads:
            if thread.ident is None:
                continue  # interrupted while it was started
            with suppress(RuntimeError):  # `threading` was interrupted while it waited until it had started
                thread.join(patience)
            if thread.is_alive():
                raise Broken("a thread still waits for a future that is done")
        if ended:
            bounded(lambda: self.queue.flush(patience), "flush")
            self.check()
        if self.arranged:
            self.check_either()
        for work, call in self.works:
            check_work(work, self.queue, call, patience)
        bench.check(self.queue)
        bounded(lambda: self.queue.close(patience), "close")
        for call in self.calls:
            if len(call.runs) > call.limit:
                raise Broken(f"queued {call.limit} times at most, it ran {len(call.runs)} times")


def _sleeps(thread: threading.Thread) -> bool:
    try:
        with open(f"/proc/self/task/{thread.native_id}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "S"
    except OSError:
        return False


def ran(call: Call, times: int = 1) -> None:
    if len(call.runs) != times:
        raise Broken(f"accepted {times} times, it ran {len(call.runs)} times")


# ---------------------------------------------------------------------------------------- calls with a result


class Submit(Operation, name="submit"):
    def arrange(self) -> None:
        self.first = self.call()

    def act(self) -> None:
        self.keep(self.queue.submit(self.first, 1))

    def check(self) -> None:
        ran(self.first)


class SubmitFirst(Submit, name="submit, a queue's first"):
    warm = False


class SubmitKwargs(Submit, name="submit with kwargs"):
    def act(self) -> None:
        self.keep(self.queue.submit(self.first, 1, two=2))


class SubmitInactive(Submit, name="submit beyond max_active"):
    options: ClassVar = {"max_active": 1}

    def arrange(self) -> None:
        super().arrange()
        self.close_gate()


class SubmitLearned(Submit, name="submit beyond a learned limit"):
    options: ClassVar = {"max_active": "auto"}

    def arrange(self) -> None:
        super().arrange()
        for _ in range(4):  # as many as it begins with
            self.close_gate()


class LearnNoMore(Submit, name="set max_active, which was learned"):
    options: ClassVar = {"max_active": "auto"}

    def arrange(self) -> None:
        super().arrange()
        for _ in range(4):
            self.close_gate()
        super().act()

    def act(self) -> None:
        self.queue.max_active = 7
        self.queue.max_active = "auto"


class SubmitWork(Operation, name="submit(work)"):
    def arrange(self) -> None:
        self.item = self.work()

    def act(self) -> None:
        self.keep(self.queue.submit(self.item))

    def check(self) -> None:
        ran(self.works[0][1])


class SubmitPendingWork(SubmitWork, name="submit(work), pending"):
    options: ClassVar = {"max_active": 1}

    def arrange(self) -> None:
        super().arrange()
        self.close_gate()
        self.queue.queue(self.item)


class SubmitMany(Operation, name="submit_many"):
    def arrange(self) -> None:
        self.first = self.call(3)

    def act(self) -> None:
        self.futures.extend(self.queue.submit_many(self.first, "abc"))

    def check(self) -> None:
        ran(self.first, 3)

    def check_either(self) -> None:
        if not self.futures:
            bounded(lambda: self.queue.flush(self.bench.patience), "flush")
            if len(self.first.runs) not in (0, 3):
                raise Broken(f"all or none are accepted, and {len(self.first.runs)} of 3 ran")


class Map(Operation, name="map"):
    def arrange(self) -> None:
        self.first = self.call(3)

    def act(self) -> None:
        assert list(self.queue.map(self.first, "abc")) == [1, 1, 1]

    def check(self) -> None:
        ran(self.first, 3)


class MapLeft(Operation, name="map, buffered and left early"):
    def arrange(self) -> None:
        self.first = self.call(9)

    def act(self) -> None:
        results = self.queue.map(self.first, "abcdefghi", buffersize=3)
        for _ in results:
            break
        results.close()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------- works


class Queue(Operation, name="queue"):
    expected = True

    def arrange(self) -> None:
        self.item = self.work()

    def act(self) -> None:
        self.returned = self.queue.queue(self.item)

    def check(self) -> None:
        ran(self.works[0][1])
        if self.returned is not self.expected:
            raise Broken(f"it returned {self.returned}")


class QueuePending(Queue, name="queue, pending"):
    options: ClassVar = {"max_active": 1}
    expected = False
    in_c = True

    def arrange(self) -> None:
        super().arrange()
        self.close_gate()
        self.queue.queue(self.item)


class QueueRunning(Operation, name="queue, running on another queue"):
    """It must wait for the execution's end, on that worker (E3)."""

    options: ClassVar = {"highpri": False}

    def arrange(self) -> None:
        self.other = cmwq.WorkQueue("other", highpri=True, runtime=self.runtime)
        self.gate = Gate()
        self.gates.append(self.gate)
        self.first = self.call(2)

        def run() -> None:
            self.first()
            self.gate()

        self.item = cmwq.Work(run)
        self.works.append((self.item, self.first))
        self.first.limit = 3
        self.other.queue(self.item)
        self.gate.arrived.wait()

    def act(self) -> None:
        self.queue.queue(self.item)

    def check(self) -> None:
        ran(self.first, 2)

    def check_either(self) -> None:
        bounded(lambda: self.other.close(self.bench.patience), "close")


class QueueOn(Queue, name="queue_on"):
    options: ClassVar = {"scope": "cpu"}

    def arrange(self) -> None:
        super().arrange()
        self.cpu = self.runtime.cpus()[0]
        first = cmwq.Work(int)
        self.queue.queue_on(self.cpu, first)
        first.flush()

    def act(self) -> None:
        self.returned = self.queue.queue_on(self.cpu, self.item)


class QueueDelayed(Operation, name="queue_delayed"):
    def arrange(self) -> None:
        self.item = self.delayed()

    def act(self) -> None:
        self.returned = self.queue.queue_delayed(self.item, LONG)

    def check(self) -> None:
        if not (self.returned and self.item.pending):
            raise Broken(f"it returned {self.returned}: {self.item!r}")


class QueueDelayedShort(Operation, name="queue_delayed, soon"):
    def arrange(self) -> None:
        self.item = self.delayed()

    def act(self) -> None:
        self.returned = self.queue.queue_delayed(self.item, 1e-4)

    def check(self) -> None:
        until(lambda: not self.item.pending, self.bench.patience, lambda: f"its time came: {self.item!r}")
        bounded(lambda: self.queue.flush(self.bench.patience), "flush")
        ran(self.works[0][1])


class ModIdle(Operation, name="mod_delayed, idle"):
    expected = False

    def arrange(self) -> None:
        self.item = self.delayed()

    def act(self) -> None:
        self.returned = self.queue.mod_delayed(self.item, LONG)

    def check(self) -> None:
        if self.returned is not self.expected or not self.item.pending:
            raise Broken(f"it returned {self.returned}: {self.item!r}")


class ModDelayed(ModIdle, name="mod_delayed, delayed"):
    expected = True

    def arrange(self) -> None:
        super().arrange()
        self.queue.queue_delayed(self.item, LONG)


class ModPending(ModIdle, name="mod_delayed, pending"):
    options: ClassVar = {"max_active": 1}
    expected = True

    def arrange(self) -> None:
        super().arrange()
        self.close_gate()
        self.queue.queue(self.item)


class ModNow(Operation, name="mod_delayed to now"):
    def arrange(self) -> None:
        self.item = self.delayed()
        self.queue.queue_delayed(self.item, LONG)

    def act(self) -> None:
        self.queue.mod_delayed(self.item, 0)

    def check(self) -> None:
        ran(self.works[0][1])


class CancelPending(Operation, name="cancel, pending"):
    options: ClassVar = {"max_active": 1}

    def arrange(self) -> None:
        self.item = self.delayed()
        self.close_gate()
        self.queue.queue(self.item)

    def act(self) -> None:
        self.returned: object = self.item.cancel()

    def check(self) -> None:
        ran(self.works[0][1], 0)
        if self.returned is not True:
            raise Broken(f"it returned {self.returned}")


class CancelDelayed(CancelPending, name="cancel, delayed"):
    def arrange(self) -> None:
        self.item = self.delayed()
        self.queue.queue_delayed(self.item, LONG)


class CancelSubmitted(CancelPending, name="cancel, with a future"):
    def arrange(self) -> None:
        super().arrange()
        self.keep(self.queue.submit(self.item))

    def check_either(self) -> None:
        assert self.futures[0].done()


class CancelIdle(Operation, name="cancel, idle"):
    def arrange(self) -> None:
        self.item = self.work()

    def act(self) -> None:
        assert self.item.cancel() is False


class CancelSync(CancelPending, name="cancel_sync, pending"):
    def act(self) -> None:
        self.returned = self.item.cancel_sync()


class CancelSyncRunning(Operation, name="cancel_sync, running"):
    def arrange(self) -> None:
        self.first = self.call(2)
        self.started = Flag()

        def run() -> None:
            self.first()
            with cmwq.blocking():
                self.started.set()
                time.sleep(0.002)

        self.item = cmwq.Work(run)
        self.works.append((self.item, self.first))

    def prepare(self) -> None:
        super().prepare()
        self.queue.queue(self.item)
        self.started.wait()

    def act(self) -> None:
        self.item.cancel_sync()
        assert not self.item.running


class Disable(CancelPending, name="disable"):
    def act(self) -> None:
        self.returned = self.item.disable()

    def check(self) -> None:
        super().check()
        if not self.item.disabled or self.queue.queue(self.item):
            raise Broken(f"it was disabled: {self.item!r}")


class Enable(Operation, name="enable"):
    def arrange(self) -> None:
        self.item = self.work()
        self.item.disable()

    def act(self) -> None:
        assert self.item.enable()

    def check(self) -> None:
        if self.item.disabled:
            raise Broken(f"it was enabled: {self.item!r}")


# ---------------------------------------------------------------------------------------- futures


class FutureCancel(Operation, name="Future.cancel"):
    options: ClassVar = {"max_active": 1}

    def arrange(self) -> None:
        self.first = self.call()
        self.close_gate()
        self.future = self.keep(self.queue.submit(self.first))

    def act(self) -> None:
        assert self.future.cancel()

    def check(self) -> None:
        ran(self.first, 0)
        if not self.future.cancelled():
            raise Broken("cancel() said True, and it is not cancelled")


class FutureCancelCallbacks(FutureCancel, name="Future.cancel, callbacks"):
    def arrange(self) -> None:
        super().arrange()
        self.told: list[object] = []
        self.future.add_done_callback(self.told.append)  # in C: no Ctrl-C comes when it was called and has not run

    def check_either(self) -> None:
        until(lambda: bool(self.told), self.bench.patience, lambda: "done, and its callback was never called")
        if len(self.told) > 1:
            raise Broken("its callback was called twice")


class FutureCancelWaiters(FutureCancel, name="Future.cancel, waiters"):
    def arrange(self) -> None:
        super().arrange()
        self.thread_waiting(self.future)


class FutureCancelWaitOf(FutureCancel, name="Future.cancel, cf.wait"):
    def arrange(self) -> None:
        super().arrange()
        thread = threading.Thread(target=cf.wait, args=([self.future],), daemon=True)
        self.threads.append(thread)
        thread.start()
        until(lambda: _sleeps(thread), self.bench.patience, lambda: "a thread in wait() does not sleep")


class AddCallback(Operation, name="add_done_callback"):
    options: ClassVar = {"max_active": 1}

    def arrange(self) -> None:
        self.told = self.call()
        self.close_gate()
        self.future = self.keep(self.queue.submit(self.call()))

    def act(self) -> None:
        self.future.add_done_callback(self.told)

    def check(self) -> None:
        until(lambda: bool(self.told.runs), self.bench.patience, lambda: "done, and its callback was never called")


class AddCallbackDone(AddCallback, name="add_done_callback, done"):
    def arrange(self) -> None:
        self.told = self.call()
        self.future = self.keep(self.queue.submit(self.call()))
        self.future.result()


class Result(Operation, name="result"):
    """Of a call that ends while it waits."""

    def prepare(self) -> None:
        super().prepare()
        self.future = self.keep(self.queue.submit(nap))

    def act(self) -> None:
        assert self.future.result() == 7


class ResultTimeout(Operation, name="result(timeout)"):
    options: ClassVar = {"max_active": 1}

    def arrange(self) -> None:
        self.close_gate()
        self.future = self.keep(self.queue.submit(self.call()))

    def act(self) -> None:
        with suppress(cmwq.CmwqTimeout):
            self.future.result(0.001)


class WaitOf(Operation, name="cf.wait"):
    def prepare(self) -> None:
        super().prepare()
        for _ in range(2):
            self.keep(self.queue.submit(nap))

    def act(self) -> None:
        assert not cf.wait(self.futures).not_done


def nap() -> int:
    with cmwq.blocking():
        time.sleep(0.002)
    return 7


# ---------------------------------------------------------------------------------------- a source


class Serve(Operation, name="serve, Serving.wait"):
    def arrange(self) -> None:
        self.first = self.call(3)

    def act(self) -> None:
        self.queue.serve([partial(self.first, 1)] * 3).wait()

    def check(self) -> None:
        ran(self.first, 3)


class ServeNotify(Operation, name="Serving.notify"):
    def arrange(self) -> None:
        self.first = self.call(2)
        self.inbox: list[Call] = []
        self.serving = self.queue.serve(lambda: self.inbox.pop() if self.inbox else None)
        self.until_dry()
        self.inbox.append(self.first)

    def until_dry(self) -> None:
        until(lambda: " dry " in repr(self.serving), self.bench.patience, lambda: f"not asked: {self.serving!r}")

    def act(self) -> None:
        self.serving.notify()

    def check(self) -> None:
        until(lambda: len(self.first.runs) == 1, self.bench.patience, lambda: "a notify is lost")

    def check_either(self) -> None:
        if not self.serving.over:
            self.serving.notify()
            until(lambda: not self.inbox, self.bench.patience, lambda: "after it no notify is heard")
            bounded(lambda: self.serving.close(self.bench.patience), "Serving.close")
            ran(self.first)


class ServeDrain(ServeNotify, name="drain, served"):
    def act(self) -> None:
        self.queue.drain()

    def check(self) -> None:
        if not self.inbox:
            raise Broken("asked while it was dry")


class ServeStop(ServeNotify, name="Serving.stop"):
    def arrange(self) -> None:
        super().arrange()
        self.gate = Gate()
        self.gates.append(self.gate)
        self.inbox.append(self.gate)  # type: ignore[arg-type]
        self.serving.notify()
        self.gate.arrived.wait()

    def act(self) -> None:
        self.serving.stop()

    def check(self) -> None:
        until(lambda: self.serving.over, self.bench.patience, lambda: f"stopped, and not over: {self.serving!r}")


# ---------------------------------------------------------------------------------------- queues


class Flush(Operation, name="flush"):
    def prepare(self) -> None:
        super().prepare()
        self.keep(self.queue.submit(nap))

    def act(self) -> None:
        self.queue.flush()
        assert self.futures[0].done()


class FlushTimeout(Operation, name="flush(timeout)"):
    options: ClassVar = {"max_active": 1}

    def arrange(self) -> None:
        self.close_gate()
        self.keep(self.queue.submit(self.call()))

    def act(self) -> None:
        with suppress(cmwq.CmwqTimeout):
            self.queue.flush(0.001)


class FlushWork(Operation, name="flush of a work"):
    def arrange(self) -> None:
        self.first = self.call(2)

        def run() -> None:
            self.first()
            nap()

        self.item = cmwq.DelayedWork(run)
        self.works.append((self.item, self.first))

    def prepare(self) -> None:
        super().prepare()
        self.queue.queue_delayed(self.item, LONG)

    def act(self) -> None:
        assert self.item.flush()

    def check(self) -> None:
        ran(self.first)


class Drain(Flush, name="drain"):
    def act(self) -> None:
        self.queue.drain()

    def check_either(self) -> None:
        if not self.queue.is_open:
            raise Broken("after drain it is not open")


class Close(Flush, name="close"):
    def prepare(self) -> None:
        super().prepare()
        self.late = self.delayed()
        self.queue.queue_delayed(self.late, LONG)

    def act(self) -> None:
        self.queue.close()

    def check(self) -> None:
        if self.queue.is_open or self.late.pending:
            raise Broken(f"after close: {self.queue!r}, {self.late!r}")


class MakeQueue(Operation, name="making a queue"):
    def act(self) -> None:
        self.made = cmwq.WorkQueue("made", runtime=self.runtime)

    def check(self) -> None:
        check_serves(self.made, self.bench.patience)


class MakeRescued(Operation, name="a queue with a rescuer, made and closed"):
    def act(self) -> None:
        made = cmwq.WorkQueue("saved", rescuer=True, runtime=self.runtime)
        made.submit(int).result()
        made.close()

    def prepare(self) -> None:
        super().prepare()
        self.before = {*threading.enumerate()}

    def check_either(self) -> None:
        until(
            lambda: not self._rescuers() or (self._forget() and not self._rescuers()),
            self.bench.patience,
            lambda: "nobody has the queue, and its rescuer's thread stays",
        )

    def _rescuers(self) -> list[threading.Thread]:
        return [t for t in {*threading.enumerate()} - self.before if t.name.startswith("cmwq/R-")]

    def _forget(self) -> bool:
        """A worker may know its last work until it has another; and a queue that was not closed is in a cycle."""
        for future in [self.bench.probe.submit(nap) for _ in range(4)]:
            future.result()
        gc.collect()
        return True


class DropQueue(Operation, name="making and dropping a queue"):
    def act(self) -> None:
        cmwq.WorkQueue("dropped", runtime=self.runtime).submit(int).result()


class Freeze(Operation, name="freeze, thaw"):
    options: ClassVar = {"freezable": True}

    def prepare(self) -> None:
        super().prepare()
        self.first = self.call()
        self.keep(self.queue.submit(nap))

    def act(self) -> None:
        self.runtime.freeze()
        self.keep(self.queue.submit(self.first))
        self.runtime.thaw()

    def check(self) -> None:
        ran(self.first)

    def let_go(self) -> None:
        super().let_go()
        if self.runtime.frozen:  # else it is thawed whole, however the thaw was interrupted
            self.runtime.thaw()


class FreezeInVain(Operation, name="freeze in vain"):
    options: ClassVar = {"freezable": True}

    def arrange(self) -> None:
        self.close_gate()

    def act(self) -> None:
        with suppress(cmwq.CmwqTimeout):
            self.runtime.freeze(0)

    def check_either(self) -> None:
        if self.runtime.frozen:
            raise Broken("it is frozen, though no freeze has succeeded")


class SetMaxActive(Operation, name="max_active"):
    options: ClassVar = {"max_active": 1}

    def arrange(self) -> None:
        self.close_gate()
        self.first = self.call(3)
        for _ in range(3):
            self.keep(self.queue.submit(self.first))

    def act(self) -> None:
        self.queue.max_active = 3
        for future in self.futures:
            future.result()

    def check_either(self) -> None:
        if self.queue.max_active not in (1, 3):
            raise Broken(f"max_active is {self.queue.max_active}")
        self.queue.max_active = 2
        check_serves(self.queue, self.bench.patience)


class Room(Operation, name="submit, max_pending"):
    options: ClassVar = {"max_active": 1, "max_pending": 3, "full": "raise"}

    def arrange(self) -> None:
        self.close_gate()
        self.first = self.call()
        self.keep(self.queue.submit(self.call()))

    def act(self) -> None:
        self.keep(self.queue.submit(self.first))

    def check(self) -> None:
        ran(self.first)

    def check_either(self) -> None:
        """As many as it has room for are taken, and no more."""
        bounded(lambda: self.queue.flush(self.bench.patience), "flush")
        gate = Gate()
        self.queue.submit(gate)
        gate.arrived.wait(self.bench.patience)
        taken = 0
        try:
            while taken < 9:
                self.queue.submit(int)
                taken += 1
        except cmwq.QueueFull:
            pass
        finally:
            gate.open()
            bounded(lambda: self.queue.flush(self.bench.patience), "flush")
        if taken != 3:
            raise Broken(f"there is room for 3, and {taken} were taken")


class RoomQueue(Room, name="queue, max_pending"):
    def arrange(self) -> None:
        self.close_gate()
        self.item = self.work()
        self.keep(self.queue.submit(self.call()))

    def act(self) -> None:
        self.queue.queue(self.item)

    def check(self) -> None:
        ran(self.works[0][1])


class RoomCancel(Room, name="Future.cancel, max_pending"):
    def act(self) -> None:
        self.futures[0].cancel()

    def check(self) -> None: ...


class Batch(Operation, name="Batch"):
    def arrange(self) -> None:
        self.first = self.call(2)

    def act(self) -> None:
        with cmwq.Batch(self.queue) as batch:
            batch.submit(self.first)
            batch.submit(self.first)
        assert batch.results() == [0, 0]

    def check(self) -> None:
        ran(self.first, 2)


class Snapshot(Operation, name="snapshot"):
    def act(self) -> None:
        self.runtime.snapshot().to_dict()


class Lease(Operation, name="Executor, with-block"):
    def arrange(self) -> None:
        self.first = self.call(4)
        self.executor: cmwq.Executor | None = None

    def act(self) -> None:
        self.executor = cmwq.Executor(runtime=self.runtime)
        with self.executor as executor:
            self.keep(executor.submit(self.first))
            assert list(executor.map(self.first, "abc")) == [1, 1, 1]

    def check(self) -> None:
        ran(self.first, 4)

    def check_either(self) -> None:
        if self.executor is not None:
            bounded(lambda: self.executor and self.executor.queue.close(self.bench.patience), "close of a lease")
            self.executor.shutdown()


class WholeLife(Operation, name="Runtime, from first use to close"):
    def arrange(self) -> None:
        self.first = self.call(2)
        self.made: cmwq.Runtime | None = None

    def prepare(self) -> None:
        super().prepare()
        self.before = self.others()

    def others(self) -> int:
        """How many threads there are that are no workers of the bench, which may create one at any time."""
        return threading.active_count() - sum(pool.workers for pool in self.bench.runtime.snapshot().pools)

    def act(self) -> None:
        self.made = cmwq.Runtime(sensor=self.bench.sensor)
        queue = cmwq.WorkQueue("new", runtime=self.made)
        self.keep(queue.submit(self.first))
        queue.queue(cmwq.Work(self.first))
        self.made.close()

    def check(self) -> None:
        ran(self.first, 2)

    def check_either(self) -> None:
        made, patience = self.made, self.bench.patience
        if made is None:
            return
        made.check_invariants()
        queue = cmwq.WorkQueue("again", runtime=made)
        with suppress(cmwq.QueueClosed):
            bounded(lambda: queue.submit(int).result(patience), "submit and result in an interrupted runtime")
            made.check_invariants()
        bounded(lambda: made.close(patience), "close of an interrupted runtime")
        until(
            lambda: self.others() <= self.before,
            patience,
            lambda: f"the runtime is closed, and left {self.others() - self.before} of {threading.enumerate()}",
        )


class Subscribe(Operation, name="subscribe to events, and close"):
    def arrange(self) -> None:
        self.first = self.call()
        self.heard: list[cmwq.events.Event] = []
        self.taken: list[cmwq.events.Event] = []

    def act(self) -> None:
        with (
            cmwq.events.subscribe(self.heard.append, queue=self.queue),
            cmwq.events.subscribe(runtime=self.runtime) as subscription,
        ):
            self.keep(self.queue.submit(self.first)).result()
            self.taken += subscription.take()

    def check(self) -> None:
        ran(self.first, 1)
        for events in (self.heard, self.taken):
            missing = {"queued", "activated", "started", "ended"} - {event.kind for event in events}
            if missing:
                raise Broken(f"no event {', '.join(missing)} among {events}")

    def check_either(self) -> None:
        """One that was made as it was interrupted is nobody's, and ends here."""
        for subscription in self.runtime.events.subscriptions:
            bounded(subscription.close, "close of a subscription")
        for place in self.queue.places():
            if place.observed:
                raise Broken("a place is observed by nobody")


class Traced(Operation, name="a trace, begun and ended"):
    def arrange(self) -> None:
        self.first, self.second = self.call(), self.call()

    def act(self) -> None:
        with cmwq.trace(runtime=self.runtime, every=True):
            self.keep(self.queue.submit(self.first)).result()
            self.keep(self.queue.submit(self.second)).result()

    def check(self) -> None:
        ran(self.first, 1)
        ran(self.second, 1)

    def check_either(self) -> None:
        """One that was begun or ended as it was interrupted is nobody's, and ends here."""
        for subscription in self.runtime.events.subscriptions:
            bounded(subscription.close, "close of a recording")
        for place in self.queue.places():
            if place.recorder is not None:
                raise Broken("a place is recorded by nobody")


class Observed(Operation, name="queueing and taking back, observed"):
    options: ClassVar = {"max_active": 1}

    def arrange(self) -> None:
        self.first, self.second, self.pending = self.call(), self.call(), self.work()
        self.subscription = cmwq.events.subscribe(runtime=self.runtime)
        self.close_gate()

    def act(self) -> None:
        self.keep(self.queue.submit(self.first))
        self.queue.queue(self.pending)
        self.pending.cancel()
        self.keep(self.queue.submit(self.second)).cancel()

    def check(self) -> None:
        ran(self.first, 1)
        kinds = [event.kind for event in self.subscription.take()]
        assert kinds.count(cmwq.events.Kind.CANCELLED) >= 2  # its own, and those of who called within

    def check_either(self) -> None:
        bounded(self.subscription.close, "close of a subscription")
        if any(event.counts is not None and event.counts.running < 0 for event in self.subscription.take()):
            raise Broken("an impossible number")
