"""The options of the command `cmwq`, their checks and their help.

Guarantees: what is wrong with the arguments is told in one line, with exit status 2. An argument that stands after
another item or after `--` is never taken for an option unawares, nor is any that is the name of a file here.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

from cmwq.cli.output import FAILED, STDOUT_CLOSED, Refusal, one_line, say

LARGEST = (1 << 31) - 1


class Halt(NamedTuple):
    """End the run after so many failures. now: end what runs as well."""

    now: bool
    failures: int


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        like_make_or_xargs = re.match(r"unrecognized arguments: -[jP]\d*\b", message)
        if like_make_or_xargs and "--max-active" in self.format_help():
            message += ": how many run at a time is found out; --max-active is a limit"
        say(f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)")
        raise SystemExit(FAILED)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Raise what writing raises; argparse's own method hides it."""
        if file is None:
            raise Refusal(STDOUT_CLOSED)
        file.write(message)


def parse(args: list[str]) -> argparse.Namespace:
    """The options that these arguments give. Raises SystemExit, after help or a line that says what is wrong."""
    # Only the parser that is needed is made: the others would cost a tenth of the time of a short run.
    if args[:1] == ["map"]:
        return _parse_map(_map_parser(Parser), args[1:])
    if args[:1] == ["exec"]:
        return _parse_exec(_exec_parser(Parser), args[1:])
    return _parser().parse_args(args)


def _parse_map(parser: Parser, args: list[str]) -> argparse.Namespace:
    # Options may stand between items. argparse supports that for a single command only, and without regard to "--".
    mark = args.index("--") if "--" in args else len(args)
    _refuse_files(parser, args, mark)
    options = parser.parse_intermixed_args(args[:mark])
    options.command = "map"
    words = [*([] if options.target is None else [options.target]), *options.items, *args[mark + 1 :]]
    options.target, options.items = (words[0] if words else None), words[1:]
    if options.target is None:
        parser.error("the following arguments are required: TARGET")
    return options


def _parse_exec(parser: Parser, args: list[str]) -> argparse.Namespace:
    mark = args.index("--") if "--" in args else len(args)
    _refuse_files(parser, args, mark)
    options = parser.parse_args(args[:mark])
    options.command = "exec"
    options.words = args[mark + 1 :]
    options.unordered = options.unordered or options.line_buffer
    for item in options.items:
        # A file named like an option, from a pattern, must not become one; nor an option an item.
        if item.startswith("-") and item != "-":
            parser.error(
                f"{item!r} after an item: options come first (for an item like that write ./{item}, or use -a)"
            )
    if options.cluster is not None and options.line_buffer:
        parser.error("--line-buffer and --cluster exclude each other: other machines send output when it is whole")
    if not options.words and not options.shell:
        parser.error("the command is missing: cmwq exec [OPTION ...] [ITEM ...] -- COMMAND [ARG ...]")
    return options


def _refuse_files(parser: Parser, args: list[str], mark: int) -> None:
    """Refuse what is both an option and the name of a file here: nobody can tell whether a pattern put it there."""
    names = [arg for arg in args[:mark] if arg.startswith("-") and arg != "-"]
    if "--" in args[mark + 1 :]:
        names.append("--")  # the first of them may be a file's
    for name in names:
        if os.path.lexists(name):
            parser.error(
                f"{name!r} is an option, and a file here has just that name: write ./* for files (and the option in "
                "another way, such as --trace FILE for --trace=FILE)"
            )


