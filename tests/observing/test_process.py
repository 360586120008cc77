"""A monitor in the life of its process: CMWQ_MONITOR, fork, exec, crash, exit; and who asks from outside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, stop, until

import cmwq
from cmwq.observing import client, places, remote
from cmwq.observing.client import NotAnswering, connect, processes

from .conftest import Program, line, say

SLEEPER = "import cmwq, sys; print('here'); sys.stdin.readline()\n"
FORKS = """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, since 3.12
    import cmwq, os, sys
"""


def monitored(**more: str) -> dict[str, Any]:
    return {"env": {**os.environ, "CMWQ_MONITOR": "1", **more}}


def ours() -> list[client.Process]:
    """The processes of this test, without those of another suite that runs beside this one."""
    mark = b"XDG_RUNTIME_DIR=" + os.fsencode(os.environ["XDG_RUNTIME_DIR"])
    found = []
    for process in processes():
        with suppress(OSError):  # it has ended
            if mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.append(process)
    return found


def pids() -> list[int]:
    return [process.pid for process in ours()]


# ------------------------------------------------------------------------------------------- CMWQ_MONITOR


def test_CMWQ_MONITOR_lets_a_process_be_asked_that_knows_nothing_of_it(program: Program) -> None:
    process = program(SLEEPER, **monitored())
    line(process)
    with connect(process.pid) as connection:
        assert connection.who()["pid"] == process.pid == connection.picture()["pid"]
        assert connection.picture(stacks=True)["pools"] == []
    found = ours()
    assert [each.pid for each in found] == [process.pid]
    assert found[0].answers
    assert found[0].command[0] == sys.executable
    assert abs(found[0].since - time.time()) < HANG


@pytest.mark.parametrize("value", ["", "0", None])
def test_G1_without_it_nothing_starts_and_nothing_is_imported(python: Any, value: str | None) -> None:
    env = {key: each for key, each in os.environ.items() if key != "CMWQ_MONITOR"}
    done = python(
        """
        import cmwq, sys, threading
        print(threading.active_count(), sorted(name for name in sys.modules if "observing" in name))
        """,
        env=env if value is None else {**env, "CMWQ_MONITOR": value},
    )
    assert (done.stdout, done.stderr) == ("1 ['cmwq.observing', 'cmwq.observing.trace']\n", "")  # `cmwq.trace`


def test_a_folder_that_is_not_safe_is_a_warning_and_no_error(python: Any, tmp_path: Path) -> None:
    folder = tmp_path / f"cmwq-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    env = {**os.environ, "CMWQ_MONITOR": "1", "TMPDIR": str(tmp_path)}
    del env["XDG_RUNTIME_DIR"]
    done = python("import cmwq; print(cmwq.system.submit(int).result())", env=env)
    assert (done.stdout, done.returncode) == ("0\n", 0)
    assert "CMWQ_MONITOR is set, and there is no monitor" in done.stderr


def test_G5_a_sub_interpreter_is_refused(python: Any) -> None:
    done = python(
        """
        import sys
        try:
            import _xxsubinterpreters as interpreters
        except ImportError:
            import _interpreters as interpreters
        text = '''if True:
            import cmwq
            try:
                cmwq.monitor()
            except cmwq.ThreadLimit as error:
                print("sub-interpreter" in str(error), flush=True)
        '''
        interpreters.run_string(interpreters.create(), text)
        """
    )
    assert done.stdout == "True\n", done.stderr


# ------------------------------------------------------------------------------------------- fork, exec, crash


def test_the_child_of_a_fork_has_a_socket_of_its_own(program: Program) -> None:
    process = program(
        FORKS,
        """
        cmwq.system.submit(int).result()
        with cmwq.monitor() as monitor:
            pid = os.fork()
            if pid == 0:
                pid = os.fork()  # and so has its child
                line = f"{'child' if pid else 'grandchild'} {os.getpid()}\\n"
                os.write(1, line.encode())  # at once: both write to the same pipe
                sys.stdin.readline()
                os._exit(0)
            sys.stdin.readline()
            print(os.path.exists(monitor.path))
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            print(os.path.exists(monitor.path))
        """,
    )
    children = dict(line(process).split() for _ in range(2))
    numbers = {process.pid, *map(int, children.values())}
    until(lambda: set(pids()) == numbers)
    for pid in numbers:
        with connect(pid) as connection:
            assert connection.picture()["pid"] == pid
    with connect(int(children["child"])) as connection:
        assert connection.picture()["pools"] == [], "the parent's pools are not the child's"
    for pid in children.values():
        os.kill(int(pid), signal.SIGKILL)
    until(lambda: pids() == [process.pid])


@pytest.mark.parametrize("rest", [0.0, 0.4])
def test_a_daemon_that_closes_all_descriptors_keeps_its_own_and_has_a_monitor(program: Program, rest: float) -> None:
    """The numbers of the monitor's descriptors are soon those of the program's files."""
    process = program(
        FORKS
        + f"""
    import time
    with cmwq.monitor() as monitor:
        if os.fork():
            os._exit(0)
        time.sleep({rest})
        os.closerange(3, 256)
        files = [os.open("/dev/null", os.O_RDWR) for _ in range(20)]
        print(os.getpid())
        sys.stdin.readline()
        child = os.fork()
        if not child:
            time.sleep(0.3)
            os._exit(sum(os.fstat(file).st_rdev == 0 for file in files))
        print(os.waitpid(child, 0)[1])
    print(sum(os.fstat(file).st_rdev == 0 for file in files))
    """,
        **monitored(),
    )
    daemon = int(line(process))

    def answers() -> bool:
        try:
            with connect(daemon) as connection:
                return int(connection.who()["pid"]) == daemon
        except NotAnswering:
            return False

    until(answers)
    assert answers()
    say(process)
    assert (line(process), line(process)) == ("0", "0")


def test_a_monitor_whose_descriptors_were_closed_ends_at_once(python: Any) -> None:
    program = """
        import cmwq, os, time
        monitor = cmwq.monitor()
        os.closerange(3, 256)
        begun = time.monotonic()
        monitor.close()
        print(time.monotonic() - begun < 0.9 * cmwq.observing.server.PATIENCE, os.path.exists(monitor.path))
    """
    done = python(program)
    assert (done.stdout, done.stderr) == ("True False\n", "")


def test_a_child_does_not_keep_its_parents_clients(program: Program) -> None:
    """Else who is hung up on by the parent would not notice as long as the child lives."""
    process = program(
        FORKS,
        """
        import signal
        monitor = cmwq.monitor()
        print("here")
        sys.stdin.readline()
        pid = os.fork()
        if pid == 0:
            print("forked")
            signal.pause()
        sys.stdin.readline()
        monitor.close()
        sys.stdin.readline()
        os.kill(pid, 9)
        """,
    )
    line(process)
    connection = connect(process.pid)
    connection.who()
    reached = connection._socket
    assert reached is not None
    say(process)
    assert line(process) == "forked"
    say(process)
    reached.settimeout(HANG)
    assert reached.recv(1) == b""
    say(process)
    assert process.wait(HANG) == 0
    connection.close()


def test_a_path_of_ones_own_has_the_childs_number_added(program: Program, tmp_path: Path) -> None:
    path = str(tmp_path / "mine")
    process = program(
        FORKS,
        f"""
        monitor = cmwq.monitor({path!r})
        if os.fork() == 0:
            if os.fork() == 0:
                print(os.getpid())
                sys.stdin.readline()
            os.wait()
        os.wait()
        """,
    )
    grandchild = line(process)
    until(lambda: os.path.exists(f"{path}.{grandchild}"))
    with connect(path=f"{path}.{grandchild}") as connection:
        assert connection.who()["pid"] == int(grandchild)
    with connect(path=path) as connection:
        assert connection.who()["pid"] == process.pid
    os.kill(int(grandchild), signal.SIGKILL)


def test_a_monitor_closed_in_a_child_at_any_moment_leaves_none(python: Any, home: Path) -> None:
    """Before its thread has begun, in its rest, or when it listens."""
    done = python(
        FORKS,
        """
        import time
        monitor = cmwq.monitor()
        folder, bad = os.path.dirname(monitor.path), 0
        for number in range(60):
            pid = os.fork()
            if pid == 0:
                if number % 3:
                    time.sleep(0.002 * number)
                monitor.close()
                if number % 10 == 0:
                    time.sleep(0.2)
                os._exit(monitor.path != "" or len(os.listdir(folder)) != 1)
            bad += os.waitpid(pid, 0)[1] != 0
        print(bad)
        """,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_child_that_executes_another_program_has_none_and_leaves_none(program: Program, home: Path) -> None:
    process = program(
        FORKS,
        """
        from cmwq.observing import server
        server.CHILD_REST = 60  # a child that comes to exec late begins no monitor before
        monitor = cmwq.monitor()
        for number in range(20):
            if os.fork() == 0:
                os.execv("/bin/true", ["true"])
            os.wait()
        print("done")
        sys.stdin.readline()
        """,
    )
    assert line(process) == "done"
    assert [path.name.partition("-")[0] for path in (home / "cmwq").iterdir()] == [str(process.pid)]


def test_a_process_that_executes_itself_anew_is_asked_as_it_is_now(program: Program, home: Path) -> None:
    """It has the same number, and the socket of before is still there."""
    process = program(
        """
        import cmwq, os, sys
        times = int(os.environ.get("TIMES", "0"))
        print(times)
        sys.stdin.readline()
        if times < 2:
            os.environ["TIMES"] = str(times + 1)
            os.execv(sys.executable, sys.orig_argv)
        """,
        **monitored(),
    )
    for times in range(3):
        assert line(process) == str(times)
        with connect(process.pid) as connection:
            assert connection.who()["pid"] == process.pid
        assert len(list((home / "cmwq").iterdir())) == 1
        if times < 2:
            say(process)


def test_what_a_crash_left_behind_is_removed(program: Program, home: Path) -> None:
    dead, alive = program(SLEEPER, **monitored()), program(SLEEPER, **monitored())
    line(dead)
    line(alive)
    dead.kill()
    dead.wait()
    assert len(list((home / "cmwq").iterdir())) == 2
    with pytest.raises(NotAnswering, match=f"there is no process {dead.pid}"):
        connect(dead.pid)
    assert pids() == [alive.pid]
    assert [path.name.partition("-")[0] for path in (home / "cmwq").iterdir()] == [str(alive.pid)]


def test_a_new_monitor_removes_what_others_left_behind(program: Program, home: Path) -> None:
    dead = program(SLEEPER, **monitored())
    line(dead)
    dead.kill()
    dead.wait()
    unfinished = home / "cmwq" / f".{dead.pid}-00000000.sock{places.UNFINISHED}"
    unfinished.touch()
    os.utime(unfinished, (0, 0))
    with cmwq.monitor() as monitor:
        assert [str(path) for path in (home / "cmwq").iterdir()] == [monitor.path]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a folder of another user")
def test_root_removes_nothing_in_folders_of_others(program: Program, home: Path, tmp_path: Path) -> None:
    """They could put another folder there meanwhile."""
    dead = program(SLEEPER, **monitored())
    line(dead)
    dead.kill()
    dead.wait()
    os.chown(home / "cmwq", 65534, -1)
    places.sweep(str(home / "cmwq"))
    assert len(list((home / "cmwq").iterdir())) == 1
    os.chown(home / "cmwq", 0, -1)
    places.sweep(str(home / "cmwq"))
    assert list((home / "cmwq").iterdir()) == []


def test_a_number_that_is_used_again_is_not_mistaken(program: Program, home: Path) -> None:
    """Its old socket has another's number, or nobody listens there, or a process that inherited it does."""
    process, bare = program(SLEEPER, **monitored()), program("print('here'); input()")
    line(process)
    line(bare)
    (path,) = (home / "cmwq").iterdir()
    path.rename(path.with_name(f"{bare.pid}-00000000.sock"))
    with pytest.raises(NotAnswering, match=f"process {bare.pid} has no monitor"):
        connect(bare.pid)
    with connect(process.pid) as connection:  # found by who listens, whatever the name says
        assert connection.who()["pid"] == process.pid
    assert pids() == [process.pid]


