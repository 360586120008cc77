"""WSGI servers with threads: gunicorn's gthread worker, and waitress."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from loads import Load, Outcome
from served.http_load import measured

SIZES = ("stock", "8", "32", "128", "cmwq")
CLIENTS = 64
STOCK_THREADS = "4"
PATHS = {
    "sleeps": ["/sleep/100"] * 256,
    "mixed": ["/sleep/50", "/zlib/256", "/sleep/50", "/"] * 150,
    "long": ["/sleep/100", "/zlib/1024"] * 64,
    "trivial": ["/"] * 3000,
}
TITLES = {
    "sleeps": "256 x 100 ms of sleep, 64 clients",
    "mixed": "600 requests: half sleep 50 ms, a quarter compress 256 KB, a quarter do nothing; 64 clients",
    "long": "128 requests: half sleep 100 ms, half compress 1 MB; 64 clients",
    "trivial": "3,000 requests that do nothing, 64 clients",
}
NOTES = {
    "mixed": "here the CPUs bound the whole. A crowd of threads shares them among all requests; cmwq lets about as "
    "many compressions run as there are CPUs.",
    "long": "cmwq lets about as many compressions run as there are CPUs, and the sleeps pass them, so the median is "
    "lower; a crowd runs all at once, and the sleeps wait with them.",
    "trivial": "the worst case for cmwq: nothing waits, so there is nothing to win, and each request costs it one more "
    "look at the connection, and a wake-up that a busy pool of few threads saves. waitress's loop looks at every "
    "connection after each answer; it was the slower the fewer threads competed with it for the GIL, one or two of its "
    "own as well (2.6 to 5.9 s). With cmwq the loop lets all requests that it has read begin before it looks again.",
}


def gunicorn(setting: str, port: int) -> Sequence[str]:
    worker = ["cmwq.contrib.gunicorn.Worker"]
    if setting != "cmwq":
        worker = ["gthread", "--threads", STOCK_THREADS if setting == "stock" else setting]
    address = f"127.0.0.1:{port}"
    return ["-m", "gunicorn", "-b", address, "--log-level", "error", "--keep-alive", "5", "-k", *worker, "wsgi_app:app"]


def waitress(setting: str, port: int) -> Sequence[str]:
    module = ["cmwq.contrib.waitress"] if setting == "cmwq" else ["waitress"]
    if setting not in ("stock", "cmwq"):
        module.append(f"--threads={setting}")
    return ["-m", *module, f"--listen=127.0.0.1:{port}", "wsgi_app:app"]


def run(name: str, load: str, setting: str) -> Outcome:
    command = gunicorn if name == "gunicorn" else waitress
    return measured(partial(command, setting), PATHS[load], CLIENTS)


LOADS = [
    Load(
        f"{name}-{load}",
        f"{name}{f' ({STOCK_THREADS} threads as stock)' if name == 'gunicorn' else ''}: {TITLES[load]}",
        SIZES,
        partial(run, name, load),
        NOTES.get(load, ""),
        (name,),
    )
    for name in ("gunicorn", "waitress")
    for load in PATHS
]
