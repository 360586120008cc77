"""Attempts to break F10: nothing is left in the middle, whatever interrupts a call or enters while one is under way.

whole.py         what "everything is whole" means, as checks that end within a bounded time
operations.py    the calls that are attacked, each with a fresh set-up
tracing.py       an exception, or a call of ours, at the k-th bytecode of a call
intruders.py     what is called in the middle of a call
attacks.py       one round: an operation, an attack, the checks
loads.py         load with asynchronous exceptions, handlers, finalisers and weak references' callbacks
ends.py          forks and exits at random moments
child.py         the program that does the rounds: what hangs is killed there, with words
sweep.py         starts such programs, goes on behind what broke, and tells by a table: `make interrupted`
"""

import os
import sys

if os.environ.get("CMWQ_LOCKS") == "python":
    # As where no compiler was: the locks are those written in Python, and so is all else. Before the first import.
    sys.modules["cmwq._sensor._sentinel"] = None  # type: ignore[assignment]
