"""`cmwq.trace`: what is recorded, when and where it is written, and that nothing else suffers by it (H2)."""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, until

import cmwq
from cmwq._pool.ring import Place, Ring
from cmwq._workqueue.recording import Recording

Event = dict[str, Any]
HERE = Place("u0", "mail")
Python = Callable[..., Any]


def load(path: Path) -> list[Event]:
    """The events of a file, after a check that every one is well formed and that slices nest."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    events: list[Event] = json.loads(text)["traceEvents"]
    stacks: dict[int, list[float]] = {}
    for event in sorted((event for event in events if event["ph"] == "X"), key=lambda e: (e["ts"], -e["dur"])):
        assert event["dur"] >= 0, event
        stack = stacks.setdefault(event["tid"], [])
        while stack and stack[-1] <= event["ts"] + 1e-4:
            stack.pop()
        end = event["ts"] + event["dur"]
        assert not stack or end <= stack[-1] + 1e-4, f"{event} reaches out of the slice around it"
        stack.append(end)
    for event in events:
        assert event["ph"] in "MXisfC", event
        assert event["ph"] == "M" or event["ts"] > 0, event
    return events


def of(events: list[Event], category: str) -> list[Event]:
    return [event for event in events if event.get("cat") == category]


def tracks(events: list[Event]) -> dict[int, str]:
    return {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}


def within(inner: Event, outer: Event) -> bool:
    return bool(
        outer["tid"] == inner["tid"] and outer["ts"] <= inner["ts"] <= outer["ts"] + outer.get("dur", 0.0) + 1e-4
    )


# ----------------------------------------------------------------------------------- what is recorded


def test_every_work_is_a_slice_on_the_track_of_the_thread_that_ran_it(universe: cmwq.Runtime, tmp_path: Path) -> None:
    ran: list[tuple[str, int]] = []

    def work() -> None:
        thread = threading.current_thread()
        ran.append((thread.name, thread.native_id or 0))

    with cmwq.WorkQueue("sums", runtime=universe) as queue:
        with cmwq.trace(tmp_path / "t.json", runtime=universe, every=True):
            for _ in range(50):
                queue.submit(work)
            works = [cmwq.Work(work) for _ in range(50)]
            for each in works:
                queue.queue(each)
            queue.flush()
    events = load(tmp_path / "t.json")
    names = tracks(events)
    slices = of(events, "work")
    assert len(slices) == 100
    assert {event["name"] for event in slices} == {work.__qualname__}
    assert {event["args"]["queue"] for event in slices} == {"sums"}
    assert Counter((names[event["tid"]], event["tid"]) for event in slices) == Counter(ran)


def test_an_arrow_leads_from_where_a_work_was_queued_to_where_it_began(universe: cmwq.Runtime, tmp_path: Path) -> None:
    def inner() -> None:
        pass

    def outer() -> None:
        queue.submit(inner).result()

    with cmwq.WorkQueue("nested", runtime=universe) as queue:
        with cmwq.trace(tmp_path / "t.json", runtime=universe, every=True):
            for _ in range(20):
                queue.submit(outer)
            queue.flush()
    events = load(tmp_path / "t.json")
    begins = {event["id"]: event for event in events if event["ph"] == "s"}
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    assert len(begins) == 40
    assert begins.keys() == ends.keys()
    slices, names = of(events, "work"), tracks(events)
    found = Counter()
    for number, begin in begins.items():
        end = ends[number]
        assert begin["ts"] <= end["ts"]
        assert end["bp"] == "e"
        (target,) = [event for event in slices if event["tid"] == end["tid"] and event["ts"] == end["ts"]]
        sources = [event for event in events if event["ph"] == "X" and within(begin, event)]
        assert sources, f"{begin} is in no slice"
        inside = [event["name"] for event in sources if event["cat"] == "work"]
        found[inside[0] if inside else names[begin["tid"]], target["name"]] += 1
        assert target["args"]["waited_us"] == pytest.approx(end["ts"] - begin["ts"], abs=0.01)
    here = threading.current_thread().name
    assert found == {(here, outer.__qualname__): 20, (outer.__qualname__, inner.__qualname__): 20}


def test_a_worker_is_known_by_its_thread_whatever_that_is_called(universe: cmwq.Runtime, tmp_path: Path) -> None:
    """An executor names the threads, and a program may give one the name of a worker."""
    impostor = threading.Thread(target=lambda: cmwq.WorkQueue("other", runtime=universe).submit(int).result(HANG))
    impostor.name = "cmwq/u0:0"
    with cmwq.Executor(thread_name_prefix="mail", runtime=universe) as pool:
        with cmwq.trace(tmp_path / "t.json", runtime=universe, every=True):
            for call in [pool.submit(lambda: pool.submit(int).result(HANG)) for _ in range(20)]:
                call.result(HANG)
            impostor.start()
            impostor.join(HANG)
            events = load(cmwq.trace(runtime=universe).write(tmp_path / "empty.json"))
    events = load(tmp_path / "t.json")
    works = of(events, "work")
    begins = [event for event in events if event["ph"] == "s"]
    assert sum(any(within(begin, work) for work in works) for begin in begins) == 20
    assert {track.partition(":")[0] for track in tracks(events).values()} == {
        "MainThread", "pool u0", "cmwq/u0", *[name for name in tracks(events).values() if "has ended" in name]
    }  # fmt: skip


def test_what_a_work_waits_for_lies_within_its_slice(universe: cmwq.Runtime, tmp_path: Path) -> None:
    waited_for = threading.Event()

    def inner() -> None:
        waited_for.wait(HANG)

    def outer() -> None:
        queue.submit(inner).result()

    with cmwq.WorkQueue("nested", runtime=universe) as queue:
        with cmwq.trace(tmp_path / "t.json", runtime=universe, every=True):
            future = queue.submit(outer)
            until(lambda: any("the result of" in worker.waits_for for worker in universe.snapshot().workers))
            waited_for.set()
            future.result()
    events = load(tmp_path / "t.json")
    (blocked,) = [event for event in of(events, "blocked") if event["args"]["why"] == "said"]
    assert blocked["name"] == f"waits for the result of call {inner.__qualname__} of queue 'nested'"
    (around,) = [event for event in of(events, "work") if event["name"] == outer.__qualname__]
    assert within(blocked, around)


def test_a_work_that_raised_says_what(universe: cmwq.Runtime, tmp_path: Path) -> None:
    def fails() -> None:
        raise LookupError("nothing here")

    with cmwq.WorkQueue("sums", runtime=universe, on_error=lambda work, exc: None) as queue:
        with cmwq.trace(tmp_path / "t.json", runtime=universe, every=True):
            queue.submit(fails).exception()
            queue.submit(int)
            queue.queue(cmwq.Work(fails))
            queue.flush()
    raised = [(event["name"], event["args"].get("raised")) for event in of(load(tmp_path / "t.json"), "work")]
    assert Counter(raised) == {(fails.__qualname__, "LookupError"): 2, ("int", None): 1}


def test_a_work_that_has_not_ended_ends_where_the_trace_does(universe: cmwq.Runtime, gate: Any, tmp_path: Path) -> None:
    begun = threading.Event()

    def hangs() -> None:
        begun.set()
        gate.open.wait(HANG)

    with cmwq.WorkQueue("hung", runtime=universe) as queue, cmwq.trace(runtime=universe) as trace:
        queue.submit(hangs)
        begun.wait(HANG)
        before = load(trace.write(tmp_path / "before.json"))
        gate.open.set()
        queue.flush()
        after = load(trace.write(tmp_path / "after.json"))
    (unfinished,) = of(before, "work")
    (ended,) = of(after, "work")
    assert unfinished["args"]["unfinished"]
    assert "unfinished" not in ended["args"]
    assert unfinished["ts"] == ended["ts"]
    assert unfinished["dur"] < ended["dur"]


def test_a_call_of_a_source_is_named_after_the_call_even_if_somebody_observes(
    universe: cmwq.Runtime, tmp_path: Path
) -> None:
    """While a queue was observed its source was not asked at all."""
    done: list[int] = []
    with cmwq.WorkQueue("served", runtime=universe) as queue:
        with cmwq.events.subscribe(queue=queue), cmwq.trace(tmp_path / "t.json", runtime=universe, every=True):
            queue.serve([partial(done.append, number) for number in range(5)])
            until(lambda: len(done) == 5)
            queue.flush()
    assert Counter(event["name"] for event in of(load(tmp_path / "t.json"), "work"))["list.append"] == 5


def test_changes_of_the_pool_are_instants_and_its_numbers_counters(tmp_path: Path) -> None:
    runtime = cmwq.Runtime(config=cmwq.Config(idle_worker_timeout=0.05))
    with runtime, cmwq.WorkQueue("blocks", runtime=runtime) as queue:
        with cmwq.trace(tmp_path / "t.json", runtime=runtime, every=True):
            cpus = runtime.cpus()
            for _ in range(40):
                queue.submit(time.sleep, 0.02)
            queue.flush()
            if len(cpus) > 1:
                runtime.cpu_offline(cpus[-1])
                queue.submit(int).result()
                runtime.cpu_online(cpus[-1])
            until(lambda: runtime.snapshot().pools[0].culled > 0)
        created = runtime.snapshot().pools[0].created
    events = load(tmp_path / "t.json")
    names = Counter(event["name"] for event in events if event["ph"] == "i")
    assert names["worker created"] == created
    assert names["worker culled"] > 0
    if len(cpus) > 1:
        assert names[f"CPUs left: {cpus[-1]}"] == names[f"CPUs returned: {cpus[-1]}"] == 1
    numbers = [event["args"] for event in events if event["ph"] == "C" and event["name"] == "u0"]
    assert max(each["blocked"] for each in numbers) > 1
    assert max(each["pending"] for each in numbers) > 1
    assert any(event["name"] == "CPUs" for event in events if event["ph"] == "C")


# ----------------------------------------------------------------------------------- the ring


def test_the_newest_are_kept_in_constant_memory(universe: cmwq.Runtime, tmp_path: Path) -> None:
    with cmwq.WorkQueue("sums", runtime=universe, max_active=1) as queue:
        with cmwq.trace(tmp_path / "t.json", runtime=universe, limit=100, every=True) as trace:
            for number in range(3_000):
                queue.submit([int, float][number >= 2_900])
                if number % 1_000 == 999:
                    queue.flush()
                    trace.write()
            queue.flush()
    events = load(tmp_path / "t.json")
    assert [event["name"] for event in of(events, "work")] == ["float"] * 100
    assert sum(event["ph"] == "s" for event in events) == 100
    (lost,) = of(events, "lost")
    assert lost["name"] == "older records were overwritten: works queued, works"


def test_in_a_flood_some_works_are_recorded_and_the_others_counted(universe: cmwq.Runtime, tmp_path: Path) -> None:
    def rests() -> bool:
        """The default pool's works are not recorded at the moment."""
        return any(tap.ring is None for pool in universe.pools() for tap in pool.taps)

    with cmwq.WorkQueue("flood", runtime=universe) as queue:
        with cmwq.trace(tmp_path / "t.json", runtime=universe, limit=1_000_000):
            number = 0
            deadline = time.monotonic() + HANG
            while not rests() and time.monotonic() < deadline:
                for _ in range(1_000):
                    queue.submit(int)
                number += 1_000
            queue.flush()
            for _ in range(5):  # the first look after the flood may still see it, and rest once more
                until(lambda: not rests())
                queue.submit(complex).result()
                time.sleep(0.02)
    events = load(tmp_path / "t.json")
    works, floods = of(events, "work"), of(events, "flood")
    assert 0 < len(works) < number
    missing = number + 5 - len(works)
    told = sum(event["args"]["works"] for event in floods)
    assert abs(told - missing) <= 20 * len(floods), "works at the ends of a span may be counted on both sides or none"
    assert "complex" in {event["name"] for event in works}, "it is recorded again when the flood is over"


