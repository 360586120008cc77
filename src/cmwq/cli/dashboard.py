"""`cmwq dashboard`: a web page that shows what the pools of other processes do.

Guarantees: what can't be served is told in one line with status 2 before anything is served: a process that does not
answer, a port that is taken, a package that is missing. Ctrl-C and SIGTERM end it within a few seconds.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from cmwq.cli.output import Refusal, one_line, reason, say
from cmwq.observing.dashboard.sources import NoPicture, Over, Recording, Sockets, Source

MISSING = "the dashboard needs Starlette and uvicorn: pip install 'cmwq[dashboard]'"


def run(options: argparse.Namespace) -> int:
    try:
        serving = import_module("cmwq.observing.dashboard.serving")
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "cmwq":
            raise
        raise Refusal(f"{MISSING} ({error})") from error
    settings = serving.Settings(
        host=options.host,
        port=options.port,
        token=not options.no_token,
        interval=options.interval,
        search=options.all or options.cluster is not None,
    )
    if options.no_token and not serving.is_loopback(options.host):
        say("cmwq dashboard: warning: without a token, whoever reaches this port sees everything")
    try:
        serving.Dashboard(_source(options), settings).serve(_tell)
    except NoPicture as error:
        raise Refusal(one_line(str(error))) from error
    except OSError as error:
        raise Refusal(f"{options.host}:{options.port} can't be served: {reason(error)}") from error
    return 0


def _source(options: argparse.Namespace) -> Source:
    if options.replay is not None:
        return Recording(Path(options.replay))
    if options.cluster is not None:
        return _of_cluster(options.cluster)
    sockets = Sockets(import_module("cmwq.observing.client"), options.pid)
    if options.pid is not None:
        try:
            sockets.connect(sockets.targets()[0]).close()  # told now if it doesn't answer, and not on the page
        except Over as over:
            raise NoPicture(str(over)) from over
    return sockets


def _of_cluster(address: str) -> Source:
    """The workers of a Dask cluster. Raises Refusal."""
    try:
        dask, distributed = import_module("cmwq.contrib.dask"), import_module("distributed")
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "cmwq":
            raise
        raise Refusal(f"--cluster needs Dask distributed: pip install 'cmwq[dask]' ({error})") from error
    try:
        client = distributed.Client(address, timeout=10, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise Refusal(f"cluster {address!r}: {one_line(str(error) or type(error).__name__)}") from error
    source: Source = dask.Source(client)
    return source


def _tell(address: str) -> None:
    print(f"The dashboard is at {address}\n(Ctrl-C ends it.)")
    sys.stdout.flush()
