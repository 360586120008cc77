"""taskiq: a receiver whose synchronous tasks do not wait for a free thread.

    taskiq worker app:broker --receiver cmwq.contrib.taskiq:Receiver --max-async-tasks 256

Guarantees: a synchronous task begins when a CPU is free, however many others wait for something; the pool that the
command made stays unused, and starts no thread. taskiq copies the context of each task itself, and nothing leaks into
the next. How many tasks are taken from the broker is up to `--max-async-tasks` and `--max-prefetch`, as
before. At a shutdown taskiq waits for its tasks (`--wait-tasks-timeout`), and then the lease ends.
"""

from __future__ import annotations

import asyncio
from typing import Any

import taskiq.receiver

import cmwq

__all__ = ("Receiver",)


class Receiver(taskiq.receiver.Receiver):
    """A receiver on the process's pools.

    executor: left aside, unless it is one of processes (`--use-process-pool`), which is kept.
    max_async_tasks: also the bound on synchronous tasks that are active at a time. Without it that is 256.
    """

    def __init__(self, broker: taskiq.AsyncBroker, executor: Any = None, **options: Any) -> None:
        super().__init__(broker, executor, **options)
        self._lease: cmwq.Executor | None = None
        if not self.is_process_pool:
            bound = options.get("max_async_tasks")
            active = bound + options.get("max_async_tasks_jitter", 0) if bound and bound > 0 else None
            self._lease = self.executor = cmwq.Executor("taskiq", max_active=active)

    async def listen(self, finish_event: asyncio.Event) -> None:
        """Receive and run tasks until the event is set. Then wait for tasks as taskiq does, and end the lease.

        Tasks that outlast `wait_tasks_timeout` run on; at the end of the process they are waited for, like any work.
        """
        try:
            await super().listen(finish_event)
        finally:
            if self._lease is not None:
                self._lease.shutdown(wait=False)
