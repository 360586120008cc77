"""A stall: a server accepts connections and never answers, and whoever asks it has set no limit of time.

    python examples/stalls/hung_socket.py

It prints its number and then stalls until Ctrl-C. `docs/stalls.md` explains it from `cmwq dump` alone.
"""

from __future__ import annotations

import os
import socket

import cmwq


def price(article: int, server: tuple[str, int]) -> bytes:
    with socket.create_connection(server) as connection:
        connection.sendall(f"price of {article}\n".encode())
        return connection.recv(1000)


def main() -> None:
    cmwq.configure(watchdog_thresh=2)  # seconds, so that the report comes soon
    cmwq.monitor()
    with socket.create_server(("127.0.0.1", 0)) as server:  # it never accepts: the system does
        prices = cmwq.WorkQueue("prices", max_active=4)
        for article in range(10):
            prices.submit(price, article, server.getsockname())
        print(os.getpid(), flush=True)
        prices.flush()


if __name__ == "__main__":
    main()