# ------------------------------------------------------------------------------------------- exit


def test_exit_waits_for_works_and_not_for_the_monitor_which_answers_meanwhile(program: Program, home: Path) -> None:
    process = program(
        """
        import cmwq, os, sys
        monitor = cmwq.monitor()
        def work():
            os.write(1, b"works\\n")  # at once: both write to the same pipe
            sys.stdin.readline()
        cmwq.system.submit(work)
        os.write(1, b"main ends\\n")
        """
    )
    assert {line(process), line(process)} == {"works", "main ends"}
    connection = connect(process.pid)
    assert connection.picture()["pools"][0]["workers"] >= 1
    say(process)
    assert process.wait(HANG) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    with pytest.raises(NotAnswering):
        connection.picture()
    connection.close()
    assert list((home / "cmwq").iterdir()) == []


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise SystemExit(3)", "os._exit(3)"])
def test_a_monitor_changes_no_exit_status(python: Any, end: str) -> None:
    done = python(f"import cmwq, os, sys; cmwq.monitor(); {end}")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_exit_is_not_held_up_by_whoever_is_connected_and_reads_nothing(program: Program) -> None:
    process = program(
        """
        import cmwq, sys
        from cmwq.observing import server
        monitor = cmwq.monitor()
        server._state.server.answering._picture = lambda stacks: {"x": "y" * (8 << 20)}
        print(monitor.path)
        sys.stdin.readline()
        """
    )
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(line(process))
        caller.sendall(b'{"ask":"picture"}\n')
        caller.recv(1)
        say(process)
        assert process.wait(HANG) == 0


