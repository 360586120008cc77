"""Pydantic AI: the synchronous tools that a model asks for at a time run at a time. (The model here is a function.)

python examples/pydantic_ai_tools.py
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

import cmwq


def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    if len(messages) == 1:
        return ModelResponse(parts=[ToolCallPart("look_up", {"page": page}) for page in range(200)])
    return ModelResponse(parts=[TextPart(f"{len(messages[-1].parts)} pages")])


agent = Agent(FunctionModel(model))


@agent.tool_plain
def look_up(page: int) -> str:
    time.sleep(0.2)  # a database, a search engine, a file on a slow disk
    return f"page {page}"


async def main() -> None:
    with cmwq.Executor("tools") as executor:
        places: dict[str, contextlib.AbstractContextManager[None]] = {
            "anyio": contextlib.nullcontext(),
            "cmwq": Agent.using_thread_executor(executor),
        }
        for name, where in places.items():
            with where:
                began = time.monotonic()
                answer = await agent.run("Look them all up.")
                print(f"{name}: {answer.output} in {time.monotonic() - began:.2f} s")


if __name__ == "__main__":
    asyncio.run(main())