def test_every_works_record_is_whole_while_others_read(universe: cmwq.Runtime, tmp_path: Path) -> None:
    rounds = 8
    with cmwq.WorkQueue("sums", runtime=universe) as queue:
        with cmwq.trace(tmp_path / "t.json", runtime=universe, limit=1_000_000, every=True) as trace:

            def produce() -> None:
                for _ in range(300 * rounds):
                    queue.submit(int)

            threads = [threading.Thread(target=produce) for _ in range(3)]
            for thread in threads:
                thread.start()
            for _ in range(rounds):
                trace.write()
            for thread in threads:
                thread.join()
            queue.flush()
    events = load(tmp_path / "t.json")
    number = 900 * rounds
    assert number - 4 * rounds <= len(of(events, "work")) <= number, "a thread may lose one record when another reads"


def test_a_trace_that_is_over_leaves_no_trace_in_the_pools(universe: cmwq.Runtime) -> None:
    with cmwq.WorkQueue("sums", runtime=universe) as queue:
        trace = cmwq.trace(runtime=universe)
        queue.submit(int).result()
        (pwq,) = queue.places()
        assert pwq.recorder is not None
        assert pwq.gate
        assert not pwq.attends
        queue.flush()
        assert [worker.began for worker in pwq.pool.workers if worker.began] == [], "no work runs"
        trace.close()
        assert pwq.recorder is None
        with pwq.pool.lock:
            assert pwq.gate == pwq.figures.chooses, "nothing else has a new work looked at"
        queue.submit(int).result()
        queue.flush()
        assert pwq.pool.taps == ()


