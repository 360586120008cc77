"""Pydantic AI: the synchronous tools of an agent run on an executor that is handed over. The model is a function."""

from __future__ import annotations

import asyncio
import contextvars
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import HANG, Gate

pytest.importorskip("pydantic_ai", reason="pydantic-ai can't be imported here")

from pydantic_ai import Agent, ModelRetry
from pydantic_ai.capabilities import UseThreadExecutor
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

import cmwq

from .wsgi import run_example

USER: contextvars.ContextVar[str] = contextvars.ContextVar("USER", default="nobody")


def agent_of(tool: Callable[[int], Any], calls: int = 60, **options: Any) -> Agent[None, str]:
    """Its model asks for so many calls of the tool, at the same time, and then says what they returned."""

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        parts = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
        told = [part for part in parts if part.outcome == "success"]  # others ask for a further attempt
        if len(told) == calls:
            return ModelResponse(parts=[TextPart(" ".join(sorted({str(part.content) for part in told})))])
        return ModelResponse(parts=[ToolCallPart("tool", {"number": number}) for number in range(calls - len(told))])

    agent = Agent(FunctionModel(model), retries=3, **options)
    agent.tool_plain(name="tool")(tool)
    return agent


async def output(agent: Agent[None, str]) -> str:
    return (await asyncio.wait_for(agent.run("go"), HANG)).output


def test_tools_that_wait_for_one_another_run_at_once() -> None:
    together = threading.Barrier(60)

    def tool(number: int) -> str:
        together.wait(HANG)
        return threading.current_thread().name.partition("/")[0]

    async def main() -> str:
        with cmwq.Executor() as executor, Agent.using_thread_executor(executor):
            return await output(agent_of(tool))

    assert asyncio.run(main()) == "cmwq"


def test_one_agent_may_have_a_lease_of_its_own() -> None:
    with cmwq.Executor("tools", thread_name_prefix="tools") as executor:
        agent = agent_of(lambda number: threading.current_thread().name, 5, capabilities=[UseThreadExecutor(executor)])
        assert all(name.startswith("tools") for name in asyncio.run(output(agent)).split())


def test_with_anyio_on_cmwq_nothing_is_to_be_handed_over() -> None:
    import cmwq.contrib.anyio

    together = threading.Barrier(60)

    def tool(number: int) -> str:
        together.wait(HANG)
        return threading.current_thread().name.partition("/")[0]

    with cmwq.contrib.anyio.installed() as full:
        if not full:
            pytest.skip("this version of anyio is not known")
        assert asyncio.run(output(agent_of(tool))) == "cmwq"


def test_a_tool_sees_the_variables_of_its_run_and_of_no_other() -> None:
    def tool(number: int) -> str:
        seen = USER.get()
        USER.set("left behind")
        return seen

    agent = agent_of(tool, 5)

    async def request(user: str) -> str:
        USER.set(user)
        return await output(agent)

    async def main() -> list[str]:
        with cmwq.Executor() as executor, Agent.using_thread_executor(executor):
            return list(await asyncio.gather(*(request(str(number)) for number in range(20))))

    assert asyncio.run(main()) == [str(number) for number in range(20)]


def test_a_tool_may_ask_for_a_further_attempt_and_its_other_errors_end_the_run() -> None:
    attempts: list[int] = []

    def tool(number: int) -> str:
        attempts.append(number)
        if len(attempts) == 1:
            raise ModelRetry("again")
        if len(attempts) == 4:
            raise ZeroDivisionError
        return "well"

    async def main() -> str:
        with cmwq.Executor() as executor, Agent.using_thread_executor(executor):
            return await output(agent_of(tool, 1))

    assert asyncio.run(main()) == "well"
    assert len(attempts) == 2
    attempts.extend([0])
    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


def test_a_cancelled_run_takes_back_tools_that_have_not_begun_and_others_go_on(gate: Gate) -> None:
    ended: list[int] = []

    def tool(number: int) -> None:
        gate()
        ended.append(number)

    async def main() -> None:
        with cmwq.Executor(max_active=3) as executor, Agent.using_thread_executor(executor):
            run = asyncio.ensure_future(output(agent_of(tool, 20)))
            await asyncio.to_thread(gate.await_arrivals, 3)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            assert ended == []
            gate.open.set()
        assert len(ended) == 3

    asyncio.run(main())


def test_the_example_runs() -> None:
    told = run_example("pydantic_ai_tools.py")
    assert re.fullmatch(r"anyio: 200 pages in [\d.]+ s\ncmwq: 200 pages in [\d.]+ s\n", told), told
