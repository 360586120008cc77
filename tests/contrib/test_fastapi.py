"""cmwq.contrib.anyio under FastAPI and Starlette, with a real uvicorn and real requests."""

import asyncio
import contextvars
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest
from conftest import HANG, Gate

from .asgi import served

for name in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(name, reason=f"{name} is not installed")

import anyio.to_thread  # noqa: E402
import httpx  # noqa: E402
from fastapi import BackgroundTasks, Depends, FastAPI, Request  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.routing import Mount  # noqa: E402
from starlette.staticfiles import StaticFiles  # noqa: E402

import cmwq  # noqa: E402
import cmwq.contrib.anyio as contrib  # noqa: E402

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def get_many(address: str, paths: list[str], then: Callable[[], object] = lambda: None) -> list[httpx.Response]:
    """All at the same time; then() is called on another thread meanwhile."""

    async def main() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, timeout=HANG, limits=limits, trust_env=False) as client:
            calls = asyncio.gather(*(client.get(path) for path in paths))
            await asyncio.to_thread(then)
            return list(await calls)

    return asyncio.run(main())


def gated(app: FastAPI, gate: Gate) -> Callable[[], None]:
    """Give the application an endpoint that waits for the gate and tells its thread. Returns what opens the gate once
    60 requests are there.
    """

    @app.get("/")
    def endpoint() -> str:
        gate()
        return threading.current_thread().name

    def then() -> None:
        gate.await_arrivals(60)
        gate.open.set()

    return then


def test_more_synchronous_endpoints_than_tokens_run_at_the_same_time(gate: Gate) -> None:
    app = FastAPI(lifespan=contrib.lifespan())

    then = gated(app, gate)

    with served(app) as address:
        names = [answer.json() for answer in get_many(address, ["/"] * 60, then)]
    assert all(name.startswith("cmwq") for name in names)
    assert contrib._here.queue is None


def test_requests_that_hold_a_connection_do_not_starve_for_a_thread() -> None:
    """fastapi/fastapi#12066: whoever waits for a connection must not keep from a thread who has one."""
    connections: queue.Queue[int] = queue.Queue()
    for number in range(3):
        connections.put(number)

    def connection() -> Iterator[int]:
        taken = connections.get(timeout=HANG / 2)
        try:
            yield taken
        finally:
            connections.put(taken)

    app = FastAPI(lifespan=contrib.lifespan())

    @app.get("/")
    def endpoint(taken: Annotated[int, Depends(connection)]) -> int:
        return taken

    with served(app) as address:
        answers = get_many(address, ["/"] * 150)
    assert [answer.status_code for answer in answers] == [200] * 150
    assert connections.qsize() == 3


def test_context_variables_reach_the_endpoint_and_no_other_request() -> None:
    app = FastAPI(lifespan=contrib.lifespan())

    @app.middleware("http")
    async def name(request: Request, call_next: Any) -> Any:
        assert variable.get() == "unset"
        variable.set(request.url.path)
        return await call_next(request)

    def dependency() -> Iterator[str]:
        yield variable.get()

    @app.get("/{number}")
    def endpoint(number: int, seen: Annotated[str, Depends(dependency)]) -> list[str]:
        mine = variable.get()
        variable.set("left behind")
        return [seen, mine]

    with served(app) as address:
        for answer, number in zip(get_many(address, [f"/{number}" for number in range(50)]), range(50), strict=True):
            assert answer.json() == [f"/{number}"] * 2


def test_background_tasks_run_on_cmwq() -> None:
    app = FastAPI(lifespan=contrib.lifespan())
    names: queue.Queue[str] = queue.Queue()

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> None:
        tasks.add_task(lambda: names.put(threading.current_thread().name))

    with served(app) as address:
        get_many(address, ["/"])
        assert names.get(timeout=HANG).startswith("cmwq")


def test_starlettes_static_files_are_read_on_cmwq(tmp_path: Path, gate: Gate) -> None:
    (tmp_path / "file.txt").write_text("the text")

    class Held(StaticFiles):
        def lookup_path(self, path: str) -> Any:  # called on a thread
            gate()
            assert threading.current_thread().name.startswith("cmwq")
            return super().lookup_path(path)

    app = Starlette(routes=[Mount("/", Held(directory=tmp_path))], lifespan=contrib.lifespan())

    def then() -> None:
        gate.await_arrivals(60)
        gate.open.set()

    with served(app) as address:
        assert {answer.text for answer in get_many(address, ["/file.txt"] * 60, then)} == {"the text"}


def test_a_lifespan_of_the_users_runs_within_and_its_state_arrives() -> None:
    seen: list[object] = []

    @asynccontextmanager
    async def mine(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        seen.append(contrib._here.queue is not None)
        yield {"key": "value"}
        seen.append(contrib._here.queue is not None)

    app = FastAPI(lifespan=contrib.lifespan(mine))

    @app.get("/")
    def endpoint(request: Request) -> str:
        found: str = request.state.key
        return found

    with served(app) as address:
        assert get_many(address, ["/"])[0].json() == "value"
    assert seen == [True, True]
    assert contrib._here.queue is None


def test_two_servers_in_one_process_share_it() -> None:
    first, second = (FastAPI(lifespan=contrib.lifespan()) for _ in range(2))
    for app in (first, second):
        app.get("/")(lambda: threading.current_thread().name)
    with served(first) as one:
        with served(second) as other:
            get_many(other, ["/"] * 5)
        assert get_many(one, ["/"])[0].json().startswith("cmwq")
    assert contrib._here.queue is None


def test_uvicorn_takes_a_loop_with_a_lease() -> None:
    app = FastAPI()

    @app.get("/")
    async def endpoint() -> str:
        return await asyncio.to_thread(lambda: threading.current_thread().name)

    with served(app, loop="cmwq.aio:new_event_loop") as address:
        assert get_many(address, ["/"])[0].json().startswith("cmwq")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_unknown_anyio_still_serves_with_its_own_threads(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    monkeypatch.setattr(contrib, "NEWEST", (4, 0))
    app = FastAPI(lifespan=contrib.lifespan())
    tokens: list[float] = []

    @app.get("/tokens")
    async def limit() -> None:
        tokens.append(anyio.to_thread.current_default_thread_limiter().total_tokens)

    then = gated(app, gate)

    with served(app) as address:
        get_many(address, ["/tokens"])
        assert {answer.json() for answer in get_many(address, ["/"] * 60, then)} == {"AnyIO worker thread"}
    assert tokens == [float("inf")]


def test_errors_of_an_endpoint_are_answers_and_cost_no_place() -> None:
    app = FastAPI(lifespan=contrib.lifespan())

    @app.get("/")
    def endpoint() -> None:
        raise ValueError("of the endpoint")

    with served(app) as address:
        assert {answer.status_code for answer in get_many(address, ["/"] * 20)} == {500}
    assert cmwq.system.submit(sum, [1, 2]).result(HANG) == 3
