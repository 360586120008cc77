"""asyncio on cmwq: a name that is looked up behind forty calls that wait, and calls of a queue awaited.

    python examples/event_loop.py

asyncio looks up names, reads files and runs `to_thread` on one small pool of threads. While slow calls have all of it,
nobody can connect to anything. With a loop of `cmwq.aio` they wait, and the look-up runs.
"""

from __future__ import annotations

import asyncio
import time

import cmwq
import cmwq.aio


async def look_up_behind_slow_calls() -> float:
    """Return how many seconds the look-up took."""
    loop = asyncio.get_running_loop()
    slow = [asyncio.ensure_future(asyncio.to_thread(time.sleep, 0.3)) for _ in range(40)]
    await asyncio.sleep(0)  # now they have been handed over
    began = time.perf_counter()
    await loop.getaddrinfo("127.0.0.1", 80)
    seconds = time.perf_counter() - began
    await asyncio.gather(*slow)
    return seconds


def square(number: int) -> int:
    time.sleep(0.05)  # something slow
    return number * number


async def squares(queue: cmwq.WorkQueue) -> list[int]:
    """Calls of a queue that has at most ten at a time: the loop goes on meanwhile."""
    return await asyncio.gather(*(cmwq.aio.run(queue, square, number) for number in range(20)))


async def give_up(queue: cmwq.WorkQueue) -> None:
    """A time limit ends the wait. Calls that have not begun are taken back; the one that runs goes on to its end."""
    try:
        async with asyncio.timeout(0.02):
            await asyncio.gather(*(cmwq.aio.run(queue, square, number) for number in range(1000)))
    except TimeoutError:
        await cmwq.aio.flush(queue)  # at most ten were left
        print("1,000 calls were given up after 0.02 s; those that had not begun never ran")


def main() -> None:
    with asyncio.Runner() as plain:
        print(f"asyncio's own pool: the look-up took {plain.run(look_up_behind_slow_calls()) * 1e3:.1f} ms")
    with cmwq.aio.Runner() as runner, cmwq.WorkQueue("squares", max_active=10) as queue:
        print(f"a loop of cmwq.aio: the look-up took {runner.run(look_up_behind_slow_calls()) * 1e3:.1f} ms")
        print(f"{len(runner.run(squares(queue)))} calls awaited, ten at a time")
        runner.run(give_up(queue))


if __name__ == "__main__":
    main()