def _parser() -> Parser:
    """The parser of the whole command."""
    about = "Concurrency-managed work queues: a thread pool nobody has to size."
    parser = Parser(prog="cmwq", description=about)
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _map_parser(partial(commands.add_parser, "map", help="call a function on every item"))
    _exec_parser(partial(commands.add_parser, "exec", help="run a command for every item: xargs -P without the number"))
    doctor = commands.add_parser(
        "doctor",
        help="what works on this machine, and what limits it",
        description="Which sensor works here and how fast, CPUs and quota, thread caps, the GIL: what limits each.",
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object instead of text")
    _top_parser(partial(commands.add_parser, "top", help="a process and its works, live in the terminal"))
    bench = commands.add_parser(
        "bench",
        help="this machine, this interpreter: cmwq against ThreadPoolExecutor",
        description="Small workloads, cmwq against ThreadPoolExecutor at several sizes, alternating: medians of 5 "
        "turns, or of fewer where the time for a workload runs out, which the table says.",
    )
    bench.add_argument("--quick", action="store_true", help="a quarter of the items and of the time: 15 s, not 60 s")
    bench.add_argument("--json", metavar="FILE", help="write all times there too")
    bench.add_argument("--svg", metavar="FILE", help="draw a chart there too (needs matplotlib)")
    _add_looking(commands)
    _dashboard_parser(partial(commands.add_parser, "dashboard", help="a web page that shows what processes do"))
    return parser


def _add_looking(commands: Any) -> None:
    """The commands that look at other processes."""
    ps = commands.add_parser(
        "ps",
        help="the processes that can be looked at",
        description="The processes of this user that have a monitor (CMWQ_MONITOR=1, or cmwq.monitor() in them).",
    )
    ps.add_argument("--json", action="store_true", help="a JSON list instead of a table")
    dump = commands.add_parser(
        "dump",
        help="what a process does, and why it stalls",
        description="What a process does, and why it stalls: what is wrong first, then pools, queues, workers with "
        "their stacks, functions. The process needs a monitor (CMWQ_MONITOR=1, or cmwq.monitor() in it), unless both "
        "sides are Python 3.14 or later and the system lets this user trace it.",
    )
    dump.add_argument(
        "target", metavar="PID", help="the process; or a file that --json made (-: standard input); or a socket"
    )
    dump.add_argument("--json", action="store_true", help="the picture as JSON: cmwq dump FILE shows it as text, later")
    dump.add_argument("--no-stacks", action="store_true", help="without the stacks of the workers")


_MAP_NOTES = """\
TARGET is called with one argument, a str. The current directory can be imported from, unless PYTHONSAFEPATH is set.

items    Arguments (after --, whatever they look like), or the lines of FILE or of standard input; empty lines are items
         too. They are read as needed: at most 1,000 items, and 64 MiB of them and their results, are under way or
         wait for their turn on stdout; beyond that, items begin only one after the other. Bytes that
         are not UTF-8 arrive as surrogate escapes: os.fsencode(item) gives the very bytes back. A line may have 64 MiB.
output   One line of ASCII JSON for each item that succeeded, in input order. What TARGET (and its child processes)
         print goes to stderr instead; their stdin is empty where items come from there.
failures One line on stderr each. A result that JSON cannot express (NaN too) is a failure, unless --repr is given.
         --halt soon=N ends the run after N failures, once what runs has ended; --halt now=N as a signal would.
--resume LOG gets one line per completed item, before its result goes to stdout. Run again with the same log, target and
         items: what succeeded is printed again but not run again, what failed or is missing runs. All logged items are
         compared with the input before anything runs. The log survives the death of the process, not of the machine.
--cluster TARGET is called on the workers of a Dask cluster, or in N processes here (local:N). At most 1,000 items are
         there at a time. An item whose worker dies has failed. Needs Dask: pip install 'cmwq[dask]'. The page
         "Beyond one machine: Dask" of the documentation says more, also about trust.
status   0 all succeeded; 1 some items failed; 2 could not go on, or all succeeded and the trace can't be written (one
         line says why); 141 the reader of stdout went away, quietly. Ctrl-C, SIGTERM, SIGHUP (130, 143, 129 to a
         shell): no new item starts; those running get half a second to end, be logged, and be printed if they are in
         turn; a second signal doesn't wait. What still runs then is abandoned (and not logged).
"""


def _map_parser(make: Callable[..., Parser]) -> Parser:
    parser = make(
        prog="cmwq map",
        usage="%(prog)s [OPTION ...] [--] TARGET [ITEM ...]",
        description="Call a Python function on every item, with as much concurrency as pays.",
        epilog=_MAP_NOTES,
        formatter_class=_Notes,
    )
    parser.add_argument("target", metavar="TARGET", nargs="?", help="module:function, or module:Class.method")
    parser.add_argument("items", metavar="ITEM", nargs="*", help="default: the lines of standard input")
    _add_source(parser)
    parser.add_argument("--unordered", action="store_true", help="results as they come, not in input order")
    parser.add_argument("--with-item", action="store_true", help='print {"item": ..., "result" or "error": ...}')
    parser.add_argument("--repr", action="store_true", help="where JSON can't express a result, print its repr()")
    parser.add_argument("--resume", metavar="LOG", help="note what is done in LOG, and go on from there")
    _add_running(parser, "call the target again, up to N times, for an item that failed")
    _add_loudness(parser)
    return parser


_EXEC_USAGE = """\
%(prog)s [OPTION ...] [ITEM ...] -- COMMAND [ARG ...]
       %(prog)s [OPTION ...] --shell [ITEM ...] -- 'COMMAND LINE'
       %(prog)s [OPTION ...] --shell [ITEM ...]           (each item is a command line)"""

_EXEC_NOTES = """\
in COMMAND and its ARGs
  {}   the item                    {/}   its last component             {//}  its folder, or .
  {.}  without its extension       {/.}  both: last, and without        {#}   its number, from 1
  If none of these occurs, the item becomes the last ARG. With -I MARK braces stand for themselves.

examples
  cmwq exec ./*.wav -- flac {}
  find . -name '*.log' -print0 | sort -z | cmwq exec -0 --resume done.jsonl -- gzip -9kf
  cmwq exec --shell ./*.csv -- 'sort {} | uniq -c > {.}.counts'
  cmwq exec --timeout 30s --retries 2 --tag -a hosts -- ssh {} uptime
  cmwq exec --shell < commands.txt

items      Arguments, or the lines of FILEs or of standard input, empty lines too, read as they are
           needed. What isn't UTF-8 is passed on as it is. Options come before items. Write ./*, and
           not *, so that no file name is taken for an option, here or by the command; an option
           that is also the name of a file here is refused.
how many   As many processes as the CPUs can use: another is begun when one waits, and none while
           enough of them compute. --max-active is for what else can be used up.
--shell    The words are joined to a line for /bin/sh. Placeholders need no quotes: to the shell
           each is a variable, and it never reads an item as a part of its program. Where it would
           do so, as in arithmetic, or where that can't be told, a placeholder is refused.
output     stdout and stderr of a command appear when it has ended, each in one piece, in the order
           of the items. Commands read nothing from standard input, and have no terminal: what would
           ask there fails. A command has ended when its process has, and nothing that it left
           behind has its stdout or stderr open. With --line-buffer, lines of over 1 MiB are broken.
           What waits for its turn is in memory, and beyond 64 KiB each in a file without a name in
           $TMPDIR; at most 50,000 commands wait.
failures   One line on stderr each; the others go on. A command fails if its status isn't 0, if a
           signal ends it, or if it runs for longer than --timeout: then it and what it started (its
           process group) get SIGTERM, and SIGKILL after --kill-after.
--resume   LOG gets a line of JSON for each command that ended, before its output is printed: index,
           item, ok, command, start, seconds, status, signal, tries, and the output if it succeeded.
           Run again with the same log, command and items: what succeeded is printed again but not
           run again; what failed or is missing is run. So items that the log has must come again,
           in the same order: have COMMAND keep its input (gzip -k), put what find prints into an
           order (sort -z), and give LOG a name that isn't found. The log survives the death of the
           process, not of the machine. With --line-buffer it has no output, and nothing is printed
           again; to go on with such a log takes --line-buffer, too.
--cluster  Commands run on the workers of a Dask cluster, in their directory, or in N processes here
           (local:N). A command whose worker dies has failed. Needs Dask: pip install 'cmwq[dask]'.
           The page "Beyond one machine: Dask" of the documentation says more, also about trust.
status     0 all succeeded; 1 some failed, or --halt; 2 could not go on, or all succeeded and the
           trace can't be written (one line says why); 126 the command can't be executed; 127 it
           doesn't exist; 141 the reader of stdout went away.
signals    Ctrl-C, SIGTERM, SIGHUP, SIGQUIT (130, 143, 129, 131 to a shell): no command is begun;
           those running get the signal, and SIGKILL after --kill-after, or at once at a second
           signal. They are not logged, so --resume runs them again. Ctrl-Z stops them too.
"""


def _exec_parser(make: Callable[..., Parser]) -> Parser:
    parser = make(
        prog="cmwq exec",
        usage=_EXEC_USAGE,
        description="Run a command for every item: xargs -P or GNU parallel, without the number of processes.",
        epilog=_EXEC_NOTES,
        formatter_class=_Notes,
    )
    parser.add_argument("items", metavar="ITEM", nargs=argparse.REMAINDER, help="default: the lines of standard input")
    _add_source(parser)
    parser.add_argument(
        "-I", dest="mark", metavar="MARK", type=_mark, help="MARK in COMMAND is the item; no other placeholders"
    )
    parser.add_argument("--shell", action="store_true", help="COMMAND is a line for /bin/sh; without one, each item is")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none, and write to no log")
    output = parser.add_argument_group("output")
    order = output.add_mutually_exclusive_group()
    order.add_argument("--unordered", action="store_true", help="output of commands as they end, not in input order")
    order.add_argument("--line-buffer", action="store_true", help="each line at once; lines of several commands mix")
    output.add_argument("--tag", action="store_true", help="begin each line with the item and a tab")
    _add_loudness(output)
    running = parser.add_argument_group("running")
    _add_running(
        running, "run a command that failed again, up to N times; the last output is shown (--line-buffer: all)"
    )
    running.add_argument(
        "--timeout", metavar="TIME", type=_seconds, help="end a command after TIME: seconds, or 30s, 5m, 2h, 1d"
    )
    running.add_argument("--kill-after", metavar="TIME", type=_seconds, default=5.0,
                         help="how long a command that was asked to end may take (5 s)")  # fmt: skip
    logs = parser.add_argument_group("logs")
    logs.add_argument("--resume", metavar="LOG", help="note what is done in LOG, and go on from there")
    logs.add_argument("--job-log", metavar="FILE", help="append the same lines to FILE, without any output; never read")
    return parser


def _dashboard_parser(make: Callable[..., Parser]) -> None:
    parser = make(
        prog="cmwq dashboard",
        description="Serve a web page that shows what the pools of processes do. The processes must have called "
        "cmwq.monitor(), or run with CMWQ_MONITOR=1.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("pid", metavar="PID", nargs="?", type=_positive, help="the process to show")
    what.add_argument("--all", action="store_true", help="all processes of yours, also those that start later")
    what.add_argument("--cluster", metavar="ADDRESS", help="the workers of a Dask cluster: tcp://HOST:8786")
    what.add_argument("--replay", metavar="FILE", help="pictures in a file, as `cmwq dump PID --json` prints them")
    parser.add_argument("--host", default="127.0.0.1", help="the address to serve at (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=_natural, default=0, help="the port to serve at (0: any that is free)")
    parser.add_argument("--no-token", action="store_true", help="let everybody in who reaches the port")
    parser.add_argument("--interval", metavar="TIME", type=_seconds, default=1.0,
                        help="from one look at a process to the next (1 s)")  # fmt: skip


def _add_source(parser: Parser) -> None:
    parser.add_argument("-a", "--arg-file", metavar="FILE", action="append",
                        help="items are the lines of FILE (-: standard input); may be repeated")  # fmt: skip
    parser.add_argument("-0", "--null", action="store_true", help="items end with a NUL byte, not with a newline")


_TOP_NOTES = """\
The process must let itself be asked: cmwq.monitor() in it, or CMWQ_MONITOR=1 in its environment. It is asked for a
picture once a second, not before it has answered, and never changed. Keys: ? explains all of them.
Needs Textual: pip install 'cmwq[top]'
"""


def _top_parser(make: Callable[..., Parser]) -> Parser:
    parser = make(
        prog="cmwq top",
        usage="%(prog)s [PID]\n       %(prog)s --replay FILE",
        description="Pools, queues, functions and workers of a process, live in the terminal.",
        epilog=_TOP_NOTES,
        formatter_class=_Notes,
    )
    parser.add_argument("pid", metavar="PID", nargs="?", type=_positive, help="default: the only one that can be asked")
    parser.add_argument("--replay", metavar="FILE", help="show the pictures of a recording instead")
    parser.add_argument("--record", metavar="FILE", help="write each picture there too, a line of JSON each")
    parser.add_argument("--light", action="store_true", help="colours for a light background")
    return parser


def _add_running(parser: argparse._ActionsContainer, retries: str) -> None:
    parser.add_argument("--retries", metavar="N", type=_natural, default=0, help=retries)
    parser.add_argument("--halt", metavar="now|soon[=N]", type=_halt,
                        help="after N failures (1) begin nothing more; now: end what runs, too")  # fmt: skip
    parser.add_argument("--max-active", metavar="N", type=_positive,
                        help="at most N at a time (256), for what else can run out: connections")  # fmt: skip
    parser.add_argument("--cluster", metavar="ADDRESS",
                        help="on a Dask cluster (tcp://HOST:8786), or N processes here (local:N)")  # fmt: skip


def _add_loudness(parser: argparse._ActionsContainer) -> None:
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("--progress", action="store_true", help="show progress even if stderr is no terminal")
    loudness.add_argument("--quiet", action="store_true", help="no progress and no summary, only failures")
    parser.add_argument("--summary", action="store_true", help="at the end, a picture of how many ran when")
    parser.add_argument("--trace", metavar="FILE", help="write a trace for ui.perfetto.dev: what ran when, and where")


def _natural(text: str) -> int:
    return _number(text, 0)


def _positive(text: str) -> int:
    return _number(text, 1)


def _number(text: str, least: int) -> int:
    """No larger than what all that takes numbers can take."""
    digits = text.lstrip("0") or "0"  # int() refuses long texts in its own words
    large = len(digits) > len(str(LARGEST))
    if not (text.isascii() and text.isdigit()) or (not large and int(digits) < least):
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a number like {least}, {least + 1}, {least + 2}")
    if large or int(digits) > LARGEST:
        raise argparse.ArgumentTypeError(f"{_short(text)} is too large: at most {LARGEST}")
    return int(digits)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smhd]?)", text, re.ASCII)
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a time like 30, 1.5 or 10m")
    return seconds


def _halt(text: str) -> Halt:
    match = re.fullmatch(r"(now|soon)(?:(?:=|,fail=)([1-9]\d*))?", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not now, soon, now=N or soon=N")
    return Halt(match[1] == "now", _positive(match[2] or "1"))


def _mark(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("MARK is empty")
    return text


class _Notes(argparse.RawDescriptionHelpFormatter):
    """As wide as the notes, which are not wrapped."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=100)


class _Version(argparse.Action):
    """Look the version up only if it is asked for, which takes a while."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("cmwq")
        except PackageNotFoundError:
            number = "(not installed)"
        parser._print_message(f"cmwq {number}\n", sys.stdout)
        parser.exit()
