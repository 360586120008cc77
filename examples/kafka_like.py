"""A consumer of a log in partitions, as Kafka has it: each partition in order, and all of them at once.

    python examples/kafka_like.py [MESSAGES]

Each partition is served to an ordered queue of its own. A message is read when it could be handled, and only then: so
what a consumer has not begun stays in the log, where another one finds it. The offset is committed after the message is
handled. The log here is in memory; with a real one, `read` asks a consumer of that partition, without waiting, and the
thread that polls calls `notify`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import cmwq


class Partition:
    """Messages in order. Each has an offset; the consumer notes how far it is."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.position = 0  # of the next one to be read
        self.committed = 0  # all before it are handled

    def read(self) -> tuple[int, str] | None:
        if self.position == len(self.messages):
            return None
        self.position += 1
        return self.position - 1, self.messages[self.position - 1]

    def commit(self, offset: int) -> None:
        self.committed = offset + 1


class Consumer:
    """Calls `handle(message)` for each message of some partitions."""

    def __init__(self, partitions: list[Partition], handle: Callable[[str], object]) -> None:
        self.handle = handle
        self.failed = threading.Event()
        self.queues = [
            cmwq.WorkQueue(f"partition-{number}", ordered=True, on_error=self.fail) for number in range(len(partitions))
        ]
        self.servings = [
            queue.serve(partial(self.take, partition)) for queue, partition in zip(self.queues, partitions, strict=True)
        ]

    def take(self, partition: Partition) -> Callable[[], object] | None:
        """The source: the next message of a partition as a call, or None, "nothing now"."""
        found = None if self.failed.is_set() else partition.read()
        return None if found is None else partial(self.carry_out, partition, *found)

    def carry_out(self, partition: Partition, offset: int, message: str) -> None:
        self.handle(message)
        partition.commit(offset)

    def fail(self, work: cmwq.Work, error: BaseException) -> None:
        """Read no further: the next commit would skip the message that failed."""
        self.failed.set()
        print(f"{error!r}: to be read again from the offset that was committed last")

    def notify(self, number: int) -> None:
        """Say that a partition has more."""
        self.servings[number].notify()

    def close(self) -> None:
        """Read no further, and wait for the messages that are being handled."""
        for queue in self.queues:
            queue.close()


def main(number: int) -> None:
    partitions = [Partition() for _ in range(8)]
    begun = time.monotonic()
    consumer = Consumer(partitions, lambda message: time.sleep(0.01))
    for each in range(number):
        partitions[each % 8].messages.append(f"message {each}")
        consumer.notify(each % 8)  # after it is there
    while sum(partition.committed for partition in partitions) < number:
        time.sleep(0.01)
    consumer.close()
    print(f"{number} messages of 0.01 s each from 8 partitions in {time.monotonic() - begun:.2f} s, each in order")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
