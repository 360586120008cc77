"""One round: an operation, an attack on it, and the checks that everything is whole afterwards.

An attack has numbered cases, so that a failure can be had again: the k-th bytecode, the k-th allocation, the k-th
random moment of a seed.
"""

from __future__ import annotations

import ctypes
import gc
import random
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

from handlers import handled_again_and_again, handler_raises

import cmwq
from cmwq._core.ranks import Rank
from cmwq._errors import REFUSALS, QueueClosed, Refused
from cmwq._workqueue import twin
from interrupted.intruders import CALLS, HARMLESS, Intruder
from interrupted.operations import Operation
from interrupted.tracing import Tracer
from interrupted.whole import LONG, WITNESS, Bench, Broken, Call, bounded, check_work

ATTACKS: dict[str, type[Attack]] = {}


class Attack:
    """What is done to an operation."""

    name: ClassVar[str]
    what: ClassVar[str]  # its cases are so called
    deep = False

    def __init_subclass__(cls, name: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name:
            cls.name = name
            ATTACKS[name] = cls

    def __init__(self, seed: int, note: Callable[[object], None]) -> None:
        """note: told of the place before something is done there that may hang."""
        self.seed, self.note = seed, note

    def count(self, bench: Bench, kind: type[Operation]) -> int:
        """How many cases there are; 0: as many as are asked for."""
        return 0

    def chance(self, kind: type[Operation], case: int) -> random.Random:
        """The same for the same case."""
        return random.Random(f"{self.seed} {kind.name} {case}")

    def round(self, bench: Bench, kind: type[Operation], case: int) -> bool:
        """False: the operation had ended before.  Raises Broken, or what a broken pool raises."""
        raise NotImplementedError


def act(operation: Operation, *expected: type[BaseException]) -> bool:
    """Whether it came to its end, and not to one of those exceptions.  Raises Broken for any other."""
    try:
        operation.act()
        return True
    except expected:
        return False
    except AssertionError as exc:
        raise Broken(f"it returned something wrong: {exc!r}") from exc
    except Exception as exc:
        if is_foreign(exc):
            return False
        raise Broken(f"it raised {exc!r}") from exc


def is_foreign(exc: BaseException) -> bool:
    """Whether it was raised within `threading`, or `concurrent.futures` called by the test itself. An interruption
    may leave their own locks and conditions in a bad state: `cf.wait` never releases those that it had taken.
    """
    modules = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(exc.__traceback__)]
    ours = any(module.startswith("cmwq.") for module in modules)
    return modules[-1] == "threading" or ("concurrent.futures._base" in modules and not ours)


class Bytecodes(Attack):
    what = "bytecodes"

    def count(self, bench: Bench, kind: type[Operation]) -> int:
        """Until two counts are the same: the first use of anything takes longer."""
        counts: list[int] = []
        while len(counts) < 8 and (len(counts) < 3 or counts[-1] != counts[-2]):
            operation = kind(bench)
            operation.set_up()
            with Tracer(deep=self.deep) as tracer:
                act(operation)
            operation.settle(ended=True)
            counts.append(tracer.count)
        if not max(counts[1:]) and not (kind.in_c and twin.installed):
            raise Broken("the interpreter told of no bytecode: nothing would be attacked")
        return max(counts[1:])


class Raise(Bytecodes, name="raise"):
    """KeyboardInterrupt at the k-th bytecode."""

    error: ClassVar[type[BaseException]] = KeyboardInterrupt
    comes_out: ClassVar[bool] = True  # nobody swallows it

    def round(self, bench: Bench, kind: type[Operation], case: int) -> bool:
        operation = kind(bench)
        operation.set_up()

        def strike() -> None:
            self.note(tracer.place)
            raise self.error

        tracer = Tracer(case, strike, deep=self.deep)
        with tracer:
            ended = act(operation, self.error)
        if self.comes_out and ended and tracer.place is not None:
            raise Broken(f"the {self.error.__name__} was swallowed")
        operation.settle(ended=ended)
        return tracer.place is not None


class RaiseDeep(Raise, name="raise-deep"):
    """The same, and in the standard library's functions that cmwq calls."""

    deep = True


class LetOut(Bytecodes, name="let-out"):
    """One of our own errors at the k-th bytecode, each kind by turns: a signal handler calls cmwq, and lets that out. A
    lock is refused only where one of ours is held. What was begun may be completed all the same.
    """

    def round(self, bench: Bench, kind: type[Operation], case: int) -> bool:
        WITNESS.tolerated = (cmwq.CmwqError,)  # of a callback, or where a worker is created, it is logged
        operation = kind(bench)
        operation.set_up()
        error = self.chance(kind, case).choice([Refused, Refused, QueueClosed, *REFUSALS])
        first = bench.runtime.host.lock(min(Rank))

        def strike() -> None:
            if error is not Refused:
                self.note(f"{tracer.place}, {error.__name__}")
                raise error("of a call in a handler")
            if bench.runtime.host.inside():
                self.note(f"{tracer.place}, by a lock")
                with first:
                    raise Broken("it was not refused")

        tracer = Tracer(case, strike)
        with tracer:
            ended = act(operation, cmwq.CmwqError)
        operation.settle(ended=ended and tracer.place is None)  # if it was swallowed, as in a callback that is logged
        return tracer.place is not None


