"""Forks, and ends of the process, at random moments of start, work and shutdown (G2, G3).

    python -m interrupted.ends forks --number 2000
    python -m interrupted.ends exits --number 2000

A fork's child uses what it inherited and what is new, and ends; a program ends in one of several ways. None hangs, none
says anything but the traceback it was to have, and what was accepted has run.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import cmwq
from interrupted.whole import PATIENCE

TESTS = Path(__file__).resolve().parent.parent
ENDS = ("normal", "sys.exit", "exception", "interrupt", "interrupt late")
FRESH = 20  # forks of one process; then another one makes its first use
LOST = r"(?m)^Exception ignored in: .*\bWeakSet\b.*\nTraceback[\s\S]*?^KeyboardInterrupt"
"""Ctrl-C came in a callback of `threading`'s set of its threads, where nothing can be raised."""


def run(program: str, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-X", "faulthandler", "-m", "interrupted.ends", program, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, **options)


# ---------------------------------------------------------------------------------------- forks


def forks(number: int, seed: int, tell: Callable[[str], None]) -> int:
    """How many failed. Each program forks some times, and the first time amid its first use of all."""

    def some(first: int) -> list[str]:
        program = run(
            "forking", seed, first, min(FRESH, number - first),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            out, err = program.communicate(timeout=PATIENCE * 2 + FRESH)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGABRT)  # faulthandler tells all stacks
            out, err = program.communicate()
        failed = [line for line in out.decode().splitlines() if line]
        if program.returncode or err:
            said = f"status {program.returncode}, {gist(err.decode())}"
            failed = [f"{line}: {said}" for line in failed] or [f"forks of seed={seed} from {first}: {said}"]
        for line in failed:
            tell(line)
        return failed

    with ThreadPoolExecutor(2) as pool:
        return sum(map(len, pool.map(some, range(0, number, FRESH))))


def gist(text: str) -> str:
    """Of what a program said to the error stream: the innermost place in the package, and the last line."""
    places = re.findall(r'File "[^"]*/cmwq/([^"]+)", line (\d+),? in (\w+)', text)
    # A traceback ends with the innermost function, a stack of faulthandler begins with it.
    place = places[0 if "most recent call first" in text else -1] if places else ("no file of cmwq", "0", "?")
    said = [line for line in text.splitlines() if line and not line.startswith((" ", "Extension modules"))]
    return f"in {':'.join(place[:2])} {place[2]}: {said[-1] if said else 'not a word'}"


def forking(seed: int, first: int, number: int) -> None:
    """The program."""
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: that is the point
    for case in range(first, first + number):
        chance = random.Random(seed * 1_000_003 + case)
        own = case > first and chance.random() < 0.7
        runtime = cmwq.Runtime() if own else cmwq.default_runtime()
        futures: list[cmwq.Future[Any]] = []
        begun = threading.Event()
        life = threading.Thread(target=live, args=(runtime, chance.randrange(30), own, futures, begun))
        life.start()
        begun.wait()
        spin(chance.random() * chance.choice([1e-4, 1e-3, 1e-2]))
        if chance.random() < 0.3:
            words = cmwq.Executor(runtime=cmwq.default_runtime()).submit(fork, runtime, futures, chance).result(60)
        else:
            words = fork(runtime, futures, chance)
        life.join(PATIENCE)
        if life.is_alive():
            words = words or "the parent hangs"
        if words:
            # What follows might hang for what broke here; and its end, too.
            print(f"fork seed={seed} case={case}: {words}", flush=True)
            os._exit(0)


def live(
    runtime: cmwq.Runtime, works: int, ends: bool, futures: list[cmwq.Future[Any]], begun: threading.Event
) -> None:
    """Start, work and shutdown of a lease, and of its runtime if that is its own."""
    begun.set()
    with cmwq.Executor(runtime=runtime) as executor:
        for _ in range(works):
            futures.append(executor.submit(time.sleep, 1e-4))
            executor.queue.queue(cmwq.Work(int))
    if ends:
        runtime.close()
        runtime.check_invariants()


def spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def fork(runtime: cmwq.Runtime, futures: list[cmwq.Future[Any]], chance: random.Random) -> str:
    """What went wrong."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        words = "the child failed"
        try:
            words = be_child(runtime, list(futures))
        except BaseException as exc:
            words = f"the child raised {exc!r}"
        finally:
            os.write(writing, words.encode())
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        deadline = time.monotonic() + PATIENCE
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGABRT)  # faulthandler tells where
                os.waitpid(pid, 0)
                return "the child hangs"
            time.sleep(0.0005)
        return told.read().decode()


def be_child(runtime: cmwq.Runtime, futures: list[cmwq.Future[Any]]) -> str:
    if any(pool.workers for pool in runtime.snapshot().pools):
        return "the child has the parent's workers"
    if cmwq.Executor().submit(len, "abc").result(PATIENCE) != 3:
        return "the child's default runtime does not work"
    with suppress(cmwq.QueueClosed):  # the parent's was closing
        if cmwq.Executor(runtime=runtime).submit(len, "abc").result(PATIENCE) != 3:
            return "the inherited runtime does not work"
    for future in futures:
        with suppress(cmwq.ForeignProcess):
            future.result(PATIENCE)
    runtime.check_invariants()
    runtime.close(PATIENCE)
    return ""


# ---------------------------------------------------------------------------------------- exits


def exits(number: int, seed: int, tell: Callable[[str], None]) -> int:
    """How many failed."""

    def one(case: int) -> str:
        how = ENDS[case % len(ENDS)]
        words = end_of(seed, case, how)
        if words:
            tell(f"exit seed={seed} case={case} {how}: {words}")
        return words

    with ThreadPoolExecutor(2) as pool:
        return sum(map(bool, pool.map(one, range(number))))


def end_of(seed: int, case: int, how: str) -> str:
    """What went wrong."""
    with tempfile.TemporaryFile() as book:
        program = run(
            "ending", seed, case, how, book.fileno(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[book.fileno()],
        )  # fmt: skip
        assert program.stdout is not None
        program.stdout.readline()
        if how.startswith("interrupt"):
            spin(random.Random(seed * 1_000_003 + case).random() * 0.02)
            program.send_signal(signal.SIGINT)
        hangs = False
        try:
            err = program.communicate(timeout=PATIENCE)[1].decode()
        except subprocess.TimeoutExpired:
            hangs = True
            program.send_signal(signal.SIGABRT)
            err = program.communicate()[1].decode()
        book.seek(0)
        counts = Counter(book.read())
    if hangs and how.startswith("interrupt") and re.search(LOST, err):
        return ""  # the program was not interrupted at all, and it is no fault of ours
    if hangs:
        return f"it hangs, {gist(err)}"
    status = program.returncode
    at_end = bool(counts[ord("e")])
    if how.startswith("interrupt"):
        right = status in (-signal.SIGINT, 0) and only_interrupts(err)
    elif how == "exception":
        right = status == 1 and err.count("Traceback") == 1 and err.endswith("RuntimeError: unhandled\n")
    else:
        right = status == (3 if how == "sys.exit" else 0) and not err
    if not right:
        return f"status {status}, {gist(err)}"
    # Ctrl-C while pending works are done at the end leaves at once; before that it does not.
    if counts[ord("r")] < counts[ord("a")] and not (how.startswith("interrupt") and at_end):
        return f"{counts[ord('a')]} works were accepted, {counts[ord('r')]} have run"
    return ""


def only_interrupts(text: str) -> bool:
    """Nothing, or tracebacks of a KeyboardInterrupt: the main thread's, and the one that threading tells of at exit. At
    exit it is said which works are left behind, too.
    """
    text = re.sub(r"^KeyboardInterrupt at exit: works are not waited for any more: .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^Exception ignored (in|on threading shutdown).*\n", "", text, flags=re.MULTILINE)
    # What was handled when it came is told before it.
    text = text.rpartition("During handling of the above exception, another exception occurred:\n\n")[2]
    tracebacks = [each for each in text.split("Traceback (most recent call last):\n") if each]
    return len(tracebacks) <= 1 and all(each.rstrip(": \n").endswith("KeyboardInterrupt") for each in tracebacks)


def ending(seed: int, case: int, how: str, book: int) -> None:
    """The program. In the book: a: accepted; r: has run; e: the main thread has nothing more to do."""
    chance = random.Random(seed * 1_000_003 + case)
    queue = chance.choice([cmwq.system, cmwq.WorkQueue("own"), cmwq.WorkQueue("few", max_active=2)])
    pause = chance.choice([0, 1e-5, 1e-3])

    def work() -> None:
        time.sleep(pause)
        os.write(book, b"r")

    def work_on(number: float) -> None:
        done = 0
        with suppress(cmwq.QueueClosed):
            while done < number:
                done += 1
                if done % 2:
                    queue.submit(work)
                else:
                    queue.queue(cmwq.Work(work))
                os.write(book, b"a")
                if done > 100 and number == float("inf"):
                    time.sleep(1e-3)

    if chance.random() < 0.5:
        threading.Thread(target=work_on, args=(chance.randrange(50),)).start()
    os.write(1, b"ready\n")
    work_on(float("inf") if how == "interrupt" else chance.choice([0, 1, 10, 100]))
    if how == "sys.exit":
        sys.exit(3)
    if how == "exception":
        raise RuntimeError("unhandled")
    os.write(book, b"e")


def main() -> int:
    if sys.argv[1] == "forking":
        forking(*map(int, sys.argv[2:]))
        return 0
    if sys.argv[1] == "ending":
        ending(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
        return 0
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=["forks", "exits"], nargs="+")
    options.add_argument("--number", type=int, default=2000)
    options.add_argument("--seed", type=int, default=random.randrange(1 << 20))
    chosen = options.parse_args()
    failed = 0
    for what in chosen.what:
        began = time.monotonic()
        number = {"forks": forks, "exits": exits}[what](
            chosen.number, chosen.seed, lambda line: print(line, flush=True)
        )
        print(f"{what}, seed {chosen.seed}: {chosen.number}, broken {number}, {time.monotonic() - began:.0f} s")
        failed += number
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
