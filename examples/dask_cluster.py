"""A work queue on a cluster of two worker processes: tasks that wait cost no threads' worth of slots.

python examples/dask_cluster.py
"""

from __future__ import annotations

import time

import distributed  # type: ignore[import-untyped,import-not-found,unused-ignore]

from cmwq.contrib.dask import ClusterWorkQueue, CmwqPlugin


def visit(number: int) -> int:
    """Waits, as for a server."""
    time.sleep(0.1)
    return number * number


def main() -> None:
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        begun = time.monotonic()
        client.gather(client.map(visit, range(40), pure=False))
        print(f"Dask: 40 visits of 0.1 s in {time.monotonic() - begun:.2f} s")

        client.register_plugin(CmwqPlugin())
        with ClusterWorkQueue("visits", client=client) as visits:
            begun = time.monotonic()
            squares = list(visits.map(visit, range(40)))
            print(f"cmwq: 40 visits of 0.1 s in {time.monotonic() - begun:.2f} s, and {sum(squares)} in all")
        with ClusterWorkQueue("ledger", client=client, ordered=True) as ledger:
            entries = [ledger.submit(divmod, number, 3) for number in range(5)]
            print("in order:", [entry.result() for entry in entries])


if __name__ == "__main__":
    main()
