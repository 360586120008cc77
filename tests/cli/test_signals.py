"""No signal is lost, and children of a fork get the handlers from before."""

from __future__ import annotations

import os
import queue
import signal

from cmwq.cli.signals import caught

from .conftest import Cli


def test_every_signal_is_told_and_handlers_come_back() -> None:
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    before = signal.getsignal(signal.SIGUSR1)
    with caught([signal.SIGUSR1], told.put):
        for _ in range(100):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert told.get(timeout=60) == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with caught([signal.SIGUSR1], lambda number: None):
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_children_of_a_fork_can_be_terminated(cli: Cli) -> None:
    code = """
import os, signal, sys, warnings
from cmwq.cli.signals import caught
warnings.simplefilter("ignore")
told = []
with caught([signal.SIGTERM], told.append):
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(7)
    _, status = os.waitpid(child, 0)
assert os.WTERMSIG(status) == signal.SIGTERM, status
assert told == []
"""
    done = cli(code=("-c", code))
    assert (done.returncode, done.stderr) == (0, b"")
