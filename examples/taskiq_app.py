"""taskiq on cmwq: synchronous tasks that wait for something run at the same time.

    python examples/taskiq_app.py

With a broker that is a server, it is one option of the command:

    taskiq worker app:broker --receiver cmwq.contrib.taskiq:Receiver
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import taskiq

import cmwq.contrib.taskiq

TASKS = 40


class Broker(taskiq.InMemoryBroker):
    """Hands messages to a receiver, as a server would."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()

    async def kick(self, message: taskiq.BrokerMessage) -> None:
        await self.messages.put(message.message)

    async def listen(self) -> AsyncGenerator[bytes, None]:
        while True:
            yield await self.messages.get()


broker = Broker()


@broker.task
def fetch(number: int) -> int:
    time.sleep(0.1)  # something slow that is not a coroutine
    return number


async def main() -> None:
    receiver, over = cmwq.contrib.taskiq.Receiver(broker, max_async_tasks=100), asyncio.Event()
    listening = asyncio.create_task(receiver.listen(over))
    begun = time.monotonic()
    sent = [await fetch.kiq(number) for number in range(TASKS)]
    results = [await each.wait_result(check_interval=0.01) for each in sent]
    print(f"{len(results)} tasks of 0.1 s each in {time.monotonic() - begun:.2f} s")
    over.set()
    await listening


if __name__ == "__main__":
    asyncio.run(main())
