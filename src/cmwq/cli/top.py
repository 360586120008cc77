"""`cmwq top`: look at a process in the terminal. What is shown is in `cmwq.observing.top`.

Guarantees: whatever prevents it is told in one line before the terminal is touched: no terminal, no Textual, no such
process, a process that does not answer, a recording that can't be read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cmwq import CmwqError
from cmwq.cli.output import Refusal
from cmwq.observing.top_source import Live, Over, Recorded, Replay, Source


def run(options: argparse.Namespace) -> int:
    """Show it until the user quits. Raises Refusal, OSError."""
    if options.replay is not None and options.pid is not None:
        raise Refusal("give a PID or --replay, but not both")
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()):
        raise Refusal("stdin and stdout must be a terminal; `cmwq dump` prints a picture")
    try:
        from cmwq.observing.top import Top  # it takes most of a second, and may not be installed
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("textual", "rich"):
            raise
        raise Refusal("Textual is not installed: pip install 'cmwq[top]'") from None
    source = _source(options)
    if options.record is not None:
        source = Recorded(source, Path(options.record))
    Top(source, _name(options), light=options.light).run()
    return 0


def _source(options: argparse.Namespace) -> Source:
    try:
        return Live(options.pid) if options.replay is None else Replay(Path(options.replay))
    except (CmwqError, Over) as error:
        raise Refusal(str(error)) from None


def _name(options: argparse.Namespace) -> str:
    if options.replay is not None:
        return f"recording {Path(options.replay).name}"
    return "" if options.pid is None else str(options.pid)
