"""E12 on the virtual clock: works are pulled from a source when the pool could run one more."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from simulated import simulate, simulate_each, with_each
from thorough import often

import cmwq
from cmwq.testing import Simulation

MS = 1e-3
CALM = cmwq.Config(cpu_intensive_thresh=0)


class Broker:
    """A source that says how it was asked, and that nobody asked it while another did."""

    def __init__(self, sim: Simulation, *calls: Callable[[], object], asking: float = 0.0, ends: bool = False) -> None:
        self.sim = sim
        self.calls = deque(calls)
        self.asking = asking  # seconds
        self.ends = ends
        self.asked: list[float] = []
        self.inside = 0

    def __call__(self) -> Callable[[], object] | None:
        self.inside += 1
        assert self.inside == 1, "two ask at the same time"
        self.asked.append(self.sim.host.now)
        found = self.calls.popleft() if self.calls else None
        if self.asking:
            self.sim.sleep(self.asking)
        self.inside -= 1
        if found is None and self.ends:
            raise StopIteration
        return found


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_E12_the_source_is_asked_when_a_worker_could_run_one_more_and_only_then(cpus: int) -> None:
    """Calls that compute: each ask is at the very moment at which one ended, and never more run than there are CPUs."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        broker = Broker(sim, *[partial(sim.burn, MS)] * 20, ends=True)
        serving = wq.serve(broker)
        serving.wait()
        assert (serving.asked, serving.given, serving.ended) == (21, 20, 20)
        expected = sorted(n // cpus * MS for n in range(20))
        assert broker.asked[:20] == pytest.approx(expected)
        (pool,) = runtime._pools.values()
        assert pool.stats.created <= cpus + 2

    simulate(scenario, cpus=cpus, config=CALM)


@pytest.mark.parametrize("marks", [False, True])
def test_E12_where_calls_block_as_many_run_at_once_as_if_all_had_been_submitted(marks: bool) -> None:
    took: dict[str, float] = {}
    threads: dict[str, int] = {}
    for how in ("submitted", "served"):
        sim = Simulation(cpus=2, marks=marks)

        def main(sim: Simulation = sim, how: str = how) -> None:
            with sim.runtime() as runtime:
                wq = cmwq.WorkQueue("q", runtime=runtime)
                calls = [lambda: (sim.burn(0.1 * MS), sim.sleep(1.0))] * 200
                if how == "served":
                    wq.serve(calls).wait()
                else:
                    for call in calls:
                        wq.submit(call)
                    wq.flush()
                took[how] = sim.host.now
                (pool,) = runtime._pools.values()
                threads[how] = pool.stats.peak_workers

        sim.run(main)
    assert took["served"] == pytest.approx(took["submitted"])
    assert threads["served"] <= threads["submitted"] + 1


def test_E12_a_blocked_call_of_another_queue_lets_the_source_be_asked() -> None:
    """The place in line is work that waits, so the sensor looks out."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        other, wq = cmwq.WorkQueue("other", runtime=runtime), cmwq.WorkQueue("q", runtime=runtime)
        other.submit(lambda: (sim.burn(5 * MS), sim.sleep(1.0)))
        broker = Broker(sim, partial(sim.burn, MS), ends=True)
        wq.serve(broker).wait()
        assert broker.asked == [5 * MS, 6 * MS]

    simulate(scenario, config=CALM)


def test_E12_a_source_that_blocks_has_one_worker_and_nobody_waits_behind_it() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        broker = Broker(sim, *[partial(sim.burn, MS)] * 3, asking=1.0, ends=True)
        serving = wq.serve(broker)
        sim.sleep(0.5)
        assert [wq.submit(lambda: sim.host.now).result() for _ in range(5)] == [0.5] * 5
        wq.flush()
        assert sim.host.now == 0.5, "a flush does not wait for what the source may have"
        (pool,) = runtime._pools.values()
        assert sum(worker.item is not None for worker in pool.workers) == 1
        assert pool.stats.created <= 3
        serving.wait()
        # The only CPU is busy while a call runs, and nobody asks then.
        assert broker.asked == pytest.approx([0.0, 1.001, 2.002, 3.003])

    simulate(scenario, config=CALM)


def test_E12_nothing_now_is_not_asked_again_before_it_notifies() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        broker = Broker(sim)
        serving = wq.serve(broker)
        sim.sleep(1.0)
        (pool,) = runtime._pools.values()
        assert not pool.worklist, "nothing stands in line, so no sensor looks (G4)"
        broker.calls.extend([partial(sim.note, "a"), partial(sim.note, "b")])
        sim.sleep(1.0)
        serving.notify()
        sim.sleep(1.0)
        assert broker.asked == [0.0, 2.0, 2.0, 2.0]
        assert sim.log == [(2000.0, "a"), (2000.0, "b")]
        assert not serving.over
        serving.close()
        assert serving.over

    simulate(scenario)


@pytest.mark.parametrize("who", ["another thread", "the source"])
def test_E12_a_notify_while_the_source_is_asked_makes_its_nothing_now_void(who: str) -> None:
    """It has looked, found nothing, and not said so yet."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        inbox: list[Callable[[], object]] = []
        asked: list[float] = []

        def bring() -> None:
            inbox.append(partial(sim.note, "brought"))
            serving.notify()

        def source() -> Callable[[], object] | None:
            asked.append(sim.host.now)
            found = inbox.pop() if inbox else None
            sim.sleep(1.0)
            if who == "the source" and len(asked) == 1:
                bring()
            return found

        serving = wq.serve(source)
        sim.sleep(0.5)
        if who != "the source":
            bring()
        sim.sleep(10.0)
        assert asked == [0.0, 1.0, 2.0]
        assert sim.log == [(2000.0, "brought")]
        serving.close()

    simulate(scenario)


@pytest.mark.parametrize("scope", ["system", "cpu"])
def test_E12_no_notify_is_lost_however_it_races_with_nothing_now(scope: str) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", scope=scope, runtime=runtime)
        ran: Counter[object] = Counter()
        broker = Broker(sim)

        def source() -> Callable[[], object] | None:
            found = broker()
            sim.host.seam()  # between looking and saying so
            return found

        serving = wq.serve(source)

        def bring(name: str) -> None:
            for n in range(10):
                broker.calls.append(partial(ran.update, [(name, n)]))
                sim.host.seam()
                serving.notify()
                sim.host.seam()

        threads = [sim.host.spawn(name, partial(bring, name)) for name in ("a", "b")]
        for thread in threads:
            thread.join()
        while serving.ended < 20:
            sim.host.sleep(1.0)  # of the clock that stands still while anybody can run
            assert sim.host.now < 10, f"{20 - serving.ended} are still with the source: {serving!r}"
        assert set(ran.values()) == {1}
        assert not serving.failures, "two asked at the same time"
        serving.close()
        wq.close()

    simulate_each(scenario, 60, cpus=2)


def test_E12_max_active_and_order_hold() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        running = Counter[str]()
        most = Counter[str]()

        def call(queue: str, n: int) -> None:
            running[queue] += 1
            most[queue] = max(most[queue], running[queue])
            sim.sleep(MS)
            sim.note(f"{queue}{n}")
            running[queue] -= 1

        three = cmwq.WorkQueue("three", max_active=3, runtime=runtime)
        ordered = cmwq.WorkQueue("ordered", ordered=True, runtime=runtime)
        servings = [wq.serve([partial(call, wq.name, n) for n in range(12)]) for wq in (three, ordered)]
        ordered.submit(call, "ordered", 100)  # behind the place in line, before the second call
        for serving in servings:
            serving.wait()
        assert most == {"three": 3, "ordered": 1}
        assert [text for _, text in sim.log if text.startswith("ordered")] == [
            "ordered0", "ordered100", *(f"ordered{n}" for n in range(1, 12)),
        ]  # fmt: skip

    simulate(scenario, cpus=2)


def test_E12_F1_a_flush_waits_for_what_was_given_and_for_nothing_that_the_source_has() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=2, runtime=runtime)
        serving = wq.serve(partial(sim.sleep, 1.0 + n) for n in range(100))
        sim.sleep(0.5)
        wq.flush()  # those of 1 and 2 s had been given
        assert sim.host.now == 2.0
        assert serving.given == 4
        serving.close()

    simulate(scenario, cpus=2)


