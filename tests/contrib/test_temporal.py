"""Temporal: a real worker runs its synchronous activities on cmwq.

The server is a stand-in that hands out activities and takes their outcomes, over gRPC as the real one does. Temporal's
own test server is a program that has to be downloaded. So workflows, retries and timeouts are not tested here: they
are the server's, and none of them runs on `activity_executor`.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import queue
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from conftest import HANG, Gate

pytest.importorskip("temporalio", reason="temporalio can't be imported here")
pytest.importorskip("grpc", reason="grpcio can't be imported here")

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio import activity
from temporalio.api.common.v1 import ActivityType, Payload, Payloads, WorkflowExecution, WorkflowType
from temporalio.api.namespace.v1 import NamespaceInfo
from temporalio.api.workflowservice.v1 import request_response_pb2 as messages
from temporalio.api.workflowservice.v1 import service_pb2_grpc
from temporalio.client import Client
from temporalio.exceptions import CancelledError
from temporalio.worker import ActivityInboundInterceptor, Interceptor, Worker

import cmwq

USER: contextvars.ContextVar[str] = contextvars.ContextVar("USER", default="nobody")
MINUTE = Duration(seconds=60)


class Server(service_pb2_grpc.WorkflowServiceServicer):  # type: ignore[misc, unused-ignore]
    """What an activity worker asks of Temporal's server."""

    def __init__(self) -> None:
        self._tasks: queue.Queue[tuple[str, int]] = queue.Queue()
        self._outcomes: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.port = 0
        self.cancels = False
        """Whether it answers heartbeats by asking for cancellation."""

    def hand_out(self, name: str, numbers: range) -> None:
        for number in numbers:
            self._tasks.put((name, number))

    async def outcomes(self, number: int) -> list[tuple[str, Any]]:
        return [await asyncio.to_thread(self._outcomes.get, timeout=HANG) for _ in range(number)]

    def GetSystemInfo(self, request: Any, context: Any) -> Any:
        return messages.GetSystemInfoResponse(
            server_version="1.29.0",
            capabilities=messages.GetSystemInfoResponse.Capabilities(activity_failure_include_heartbeat=True),
        )

    def DescribeNamespace(self, request: Any, context: Any) -> Any:
        return messages.DescribeNamespaceResponse(namespace_info=NamespaceInfo(name=request.namespace))

    def ShutdownWorker(self, request: Any, context: Any) -> Any:
        return messages.ShutdownWorkerResponse()

    def PollActivityTaskQueue(self, request: Any, context: Any) -> Any:
        try:
            name, number = self._tasks.get(timeout=0.2)
        except queue.Empty:
            return messages.PollActivityTaskQueueResponse()
        now = Timestamp()
        now.GetCurrentTime()
        payload = Payload(metadata={"encoding": b"json/plain"}, data=str(number).encode())
        return messages.PollActivityTaskQueueResponse(
            task_token=f"{name} {number}".encode(), activity_id=str(number), activity_type=ActivityType(name=name),
            workflow_namespace="default", workflow_type=WorkflowType(name="workflow"), attempt=1,
            workflow_execution=WorkflowExecution(workflow_id="workflow", run_id="run"),
            input=Payloads(payloads=[payload]), scheduled_time=now, started_time=now,
            current_attempt_scheduled_time=now, start_to_close_timeout=MINUTE, schedule_to_close_timeout=MINUTE,
            heartbeat_timeout=MINUTE,
        )  # fmt: skip

    def RecordActivityTaskHeartbeat(self, request: Any, context: Any) -> Any:
        return messages.RecordActivityTaskHeartbeatResponse(cancel_requested=self.cancels)

    def RespondActivityTaskCompleted(self, request: Any, context: Any) -> Any:
        self._outcomes.put(("completed", json.loads(request.result.payloads[0].data)))
        return messages.RespondActivityTaskCompletedResponse()

    def RespondActivityTaskFailed(self, request: Any, context: Any) -> Any:
        self._outcomes.put(("failed", request.failure.application_failure_info.type))
        return messages.RespondActivityTaskFailedResponse()

    def RespondActivityTaskCanceled(self, request: Any, context: Any) -> Any:
        self._outcomes.put(("cancelled", None))
        return messages.RespondActivityTaskCanceledResponse()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    with ThreadPoolExecutor(30) as threads:
        running = grpc.server(threads)
        service_pb2_grpc.add_WorkflowServiceServicer_to_server(server, running)
        server.port = running.add_insecure_port("127.0.0.1:0")
        running.start()
        yield server
        running.stop(None).wait(HANG)


@asynccontextmanager
async def working(
    server: Server, executor: cmwq.Executor, *activities: Callable[..., Any], **options: Any
) -> AsyncIterator[None]:
    client = await Client.connect(f"127.0.0.1:{server.port}")
    options = {"task_queue": "work", "activities": activities, "activity_executor": executor, **options}
    async with Worker(client, **options):
        yield


