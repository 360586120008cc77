"""Where `cmwq top` gets its pictures from: processes that answer, are silent or end, and recordings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pictures
import pytest
from conftest import HANG, until

import cmwq
from cmwq.observing.top_source import Live, Over, Recorded, Replay, Silent


class NotAnswering(cmwq.CmwqError):
    pass


class Client(ModuleType):
    """A stand-in for `cmwq.observing.client`, whose process says what the test wants, or raises it."""

    NotAnswering = NotAnswering

    def __init__(self) -> None:
        super().__init__("cmwq.observing.client")
        self.says: Any = pictures.picture()
        self.connections: list[Connection] = []

    def connect(self, pid: int | None = None, path: str | None = None) -> Connection:
        if isinstance(self.says, Exception):
            raise self.says
        self.connections.append(Connection(self))
        return self.connections[-1]


class Connection:
    def __init__(self, client: Client) -> None:
        self.client = client
        self.closed = False

    def picture(self, stacks: bool = False) -> dict[str, Any]:
        if isinstance(self.client.says, Exception):
            raise self.client.says
        return {**self.client.says, "stacks": stacks}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()
    monkeypatch.setitem(sys.modules, "cmwq.observing.client", client)
    return client


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Some process that waits until it is told to end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_picture_is_asked_for_with_stacks_if_they_are_wanted(client: Client) -> None:
    source = Live()
    assert [source.picture()["stacks"], source.picture(stacks=True)["stacks"]] == [False, True]
    assert len(client.connections) == 1


def test_who_does_not_answer_is_asked_again_by_a_new_connection(
    client: Client, process: subprocess.Popen[bytes]
) -> None:
    source = Live(process.pid)
    client.says = NotAnswering("it takes longer than 5 s")
    for _ in range(2):
        with pytest.raises(Silent, match="longer than 5 s"):
            source.picture()
    assert client.connections[0].closed
    client.says = pictures.picture()
    assert source.picture()["version"] == 1
    assert len(client.connections) == 2


@pytest.mark.parametrize("named", [True, False])
def test_a_process_that_has_ended_is_over(client: Client, process: subprocess.Popen[bytes], named: bool) -> None:
    client.says = pictures.picture(pid=process.pid)
    source = Live(process.pid if named else None)
    source.picture()
    process.kill()
    client.says = ConnectionResetError("reset by peer")
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    with pytest.raises(Over, match=f"process {process.pid} has ended"):  # although nobody has waited for it yet
        source.picture()


def test_another_process_with_the_same_number_is_not_taken_for_it(
    client: Client, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Live(process.pid)
    monkeypatch.setattr("cmwq.observing.top_source._born", lambda pid: "much later")
    client.says = BrokenPipeError()
    with pytest.raises(Over, match="has ended"):
        source.picture()


def test_who_cannot_be_asked_at_first_is_refused_with_its_sentence(client: Client) -> None:
    client.says = NotAnswering("process 7 has no monitor; CMWQ_MONITOR=1 starts one")
    with pytest.raises(cmwq.CmwqError, match="CMWQ_MONITOR"):
        Live(7)


def test_a_picture_of_another_version_is_over(client: Client) -> None:
    client.says = pictures.picture(version=2)
    with pytest.raises(Over, match="version 2"):
        Live().picture()


# ------------------------------------------------------------------------------------- recordings


def recording(folder: Path, *lines: str) -> Path:
    path = folder / "recording"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_what_is_recorded_can_be_replayed(tmp_path: Path) -> None:
    story = [pictures.picture(uptime=float(n)) for n in range(3)]
    given = iter(story)

    class Given:
        def picture(self, stacks: bool = False) -> dict[str, Any]:
            return next(given)

        def close(self) -> None:
            pass

    recorded = Recorded(Given(), tmp_path / "recording")
    assert [recorded.picture() for _ in range(3)] == story
    recorded.close()
    replay = Replay(tmp_path / "recording")
    assert [replay.picture() for _ in range(3)] == story
    for _ in range(2):
        with pytest.raises(Over, match="the recording has ended"):
            replay.picture()
    replay.close()


def test_a_recording_without_a_picture_is_refused_at_once(tmp_path: Path) -> None:
    for line, why in (("", "not a picture in JSON"), ("[1]", "not a picture"), ('{"a": 1}', "line 1 .* not a picture")):
        with pytest.raises(Over, match=why):
            Replay(recording(tmp_path, line))
    with pytest.raises(Over, match="is empty"):
        Replay(recording(tmp_path))
    with pytest.raises(FileNotFoundError):
        Replay(tmp_path / "nowhere")


def test_a_recording_that_breaks_off_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    good = json.dumps(pictures.picture())
    replay = Replay(recording(tmp_path, good, good, good[:50]))
    replay.picture()
    replay.picture()
    with pytest.raises(Over, match="line 3"):
        replay.picture()
    replay.close()


def test_a_recording_of_objects_within_one_another_is_over(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"pools":' * 100_000)
    with pytest.raises(Over, match="not a picture in JSON"):
        Replay(path).picture()


def test_a_recording_that_can_not_be_written_says_so(tmp_path: Path) -> None:
    from itertools import repeat

    class Given:
        given = repeat(pictures.picture())

        def picture(self, stacks: bool = False) -> dict[str, Any]:
            return next(self.given)

        def close(self) -> None:
            pass

    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    recorded = Recorded(Given(), full)
    with pytest.raises(Over, match="can't be written"):
        recorded.picture()
    recorded.close()


REPLAYED = """
import os, pty, select, sys, time
pid, fd = pty.fork()
if pid == 0:
    os.environ.update(TERM="xterm-256color", COLUMNS="80", LINES="24")
    os.execv(sys.executable, [sys.executable, "-m", "cmwq", "top", "--replay", sys.argv[1]])
seen, deadline, asked = b"", time.monotonic() + 60, False
while time.monotonic() < deadline:
    if select.select([fd], [], [], 0.1)[0]:
        try:
            seen += os.read(fd, 65536)
        except OSError:
            break
    if not asked and b"mail" in seen:
        os.write(fd, b"q")
        asked = True
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert b"Traceback" not in seen, seen
print(asked, status)
"""


def test_the_command_replays_a_recording_in_a_terminal_and_ends_by_q(tmp_path: Path) -> None:
    pytest.importorskip("textual", reason="Textual can't be imported here")
    path = recording(tmp_path, *(json.dumps(pictures.Story().next()) for _ in range(3)))
    command = [sys.executable, "-c", REPLAYED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True 0\n", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["7"], "stdin and stdout must be a terminal"),
        (["7", "--replay", "x"], "but not both"),
        (["x"], "'x' is not a number"),
    ],
)
def test_what_prevents_it_is_said_in_one_line(arguments: list[str], says: str) -> None:
    command = [sys.executable, "-m", "cmwq", "top", *arguments]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