# ------------------------------------------------------------------------------------------- who asks


def test_a_stopped_process_is_listed_and_said_to_be_stopped(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LISTED_WITHIN", 0.3)
    process = program(SLEEPER, **monitored())
    line(process)
    stop(process.pid)
    try:
        with connect(process.pid, timeout=0.2) as connection:
            with pytest.raises(NotAnswering, match=rf"is stopped.*kill -CONT {process.pid}"):
                connection.picture()
        (found,) = ours()
        assert (found.pid, found.answers, found.since) == (process.pid, False, 0.0)
        assert found.command[0] == sys.executable
        os.kill(process.pid, signal.SIGCONT)
        with connect(process.pid) as connection:
            assert connection.picture()["pid"] == process.pid
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_a_process_that_keeps_the_GIL_is_not_waited_for(program: Program) -> None:
    process = program(
        """
        import cmwq, ctypes, os, sys
        monitor = cmwq.monitor()
        print(getattr(sys, "_is_gil_enabled", lambda: True)())
        ctypes.PyDLL(None).sleep(1000)  # a call that keeps it
        """
    )
    has_a_gil = line(process) == "True"
    until(lambda: Path(f"/proc/{process.pid}/wchan").read_text().endswith("nanosleep"))
    if has_a_gil:
        with connect(process.pid, timeout=0.3) as connection:
            with pytest.raises(NotAnswering, match=r"did not answer within 0\.3 s: native code keeps the GIL"):
                connection.picture()


def test_a_process_without_a_monitor_is_told_what_helps(program: Program) -> None:
    process = program(SLEEPER)
    line(process)
    with pytest.raises(NotAnswering, match=r"start it with CMWQ_MONITOR=1, or call cmwq\.monitor"):
        connect(process.pid)
    with pytest.raises(NotAnswering, match="no process has a monitor"):
        connect()
    for nobody in (4194305, 10**30):
        with pytest.raises(NotAnswering, match=f"there is no process {nobody}"):
            connect(nobody)


@pytest.mark.parametrize("name", ["TMPDIR", "XDG_RUNTIME_DIR"])
def test_a_process_with_another_environment_is_found_by_its_number(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As a service that was given a folder of its own."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    process = program(SLEEPER, **monitored(**{"XDG_RUNTIME_DIR": "", name: str(elsewhere)}))
    line(process)
    assert list(elsewhere.iterdir())
    with connect(process.pid) as connection:
        assert connection.who()["pid"] == process.pid


def test_the_only_process_needs_no_number(program: Program) -> None:
    first = program(SLEEPER, **monitored())
    line(first)
    with connect() as connection:
        assert connection.pid == first.pid
    second = program(SLEEPER, **monitored())
    line(second)
    with pytest.raises(NotAnswering, match="there are several processes"):
        connect()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "hung up without an answer"),
        (b'{"version":1,', "ended in the middle"),
        (b"HTTP/1.1 400 Bad Request\r\n", "is no monitor of cmwq"),
        (b"[]\n", "is no monitor of cmwq"),
        (b'{"error":"because"}\n', "gives no answer: because"),
        (b"x" * 5000, "more than 0 MiB"),
    ],
)
def test_whatever_listens_there_the_client_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, words: str
) -> None:
    monkeypatch.setattr(client, "LONGEST_ANSWER", 1000)
    path = str(tmp_path / "strange")

    def serve() -> None:
        with suppress(OSError):  # the socket is shut down
            while True:
                connection, _ = strange.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as strange:
        strange.bind(path)
        strange.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with connect(path=path, timeout=HANG) as connection, pytest.raises(NotAnswering, match=words):
                connection.picture()
        finally:
            strange.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_connection_that_was_hung_up_on_calls_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from cmwq.observing import answering

    monkeypatch.setattr(answering, "IDLE_TIME", 0.1)
    with cmwq.monitor() as monitor, connect(path=monitor.path) as connection:
        connection.who()
        first = connection._socket
        assert first is not None
        first.settimeout(HANG)
        assert first.recv(1) == b"", "hung up on"
        assert connection.who()["pid"] == os.getpid()
        assert connection._socket is not first


