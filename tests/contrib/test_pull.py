"""Consumers on `WorkQueue.serve`: messages are taken only when they could run. The classes are those of examples/."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, Gate, module_of, until

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

# Absent where only a part of the tree was copied (tools/trees.py).
pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="no examples here")


def example(name: str) -> Any:
    return module_of(EXAMPLES / f"{name}.py")


def test_each_partition_is_in_order_and_all_are_consumed_at_once() -> None:
    kafka = example("kafka_like")
    partitions = [kafka.Partition() for _ in range(20)]
    barrier, handled, lock = threading.Barrier(20), [], threading.Lock()

    def handle(message: str) -> None:
        if message.endswith(" 0"):
            barrier.wait(HANG)  # the first ones of all partitions are there together
        with lock:
            handled.append(message)

    consumer = kafka.Consumer(partitions, handle)
    for number, partition in enumerate(partitions):
        partition.messages += [f"{number} {each}" for each in range(10)]
        consumer.notify(number)
    until(lambda: all(partition.committed == 10 for partition in partitions))
    consumer.close()
    for number in range(20):
        own = [message for message in handled if message.startswith(f"{number} ")]
        assert own == [f"{number} {each}" for each in range(10)]


def test_a_partition_is_read_one_message_ahead_of_nothing(gate: Gate) -> None:
    kafka = example("kafka_like")
    partition = kafka.Partition()
    partition.messages += ["a", "b", "c"]
    consumer = kafka.Consumer([partition], lambda message: gate())
    gate.await_arrivals(1)
    assert (partition.position, partition.committed) == (1, 0), "a message was read that can't be handled yet"
    gate.open.set()
    until(lambda: partition.committed == 3)
    consumer.close()


def test_after_a_failure_nothing_further_is_committed(capsys: pytest.CaptureFixture[str]) -> None:
    kafka = example("kafka_like")
    partition = kafka.Partition()
    partition.messages += ["1", "2", "x", "4"]
    consumer = kafka.Consumer([partition], int)
    assert consumer.failed.wait(HANG)
    consumer.close()
    assert partition.committed == 2
    assert "to be read again" in capsys.readouterr().out


def test_a_subscription_leases_no_more_than_are_handled(gate: Gate) -> None:
    pubsub = example("pubsub_like")
    subscription = pubsub.Subscription()
    for number in range(100):
        subscription.publish(f"{number}")
    subscriber = pubsub.Subscriber(subscription, lambda message: gate(), max_active=5)
    gate.await_arrivals(5)
    assert (len(subscription.leased), len(subscription.waiting)) == (5, 95)
    gate.open.set()
    until(lambda: subscription.acknowledged == 100)
    subscriber.close()
    assert subscription.most_leased == 5


def test_while_messages_compute_only_about_as_many_as_there_are_cpus_are_leased() -> None:
    import cmwq

    pubsub = example("pubsub_like")
    subscription = pubsub.Subscription()
    for number in range(40):
        subscription.publish(f"{number}")
    most = 0

    def compute(message: str) -> None:
        nonlocal most
        most = max(most, len(subscription.leased))
        sum(range(20_000))

    subscriber = pubsub.Subscriber(subscription, compute)
    until(lambda: subscription.acknowledged == 40)
    subscriber.close()
    # One that gets no CPU, or is between two steps, may look as if it slept; a pool of 256 threads would lease all 40.
    assert most <= len(cmwq.default_runtime().cpus()) + 10


def test_a_message_that_fails_is_given_back_and_comes_again() -> None:
    pubsub = example("pubsub_like")
    subscription, seen = pubsub.Subscription(), []

    def handle(message: str) -> None:
        seen.append(message)
        if len(seen) == 1:
            raise ConnectionError("once")

    subscriber = pubsub.Subscriber(subscription, handle)
    subscription.publish("a")
    subscriber.notify()
    until(lambda: subscription.acknowledged == 1)
    subscriber.close()
    assert seen == ["a", "a"]


def test_what_was_not_taken_stays_with_the_subscription_at_the_end(gate: Gate) -> None:
    pubsub = example("pubsub_like")
    subscription = pubsub.Subscription()
    for number in range(10):
        subscription.publish(f"{number}")
    subscriber = pubsub.Subscriber(subscription, lambda message: gate(), max_active=2)
    gate.await_arrivals(2)
    subscriber.serving.stop()
    gate.open.set()
    subscriber.close()
    assert (subscription.acknowledged, len(subscription.waiting), len(subscription.leased)) == (2, 8, 0)
