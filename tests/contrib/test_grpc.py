"""cmwq.contrib.grpc, with real servers and channels in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from conftest import HANG, Gate, until

pytest.importorskip("grpc", reason="grpcio is not installed")

import grpc

import cmwq
from cmwq.contrib.grpc import Executor
from contrib.wsgi import run_example

LEFT: ContextVar[str] = ContextVar("LEFT", default="nothing")


class Service:
    """A service whose methods take bytes and answer with bytes."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def echo(self, request: bytes, context: Any) -> bytes:
        return request

    def place(self, request: bytes, context: Any) -> bytes:
        left = LEFT.get()
        LEFT.set("something")
        return f"{cmwq.current_work() is not None} {left}".encode()

    def hold(self, request: bytes, context: Any) -> bytes:
        self.gate()
        return b"held"

    def compute(self, request: bytes, context: Any) -> bytes:
        deadline = time.thread_time() + 0.05
        while time.thread_time() < deadline:
            pass
        return b""

    def fail(self, request: bytes, context: Any) -> bytes:
        raise RuntimeError("as it was asked")

    def stream(self, request: bytes, context: Any) -> Iterator[bytes]:
        yield b"begun"
        self.gate()
        yield b"ended"


@contextmanager
def serving(
    pool: Executor, service: Service, interceptors: tuple[Any, ...] = (), **options: Any
) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """A server that has started, and a function that returns the callable for a method."""
    unary = grpc.unary_unary_rpc_method_handler
    handlers = {name: unary(getattr(service, name)) for name in ("echo", "place", "hold", "compute", "fail")}
    handlers["stream"] = grpc.unary_stream_rpc_method_handler(service.stream)
    server = grpc.server(pool, interceptors=interceptors, **options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:

            def method(name: str) -> Any:
                make = channel.unary_stream if name == "stream" else channel.unary_unary
                return make(f"/test.Service/{name}")

            yield server, method
    finally:
        service.gate.open.set()
        server.stop(None).wait(HANG)


@pytest.fixture
def pool() -> Iterator[Executor]:
    pool = Executor()
    yield pool
    pool.queue.close(HANG)


def test_streams_that_keep_their_threads_do_not_hold_up_a_call(pool: Executor, gate: Gate) -> None:
    with serving(pool, Service(gate)) as (_, method):
        streams = [method("stream")(b"", timeout=HANG) for _ in range(40)]
        for stream in streams:
            assert next(stream) == b"begun"
        assert method("echo")(b"hello", timeout=HANG) == b"hello"
        gate.open.set()
        for stream in streams:
            assert list(stream) == [b"ended"]


def test_maximum_concurrent_rpcs_stays_the_bound(pool: Executor, gate: Gate) -> None:
    with serving(pool, Service(gate), maximum_concurrent_rpcs=3) as (_, method):
        held = [method("hold").future(b"", timeout=HANG) for _ in range(3)]
        gate.await_arrivals(3)
        with pytest.raises(grpc.RpcError) as refused:
            method("echo")(b"", timeout=HANG)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        gate.open.set()
        assert [each.result(HANG) for each in held] == [b"held"] * 3


def test_calls_run_in_the_pool_and_see_nothing_of_the_context_of_an_earlier_one(pool: Executor, gate: Gate) -> None:
    with serving(pool, Service(gate)) as (_, method):
        assert {method("place")(b"", timeout=HANG) for _ in range(20)} == {b"True nothing"}


def test_a_call_sees_the_context_that_its_interceptor_made(pool: Executor, gate: Gate) -> None:
    class Interceptor(grpc.ServerInterceptor):  # type: ignore[misc]
        def intercept_service(self, continuation: Any, details: Any) -> Any:
            LEFT.set("the interceptor's")
            return continuation(details)

    with serving(pool, Service(gate), (Interceptor(),)) as (_, method):
        assert method("place")(b"", timeout=HANG) == b"True the interceptor's"
    assert LEFT.get() == "nothing"


def test_a_call_that_raises_is_answered_and_the_server_goes_on(pool: Executor, gate: Gate) -> None:
    with serving(pool, Service(gate)) as (_, method):
        with pytest.raises(grpc.RpcError) as failed:
            method("fail")(b"", timeout=HANG)
        assert failed.value.code() is grpc.StatusCode.UNKNOWN
        assert method("echo")(b"hello", timeout=HANG) == b"hello"


def test_the_lease_waits_for_calls_that_the_server_has_given_up(gate: Gate) -> None:
    pool = Executor()
    with serving(pool, Service(gate)) as (server, method):
        held = method("hold").future(b"", timeout=HANG)
        gate.await_arrivals(1)
        stopping = threading.Thread(target=server.stop, args=(None,))  # cancels the call; its handler does not notice
        stopping.start()
        assert isinstance(held.exception(HANG), grpc.RpcError)
        with pytest.raises(cmwq.CmwqTimeout):
            pool.queue.close(0.01)
        gate.open.set()
        pool.shutdown()
        stopping.join(HANG)
    assert cmwq.system.submit(int, "7").result(HANG) == 7  # the pools belong to the process


def test_methods_are_told_apart(pool: Executor, gate: Gate) -> None:
    noted: set[str] = set()
    with ExitStack() as stack:
        stack.enter_context(
            cmwq.events.subscribe(lambda event: noted.add(str(event.work)), kinds=["hog"], queue=pool.queue)
        )
        _, method = stack.enter_context(serving(pool, Service(gate)))

        def compute() -> bool:
            for each in [method("compute").future(b"", timeout=HANG) for _ in range(8)]:
                each.result(HANG)
            return any("/test.Service/compute" in name for name in noted)

        until(compute)


def test_a_method_whose_name_is_no_text_is_called(pool: Executor) -> None:
    class Event:
        class call_details:  # as gRPC names it
            method = b"/\0\xff"

    assert pool.submit(lambda *args: len(args), Event, Event, None, None).result(HANG) == 4


def test_other_calls_may_be_submitted(pool: Executor) -> None:
    assert pool.submit(max, 1, 2, 3, 4).result(HANG) == 4
    assert list(pool.map(pow, [1, 2], [3, 4])) == [1, 16]


def test_the_example_runs() -> None:
    assert "50 streams are open" in run_example("grpc_server.py")
