"""A stall: a work that holds a lock waits for something that does not come, and everybody else waits for the lock.

    python examples/stalls/lock_held.py

It prints its number and then stalls until Ctrl-C. `docs/stalls.md` explains it from `cmwq dump` alone.
"""

from __future__ import annotations

import os
import threading

import cmwq

ledger = threading.Lock()
approvals, approver = os.pipe()  # whoever approves writes a line; nobody does
balance = 0


def book(amount: int) -> None:
    global balance
    with ledger:
        if amount > 900:
            os.read(approvals, 100)
        balance += amount


def main() -> None:
    cmwq.configure(watchdog_thresh=2)  # seconds, so that the report comes soon
    cmwq.monitor()
    bookings = cmwq.WorkQueue("bookings")
    for amount in range(970, 990):
        bookings.submit(book, amount)
    print(os.getpid(), flush=True)
    bookings.flush()


if __name__ == "__main__":
    main()