class Ordinary(KeyError, ValueError, IndexError, TypeError, RuntimeError):
    """Whatever our own code may catch."""


class RaiseOrdinary(Raise, name="raise-ordinary"):
    """An exception of the kinds that code catches, at the k-th bytecode: a signal handler has an error. It may be
    swallowed, where such an error was expected.
    """

    error = Ordinary
    comes_out = False


class Enter(Bytecodes, name="enter"):
    """A call of ours at the k-th bytecode: each of `CALLS` in turn."""

    def count(self, bench: Bench, kind: type[Operation]) -> int:
        return super().count(bench, kind) * len(CALLS)

    def round(self, bench: Bench, kind: type[Operation], case: int) -> bool:
        k, number = divmod(case - 1, len(CALLS))
        name = CALLS[number]
        operation = kind(bench)
        intruder = Intruder(bench, operation.queue, operation.works)
        intruder.prepare(name, operation.gates)
        operation.set_up()

        def strike() -> None:
            self.note(f"{tracer.place}, {name} within it")
            intruder.enter(name)

        tracer = Tracer(k + 1, strike)
        with tracer:
            ended = act(operation, cmwq.CmwqError, *(() if name in HARMLESS else (AssertionError,)))
        settle_entered(operation, [intruder], ended=ended and name in HARMLESS)
        return tracer.place is not None


def settle_entered(operation: Operation, intruders: list[Intruder], *, ended: bool) -> None:
    """Of an operation during which others were called."""
    WITNESS.tolerated = (cmwq.CmwqError,)  # a call that was left for later may be refused then, which is logged
    operation.let_go()
    bounded(lambda: operation.queue.flush(operation.bench.patience), "flush")
    for intruder in intruders:
        intruder.check()
    operation.settle(ended=ended)


def dig(frames: int, call: Callable[[], object]) -> object:
    """Call it so many frames further down."""
    return call() if frames <= 0 else dig(frames - 1, call)


def room() -> int:
    """How many frames `dig` may go down from where this is called."""
    fits, too_many = 0, sys.getrecursionlimit()
    while too_many - fits > 1:
        frames = (fits + too_many) // 2
        try:
            dig(frames, int)
            fits = frames
        except RecursionError:
            too_many = frames
    return fits


class Depth(Attack, name="depth"):
    """The operation is called where the recursion limit leaves k - 1 frames, so that RecursionError comes again and
    again: in what undoes something, too.
    """

    what = "depths"
    most = 70

    def count(self, bench: Bench, kind: type[Operation]) -> int:
        return self.most

    def round(self, bench: Bench, kind: type[Operation], case: int) -> bool:
        WITNESS.tolerated = (RecursionError,)  # a callback may raise it, which is logged
        operation = kind(bench)
        operation.set_up()
        self.note(f"with {case - 1} frames left")
        passed = WITNESS.passed
        limit, call, frames = sys.getrecursionlimit(), operation.act, room() - case
        operation.act = lambda: dig(frames, call)  # type: ignore[method-assign]
        ended = act(operation, RecursionError)
        if sys.getrecursionlimit() != limit or abs(room() - case - frames) > 0:
            raise Broken(f"the limit was {limit}, with room for {frames + case}; {sys.getrecursionlimit()}, {room()}")
        # Without frames a call may end in a callback, whose failure is only logged, or in a function of the test.
        operation.settle(ended=ended and WITNESS.passed == passed)
        return True