def test_two_traces_at_once_are_both_complete(universe: cmwq.Runtime, tmp_path: Path) -> None:
    with cmwq.WorkQueue("sums", runtime=universe) as queue:
        with cmwq.trace(tmp_path / "long.json", runtime=universe, every=True):
            queue.submit(int).result()
            with cmwq.trace(tmp_path / "short.json", runtime=universe, every=True):
                queue.submit(float).result()
                queue.submit(time.sleep, 0.5).result()  # of which three ticks of 10 ms are looked for
            queue.submit(str).result()
    for name in ("short.json", "long.json"):
        looks = [event for event in load(tmp_path / name) if event["name"] == "CPUs"]
        assert len(looks) > 2, "somebody looks while works run"
    assert {event["name"] for event in of(load(tmp_path / "short.json"), "work")} == {"float", "sleep"}
    assert {event["name"] for event in of(load(tmp_path / "long.json"), "work")} == {"int", "float", "sleep", "str"}


def test_events_are_the_same_while_a_trace_records(universe: cmwq.Runtime, tmp_path: Path) -> None:
    def kinds() -> dict[str, int]:
        with cmwq.events.subscribe(queue=queue) as subscription:
            for _ in range(10):
                queue.submit(int).result()
        queue.flush()
        numbers = Counter(event.kind.value for event in subscription.take())
        return {kind: numbers[kind] for kind in ("queued", "activated", "started", "ended")}

    with cmwq.WorkQueue("sums", runtime=universe) as queue:
        queue.submit(int).result()
        without = kinds()
        assert set(without.values()) == {10}
        with cmwq.trace(tmp_path / "t.json", runtime=universe, every=True):
            assert kinds() == without
    assert len(of(load(tmp_path / "t.json"), "work")) == 10


