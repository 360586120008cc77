"""The monitor answers its user and root, and nothing that anybody sends harms the process."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, descriptors, until

import cmwq
from cmwq.observing import answering, places, server
from cmwq.observing.client import connect

from .conftest import ask, dial, read_line

PICTURE = b'{"version":1,"ask":"picture"}\n'
WHO = b'{"version":1,"ask":"who"}\n'
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")


@pytest.fixture
def monitor() -> Iterator[server.Monitor]:
    with cmwq.monitor() as monitor:
        yield monitor


def its_loop() -> answering.Answering:
    """What answers in this process."""
    running = server._state.server
    assert running is not None
    assert running.answering is not None
    return running.answering


def clients() -> int:
    return len(its_loop().clients)


# ------------------------------------------------------------------------------------------- answers


def test_the_picture_is_that_of_snapshot(monitor: server.Monitor) -> None:
    cmwq.system.submit(int).result(HANG)
    with dial(monitor.path) as caller:
        answer = ask(caller, PICTURE)
    assert answer["version"] == 1
    assert answer["picture"]["pid"] == os.getpid()
    assert {pool["name"] for pool in answer["picture"]["pools"]} >= {"u0"}
    assert answer["picture"].keys() == cmwq.snapshot().to_dict().keys()


def test_stacks_come_only_if_asked_for(monitor: server.Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(its_loop(), "_picture", lambda stacks: {"stacks": stacks})
    with connect(path=monitor.path) as connection:
        assert [connection.picture(stacks)["stacks"] for stacks in (False, True, False)] == [False, True, False]


def test_one_connection_asks_many_times(monitor: server.Monitor) -> None:
    with dial(monitor.path) as caller:
        caller.sendall(WHO + PICTURE + WHO)
        received = b""
        while received.count(b"\n") < 3:
            received += caller.recv(1 << 16)
    assert ["who" in json.loads(line) for line in received.splitlines()] == [True, False, True]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (b"\n", "a question is a JSON object in one line"),
        (b"\xff\x00\xfe garbage \x1b[2J\n", "a question is a JSON object in one line"),
        (b"[" * 3000 + b"\n", "a question is a JSON object in one line"),
        (b'"picture"\n', "a question is a JSON object in one line"),
        (b'{"ask":"freeze"}\n', "there are two questions"),
        (b'{"ask":["picture"]}\n', "there are two questions"),
        (b'{"version":2,"ask":"picture"}\n', "answers version 1"),
        (b"x" * 5000 + b"\n", "at most 4096 bytes"),
        (b"x" * 5000, "at most 4096 bytes"),
    ],
)
def test_whoever_asks_nonsense_is_told_so(monitor: server.Monitor, question: bytes, words: str) -> None:
    with dial(monitor.path) as caller:
        assert words in ask(caller, question)["error"]
    with dial(monitor.path) as caller:
        assert ask(caller, WHO)["who"]["pid"] == os.getpid()


def test_a_large_picture_comes_whole(monitor: server.Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"workers": [{"name": f"w{n}", "stack": ["x" * 1000] * 5} for n in range(2001)], "none": [], "empty": {}}
    monkeypatch.setattr(its_loop(), "_picture", lambda stacks: large)
    with connect(path=monitor.path) as connection:
        assert connection.picture() == large


def test_a_picture_that_fails_is_an_answer_too(monitor: server.Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(stacks: bool) -> dict[str, Any]:
        raise KeyError("lost")

    monkeypatch.setattr(its_loop(), "_picture", broken)
    with dial(monitor.path) as caller:
        assert "KeyError" in ask(caller, PICTURE)["error"]
        assert "who" in ask(caller, WHO)


# ------------------------------------------------------------------------------------------- who may ask


def test_the_socket_and_its_folder_are_closed_to_others(monitor: server.Monitor, home: Path) -> None:
    assert Path(monitor.path).parent == home / "cmwq"
    assert stat.S_IMODE(os.stat(monitor.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(home / "cmwq").st_mode) == 0o700


def test_a_socket_at_a_path_of_ones_own_is_never_open_to_others(tmp_path: Path) -> None:
    """Not even while it is made: that the mode is not set afterwards is seen by making chmod useless."""
    old = os.umask(0)
    chmod = os.chmod
    try:
        os.chmod = lambda *args, **options: None  # type: ignore[assignment]
        with cmwq.monitor(str(tmp_path / "mine")) as monitor:
            assert monitor.path == str(tmp_path / "mine")
            assert stat.S_IMODE(os.stat(monitor.path).st_mode) == 0o600
    finally:
        os.chmod = chmod
        os.umask(old)


@as_root
def test_another_user_is_refused_even_where_the_files_would_let_them(tmp_path: Path) -> None:
    with cmwq.monitor(str(tmp_path / "open")) as monitor:
        os.chmod(monitor.path, 0o777)
        for folder in [tmp_path, *tmp_path.parents][:-1]:
            if folder != Path("/tmp"):
                os.chmod(folder, os.stat(folder).st_mode | 0o011)
        path = monitor.path
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setgid(65534)
                os.setuid(65534)
                with dial(path) as caller:
                    while more := caller.recv(10_000):
                        os.write(tell, more)
                os.write(tell, b"|")
            except BaseException as error:
                os.write(tell, repr(error).encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        os.close(tell)
        with open(told) as file:
            heard = file.read()
        assert "its own user (0) and root only" in heard
        assert heard.endswith("|"), "it was not hung up on"
        assert "pools" not in heard


@as_root
def test_root_may_ask_a_process_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with cmwq.monitor(str(tmp_path / "theirs")) as monitor, dial(monitor.path) as caller:
        assert "who" in ask(caller, WHO)


def test_without_a_runtime_directory_there_is_a_folder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bad in (None, "relative", str(tmp_path / "missing")):
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
        if bad is None:
            monkeypatch.delenv("XDG_RUNTIME_DIR")
        else:
            monkeypatch.setenv("XDG_RUNTIME_DIR", bad)
        with cmwq.monitor() as monitor:
            folder = Path(monitor.path).parent
            assert folder == tmp_path / f"cmwq-{os.geteuid()}"
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("trap", ["open", "link", "file"])
def test_a_folder_that_somebody_else_could_have_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder, elsewhere = tmp_path / f"cmwq-{os.geteuid()}", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if trap == "open":
        folder.mkdir()
        folder.chmod(0o755)
    elif trap == "link":
        folder.symlink_to(elsewhere)
    else:
        folder.touch()
    with pytest.raises(OSError, match="cmwq-"):
        cmwq.monitor()
    assert list(elsewhere.iterdir()) == []
    assert server._state.server is None


@as_root
def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = tmp_path / "cmwq-0"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, -1)
    with pytest.raises(PermissionError, match="belongs to user 65534"):
        cmwq.monitor()


# ------------------------------------------------------------------------------------------- harm


def test_1000_connects_and_disconnects_leave_nothing_behind(monitor: server.Monitor) -> None:
    with dial(monitor.path) as caller:
        ask(caller, WHO)
    until(lambda: clients() == 0)
    before, threads = descriptors(), threading.active_count()
    for number in range(1000):
        caller = dial(monitor.path)
        if number % 3:
            with suppress(BrokenPipeError):  # there may be too many by now, and it was sent away
                caller.sendall([PICTURE, PICTURE[:10], b"\xff" * 100][number % 3])
        if number % 2:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        caller.close()

    def answers() -> bool:
        with dial(monitor.path) as caller:
            try:
                return "who" in ask(caller, WHO)
            except (BrokenPipeError, ConnectionResetError):  # it was hung up on before it had asked
                return False

    until(answers)  # those that wait to be accepted come first, and with them this one may be one too many
    until(lambda: clients() == 0)
    assert (descriptors(), threading.active_count()) == (before, threads)


def test_whoever_sends_no_more_still_gets_the_answer(monitor: server.Monitor) -> None:
    """As by `echo ... | nc -U`."""
    with dial(monitor.path) as caller:
        caller.sendall(PICTURE)
        caller.shutdown(socket.SHUT_WR)
        assert "picture" in read_line(caller)
        assert caller.recv(1) == b""


def test_half_closed_sockets_are_hung_up_on(monitor: server.Monitor) -> None:
    with dial(monitor.path) as silent, dial(monitor.path) as deaf:
        silent.shutdown(socket.SHUT_WR)
        assert silent.recv(1) == b""
        deaf.shutdown(socket.SHUT_RD)
        deaf.sendall(PICTURE)
        until(lambda: clients() == 0)


def test_there_is_a_limit_of_clients_and_the_next_is_told(monitor: server.Monitor) -> None:
    callers = [dial(monitor.path) for _ in range(answering.MOST_CLIENTS)]
    try:
        for caller in callers:
            assert "who" in ask(caller, WHO)
        with dial(monitor.path) as late:
            assert "busy" in read_line(late)["error"]
            assert late.recv(1) == b""
        assert "who" in ask(callers[0], WHO)
    finally:
        for caller in callers:
            caller.close()
    until(lambda: clients() == 0)
    with dial(monitor.path) as caller:
        assert "who" in ask(caller, WHO)


@pytest.mark.parametrize("begun", [b"", b'{"ask":', WHO + b'{"ask":'])
def test_whoever_does_not_ask_in_time_is_hung_up_on(
    monitor: server.Monitor, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(answering, "QUESTION_TIME", 0.2)
    with dial(monitor.path) as caller:
        with suppress(BrokenPipeError):  # it was late already
            caller.sendall(begun)
        assert hung_up(caller)


def test_a_question_that_trickles_in_is_not_waited_for(
    monitor: server.Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "QUESTION_TIME", 0.2)
    end = time.monotonic() + HANG
    with dial(monitor.path) as caller:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            trickle(caller, end)


def trickle(caller: socket.socket, end: float) -> None:
    while time.monotonic() < end:
        caller.send(b" ")
        time.sleep(0.01)


def test_whoever_is_silent_between_questions_is_hung_up_on_later(
    monitor: server.Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "IDLE_TIME", 0.2)
    with dial(monitor.path) as caller:
        ask(caller, WHO)
        assert caller.recv(1) == b""


def test_slow_readers_hold_up_nobody_and_are_hung_up_on(
    monitor: server.Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(its_loop(), "_picture", lambda stacks: {"x": "y" * (8 << 20)})
    monkeypatch.setattr(answering, "ANSWER_TIME", 1.0)
    slow = [dial(monitor.path) for _ in range(5)]
    for caller in slow:
        caller.sendall(PICTURE)
        caller.recv(1)
    with dial(monitor.path) as quick:
        assert "who" in ask(quick, WHO)
    until(lambda: clients() == 0)
    for caller in slow:
        received = 0
        while more := caller.recv(1 << 20):
            received += len(more)
        assert received < 8 << 20, "it got all of it, at last"
        caller.close()


def test_whoever_goes_away_in_the_middle_kills_no_process_for_which_SIGPIPE_is_deadly(python: Any) -> None:
    done = python(
        """
        import cmwq, signal, socket
        from cmwq.observing import server
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        with cmwq.monitor() as monitor:
            server._state.server.answering._picture = lambda stacks: {"x": "y" * (8 << 20)}
            for number in range(20):
                caller = socket.socket(socket.AF_UNIX)
                caller.connect(monitor.path)
                caller.sendall(b'{"ask":"picture"}\\n')
                if number % 2:
                    caller.recv(1)
                caller.close()
            from cmwq.observing.client import connect
            with connect(path=monitor.path) as connection:
                print(len(connection.picture()["x"]) >> 20)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")


