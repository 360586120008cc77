"""errors: what can become of a work on a cluster that can't happen on one machine."""

from __future__ import annotations

import cmwq


class WorkLost(cmwq.CmwqError, RuntimeError):
    """A work was sent to the cluster, and nobody can know how it ended: it never began, was interrupted, or has ended.

    Its worker died, its result was lost with the worker that kept it, or the scheduler did. The work is not run again,
    because it was not declared repeatable. The message says which of these was seen.
    """


class VersionMismatch(cmwq.CmwqError, RuntimeError):
    """A work was sent by another version of Python or of cmwq than the worker has. It was not run."""
