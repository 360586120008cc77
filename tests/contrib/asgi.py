"""A real uvicorn on a free port of 127.0.0.1, in a thread of this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from conftest import HANG


@contextmanager
def served(app: Any, **options: Any) -> Iterator[str]:
    """Serve the app, and yield its address. It is stopped at the end, whatever happens."""
    import uvicorn

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(2048)
        config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=10, **options)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(HANG)
        assert not thread.is_alive()