def run(main: Any) -> Any:
    return asyncio.run(asyncio.wait_for(main, HANG))


def test_activities_that_wait_for_one_another_run_at_once(server: Server) -> None:
    together = threading.Barrier(60)

    @activity.defn
    def meet(number: int) -> list[Any]:
        together.wait(HANG)
        return [number, activity.info().activity_id, threading.current_thread().name.partition("/")[0]]

    async def main() -> None:
        with cmwq.Executor() as executor:
            async with working(server, executor, meet):
                server.hand_out("meet", range(60))
                outcomes = await server.outcomes(60)
        assert sorted(outcomes) == [("completed", [number, str(number), "cmwq"]) for number in range(60)]

    run(main())


def test_what_an_activity_raises_is_its_outcome(server: Server) -> None:
    @activity.defn
    def fail(number: int) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        with cmwq.Executor() as executor:
            async with working(server, executor, fail):
                server.hand_out("fail", range(3))
                assert await server.outcomes(3) == [("failed", "ZeroDivisionError")] * 3

    run(main())


def test_variables_of_an_interceptor_reach_the_activity_and_no_other(server: Server) -> None:
    class Inbound(ActivityInboundInterceptor):
        async def execute_activity(self, input: Any) -> Any:
            assert USER.get() == "nobody"
            USER.set(str(input.args[0]))
            return await super().execute_activity(input)

    class Names(Interceptor):
        def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
            return Inbound(next)

    @activity.defn
    def see(number: int) -> list[str]:
        seen = USER.get()
        USER.set("left behind")
        return [str(number), seen]

    async def main() -> None:
        with cmwq.Executor() as executor:
            async with working(server, executor, see, interceptors=[Names()]):
                server.hand_out("see", range(50))
                outcomes = await server.outcomes(50)
        assert sorted(outcomes) == sorted(("completed", [str(number)] * 2) for number in range(50))

    run(main())


def test_the_end_of_a_worker_waits_for_its_activities_and_tells_them(server: Server, gate: Gate) -> None:
    @activity.defn
    def hold(number: int) -> bool:
        gate()
        activity.wait_for_worker_shutdown_sync(HANG)
        return activity.is_worker_shutdown()

    async def main() -> None:
        with cmwq.Executor() as executor:
            async with working(server, executor, hold, graceful_shutdown_timeout=timedelta(seconds=HANG)):
                server.hand_out("hold", range(5))
                await asyncio.to_thread(gate.await_arrivals, 5)
                gate.open.set()
            assert executor.queue.nr_unfinished() == 0
            assert await server.outcomes(5) == [("completed", True)] * 5

    run(main())


@pytest.mark.parametrize("max_workers", [1, None])
def test_a_cancelled_activity_is_interrupted_and_its_thread_serves_others(
    max_workers: int | None, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Temporal throws CancelledError at the thread, which has ended threads of pools (temporalio/sdk-python#1648)."""
    caught: list[str] = []
    calls = max_workers or 20

    @activity.defn
    def beat(number: int) -> None:
        end = threading.Event()
        try:
            activity.heartbeat(number)
            while not end.wait(0.001):
                pass
        except CancelledError as exc:
            caught.append(type(exc).__name__)
            raise

    @activity.defn
    def add(number: int) -> int:
        return number + 1

    async def main() -> None:
        with cmwq.Executor(max_workers=max_workers) as executor:
            async with working(server, executor, beat, add):
                server.cancels = True
                server.hand_out("beat", range(calls))
                assert await server.outcomes(calls) == [("cancelled", None)] * calls
                server.hand_out("add", range(20))
                assert sorted(await server.outcomes(20)) == [("completed", number + 1) for number in range(20)]

    run(main())
    assert caught == ["CancelledError"] * calls
    assert not [each for each in caplog.records if each.name == "cmwq" and each.levelno >= logging.ERROR]


@pytest.mark.parametrize(("max_active", "told"), [(None, ["256"]), (500, [])])
def test_it_is_said_where_an_executor_has_fewer_places_than_the_worker_has_slots(
    max_active: int | None, told: list[str], server: Server
) -> None:
    @activity.defn
    def add(number: int) -> int:
        return number + 1

    async def main() -> None:
        with cmwq.Executor(max_active=max_active) as executor:
            async with working(server, executor, add, max_concurrent_activities=500):
                server.hand_out("add", range(1))
                assert await server.outcomes(1) == [("completed", 1)]

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run(main())
    found = [str(each.message) for each in warned if "max_workers is only" in str(each.message)]
    assert [each.rpartition(" ")[2] for each in found] == told
