"""The command `cmwq`: its way in and its way out. Each subcommand is a module of its own.

Guarantees: whatever a user can cause ends in one line on stderr and an exit status, never in a traceback. The status is
2 for what could not be done, 130 after Ctrl-C, 141 if the reader of stdout went away; for `cmwq exec` also 126 and 127.
(Ctrl-C in the first tenth of a second, while Python imports the package, is Python's to tell of.)
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from cmwq.cli.output import CLOSED, FAILED, OUT_OF_MEMORY, STDOUT_CLOSED, Refusal, one_line, reason, say
from cmwq.cli.parsers import parse
from cmwq.cli.signals import end_by

if TYPE_CHECKING:
    import argparse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: those of the process), and return the exit status.

    The process must be the command's own. Its standard streams stay as the command arranged them. A command that is
    stopped may leave the process instead of returning, because a thread cannot be taken out of a function that it runs.
    """
    prog = "cmwq"
    try:
        _fill_standard_descriptors()
        _print_anything()
        try:
            options = parse(sys.argv[1:] if argv is None else list(argv))
            prog = f"cmwq {options.command}"
            status = _run(options)
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except Refusal as refusal:
        say(f"{prog}: error: {one_line(str(refusal))}")
        return refusal.status
    except KeyboardInterrupt:
        end_by(signal.SIGINT)
    except MemoryError:
        say(f"{prog}: error: {OUT_OF_MEMORY}")
        return FAILED
    except BrokenPipeError:
        _drop_stdout()
        return CLOSED
    except OSError as error:
        _drop_stdout()
        say(f"{prog}: error: {reason(error)}")
        return FAILED


EVERYWHERE = ("bench", "doctor")
"""The commands that need no POSIX system."""


def _run(options: argparse.Namespace) -> int:
    if os.name != "posix" and options.command not in EVERYWHERE:
        raise Refusal(f"this needs a POSIX system, such as Linux or macOS; here there are: {', '.join(EVERYWHERE)}")
    if sys.stdout is None:
        raise Refusal(STDOUT_CLOSED)
    # Imported here: `cmwq map` should not pay for the other commands, nor `--help` for any.
    status: int = import_module(f"cmwq.cli.{options.command}").run(options)
    return status


def _fill_standard_descriptors() -> None:
    """Open the null device for each standard stream that is closed. Otherwise the next file opened would get its
    number, and all that write to standard error, even libc, would write into that file: a log, or the results.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _print_anything() -> None:
    """Escape characters that stdout's encoding lacks, instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_stdout() -> None:
    """Discard what stdout still buffers. Otherwise the interpreter would try to write it at exit, and complain."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        pass
