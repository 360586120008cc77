"""dask: the same queue on many machines, on Dask distributed.

- `CmwqPlugin` puts cmwq in place of the thread pool of Dask's workers: a task that blocks gives its slot back.
- `ClusterWorkQueue` is a work queue that spans the cluster; `ClusterWork` its works that are queued many times.
- `on_cancel` and `was_cancelled` tell a task that nobody wants its result any more.
- `pictures`, `cluster_trace` and `Source` look at all workers at once.

`docs/integrations/dask.md` says what is promised, what is not, and why. Whoever can queue works, or can connect to the
scheduler, can run any code on the workers.
"""

from cmwq.contrib.dask.calls import on_cancel, was_cancelled
from cmwq.contrib.dask.errors import VersionMismatch, WorkLost
from cmwq.contrib.dask.plugin import CmwqPlugin, dask_setup
from cmwq.contrib.dask.queue import ClusterWorkQueue
from cmwq.contrib.dask.scheduler import AheadPlugin, CmwqSchedulerPlugin
from cmwq.contrib.dask.watching import ClusterTrace, Source, cluster_trace, pictures
from cmwq.contrib.dask.work import ClusterFuture, ClusterWork

__all__ = (
    "AheadPlugin",
    "ClusterFuture",
    "ClusterTrace",
    "ClusterWork",
    "ClusterWorkQueue",
    "CmwqPlugin",
    "CmwqSchedulerPlugin",
    "Source",
    "VersionMismatch",
    "WorkLost",
    "cluster_trace",
    "dask_setup",
    "on_cancel",
    "pictures",
    "was_cancelled",
)
