"""The command `cmwq`: its parser and its way out. Each subcommand is a module of its own.

Guarantees: whatever a user can cause ends in one line on stderr and an exit status, never in a traceback. The status is
2 for what could not be done, 130 after Ctrl-C, 141 if the reader of stdout went away.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from cmwq.cli.output import CLOSED, FAILED, OUT_OF_MEMORY, Refusal, one_line, reason, say
from cmwq.cli.signals import end_by

STDOUT_CLOSED = "standard output is closed"


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        say(f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)")
        raise SystemExit(FAILED)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Raise what writing raises; argparse's own method hides it."""
        if file is None:
            raise Refusal(STDOUT_CLOSED)
        file.write(message)


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
            options = _options(sys.argv[1:] if argv is None else list(argv))
            prog = f"cmwq {options.command}"
            status = _run(options)
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except Refusal as refusal:
        say(f"{prog}: error: {one_line(str(refusal))}")
        return FAILED
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


def _run(options: argparse.Namespace) -> int:
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


def _options(args: list[str]) -> argparse.Namespace:
    parser, mapping = _parsers()
    if args[:1] == ["map"]:
        # Options may stand between items. argparse supports that for a single command only, and without regard to "--".
        mark = args.index("--") if "--" in args else len(args)
        options = mapping.parse_intermixed_args(args[1:mark])
        options.command = "map"
        words = [*([] if options.target is None else [options.target]), *options.items, *args[mark + 1 :]]
        options.target, options.items = (words[0] if words else None), words[1:]
    else:
        options = parser.parse_args(args)
    if options.command == "map" and options.target is None:
        mapping.error("the following arguments are required: TARGET")
    return options


def _parsers() -> tuple[_Parser, _Parser]:
    """The parser of the whole command, and that of `cmwq map` alone."""
    about = "Concurrency-managed work queues: a thread pool nobody has to size."
    parser = _Parser(prog="cmwq", description=about)
    parser.add_argument("--version", action="version", version=f"cmwq {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    mapping = _add_map(commands)
    doctor = commands.add_parser(
        "doctor",
        help="what works on this machine, and what limits it",
        description="Which sensor works here and how fast, CPUs and quota, thread caps, the GIL: what limits each.",
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object instead of text")
    bench = commands.add_parser(
        "bench",
        help="this machine, this interpreter: cmwq against ThreadPoolExecutor",
        description="Small workloads, cmwq against ThreadPoolExecutor at several sizes, alternating, medians of 5.",
    )
    bench.add_argument("--quick", action="store_true", help="fewer items: under 15 s instead of under 60 s")
    bench.add_argument("--json", metavar="FILE", help="write all times there too")
    bench.add_argument("--svg", metavar="FILE", help="draw a chart there too (needs matplotlib)")
    return parser, mapping


_MAP_NOTES = """\
TARGET is called with one argument, a str. The current directory can be imported from, unless PYTHONSAFEPATH is set.

items    Arguments (after --, whatever they look like), or the lines of FILE or of standard input; empty lines are items
         too. They are read as needed: at most 1,000 items, and 64 MiB of them and their results, are under way or
         wait for their turn on stdout; beyond that, items begin only one after the other. Bytes that
         are not UTF-8 arrive as surrogate escapes: os.fsencode(item) gives the very bytes back. A line may have 64 MiB.
output   One line of ASCII JSON for each item that succeeded, in input order. What TARGET (and its child processes)
         print goes to stderr instead; their stdin is empty where items come from there.
failures One line on stderr each. A result that JSON cannot express (NaN too) is a failure, unless --repr is given.
--resume LOG gets one line per completed item, before its result goes to stdout. Run again with the same log, target and
         items: what succeeded is printed again but not run again, what failed or is missing runs. All logged items are
         compared with the input before anything runs. The log survives the death of the process, not of the machine.
status   0 all succeeded; 1 some items failed; 2 could not go on (one line says why); 141 the reader of stdout went
         away, quietly. Ctrl-C, SIGTERM, SIGHUP (130, 143, 129 to a shell): no new item starts; those running get half a
         second to end, be logged, and be printed if they are in turn; a second signal doesn't wait. What still runs
         then is abandoned (and not logged).
"""


def _add_map(commands: argparse._SubParsersAction[_Parser]) -> _Parser:
    parser = commands.add_parser(
        "map",
        usage="%(prog)s [OPTION ...] [--] TARGET [ITEM ...]",
        help="call a function on every item",
        description="Call a Python function on every item, with as much concurrency as pays.",
        epilog=_MAP_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="TARGET", nargs="?", help="module:function, or module:Class.method")
    parser.add_argument("items", metavar="ITEM", nargs="*", help="default: the lines of standard input")
    parser.add_argument("-a", "--arg-file", metavar="FILE", help="items are the lines of FILE (-: standard input)")
    parser.add_argument("-0", "--null", action="store_true", help="items end with a NUL byte, not with a newline")
    parser.add_argument("--unordered", action="store_true", help="results as they come, not in input order")
    parser.add_argument("--with-item", action="store_true", help='print {"item": ..., "result" or "error": ...}')
    parser.add_argument("--repr", action="store_true", help="where JSON can't express a result, print its repr()")
    parser.add_argument("--resume", metavar="LOG", help="note what is done in LOG, and go on from there")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("--progress", action="store_true", help="show progress even if stderr is no terminal")
    loudness.add_argument("--quiet", action="store_true", help="no progress and no summary, only failures")
    return parser


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("cmwq")
    except PackageNotFoundError:
        return "(not installed)"
