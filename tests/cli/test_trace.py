"""--trace of `cmwq map` and `cmwq exec`: the run as a file for Perfetto, whatever becomes of the run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from .conftest import Cli


def works(path: Path) -> dict[str, dict[str, Any]]:
    """The works of a trace, by name."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return {event["name"]: event for event in json.loads(text)["traceEvents"] if event.get("cat") == "work"}


def test_map_writes_a_slice_for_each_item(cli: Cli, tmp_path: Path) -> None:
    done = cli("map", "--trace", "t.json.gz", "targets:size", "a", "bb", "ccc")
    assert (done.returncode, done.stdout) == (0, b"1\n2\n3\n")
    assert {f"targets:size({item!r})" for item in ("a", "bb", "ccc")} <= works(tmp_path / "t.json.gz").keys()


def test_exec_writes_a_slice_for_each_command(cli: Cli, tmp_path: Path) -> None:
    done = cli("exec", "--trace", "t.json", "0.01", "0.02", "--", "sleep")
    assert (done.returncode, done.stderr) == (0, b"")
    found = works(tmp_path / "t.json")
    assert found["sleep 0.02"]["dur"] >= 20_000
    assert found["sleep 0.01"]["args"]["queue"] == "cmwq exec"


def test_a_run_that_halts_has_its_trace(cli: Cli, tmp_path: Path) -> None:
    done = cli("exec", "--halt", "now", "--trace", "t.json", "1", "--", "false")
    assert done.returncode == 1
    assert "false 1" in works(tmp_path / "t.json")


def test_a_trace_that_cannot_be_written_is_one_line_and_a_status(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    done = cli("map", "--trace", "folder", "targets:size", "a")
    assert (done.returncode, done.stdout) == (2, b"1\n")
    assert done.stderr.decode() == f"cmwq map: no trace: {tmp_path}/folder: Is a directory\n"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "folder"))) == ["folder"]


def test_a_folder_that_is_missing_is_said_before_anything_runs(cli: Cli, tmp_path: Path) -> None:
    done = cli("map", "--trace", "missing/t.json", "targets:same", "a")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"cmwq map: error: trace 'missing/t.json': there is no folder ")
    assert not (tmp_path / "effects").exists()
