"""No signal is lost, and children of a fork get the handlers from before."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import until

from cmwq.cli.signals import caught

from .conftest import Cli, environment


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


# ------------------------------------------------------------------------------------------- the way in, and out

AT = {
    "importing": """
class Slow:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "cmwq": wait()
sys.meta_path.insert(0, Slow)
""",
    "importing a part": """
class Slow:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "cmwq.cli.parsers": wait()
sys.meta_path.insert(0, Slow)
""",
    "leaving": "atexit.register(wait)",
}


def way_in() -> str:
    """What the script of the installed command runs."""
    with open(Path(__file__).parents[2] / "pyproject.toml", "rb") as file:
        module, function = tomllib.load(file)["project"]["scripts"]["cmwq"].split(":")
    return f"from {module} import {function} as main\nsys.exit(main())\n"


@pytest.mark.parametrize("moment", AT)
def test_ctrl_c_at_the_begin_and_at_the_end_says_nothing(folder: Path, moment: str) -> None:
    code = f"""
import atexit, sys, time
def wait():
    open("there", "w").close()
    time.sleep(60)
{AT[moment]}
{way_in()}"""
    command = [sys.executable, "-c", code, "exec", "a", "--", "true"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, env=environment()) as process:
        until((folder / "there").exists)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-signal.SIGINT, b"")


def test_a_ctrl_c_that_is_ignored_stays_ignored(cli: Cli) -> None:
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
{way_in()}"""
    done = cli("exec", "a", "--", "sh", "-c", 'kill -INT "$PPID"; sleep 0.2; echo on', code=("-c", code))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"on\n", b"")