class Memory(Bytecodes, name="memory"):
    """The k-th allocation fails, once, in whichever thread it is."""

    what = "allocations"

    def __init__(self, seed: int, note: Callable[[object], None]) -> None:
        super().__init__(seed, note)
        import _testcapi

        self._fail, self._restore = _testcapi.set_nomemory, _testcapi.remove_mem_hooks

    def count(self, bench: Bench, kind: type[Operation]) -> int:
        """More than there are: hardly every eighth bytecode allocates."""
        return max(30, super().count(bench, kind) // 8)

    def round(self, bench: Bench, kind: type[Operation], case: int) -> bool:
        WITNESS.tolerated = (MemoryError,)
        operation = kind(bench)
        operation.set_up()
        self.note(f"k={case}: that allocation fails")
        failed = True
        try:
            self._fail(case, case + 1)
            operation.act()
            failed = False
        except MemoryError:
            pass
        except (SystemError, RuntimeError) as exc:  # CPython's own words for it, here and there
            if str(exc) not in (
                "error return without exception set",
                "can't allocate lock",
                "Missing frame when calling trace function.",  # 3.13, of functions that were traced before
            ):
                raise
        except cmwq.CmwqError as exc:
            if not (_comes_of_memory(exc) or "MemoryError" in str(exc) or "refused thread" in str(exc)):
                self._restore()
                raise Broken(f"it raised {exc!r}") from exc
        finally:
            self._restore()
        # A call may have had the MemoryError as its own, so how often it ran is not known.
        operation.futures = [future for future in operation.futures if not _failed_for_memory(future, bench.patience)]
        operation.settle(ended=False)
        return failed


def _comes_of_memory(exc: BaseException | None) -> bool:
    while exc is not None and not isinstance(exc, MemoryError):
        exc = exc.__cause__ or exc.__context__
    return exc is not None


def _failed_for_memory(future: Any, patience: float) -> bool:
    with suppress(Exception):
        return future.done() and isinstance(future.exception(patience), MemoryError)
    return False


class Signal(Attack, name="signal"):
    """Ctrl-C, once, at a random moment of a loop over the operation."""

    what = "moments"

    def round(self, bench: Bench, kind: type[Operation], case: int) -> bool:
        moment = self.chance(kind, case).uniform(20e-6, 4e-3)
        self.note(f"k={case}: Ctrl-C after {moment * 1e6:.0f} us")
        operations: list[Operation] = []
        with handler_raises(signal.SIGALRM, KeyboardInterrupt) as interrupted:
            try:
                signal.setitimer(signal.ITIMER_REAL, moment)
                while True:
                    if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
                        time.sleep(0.01)  # it may just be on its way
                        if interrupted.lost:
                            break
                        heard = "".join(f": {each}" for each in WITNESS.heard)
                        raise Broken(f"the KeyboardInterrupt was swallowed{heard}")
                    operations.append(kind(bench))
                    operations[-1].set_up()
                    if not act(operations[-1]):
                        # It was raised within `threading`, whose way out then failed, and that was raised instead.
                        operations[-1].futures.clear()
                        break
                    operations[-1].let_go()
            except KeyboardInterrupt as exc:
                if is_foreign(exc):
                    operations[-1].futures.clear()  # nobody might be told of their ends
            except RuntimeError as exc:
                if not is_foreign(exc):
                    raise
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        for operation in operations:
            operation.let_go()
        for operation in operations[:-1]:
            bounded(lambda queue=operation.queue: queue.close(bench.patience), "close")
        for operation in operations[-1:]:
            operation.settle(ended=False)
        return True


class Handler(Attack, name="handler"):
    """A signal's handler calls us, at random moments of a loop over the operation."""

    what = "moments"

    def round(self, bench: Bench, kind: type[Operation], case: int) -> bool:
        chance = self.chance(kind, case)
        names = chance.choices(CALLS, k=5)
        self.note(f"k={case}: a handler calls {', '.join(names)}")
        operation: Operation | None = None
        entered: list[Intruder] = []
        rounds: list[Operation] = []

        def handle() -> None:
            if operation is not None and names:
                intruder = Intruder(bench, operation.queue, operation.works)
                entered.append(intruder)
                intruder.enter(name if (name := names.pop()) != "close_map" else "submit")

        bench.hold_one()
        with handled_again_and_again(handle, lambda: chance.uniform(20e-6, 1e-3) if names else 0):
            while names:
                operation = None
                rounds.append(kind(bench))
                rounds[-1].set_up()
                operation = rounds[-1]
                act(operation, cmwq.CmwqError, AssertionError)
                operation.let_go()
        last = rounds.pop()
        for each in rounds:
            bounded(lambda queue=each.queue: queue.close(bench.patience), "close")
        settle_entered(last, entered, ended=False)
        return True


class Chain:
    """Garbage in a cycle, whose finaliser calls us and leaves the next garbage, so many times."""

    def __init__(self, chain: list[Callable[[], None]], *, by_callback: bool) -> None:
        self.me = self
        self.chain, self.by_callback = chain, by_callback
        if by_callback:
            # The reference must outlive what it refers to, and be no garbage itself.
            _references[:] = [weakref.ref(self, lambda _: _follow(chain, by_callback=True))]

    def __del__(self) -> None:
        if not self.by_callback:
            _follow(self.chain, by_callback=False)


_references: list[weakref.ref[Chain]] = []


def _follow(chain: list[Callable[[], None]], *, by_callback: bool) -> None:
    if chain:
        call = chain.pop()
        if chain:
            Chain(chain, by_callback=by_callback)
        call()


class Finaliser(Attack, name="finaliser"):
    """The collector runs at any allocation, and finalisers call us, one after the other."""

    what = "chains"
    by_callback = False

    def round(self, bench: Bench, kind: type[Operation], case: int) -> bool:
        chance = self.chance(kind, case)
        names = [name for name in chance.choices(CALLS, k=8) if name != "close_map"]
        self.note(f"k={case}: finalisers call {', '.join(reversed(names))}")
        bench.hold_one()
        operation = kind(bench)
        operation.set_up()
        intruders = [Intruder(bench, operation.queue, operation.works) for _ in names]
        chain = [lambda i=i, n=n: i.enter(n) for i, n in zip(intruders, names, strict=True)]
        if chance.random() < 0.5:  # the collector's own moments may never come within the operation
            chain[-1:] = [lambda: None] * chance.randrange(1, 4)
        before = gc.get_threshold()
        try:
            Chain(chain, by_callback=self.by_callback)
            gc.set_threshold(chance.randrange(1, 9))
            act(operation, cmwq.CmwqError, AssertionError)
        finally:
            gc.set_threshold(*before)
        while chain:
            gc.collect()
        settle_entered(operation, intruders, ended=False)
        return True


class Callback(Finaliser, name="callback"):
    """The same, of weak references."""

    by_callback = True


class Injected(BaseException):
    """Raised in a thread by another."""


def inject(thread: threading.Thread, exception: type[BaseException] | None) -> None:
    """None: take back one that has not been raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), None if exception is None else ctypes.py_object(exception)
    )


class Asynchronous(Attack, name="asynchronous"):
    """Exceptions raised in workers, in the timer's thread and in users' threads, at random moments under load."""

    what = "rounds"

    def round(self, bench: Bench, kind: type[Operation], case: int) -> bool:
        chance = self.chance(kind, case)
        self.note(f"k={case}")
        WITNESS.tolerated = (Injected, cmwq.CmwqError)  # a worker may die of several at once, which is logged
        users = [User(bench, kind) for _ in range(2)]
        spared = {threading.main_thread(), *(t for t in threading.enumerate() if t.name == "watchdog")}
        for user in users:
            user.thread.start()
        for _ in range(5):
            for _ in range(chance.randrange(1000)):  # a random moment, others run meanwhile or not
                pass
            thread = chance.choice(sorted({*threading.enumerate()} - spared, key=lambda thread: thread.name))
            self.note(f"k={case}: an exception in thread {thread.name}")
            inject(thread, Injected)
        for user in users:
            user.stop = True
            user.thread.join(bench.patience)
            if user.thread.is_alive():
                raise Broken("a user's thread hangs")
        for thread in {*threading.enumerate()} - spared:
            inject(thread, None)
        for user in users:
            user.check()
        bench.check()
        return True


class User:
    """A thread that does what threads do with a queue, and goes on where it was interrupted."""

    def __init__(self, bench: Bench, kind: type[Operation]) -> None:
        self.bench = bench
        self.queue = cmwq.WorkQueue("user", runtime=bench.runtime, **kind.options)
        self.call, self.told = Call(10**9), Call(10**9)
        self.work, self.delayed = cmwq.Work(self.call), cmwq.DelayedWork(self.told)
        self.futures: list[cmwq.Future[Any]] = []
        self.stop = False
        self.thread = threading.Thread(target=self._use, name="user", daemon=True)

    def _use(self) -> None:
        with suppress(Injected):
            while not self.stop:
                with suppress(Injected, cmwq.CmwqError):
                    self._use_once()

    def _use_once(self) -> None:
        self.futures.append(self.queue.submit(int))
        self.queue.queue(self.work)
        self.queue.queue_delayed(self.delayed, LONG)
        self.queue.mod_delayed(self.delayed, 1e-4)
        self.futures[-1].result()
        list(self.queue.map(int, "12"))
        self.delayed.cancel()
        self.work.flush()
        self.futures.append(self.queue.submit(int))
        self.futures[-1].cancel()

    def check(self) -> None:
        patience = self.bench.patience
        bounded(lambda: self.queue.flush(patience), "flush")
        for future in self.futures:
            if not future.done():
                raise Broken(f"flushed, and not done: {future!r}")
            if future.cancelled() or isinstance(future.exception(), (Injected, cmwq.CmwqError)):
                continue  # its worker died of one exception, or of several at once
            if future.result() != 0:
                raise Broken(f"a wrong result: {future.result()}")
        for work, call in ((self.work, self.call), (self.delayed, self.told)):
            check_work(work, self.queue, call, patience)
        self.bench.check(self.queue)
        bounded(lambda: self.queue.close(patience), "close")
