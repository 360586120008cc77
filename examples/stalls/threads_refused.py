"""A stall: no more threads can be had, and those that there are wait for a work that needs one.

    python examples/stalls/threads_refused.py

The limit is `max_workers` here, so that the example does no harm; the limits of a container (`pids.max`) or of a user
(`ulimit -u`) do the same. It prints its number and then stalls until Ctrl-C. `docs/stalls.md` explains it from
`cmwq dump` alone.
"""

from __future__ import annotations

import os
import threading

import cmwq

PLAYERS = 8
everybody_is_there = threading.Barrier(PLAYERS)


def play(player: int) -> int:
    everybody_is_there.wait()
    return player


def main() -> None:
    cmwq.configure(max_workers=5, watchdog_thresh=2)  # seconds, so that the report comes soon
    cmwq.monitor()
    game = cmwq.WorkQueue("game")
    for player in range(PLAYERS):
        game.submit(play, player)
    print(os.getpid(), flush=True)
    game.flush()


if __name__ == "__main__":
    main()