@pytest.mark.parametrize("how", ["drain", "close", "stop"])
def test_E12_F3_no_new_asks_and_the_one_under_way_and_its_call_are_waited_for(how: str) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        broker = Broker(sim, *[lambda: (sim.note("begins"), sim.sleep(1.0), sim.note("ends"))] * 5, asking=1.0)
        serving = wq.serve(broker)
        sim.sleep(0.5)
        {"drain": wq.drain, "close": wq.close, "stop": serving.close}[how]()
        assert sim.log == [(1000.0, "begins"), (2000.0, "ends")]
        assert (serving.asked, serving.given, serving.ended) == (1, 1, 1)
        assert serving.over == (how != "drain")
        if how == "drain":  # it is open again
            sim.sleep(1.5)
            assert serving.given == 2
            wq.close()
        assert not wq._servings
        serving.notify()
        sim.sleep(10.0)
        assert len(broker.asked) == serving.asked
        assert serving.asked == (3 if how == "drain" else 1)

    simulate(scenario)


def test_E12_on_stop_lets_an_ask_return_that_blocks() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        parker = sim.host.parker()

        def source() -> Callable[[], object]:
            with cmwq.blocking():
                parker.park()
            return partial(sim.note, "what it had")

        wq.serve(source, on_stop=parker.unpark)
        sim.sleep(1.0)
        runtime.close()
        assert sim.log == [(1000.0, "what it had")]

    simulate(scenario)


