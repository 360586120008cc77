"""docs/stalls.md: each of the five programs is explained by what `cmwq dump` says of it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG

from cmwq.cli.blocks import plain
from cmwq.cli.sections import page
from cmwq.observing.client import connect

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "examples/stalls"
PAGE = ROOT / "docs/stalls.md"

# Absent where only src and tests were copied.
pytestmark = pytest.mark.skipif(not PROGRAMS.exists(), reason="no examples here")


def dumped(name: str, *words: str) -> str:
    """What a dump says of the program, once it says all these words. Lines are joined."""
    command = [sys.executable, str(PROGRAMS / f"{name}.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            end = time.monotonic() + HANG
            with connect(pid) as connection:
                while True:
                    shown = text_of(connection.picture(stacks=True))
                    if all(word in shown for word in words):
                        return shown
                    assert time.monotonic() < end, shown
                    time.sleep(0.1)
        finally:
            process.kill()


def text_of(picture: dict[str, Any]) -> str:
    return " ".join(plain(page(picture), 80).split())


def test_a_lock_that_a_blocked_work_holds() -> None:
    shown = dumped("lock_held", "WHAT WAITS", "19 workers wait for", "with ledger:")
    holder = re.search(
        r"- (?:probably for what this one has: )?(cmwq/u0:\d+),?(?: which)? waits in read\(\) for a pipe", shown
    )
    assert holder is not None, "who holds it is named, and what that one waits for"
    assert "os.read(approvals, 100)" in shown


def test_a_pool_of_connections_that_is_exhausted() -> None:
    dumped(
        "connection_pool", "WHAT WAITS", "connections.get()", "nobody is past that line",
        "3 works of queue 'rows' failed so far",
    )  # fmt: skip


def test_max_active_is_reached() -> None:
    shown = dumped("max_active", "WHAT IS WRONG 1. Stalled, as was reported", "queue 'imports'", "max_active is 2")
    assert "have places and wait for" in shown
    assert "schema_is_there.wait()" in shown


def test_no_more_threads() -> None:
    shown = dumped("threads_refused", "WHAT IS WRONG 1. Stalled, as was reported", "max_workers is 5")
    assert "5 workers wait for" in shown
    assert "everybody_is_there.wait()" in shown


def test_a_server_that_does_not_answer() -> None:
    shown = dumped("hung_socket", "WHAT IS WRONG 1. Stalled, as was reported", "queue 'prices'")
    assert "4 workers have places and wait in recvfrom() for the TCP connection 127.0.0.1:… to 127.0.0.1:" in shown
    assert "return connection.recv(1000)" in shown


def test_the_page_shows_each_of_them() -> None:
    text = PAGE.read_text()
    for program in PROGRAMS.glob("*.py"):
        block = text.partition(f"<!-- cmwq dump: {program.stem} -->\n```text\n")[2].partition("```\n")[0]
        assert f"python examples/stalls/{program.stem}.py" in block
        assert str(ROOT) not in block
        assert max(map(len, block.splitlines())) <= 80