def test_arrows_go_on_after_a_drain(universe: cmwq.Runtime, tmp_path: Path) -> None:
    with cmwq.WorkQueue("sums", runtime=universe) as queue:
        with cmwq.trace(tmp_path / "t.json", runtime=universe, every=True):
            queue.submit(int).result()
            queue.drain()
            queue.submit(int).result()
    assert sum(event["ph"] == "s" for event in load(tmp_path / "t.json")) == 2


# ----------------------------------------------------------------------------------- when and how it is written


def test_whoever_reads_an_older_file_meanwhile_has_it_whole(universe: cmwq.Runtime, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text("an older trace")
    with path.open() as reader, cmwq.trace(runtime=universe) as trace:
        trace.write(path)
        assert reader.read() == "an older trace"
    assert load(path)


def test_a_name_that_ends_in_gz_is_compressed(universe: cmwq.Runtime, tmp_path: Path) -> None:
    with cmwq.WorkQueue("sums", runtime=universe) as queue:
        with cmwq.trace(tmp_path / "t.json.gz", runtime=universe):
            queue.submit(int).result()
    assert len(of(load(tmp_path / "t.json.gz"), "work")) == 1


def test_a_full_disk_is_said_in_a_line_and_breaks_nothing(python: Python, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("an older trace")
    program = """
        import cmwq, resource, sys
        with cmwq.trace("t.json") as trace:
            cmwq.system.submit(int).result()
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
            try:
                trace.write()
            except OSError as error:
                print(type(error).__name__)
        print(cmwq.system.submit(len, "abc").result())
    """
    done = python(program, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("OSError\n3\n", 0)
    assert done.stderr == f"the trace {tmp_path / 't.json'} could not be written: File too large\n"
    assert (tmp_path / "t.json").read_text() == "an older trace"
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["t.json"]


@pytest.mark.parametrize("name", ["pipe", "pipe.gz"])
def test_a_pipe_is_written_to_and_not_replaced(universe: cmwq.Runtime, tmp_path: Path, name: str) -> None:
    """Nor is /dev/null, if root wants no trace."""
    pipe = tmp_path / name
    os.mkfifo(pipe)
    with cmwq.WorkQueue("sums", runtime=universe) as queue, cmwq.trace(runtime=universe) as trace:
        queue.submit(int).result()
        with pytest.raises(OSError, match="No such device"):  # nobody reads, and nobody is waited for
            trace.write(pipe)
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
        reader.start()

        def written() -> bool:
            try:
                trace.write(pipe)
            except OSError:
                return False
            return True

        until(written)
        reader.join(HANG)
    (tmp_path / f"copy.{name}").write_bytes(read[0])
    assert len(of(load(tmp_path / f"copy.{name}"), "work")) == 1
    assert pipe.is_fifo()


def test_a_link_stays_and_what_it_leads_to_is_replaced(universe: cmwq.Runtime, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "t.json").symlink_to("far/t.json")
    for _ in range(2):
        with cmwq.trace(tmp_path / "t.json", runtime=universe):
            pass
    assert (tmp_path / "t.json").is_symlink()
    assert [each.name for each in (tmp_path / "far").iterdir()] == ["t.json"]


@pytest.mark.parametrize("name", ["", "/", "."])
def test_a_folder_is_no_file_and_that_is_one_line(
    universe: cmwq.Runtime, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with caplog.at_level(logging.ERROR), cmwq.trace(name, runtime=universe, on_stall=True) as trace:
        trace._stalled()
    assert "could not be written: Is a directory" in caplog.text


def test_a_long_name_is_written_as_it_is(universe: cmwq.Runtime, tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 250}.json"
    with cmwq.trace(runtime=universe) as trace:
        assert trace.write(path).exists()


def test_signals_that_come_while_it_is_written_are_one_more_file(universe: cmwq.Runtime, tmp_path: Path) -> None:
    with cmwq.trace(tmp_path / "t.json", runtime=universe, on_signal=signal.SIGUSR2) as trace:
        with trace._lock:  # the thread that writes waits for it, with one file at most
            for _ in range(20):
                signal.raise_signal(signal.SIGUSR2)
            assert trace._wanted.qsize() <= 2


def test_traces_that_end_in_another_order_than_they_began_leave_the_signal_as_it_was(
    universe: cmwq.Runtime, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    traces = [
        cmwq.trace(tmp_path / f"{number}.json", runtime=universe, on_signal=signal.SIGUSR2) for number in range(3)
    ]
    for trace in traces:
        trace.close()
    assert signal.getsignal(signal.SIGUSR2) == before


def test_a_signal_has_the_trace_written_by_another_thread(universe: cmwq.Runtime, tmp_path: Path) -> None:
    heard: list[int] = []

    def hear(number: int, frame: object) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGUSR2, hear)
    try:
        with cmwq.WorkQueue("sums", runtime=universe) as queue:
            with cmwq.trace(tmp_path / "t.json", runtime=universe, on_signal=signal.SIGUSR2):
                queue.submit(int).result()
                signal.raise_signal(signal.SIGUSR2)
                until((tmp_path / "t.json").exists)
                assert len(of(load(tmp_path / "t.json"), "work")) == 1
                assert heard == [signal.SIGUSR2], "the handler that was there before is called"
                assert signal.getsignal(signal.SIGUSR2) is not hear
        assert signal.getsignal(signal.SIGUSR2) is hear, "and is there again afterwards"
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_stall_has_the_trace_written_to_a_file_of_its_own(gate: Any, tmp_path: Path) -> None:
    runtime = cmwq.Runtime(config=cmwq.Config(watch_period=0.02, watchdog_thresh=1.0))
    with runtime, cmwq.WorkQueue("stuck", runtime=runtime, max_active=1) as queue:
        with cmwq.trace(tmp_path / "t.json", runtime=runtime, on_stall=True):
            queue.submit(gate.open.wait, HANG)
            queue.submit(int)
            until((tmp_path / "t.stall-1.json").exists)
            gate.open.set()
            queue.flush()
            until(lambda: any(stall.over for stall in runtime.snapshot().stalls))
    events = load(tmp_path / "t.stall-1.json")
    (stall, *_) = of(events, "stall")
    assert stall["name"] == "stall"
    assert "queue 'stuck'" in stall["args"]["report"]
    assert [event["args"].get("unfinished") for event in of(events, "work")] == [True]
    whole = load(tmp_path / "t.json")
    assert len(of(whole, "work")) == 2
    assert [event["name"] for event in of(whole, "stall")] == ["stall", "goes on after a stall"]
    assert not (tmp_path / "t.stall-2.json").exists(), "its end is no stall"


def test_a_trace_is_written_when_its_runtime_ends(tmp_path: Path) -> None:
    with cmwq.Runtime() as runtime, cmwq.WorkQueue("sums", runtime=runtime) as queue:
        cmwq.trace(tmp_path / "t.json", runtime=runtime)
        queue.submit(int)
    assert len(of(load(tmp_path / "t.json"), "work")) == 1


def test_a_close_that_is_interrupted_while_it_writes_may_be_called_again(
    universe: cmwq.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.json"
    trace = cmwq.trace(path, runtime=universe)
    cmwq.WorkQueue("q", runtime=universe).submit(int).result(HANG)
    write = trace.write

    def interrupted(where: Path) -> Path:
        monkeypatch.setattr(trace, "write", write)
        raise KeyboardInterrupt

    monkeypatch.setattr(trace, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trace.close()
    assert not path.exists()
    trace.close()
    assert json.loads(path.read_text())
    path.unlink()
    trace.close()
    assert not path.exists(), "it is written once"


@pytest.mark.parametrize("what", ["write('now.json')", "close()"])
def test_F10_a_signal_that_comes_while_its_handler_writes_the_trace_gets_Reentered(
    python: Python, tmp_path: Path, what: str
) -> None:
    """The thread would wait for itself. The file that it is writing is written all the same."""
    program = f"""
        import cmwq, signal
        from cmwq.observing import perfetto
        write, depth = perfetto.write, 0
        def interrupted(out, records):
            global depth
            depth += 1
            if depth == 1:
                signal.raise_signal(signal.SIGUSR1)
            return write(out, records)
        perfetto.write = interrupted
        def handle(number, frame):
            try:
                trace.{what}
            except cmwq.Reentered as error:
                print(type(error).__name__)
        signal.signal(signal.SIGUSR1, handle)
        trace = cmwq.trace("t.json", on_stall=True)
        cmwq.system.submit(int).result()
        trace.write("now.json")
        trace.close()
    """
    done = python(program, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("Reentered\n", "", 0)
    assert len(of(load(tmp_path / "t.json"), "work")) == len(of(load(tmp_path / "now.json"), "work")) == 1


def test_F10_the_end_of_the_runtime_in_a_handler_waits_for_no_thread_that_waits_for_the_writer(
    python: Python, tmp_path: Path
) -> None:
    """The thread of the trace waits until the one that is interrupted has written."""
    program = """
        import cmwq, signal
        from cmwq.observing import perfetto
        write = perfetto.write
        def interrupted(out, records):
            perfetto.write = write
            signal.raise_signal(signal.SIGUSR2)
            runtime.close()
            return write(out, records)
        perfetto.write = interrupted
        runtime = cmwq.Runtime()
        trace = cmwq.trace("t.json", on_signal=signal.SIGUSR2, runtime=runtime)
        trace.write("now.json")
    """
    done = python(program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "now.json")


@pytest.mark.parametrize(
    "fault",
    [
        "sys.argv = []", "sys.argv = None", "del sys.argv", "sys.argv = [Path('app.py'), 3]", "sys.argv = 5",
        "cmwq.observing.perfetto.write = None",
    ],
)  # fmt: skip
def test_no_program_fails_by_a_trace_that_is_written_at_its_end(python: Python, tmp_path: Path, fault: str) -> None:
    program = f"""
        import cmwq, cmwq.observing.perfetto, sys
        from pathlib import Path
        with cmwq.trace("t.json"):
            {fault}
        print("it goes on")
    """
    done = python(program, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("it goes on\n", 0)
    written = (tmp_path / "t.json").exists()
    assert written == (fault.startswith(("sys.argv = [", "sys.argv = N", "del")))
    assert written == ("could not be written" not in done.stderr)


def test_the_file_is_where_the_trace_began_wherever_the_program_goes(
    universe: cmwq.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with cmwq.trace("t.json", runtime=universe):
        (tmp_path / "further").mkdir()
        monkeypatch.chdir(tmp_path / "further")
    assert load(tmp_path / "t.json")


def test_F10_a_read_that_is_interrupted_anywhere_loses_no_record(universe: cmwq.Runtime) -> None:
    for step in count():
        ring = Ring(100, int)
        ring.put_queued((0.0, 1, 2, HERE))
        ring.put_note("first")
        lines = 0

        def interrupt(frame: Any, event: str, arg: object) -> Any:
            nonlocal lines
            if frame.f_code.co_filename != Ring.read.__code__.co_filename:
                return None
            lines += event == "line"
            if lines > step:  # noqa: B023
                raise KeyboardInterrupt
            return interrupt

        before, whole = sys.gettrace(), False
        sys.settrace(interrupt)
        try:
            ring.read()
            whole = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        ring.put_queued((0.5, 2, 2, HERE))
        ring.put_note("second")
        queued, ran, notes = ring.read()
        assert ([each.item for each in queued], ran, notes) == ([1, 2], [], ["first", "second"]), step
        if whole:
            break
    assert step > 10


def test_wrong_arguments_are_refused(universe: cmwq.Runtime, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a path"):
        cmwq.trace(on_stall=True, runtime=universe)
    with pytest.raises(ValueError, match="limit"):
        cmwq.trace(tmp_path / "t.json", limit=0, runtime=universe)
    with pytest.raises(ValueError, match="limit"):
        cmwq.trace(tmp_path / "t.json", limit=10_000_000, runtime=universe)
    with cmwq.trace(runtime=universe) as trace:
        with pytest.raises(ValueError, match="no path"):
            trace.write()
        with pytest.raises(FileNotFoundError):
            trace.write(tmp_path / "missing" / "t.json")
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            cmwq.trace(tmp_path / "t.json", on_signal=signal.SIGUSR2, runtime=universe)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])
    assert not any(isinstance(each, Recording) for each in universe.events.subscriptions)


# ----------------------------------------------------------------------------------- the whole process


def test_CMWQ_TRACE_traces_the_process_up_to_its_end(python: Python, tmp_path: Path) -> None:
    program = """
        import cmwq, os
        os.chdir("/")
        cmwq.system.submit(int)
        cmwq.system.submit(cmwq.system.submit, float)  # executed at exit
    """
    done = python(program, cwd=tmp_path, env={**os.environ, "CMWQ_TRACE": "t.json"})
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    names = Counter(event["name"] for event in of(load(tmp_path / "t.json"), "work"))
    assert names == {"int": 1, "float": 1, "WorkQueue.submit": 1}


def test_each_process_of_CMWQ_TRACE_writes_its_own_file(python: Python, tmp_path: Path) -> None:
    program = """
        import cmwq, multiprocessing, os, subprocess, sys, warnings
        warnings.simplefilter("ignore")
        def child():
            cmwq.system.submit(float).result()
        cmwq.system.submit(int).result()
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        again = subprocess.Popen([sys.executable, "-c", "import cmwq; cmwq.system.submit(str).result()"])
        again.wait()
        print(process.pid, again.pid)
    """
    done = python(program, cwd=tmp_path, env={**os.environ, "CMWQ_TRACE": "t.json.gz"})
    assert (done.stderr, done.returncode) == ("", 0)
    forked, started = done.stdout.split()
    names = {path.name: [e["name"] for e in of(load(path), "work")] for path in tmp_path.iterdir() if path.is_file()}
    assert names == {"t.json.gz": ["int"], f"t.{forked}.json.gz": ["float"], f"t.{started}.json.gz": ["str"]}


def test_CMWQ_TRACE_breaks_no_import_where_the_folder_is_gone(python: Python, tmp_path: Path) -> None:
    program = """
        import os, subprocess, sys, tempfile
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)
        again = "import cmwq; print(cmwq.system.submit(len, 'abc').result())"
        for path in ("t.json", "/"):
            env = {**os.environ, "CMWQ_TRACE": path, "CMWQ_TRACE_OWNER": "1"}
            subprocess.run([sys.executable, "-c", again], env=env, check=True)
    """
    done = python(program, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("3\n3\n", 0)
    missing, folder = done.stderr.splitlines()
    assert missing == "CMWQ_TRACE: there is no trace t.json: No such file or directory"
    assert folder == "the trace / could not be written: Is a directory"


def test_G2_the_child_of_a_fork_leaves_its_parents_file_alone(python: Python, tmp_path: Path) -> None:
    program = """
        import cmwq, os, warnings
        warnings.simplefilter("ignore")
        with cmwq.trace("t.json") as trace:
            cmwq.system.submit(int).result()
            if os.fork() == 0:
                try:
                    trace.write()
                except cmwq.ForeignProcess:
                    trace.close()
                    os._exit(0 if not os.path.exists("t.json") else 1)
                os._exit(2)
            print(os.waitstatus_to_exitcode(os.wait()[1]))
    """
    done = python(program, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("0\n", "", 0)
    assert len(of(load(tmp_path / "t.json"), "work")) == 1


def test_a_trace_that_cannot_be_written_at_the_end_is_one_line_in_the_log(
    universe: cmwq.Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), cmwq.trace(tmp_path / "missing" / "t.json", runtime=universe):
        pass
    assert "could not be written: No such file or directory" in caplog.text
