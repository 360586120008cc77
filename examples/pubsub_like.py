"""A subscriber that acknowledges each message by itself, as Pub/Sub and SQS have it.

    python examples/pubsub_like.py [MESSAGES]

A message that was taken is leased: if it is not acknowledged in time, it is delivered again. So it must not be taken
before it could be handled, or leases run out while messages wait in this process. The queue asks the subscription when
it could run one more, and a message that fails is given back at once.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

import cmwq


class Subscription:
    """Messages, each of which is waiting, leased, or acknowledged. Its server would do this."""

    def __init__(self) -> None:
        self.waiting: deque[str] = deque()
        self.leased: set[str] = set()
        self.acknowledged = 0
        self.most_leased = 0
        self.lock = threading.Lock()

    def publish(self, message: str) -> None:
        with self.lock:
            self.waiting.append(message)

    def pull(self) -> str | None:
        with self.lock:
            if not self.waiting:
                return None
            message = self.waiting.popleft()
            self.leased.add(message)
            self.most_leased = max(self.most_leased, len(self.leased))
            return message

    def acknowledge(self, message: str) -> None:
        with self.lock:
            self.leased.remove(message)
            self.acknowledged += 1

    def give_back(self, message: str) -> None:
        with self.lock:
            self.leased.remove(message)
            self.waiting.append(message)


class Subscriber:
    """Calls `handle(message)` for each message, at most `max_active` at a time."""

    def __init__(self, subscription: Subscription, handle: Callable[[str], object], max_active: int = 256) -> None:
        self.subscription, self.handle = subscription, handle
        self.queue = cmwq.WorkQueue("subscriber", max_active=max_active)
        self.serving = self.queue.serve(self.take)

    def take(self) -> Callable[[], object] | None:
        """The source: the next message as a call, or None, "nothing now"."""
        message = self.subscription.pull()
        return None if message is None else partial(self.carry_out, message)

    def carry_out(self, message: str) -> None:
        try:
            self.handle(message)
        except Exception:
            self.subscription.give_back(message)
            self.serving.notify()  # after it is there again
        else:
            self.subscription.acknowledge(message)

    def notify(self) -> None:
        """Say that there are messages: what the stream of a real subscription is for."""
        self.serving.notify()

    def close(self) -> None:
        """Take no more, and wait for the messages that are being handled."""
        self.queue.close()


def main(number: int) -> None:
    subscription, failed = Subscription(), set()

    def handle(message: str) -> None:
        time.sleep(0.05)  # something slow: a request, a database
        if message.endswith("7") and message not in failed:
            failed.add(message)
            raise ConnectionError("once")

    begun = time.monotonic()
    subscriber = Subscriber(subscription, handle, max_active=64)
    for each in range(number):
        subscription.publish(f"message {each}")
    subscriber.notify()
    while subscription.acknowledged < number:
        time.sleep(0.01)
    subscriber.close()
    print(
        f"{number} messages of 0.05 s each in {time.monotonic() - begun:.2f} s; {len(failed)} failed once and came "
        f"again; at most {subscription.most_leased} were leased at a time"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
