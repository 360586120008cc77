"""cmwq where asgiref takes an executor: many calls side by side, and one thread for what is bound to a thread.

python examples/asgiref_calls.py
"""

from __future__ import annotations

import asyncio
import sqlite3
import time

from asgiref.sync import ThreadSensitiveContext, sync_to_async

import cmwq


async def side_by_side() -> None:
    with cmwq.Executor("calls") as pool:
        fetch = sync_to_async(time.sleep, thread_sensitive=False, executor=pool)
        began = time.monotonic()
        await asyncio.gather(*(fetch(0.2) for _ in range(100)))
        print(f"100 calls of 0.2 s: {time.monotonic() - began:.2f} s")


async def on_one_thread() -> None:
    with cmwq.Executor("database", max_workers=1) as one_thread:
        async with ThreadSensitiveContext(executor=one_thread):
            database = await sync_to_async(sqlite3.connect)(":memory:")  # refuses every other thread
            rows = await sync_to_async(lambda: database.execute("SELECT 6 * 7").fetchall())()
            await sync_to_async(database.close)()
            print("on one thread:", rows)


async def main() -> None:
    await side_by_side()
    await on_one_thread()


if __name__ == "__main__":
    asyncio.run(main())
