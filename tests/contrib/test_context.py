"""Context variables, OpenTelemetry's context and what a log says of a request survive each hop, and nothing stays.

A hop takes a function to where a work of cmwq runs, or from there to where it calls back, and brings the result.
"""

import asyncio
import contextvars
import gc
import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any

import pytest
from conftest import HANG, until

import cmwq
import cmwq.aio

from .asgi import served

REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("REQUEST", default="nobody's")
OBJECT: contextvars.ContextVar[object] = contextvars.ContextVar("OBJECT", default=None)

log = logging.getLogger("contrib.context")
numbers = itertools.count()

Function = Callable[[], Any]
Hop = Callable[[Function], Any]


class Said(logging.Handler):
    """What each record says of its request, as a filter finds it where the record is made."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, str] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        record.request = REQUEST.get()
        return True

    def emit(self, record: logging.LogRecord) -> None:
        self.of[record.getMessage()] = record.request  # type: ignore[attr-defined]


@pytest.fixture
def said() -> Iterator[Said]:
    handler = Said()
    loggers = [log, logging.getLogger("cmwq")]
    for logger in loggers:
        logger.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)


# ----------------------------------------------------------------------------------- the hops


def submit(fn: Function) -> Any:
    with cmwq.Executor() as executor:
        return executor.submit(fn).result(HANG)


def one_thread(fn: Function) -> Any:
    with cmwq.Executor(max_workers=1) as executor:
        return executor.submit(fn).result(HANG)


def executor_map(fn: Function) -> Any:
    with cmwq.Executor() as executor:
        return next(executor.map(lambda _: fn(), [0]))


def queue_submit(fn: Function) -> Any:
    with cmwq.WorkQueue("hop") as queue:
        return queue.submit(fn).result(HANG)


def bounded_submit(fn: Function) -> Any:
    with cmwq.WorkQueue("hop", max_pending=1) as queue:
        return queue.submit(fn).result(HANG)


def queue_map(fn: Function) -> Any:
    with cmwq.WorkQueue("hop") as queue:
        return next(queue.map(lambda _: fn(), [0]))


def work(fn: Function) -> Any:
    told: list[Any] = []
    with cmwq.WorkQueue("hop") as queue:
        queue.queue(cmwq.Work(lambda: told.append(fn())))
    return told[0]


def delayed_work(fn: Function) -> Any:
    told: list[Any] = []
    with cmwq.WorkQueue("hop", delayed="run") as queue:
        queue.queue_delayed(cmwq.DelayedWork(lambda: told.append(fn())), 0.001)
    return told[0]


def source(fn: Function) -> Any:
    told: list[Any] = []
    with cmwq.WorkQueue("hop") as queue:
        queue.serve(iter([lambda: told.append(fn())])).wait(HANG)
    return told[0]


def aio_run(fn: Function) -> Any:
    with cmwq.WorkQueue("hop") as queue:
        return asyncio.run(cmwq.aio.run(queue, fn))


def aio_run_to_end(fn: Function) -> Any:
    with cmwq.WorkQueue("hop", max_pending=1) as queue:
        return asyncio.run(cmwq.aio.run_to_end(queue, fn))


def to_thread(fn: Function) -> Any:
    with cmwq.aio.Runner() as runner:
        return runner.run(asyncio.to_thread(fn))


def back_to_the_loop(fn: Function) -> Any:
    """A work has a coroutine run by the loop, with its own context."""

    async def coroutine() -> Any:
        return fn()

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        with cmwq.WorkQueue("hop") as queue:
            return await cmwq.aio.run(queue, lambda: cmwq.aio.run_coroutine(coroutine(), loop, HANG))

    return asyncio.run(main())


def within_a_work(fn: Function) -> Any:
    """Two hops: from a work to a further one."""
    return submit(lambda: queue_submit(fn))


def anyio_to_thread(fn: Function) -> Any:
    pytest.importorskip("anyio", reason="anyio can't be imported here")
    import anyio.to_thread

    import cmwq.contrib.anyio

    with cmwq.contrib.anyio.installed():
        return anyio.run(anyio.to_thread.run_sync, fn)


def anyio_from_thread(fn: Function) -> Any:
    pytest.importorskip("anyio", reason="anyio can't be imported here")
    import anyio.from_thread

    return anyio_to_thread(lambda: anyio.from_thread.run_sync(fn))


def asgiref(fn: Function) -> Any:
    sync = pytest.importorskip("asgiref.sync", reason="asgiref can't be imported here")
    with cmwq.Executor() as executor:
        return asyncio.run(sync.sync_to_async(fn, thread_sensitive=False, executor=executor)())


def joblib(fn: Function) -> Any:
    joblib = pytest.importorskip("joblib", reason="joblib can't be imported here")
    import cmwq.contrib.joblib

    cmwq.contrib.joblib.register()
    with joblib.parallel_config(backend="cmwq"):
        return joblib.Parallel()([joblib.delayed(fn)()])[0]


HOPS = [
    submit, one_thread, executor_map, queue_submit, bounded_submit, queue_map, work, delayed_work, source, aio_run,
    aio_run_to_end, to_thread, back_to_the_loop, within_a_work, anyio_to_thread, anyio_from_thread, asgiref, joblib,
]  # fmt: skip
each_hop = pytest.mark.parametrize("hop", HOPS, ids=lambda hop: hop.__name__)


def at_the_same_time(number: int, fn: Callable[[int], Any]) -> list[Any]:
    """Requests of threads that are not cmwq's, each with a context of its own."""
    with ThreadPoolExecutor(number) as clients:
        return list(clients.map(lambda each: contextvars.Context().run(fn, each), range(number)))