def test_E12_on_stop_is_called_once_however_many_stop_it() -> None:
    """At the same time, later, and on_stop itself."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)

        def on_stop() -> None:
            sim.note("called")
            serving.stop()
            sim.sleep(0.001)

        serving = wq.serve(lambda: None, on_stop=on_stop)
        stops = [serving.stop, serving.close, wq.close]
        stoppers = [sim.host.spawn("stopper", stop) for stop in stops]  # type: ignore[arg-type]
        for stopper in stoppers:
            stopper.join()
        serving.stop()
        assert [text for _, text in sim.log] == ["called"]

    simulate_each(scenario, 30, cpus=2)


def test_E12_F10_an_on_stop_that_is_interrupted_is_called_by_the_next_stop() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)

        def on_stop() -> None:
            sim.note("called")
            if len(sim.log) == 1:
                raise KeyboardInterrupt

        serving = wq.serve(lambda: None, on_stop=on_stop)
        with pytest.raises(KeyboardInterrupt):
            serving.stop()
        for _ in range(2):
            serving.stop()
        assert [text for _, text in sim.log] == ["called", "called"]

    simulate(scenario)


def test_E12_E8_a_call_that_comes_while_the_queue_is_frozen_waits_for_the_thaw() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", freezable=True, ordered=True, runtime=runtime)
        broker = Broker(sim, *[partial(sim.note, f"{n}") for n in range(3)], asking=1.0, ends=True)
        serving = wq.serve(broker)
        sim.sleep(0.5)
        wq.submit(sim.note, "submitted")
        runtime.freeze()
        assert (sim.host.now, sim.log) == (1.0, [])
        sim.sleep(9.0)
        assert (serving.given, serving.asked, sim.log) == (1, 1, [])
        runtime.thaw()
        serving.wait()
        # In order: it was given when its turn had come.
        assert [text for _, text in sim.log] == ["0", "submitted", "1", "2"]
        assert sim.log[0] == (10000.0, "0")

    simulate(scenario)


def test_E12_a_source_that_raises_is_asked_again_later_and_later(caplog: pytest.LogCaptureFixture) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        asked: list[float] = []

        def source() -> Any:
            asked.append(round(sim.host.now, 9))
            if len(asked) == 5:
                return "no call"
            if len(asked) == 7:
                return int
            if len(asked) >= 8:
                return None
            raise OSError("the broker is away")

        serving = wq.serve(source)
        sim.sleep(5.0)
        # 0.1, 0.2, 0.4, 0.8, 1.6 s later.
        assert asked == [0.0, 0.1, 0.3, 0.7, 1.5, 3.1]
        serving.notify()
        assert serving.failures == 6
        sim.sleep(0.001)
        assert asked[6:] == [5.0, 5.0]
        assert serving.given == 1
        sim.sleep(60.0)
        assert len(asked) == 8, "who was asked meanwhile is not asked again because it had failed"
        serving.close()

    simulate(scenario)
    messages = [record.getMessage() for record in caplog.records if record.name == "cmwq"]
    assert all("source of queue 'q' raised; it is asked again in " in message for message in messages)
    pauses = [message.rpartition(" in ")[2] for message in messages]
    assert pauses == ["0.1 s", "0.2 s", "0.4 s", "0.8 s", "1.6 s", "3.2 s"]
    assert "not 'no call'" in str(caplog.records[4].exc_info)


def test_E12_the_pause_of_a_source_that_raises_has_a_bound() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        asked: list[float] = []

        def source() -> None:
            asked.append(sim.host.now)
            raise OSError

        serving = wq.serve(source)
        sim.sleep(1000.0)
        assert asked[-1] - asked[-2] == pytest.approx(30.0)
        serving.close()
        sim.sleep(100.0)
        assert serving.asked == len(asked)

    simulate(scenario)


def test_E12_what_a_call_raises_goes_to_on_error_as_a_work_that_can_be_queued_again() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        seen: list[BaseException] = []
        tries = iter([ZeroDivisionError("first"), None])

        def call() -> None:
            if exc := next(tries):
                raise exc
            sim.note("second")

        def again(work: cmwq.Work, exc: BaseException) -> None:
            seen.append(exc)
            assert wq.queue(work)

        wq = cmwq.WorkQueue("q", on_error=again, runtime=runtime)
        serving = wq.serve([call])
        serving.wait()
        wq.close()
        assert [str(exc) for exc in seen] == ["first"]
        assert sim.log == [(0.0, "second")]
        assert (serving.ended, serving.failures) == (1, 0)

    simulate(scenario)


def test_E12_C4_a_rescuer_asks_and_runs_where_no_worker_can_be_had() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
        sim.host.refuse = lambda name: name.startswith("cmwq/") and not name.startswith("cmwq/R-")
        serving = wq.serve([partial(sim.note, f"{n}") for n in range(40)])
        serving.wait()
        assert [text for _, text in sim.log] == [f"{n}" for n in range(40)]
        assert wq.nr_rescued >= 40

    simulate(scenario)


def test_E12_D2_D5_cpus_come_and_go_and_each_call_is_run_once() -> None:
    """Per-CPU pools: each has a place in line, the asks are one after the other all the same."""

    def program(seed: int | None) -> None:
        chance = random.Random(seed)
        ran: Counter[int] = Counter()
        where: Counter[str] = Counter()

        def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
            wq = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)

            def call(n: int) -> None:
                ran[n] += 1
                item = cmwq.current_work()
                where[item.pwq.pool.name] += 1
                chance.choice([sim.burn, sim.sleep])(MS)

            broker = Broker(sim, *[partial(call, n) for n in range(60)], asking=0.05 * MS, ends=True)
            serving = wq.serve(broker)
            for _ in range(8):
                sim.sleep(chance.choice([MS, 3 * MS]))
                sim.host.set_cpus(chance.choice([[0], [1, 2], [0, 1, 2]]))
                runtime.check_cpus()
            serving.wait()
            assert not serving.failures, "two asked at the same time"
            wq.close()

        simulate(scenario, cpus=3, seed=seed)
        assert ran == Counter(range(60))
        assert len(where) == 3, "one pool had all of them"

    with_each(range(often(12, 6)), program)


def test_E12_F7_who_would_wait_for_the_end_of_its_own_serving_is_told() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        told: list[str] = []

        def call() -> None:
            try:
                serving.wait()
            except cmwq.FlushDeadlock as exc:
                told.append(str(exc))

        serving = wq.serve(iter([call, call]))
        serving.wait()
        assert len(told) == 2
        assert "waits for the end of what is served to queue 'q'" in told[0]

    simulate(scenario)


def test_E12_F8_wait_has_a_timeout() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        serving = wq.serve(lambda: None)
        with pytest.raises(cmwq.CmwqTimeout, match=r"<cmwq.Serving of queue 'q' dry asked=1 given=0> is not over"):
            serving.wait(2.0)
        assert sim.host.now == 2.0
        serving.close()

    simulate(scenario)


def test_E12_random_programs() -> None:
    """Sources that block, raise, are dry; queues with limits, frozen and drained meanwhile; threads that are refused.
    Each call that was given is run, once, and the pool's rules hold after every step.
    """

    def program(seed: int | None) -> None:
        chance = random.Random(seed)
        ran: Counter[int] = Counter()
        late, refusals = chance.choice([0.0, MS]), chance.choice([0.0, 0.0, 0.5])
        sim = Simulation(cpus=chance.choice([1, 2, 3]), seed=seed, late=late, gil=chance.random() < 0.3)
        sim.host.refuse = lambda name: not name.endswith(":0") and chance.random() < refusals
        total = 40
        left = list(range(total))

        def main() -> None:
            with sim.runtime(max_workers=chance.choice([3, 1024])) as runtime:
                wq = cmwq.WorkQueue(
                    "q",
                    scope=chance.choice(["system", "cpu"]),
                    max_active=chance.choice([1, 3, None]),
                    freezable=True,
                    cpu_intensive=chance.random() < 0.2,
                    runtime=runtime,
                )

                def call(n: int) -> None:
                    ran[n] += 1
                    chance.choice([sim.burn, sim.sleep])(chance.choice([0.1 * MS, MS]))

                def source() -> Callable[[], object] | None:
                    choice = chance.random()
                    if choice < 0.2:
                        sim.sleep(MS)
                    if choice > 0.95:
                        raise OSError
                    if choice > 0.85:
                        sim.host.call_later(MS, lambda: serving.notify())
                        return None
                    if not left:
                        raise StopIteration
                    return partial(call, left.pop())

                serving = wq.serve(source)
                other = cmwq.WorkQueue("other", runtime=runtime)
                for _ in range(12):
                    choice = chance.random()
                    if choice < 0.3:
                        runtime.freeze()
                        sim.sleep(MS)
                        runtime.thaw()
                    elif choice < 0.5:
                        wq.drain()
                    elif choice < 0.7:
                        other.submit(sim.burn, MS)
                    else:
                        wq.flush()
                    sim.sleep(MS)
                if chance.random() < 0.5:
                    serving.wait()
                    assert not left
                wq.close()
                serving.wait()
                assert serving.over
                assert serving.given == serving.ended == total - len(left)

        sim.run(main)
        assert ran == Counter(set(range(total)) - set(left))

    with_each(range(often(60, 30)), program)