def test_a_closed_connection_asks_no_more() -> None:
    with cmwq.monitor() as monitor:
        connection = connect(path=monitor.path)
        connection.close()
        connection.close()
        with pytest.raises(NotAnswering, match="is closed"):
            connection.picture()


# ------------------------------------------------------------------------------------------- sys.remote_exec


def pretend(monkeypatch: pytest.MonkeyPatch, run: Callable[[int, str], object]) -> None:
    """Of Python 3.14 and later. What it really does can only be seen there."""
    monkeypatch.setattr(sys, "remote_exec", run, raising=False)
    monkeypatch.setattr(remote, "PATIENCE", 0.3)


def no_monitor(pid: int) -> NotAnswering:
    with pytest.raises(NotAnswering) as caught:
        connect(pid)
    return caught.value


def test_a_process_without_a_monitor_is_given_one_by_a_script(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = program(
        """
        import cmwq
        print("here")
        while True:
            exec(open(input()).read())
        """
    )
    line(process)
    scripts: list[str] = []

    def run(pid: int, script: str) -> None:
        scripts.append(script)
        say(process, script)

    pretend(monkeypatch, run)
    monkeypatch.setattr(remote, "PATIENCE", HANG)
    remote.give_monitor(process.pid, no_monitor(process.pid))
    with connect(process.pid) as connection:
        assert connection.picture()["pid"] == process.pid
    assert [os.path.exists(script) for script in scripts] == [False], "the script is removed"


def test_what_a_script_in_another_process_needs_is_said(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    process = program(SLEEPER)
    line(process)
    why = no_monitor(process.pid)
    monkeypatch.delattr(sys, "remote_exec", raising=False)
    with pytest.raises(NotAnswering) as caught:
        remote.give_monitor(process.pid, why)
    assert caught.value is why, "where Python cannot do it, nothing more is said"

    def refuse(pid: int, script: str) -> None:
        raise PermissionError("Cannot attach")

    pretend(monkeypatch, refuse)
    with pytest.raises(NotAnswering, match=r"Cannot attach.*ptrace_scope"):
        remote.give_monitor(process.pid, why)
    pretend(monkeypatch, lambda pid, script: None)
    with pytest.raises(NotAnswering, match="its main thread waits in a system call"):
        remote.give_monitor(process.pid, why)


def test_no_script_is_sent_to_what_is_no_Python(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    pretend(monkeypatch, lambda pid, script: sent.append(pid))
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
            with pytest.raises(NotAnswering):
                remote.give_monitor(process.pid, no_monitor(process.pid))
            assert sent == []
        finally:
            process.kill()
