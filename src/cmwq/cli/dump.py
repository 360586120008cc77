"""`cmwq dump`: what a process does and why it stalls, from its picture alone.

The picture comes from a process, from a socket, or from a file that `cmwq dump --json` made. Nothing is changed in the
process, unless it has no monitor and is given one (`observing/remote.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from typing import Any

from cmwq.cli.blocks import Paragraph, show
from cmwq.cli.output import Refusal, reason
from cmwq.cli.sections import page
from cmwq.observing import remote
from cmwq.observing.client import LONGEST_ANSWER, NotAnswering, connect

MOST_DIGITS = 20
"""No process has a number of more."""
KNOWN = 1
"""The version of pictures that this program knows. A newer one has more, which is left out."""


def run(options: argparse.Namespace) -> int:
    picture = take(options.target, stacks=not options.no_stacks)
    if options.json:
        print(json.dumps(picture, indent=2))
        return 0
    try:
        blocks = page(picture, stacks=not options.no_stacks)
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise Refusal(
            f"{options.target}: a picture that makes no sense here ({type(error).__name__}: {error})"
        ) from error
    version = picture.get("version")
    if isinstance(version, int) and version > KNOWN:
        blocks.insert(0, Paragraph(f"made by a newer cmwq (version {version}): parts of it are not shown", tone="dim"))
    show(blocks)
    return 0


def take(target: str, *, stacks: bool) -> dict[str, Any]:
    """The picture of this process, given by its number; or the one at this path, of a socket or a file; `-` is standard
    input. Raises Refusal.
    """
    try:
        if target.isascii() and target.isdigit():
            if len(target) > MOST_DIGITS:  # a longer one `int` refuses in its own words
                raise Refusal(f"there is no process {target[:MOST_DIGITS]}..., a number of {len(target):,} digits")
            return _of_process(int(target), stacks)
        if target != "-" and _is_socket(target):
            with connect(path=target) as connection:
                return connection.picture(stacks)
    except NotAnswering as error:
        raise Refusal(str(error)) from error
    return _saved(target)


def _of_process(pid: int, stacks: bool) -> dict[str, Any]:
    try:
        connection = connect(pid)
    except NotAnswering as error:
        remote.give_monitor(pid, error)
        connection = connect(pid)
    with connection:
        return connection.picture(stacks)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _saved(path: str) -> dict[str, Any]:
    try:
        if path == "-":
            if sys.stdin is None:
                raise Refusal("standard input is closed")
            text = sys.stdin.buffer.read(LONGEST_ANSWER)
        else:
            with open(path, "rb") as file:
                text = file.read(LONGEST_ANSWER)
    except OSError as error:
        hint = "" if os.path.lexists(path) else " (a process is given by its number)"
        raise Refusal(f"{reason(error)}{hint}") from error
    try:
        picture = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path}: this is no picture of cmwq: it is not JSON") from error
    if isinstance(picture, dict) and isinstance(picture.get("picture"), dict):  # a line as it comes over the socket
        picture = picture["picture"]
    if not isinstance(picture, dict) or not isinstance(picture.get("pools"), list):
        raise Refusal(f"{path}: this is JSON, and no picture of cmwq: it has no pools")
    return picture