# ----------------------------------------------------------------------------------- variables, and the log


@each_hop
def test_a_call_sees_its_own_request_and_logs_it_and_leaves_nothing(hop: Hop, said: Said) -> None:
    def call() -> tuple[str, str]:
        key = f"record {next(numbers)}"
        log.info(key)
        seen = REQUEST.get()
        REQUEST.set("left behind")
        return seen, said.of[key]

    def request(number: int) -> list[tuple[str, str]]:
        REQUEST.set(str(number))
        return [hop(call) for _ in range(3)]

    contextvars.Context().run(hop, call)  # what is not installed is skipped here, on pytest's own thread
    if hop is asgiref:  # it brings back what a call sets, on purpose, to the request that awaits the call
        for number, told in enumerate(at_the_same_time(10, request)):
            assert told[0] == (str(number), str(number))
    else:
        assert at_the_same_time(10, request) == [[(str(number), str(number))] * 3 for number in range(10)]
    assert contextvars.Context().run(hop, call) == ("nobody's", "nobody's")
    assert REQUEST.get() == "nobody's"


@pytest.mark.parametrize("kind", ["one thread", "executor", "queue", "work", "loop"])
def test_no_call_sees_what_an_earlier_one_set_on_the_same_thread(kind: str, universe: cmwq.Runtime) -> None:
    told: list[tuple[str, int]] = []

    def call() -> None:
        told.append((REQUEST.get(), threading.get_ident()))
        REQUEST.set("left behind")

    executor = cmwq.Executor(max_workers=1 if kind == "one thread" else None, runtime=universe)
    with executor, cmwq.WorkQueue("calls", max_active=1, runtime=universe) as queue:
        for _ in range(100):
            if kind == "work":
                contextvars.Context().run(queue.queue, cmwq.Work(call))
                queue.flush(HANG)
            elif kind == "loop":
                contextvars.Context().run(asyncio.run, cmwq.aio.run(queue, call))
            else:
                contextvars.Context().run((queue if kind == "queue" else executor).submit, call).result(HANG)
    assert {seen for seen, _ in told} == {"nobody's"}
    threads = {thread for _, thread in told}
    assert len(threads) == 1 if kind == "one thread" else len(threads) < len(told)


