"""`cmwq ps`: the processes that can be asked."""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

from cmwq.cli.blocks import Column, Paragraph, Table, show
from cmwq.observing.client import NotAnswering, Process, connect, processes
from cmwq.observing.findings import duration, entries, number

PATIENCE = 2.0
"""Seconds that a process has to answer."""
COLUMNS = (
    Column("PID"), Column("age", rank=2), Column("pools", rank=1), Column("workers"), Column("running", rank=3),
    Column("blocked", rank=4), Column("pending"), Column("command", right=False),
)  # fmt: skip
NONE = "No process can be asked. Start one with CMWQ_MONITOR=1, or call cmwq.monitor() in it."


def run(options: argparse.Namespace) -> int:
    found = [_described(process) for process in processes() if process.pid != os.getpid()]
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    if not found:
        show([Paragraph(NONE)])
        return 0
    now = time.time()
    show([Table(COLUMNS, [_row(each, now) for each in found])])
    return 0


def _described(process: Process) -> dict[str, Any]:
    """What is printed of a process. Its counts are None if it did not answer."""
    plain: dict[str, Any] = {
        "pid": process.pid,
        "since": process.since or None,
        "command": list(process.command),
        "path": process.path,
        "answers": process.answers,
        **dict.fromkeys(("pools", "workers", "running", "blocked", "pending")),
    }
    if process.answers:
        try:
            with connect(process.pid, process.path, timeout=PATIENCE) as connection:
                picture = connection.picture()
        except NotAnswering:
            plain["answers"] = False
        else:
            pools = entries(picture, "pools")
            plain["pools"] = len(pools)
            plain["pending"] = sum(int(number(pool, "pending") + number(pool, "inactive")) for pool in pools)
            for key in ("workers", "running", "blocked"):
                plain[key] = sum(int(number(pool, key)) for pool in pools)
    return plain


def _row(plain: dict[str, Any], now: float) -> list[str]:
    age = duration(max(now - plain["since"], 0.0)) if plain["since"] else "?"
    counts = ["?" if plain[key] is None else f"{plain[key]:,}" for key in ("pools", "workers", "running", "blocked")]
    pending = "?" if plain["pending"] is None else f"{plain['pending']:,}"
    silent = "" if plain["answers"] else "(does not answer) "
    program, *arguments = plain["command"] or [""]
    return [str(plain["pid"]), age, *counts, pending, silent + " ".join([os.path.basename(program), *arguments])]