def test_without_descriptors_nobody_is_accepted_and_the_thread_does_not_spin(
    monitor: server.Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = its_loop()
    calls: list[float] = []

    class Refusing:
        def accept(self) -> None:
            calls.append(time.monotonic())
            raise OSError(24, "Too many open files")

        def fileno(self) -> int:
            return listener.fileno()

    listener = mine._listener
    monkeypatch.setattr(mine, "_listener", Refusing())
    with dial(monitor.path) as caller:
        until(lambda: len(calls) >= 2)
        assert calls[1] - calls[0] > answering.RESPITE / 2
        monkeypatch.setattr(mine, "_listener", listener)
        assert "who" in ask(caller, WHO)


def test_the_thread_survives_whatever_is_raised_in_it(
    monitor: server.Monitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And it hangs up on everybody, since nobody knows how far it came with whom."""
    monkeypatch.setattr(answering, "RESPITE", 0.05)
    loop = its_loop()
    for error in (SystemExit, KeyboardInterrupt, MemoryError, RuntimeError, OSError):
        with dial(monitor.path) as caller:
            ask(caller, WHO)
            with monkeypatch.context() as broken:
                broken.setattr(loop, "_tend", fails(error))
                caller.sendall(WHO)
                assert hung_up(caller)
        with dial(monitor.path) as caller:
            assert "who" in ask(caller, WHO), error
    assert "the monitor was interrupted, and goes on" in caplog.text


def fails(error: type[BaseException]) -> Callable[..., None]:
    def fail(*args: object) -> None:
        raise error

    return fail


def hung_up(caller: socket.socket) -> bool:
    """Wait until the other end hangs up, with or without a farewell."""
    try:
        while caller.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


# ------------------------------------------------------------------------------------------- what looking costs


def test_many_who_ask_at_once_get_one_picture(monitor: server.Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "FRESH", 10.0)
    monkeypatch.setattr(answering, "OLDEST", 10.0)
    taken: list[bool] = []
    assert server._state.server is not None
    assert server._state.server.answering is not None
    monkeypatch.setattr(
        server._state.server.answering, "_picture", lambda stacks: {"number": len(taken), **note(stacks)}
    )

    def note(stacks: bool) -> dict[str, Any]:
        taken.append(stacks)
        return {}

    callers = [dial(monitor.path) for _ in range(20)]
    for caller in callers:
        caller.sendall(PICTURE)
    answers = [read_line(caller)["picture"]["number"] for caller in callers]
    for caller in callers:
        caller.close()
    assert max(answers) <= 1, "unless it took ten seconds to come to the last one"
    assert len(taken) <= 2


def test_one_who_asks_all_the_time_is_answered_at_intervals(
    monitor: server.Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "FRESH", 0.1)
    with dial(monitor.path) as caller:
        ask(caller, WHO)
        begun = time.monotonic()
        for _ in range(5):
            ask(caller, WHO)
        assert time.monotonic() - begun >= 0.4


def test_a_picture_that_is_dear_is_kept_for_longer(monitor: server.Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []

    def dear(stacks: bool) -> dict[str, Any]:
        taken.append(stacks)
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        return {}

    monkeypatch.setattr(its_loop(), "_picture", dear)
    monkeypatch.setattr(answering, "OLDEST", HANG)
    with dial(monitor.path) as caller:
        for _ in range(5):  # 2 % of a CPU: a picture of 50 ms is kept for 2.5 s
            ask(caller, PICTURE)
    assert len(taken) == 1


def test_G4_a_monitor_that_nobody_asks_uses_no_CPU_time(python: Any) -> None:
    from conftest import UNTIL_QUIET

    done = python(
        UNTIL_QUIET,
        """
        import cmwq
        from cmwq.observing.client import connect
        with cmwq.monitor() as monitor:
            cmwq.system.submit(int).result()
            print(until_quiet())
            with connect(path=monitor.path) as connection:
                connection.picture()
            print(until_quiet())
        """,
    )
    assert (done.stdout, done.stderr) == ("(True, {})\n" * 2, "")


# ------------------------------------------------------------------------------------------- paths and handles


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "left")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()
    assert places.nobody_listens(path)
    with cmwq.monitor(path) as monitor, dial(monitor.path) as caller:
        assert "who" in ask(caller, WHO)
    assert not os.path.lexists(path)


def test_what_is_no_socket_or_has_a_listener_is_left_alone(tmp_path: Path) -> None:
    file, taken = tmp_path / "file", str(tmp_path / "taken")
    file.write_text("precious")
    with pytest.raises(FileExistsError, match="no socket"):
        cmwq.monitor(str(file))
    assert file.read_text() == "precious"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(taken)
        other.listen()
        with pytest.raises(FileExistsError, match="another process listens there"):
            cmwq.monitor(taken)
        with dial(taken):
            pass
    with pytest.raises(FileNotFoundError):
        cmwq.monitor(str(tmp_path / "no" / "such" / "folder"))


def test_a_path_may_be_longer_than_a_socket_s_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with cmwq.monitor(str(deep / "monitor")) as monitor, connect(path=monitor.path) as connection:
        assert connection.who()["pid"] == os.getpid()


def test_the_monitor_ends_with_the_last_handle() -> None:
    first, second = cmwq.monitor(), cmwq.monitor()
    assert first.path == second.path != ""
    with pytest.raises(ValueError, match="has a monitor already"):
        cmwq.monitor("/elsewhere")
    first.close()
    first.close()
    with dial(second.path) as caller:
        ask(caller, WHO)
        path = second.path
        second.close()
        assert caller.recv(1) == b"", "whoever is connected is hung up on"
    assert second.path == ""
    assert not os.path.lexists(path)
    assert not any(thread.name == server.NAME for thread in threading.enumerate())


def test_closing_does_not_remove_another_socket_at_its_path(tmp_path: Path) -> None:
    path = str(tmp_path / "mine")
    monitor = cmwq.monitor(path)
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        monitor.close()
        assert os.path.lexists(path)


def test_nothing_is_left_open_if_no_thread_can_be_had(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise cmwq.ThreadLimit("the system refused it")

    before = descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(cmwq.default_runtime().host, "spawn", refuse)
        with pytest.raises(cmwq.ThreadLimit):
            cmwq.monitor()
    assert descriptors() == before
    assert list((home / "cmwq").iterdir()) == []
    with cmwq.monitor() as monitor, dial(monitor.path) as caller:
        assert "who" in ask(caller, WHO)