def test_a_submitter_that_goes_on_changes_nothing_for_calls_that_it_submitted(universe: cmwq.Runtime) -> None:
    held = threading.Event()
    with cmwq.WorkQueue("calls", max_active=1, runtime=universe) as queue:

        def request() -> list[cmwq.Future[str]]:
            futures = []
            for number in range(20):
                REQUEST.set(str(number))
                futures.append(queue.submit(REQUEST.get))
            REQUEST.set("later")
            return futures

        first = queue.submit(held.wait, HANG)
        futures = contextvars.Context().run(request)
        held.set()
        assert first.result(HANG)
        assert [future.result(HANG) for future in futures] == [str(number) for number in range(20)]


def test_what_a_request_holds_in_its_context_is_freed_when_its_calls_have_ended() -> None:
    """Neither the future, nor the thread that was created for the first call, keeps it."""

    class Held:
        pass

    def request() -> tuple[weakref.ref[Held], list[cmwq.Future[Any]]]:
        held = Held()
        OBJECT.set(held)
        futures = [queue.submit(OBJECT.get) for queue in (first, bounded)]
        assert [future.result(HANG) is held for future in futures] == [True, True]
        work = cmwq.Work(OBJECT.get)
        first.queue(work)
        work.flush(HANG)
        return weakref.ref(held), [first.submit(int), bounded.submit(int)]

    with cmwq.Runtime() as runtime:
        first = cmwq.WorkQueue("first", runtime=runtime)
        bounded = cmwq.WorkQueue("bounded", max_pending=1, runtime=runtime)
        ref, kept = contextvars.Context().run(request)
        first.flush(HANG)
        bounded.flush(HANG)
        for queue in (first, bounded):  # a worker may still have had its last call at hand
            queue.submit(int).result(HANG)
        until(lambda: (gc.collect(), ref() is None)[1])
        assert [future.result(HANG) for future in kept] == [0, 0]


def test_a_callback_of_a_future_runs_in_a_context_that_is_given_to_it() -> None:
    """By itself it has none of anybody's, as in the standard library."""
    told: list[str] = []
    ended = threading.Semaphore(0)

    def note(_: object) -> None:
        told.append(REQUEST.get())
        ended.release()

    def request() -> None:
        REQUEST.set("mine")
        held = threading.Event()
        future = cmwq.system.submit(held.wait, HANG)
        context = contextvars.copy_context()
        future.add_done_callback(lambda future: context.run(note, future))
        held.set()
        future.result(HANG)

    contextvars.Context().run(request)
    assert ended.acquire(timeout=HANG)
    assert told == ["mine"]


def test_a_context_is_copied_and_what_it_refers_to_is_not() -> None:
    """So an object that is no use to two threads at a time, such as a session, is not to be in a variable."""

    def request() -> None:
        mine: dict[str, int] = {}
        OBJECT.set(mine)
        futures = [cmwq.system.submit(OBJECT.get) for _ in range(2)]
        assert all(future.result(HANG) is mine for future in futures)

    contextvars.Context().run(request)


def test_a_local_of_asgiref_follows_sync_to_async_and_nothing_of_it_stays_on_a_thread() -> None:
    sync = pytest.importorskip("asgiref.sync", reason="asgiref can't be imported here")
    from asgiref.local import Local

    local = Local()

    def call() -> str:
        seen: str = getattr(local, "language", "none")
        local.language = "left behind"
        return seen

    async def request(executor: cmwq.Executor) -> str:
        local.language = "de"
        seen: str = await sync.sync_to_async(call, thread_sensitive=False, executor=executor)()
        return seen

    with cmwq.Executor(max_workers=1) as executor:
        assert contextvars.Context().run(asyncio.run, request(executor)) == "de"
        for _ in range(3):
            assert contextvars.Context().run(executor.submit, call).result(HANG) == "none"
        assert contextvars.Context().run(asyncio.run, request(executor)) == "de"


def test_the_report_of_a_work_that_raised_has_the_works_context(said: Said) -> None:
    told: list[str] = []

    def fail() -> None:
        raise ZeroDivisionError

    def request() -> None:
        REQUEST.set("mine")
        with cmwq.WorkQueue("logs") as queue:
            queue.queue(cmwq.Work(fail))
        with cmwq.WorkQueue("tells", on_error=lambda work, exc: told.append(REQUEST.get())) as queue:
            queue.queue(cmwq.Work(fail))

    contextvars.Context().run(request)
    assert [*said.of.values(), *told] == ["mine", "mine"]


