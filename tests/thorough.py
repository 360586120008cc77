"""How many of the same kind: a few hundred each time, or, with CMWQ_THOROUGH=1, as many as the night has room for.

Of many random programs, or of all places at which something may be interrupted, `make test` takes enough that a rule
that is broken is noticed. All of them are for `make thorough`, and for `make mutants`, whose mutants are told apart by
them.
"""

from __future__ import annotations

import os

THOROUGH = os.environ.get("CMWQ_THOROUGH") == "1"


def often(all_of_them: int, enough: int) -> int:
    """A number, or a distance from one to the next."""
    return all_of_them if THOROUGH else enough