# ----------------------------------------------------------------------------------- OpenTelemetry


@pytest.fixture
def tracing() -> Iterator[tuple[Any, Any]]:
    """A tracer, and where its finished spans are."""
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk can't be imported here")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    finished = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(finished))
    yield provider.get_tracer("contrib"), finished
    provider.shutdown()


@each_hop
def test_a_span_within_a_call_is_the_child_of_the_submitters(hop: Hop, tracing: tuple[Any, Any]) -> None:
    from opentelemetry import baggage, context, trace

    tracer, finished = tracing

    def call(name: str) -> tuple[Any, Any]:
        seen = trace.get_current_span().get_span_context().span_id, baggage.get_baggage("request")
        with tracer.start_as_current_span(name):
            context.attach(baggage.set_baggage("request", "left behind"))  # and never detached
        return seen

    def request(number: int) -> tuple[Any, Any]:
        context.attach(baggage.set_baggage("request", number))
        with tracer.start_as_current_span(f"request {number}") as span:
            told = hop(partial(call, f"call {number}"))
            assert told == (span.get_span_context().span_id, number)
            return span.get_span_context().trace_id, told[0]

    contextvars.Context().run(hop, partial(call, "first"))
    finished.clear()
    requests = at_the_same_time(10, request)
    assert contextvars.Context().run(hop, partial(call, "last")) == (0, None)
    calls = {span.name: span for span in finished.get_finished_spans() if span.name.startswith("call ")}
    assert len(calls) == 10
    for number, (trace_id, span_id) in enumerate(requests):
        assert calls[f"call {number}"].parent.span_id == span_id
        assert calls[f"call {number}"].context.trace_id == trace_id


# ----------------------------------------------------------------------------------- a server


def test_each_part_of_a_request_of_fastapi_sees_logs_and_traces_its_own(said: Said, tracing: tuple[Any, Any]) -> None:
    for needed in ("fastapi", "uvicorn", "httpx"):
        pytest.importorskip(needed, reason=f"{needed} can't be imported here")
    import anyio.to_thread
    from fastapi import BackgroundTasks, Depends, FastAPI, Request
    from opentelemetry import context as otel
    from opentelemetry import trace

    import cmwq.contrib.anyio

    from .test_fastapi import get_many

    tracer, _ = tracing
    app = FastAPI(lifespan=cmwq.contrib.anyio.lifespan())
    later: dict[str, list[Any]] = {}

    def observe() -> list[Any]:
        key = f"record {next(numbers)}"
        log.info(key)
        seen = [REQUEST.get(), said.of[key], trace.get_current_span().get_span_context().span_id]
        REQUEST.set("left behind")
        otel.attach(otel.Context())
        return seen

    @app.middleware("http")
    async def name(request: Request, call_next: Any) -> Any:
        REQUEST.set(request.url.path)
        with tracer.start_as_current_span("request") as span:
            answer = await call_next(request)
            answer.headers["span"] = str(span.get_span_context().span_id)
            return answer

    @app.get("/sync/{number}")
    def endpoint(number: int, tasks: BackgroundTasks, seen: Annotated[list[Any], Depends(observe)]) -> list[Any]:
        tasks.add_task(lambda: later.setdefault(str(number), observe()))
        return [seen, cmwq.system.submit(observe).result(HANG), observe()]

    @app.get("/async/{number}")
    async def asynchronous(number: int) -> list[Any]:
        return [
            await anyio.to_thread.run_sync(observe),
            await asyncio.to_thread(observe),
            await cmwq.aio.run(cmwq.system, observe),
        ]

    paths = [f"/{kind}/{number}" for number in range(40) for kind in ("sync", "async")]
    with served(app) as address:
        answers = get_many(address, paths)
    for path, answer in zip(paths, answers, strict=True):
        assert answer.status_code == 200, answer.text
        assert answer.json() == [[path, path, int(answer.headers["span"])]] * 3
    assert {number: seen[:2] for number, seen in later.items()} == {
        str(number): [f"/sync/{number}"] * 2 for number in range(40)
    }
