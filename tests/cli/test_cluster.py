"""`--cluster` of `cmwq map` and `cmwq exec`: the same items, order, log and status, carried out by worker processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HANG, until

from .conftest import Cli, environment

pytest.importorskip("distributed", reason="Dask distributed can't be imported here")

FATAL_ONCE = """
import os, signal
def call(item):
    if not os.path.exists("died"):
        open("died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return item.upper()
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a scheduler with one worker process, whose folder is not that of the runs."""
    import distributed

    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("worker"))
    try:
        cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0")
    finally:
        os.chdir(before)
    with cluster:
        yield cluster.scheduler_address


def values(output: bytes) -> list[object]:
    return [json.loads(line) for line in output.splitlines()]


def test_map_on_local_workers_gives_results_in_order_and_counts_failures(cli: Cli, folder: Path) -> None:
    done = cli("map", "--cluster", "local:2", "targets:picky", "a", "bad", "c")
    assert (done.returncode, values(done.stdout)) == (1, ["a", "c"])
    assert b"item 2 'bad': ValueError: no such" in done.stderr
    assert sorted((folder / "effects").read_text().split()) == ["a", "bad", "c"]


def test_map_goes_on_from_its_log_wherever_items_were_carried_out(cli: Cli, folder: Path, address: str) -> None:
    args = ("map", "--resume", "log", "targets:picky", "a", "bad", "c")
    assert cli(*args).returncode == 1
    done = cli(*args[:1], "--cluster", address, *args[1:])  # the module goes along, since no worker can import it
    assert (done.returncode, values(done.stdout)) == (1, ["a", "c"])
    assert (folder / "effects").read_text().split().count("a") == 1


def test_map_on_workers_that_cannot_import_the_module(cli: Cli, address: str) -> None:
    done = cli("map", "--cluster", address, "targets:size", "abc", "de")
    assert (done.returncode, done.stdout) == (0, b"3\n2\n"), done.stderr


def test_many_items_are_under_way_at_once(cli: Cli, folder: Path) -> None:
    numbers = [str(number) for number in range(300)]
    done = cli("map", "--cluster", "local:1", "targets:same", input="\n".join(numbers).encode())
    assert (done.returncode, values(done.stdout)) == (0, numbers), done.stderr


def test_a_worker_that_dies_fails_its_item(cli: Cli, folder: Path) -> None:
    items = ["499", "500", "501"]
    done = cli("map", "--cluster", "local:1", "targets:fatal", *items)
    assert done.returncode == 1
    assert b"item 2 '500': WorkLost" in done.stderr
    assert "500" not in values(done.stdout)
    assert (folder / "effects").read_text().split().count("500") == 1


def test_retries_carry_an_item_out_again_whose_worker_died(cli: Cli, folder: Path) -> None:
    (folder / "fatal_once.py").write_text(FATAL_ONCE)
    done = cli("map", "--cluster", "local:1", "--retries", "3", "fatal_once:call", "a")
    assert (done.returncode, done.stdout, done.stderr) == (0, b'"A"\n', b"")
    assert (folder / "died").exists()


def test_exec_on_local_workers(cli: Cli) -> None:
    done = cli(
        "exec", "--cluster", "local:2", "--shell", "a", "b", "c", "--", "echo out-{}; echo err-{} >&2; test {} != b"
    )
    assert done.returncode == 1
    assert done.stdout == b"out-a\nout-b\nout-c\n"
    assert [line for line in done.stderr.splitlines() if line.startswith(b"err")] == [b"err-a", b"err-b", b"err-c"]
    assert b"exit status 1" in done.stderr


def test_exec_writes_its_log_and_goes_on_from_it(cli: Cli, folder: Path, address: str) -> None:
    args = ("--resume", "log", "--shell", "1", "2", "--", f"echo {{}} >> {folder}/ran; echo {{}}; test {{}} != 2")
    assert cli("exec", "--cluster", address, *args).returncode == 1
    done = cli("exec", "--cluster", address, *args)
    assert (done.returncode, done.stdout) == (1, b"1\n2\n"), done.stderr
    assert sorted((folder / "ran").read_text().split()) == ["1", "2", "2"]
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()[1:]]
    assert {(line["item"], line["ok"], line["status"]) for line in lines} == {("1", True, 0), ("2", False, 1)}


def test_exec_ends_a_command_that_runs_for_too_long(cli: Cli, address: str) -> None:
    done = cli("exec", "--cluster", address, "--timeout", "0.5", "300", "--", "sleep")
    assert done.returncode == 1
    assert b"timed out after 0.5 s" in done.stderr


def test_exec_says_that_a_command_does_not_exist_on_the_worker(cli: Cli, address: str) -> None:
    done = cli("exec", "--cluster", address, "x", "--", "no-such-program")
    assert done.returncode == 1
    assert b"no such command: 'no-such-program'" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_commands_on_the_workers(folder: Path, number: int) -> None:
    pids = folder / "pids"
    command = ["exec", "--cluster", "local:1", "--shell", "1", "2", "3", "--", f"echo $$ >> {pids}; exec sleep 300"]
    with subprocess.Popen(
        [sys.executable, "-m", "cmwq", *command], cwd=folder, env=environment(), stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:  # fmt: skip
        try:
            until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
            run.send_signal(number)
            _, err = run.communicate(timeout=HANG)
            assert (run.returncode, err) == (-number, b"")  # nothing of semaphores that are left behind, either
            until(lambda: not any(map(_lives, pids.read_text().split())))
        finally:
            run.kill()
            for pid in pids.read_text().split() if pids.exists() else ():
                if _lives(pid):
                    os.kill(int(pid), signal.SIGKILL)


def test_a_signal_that_ends_map_on_local_workers_leaves_no_words(folder: Path) -> None:
    command = ["map", "--cluster", "local:1", "targets:stuck", "a"]
    with subprocess.Popen(
        [sys.executable, "-m", "cmwq", *command], cwd=folder, env=environment(), stderr=subprocess.PIPE
    ) as run:
        until((folder / "effects").exists)
        run.send_signal(signal.SIGTERM)
        _, err = run.communicate(timeout=HANG)
    assert (run.returncode, err.replace(b"started\n", b"")) == (-signal.SIGTERM, b"")


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_when_the_run_is_killed_its_commands_on_a_cluster_are_ended(folder: Path, address: str) -> None:
    pids = folder / "pids"
    command = ["exec", "--cluster", address, "--shell", "1", "2", "--", f"echo $$ >> {pids}; exec sleep 300"]
    run = subprocess.Popen([sys.executable, "-m", "cmwq", *command], cwd=folder, env=environment())
    try:
        until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    finally:
        run.kill()
        run.wait(HANG)
    until(lambda: not any(map(_lives, pids.read_text().split())))


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("map", "--cluster", "local:0", "targets:same", "a"), b"after 'local:' comes a number of workers"),
        (("map", "--cluster", "local:x", "targets:same", "a"), b"after 'local:' comes a number of workers"),
        (("exec", "--cluster", "local:1", "--line-buffer", "a", "--", "echo"), b"exclude each other"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(cli: Cli, args: tuple[str, ...], why: bytes) -> None:
    done = cli(*args)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert why in done.stderr


def test_a_scheduler_that_is_not_there_is_said_in_one_line(cli: Cli) -> None:
    begun = time.monotonic()
    done = cli("map", "--cluster", "tcp://127.0.0.1:1", "targets:same", "a")
    assert (done.returncode, done.stderr.count(b"\n"), done.stdout) == (2, 1, b""), done.stderr
    assert b"cluster 'tcp://127.0.0.1:1'" in done.stderr
    assert time.monotonic() - begun < HANG


# What the cluster does to commands


def test_a_connection_that_breaks_loses_no_item(folder: Path) -> None:
    """The scheduler forgets the tasks of a client that is gone, and their commands are ended. The client comes back."""
    import distributed

    script = f'echo "$$" >> {folder}/pids; until [ -e {folder}/go ]; do sleep 0.05; done; echo "out $1"'
    items = [str(number) for number in range(8)]
    options = ["--max-active", "2", "--retries", "1", "--job-log", "jobs"]
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0") as cluster:
        command = ["exec", "--cluster", cluster.scheduler_address, *options, *items, "--", "sh", "-c", script, "sh"]
        with subprocess.Popen(
            [sys.executable, "-m", "cmwq", *command], cwd=folder, env=environment(), stdout=-1, stderr=-1
        ) as run:
            try:
                until(lambda: (folder / "pids").exists() and len((folder / "pids").read_text().split()) == 2)
                first = (folder / "pids").read_text().split()
                for comm in list(cluster.scheduler.client_comms.values()):
                    cluster.loop.add_callback(comm.comm.abort)
                until(lambda: not any(map(_lives, first)))
                (folder / "go").touch()
                out, err = run.communicate(timeout=HANG)
            finally:
                (folder / "go").touch()
                run.kill()
    assert (run.returncode, out.decode().split()) == (0, [word for item in items for word in ("out", item)]), err
    jobs = list(map(json.loads, (folder / "jobs").read_text().splitlines()))
    assert sorted(job["item"] for job in jobs) == items
    assert {job["tries"] for job in jobs} == {1, 2}


def test_a_command_that_the_cluster_ends_has_failed(cli: Cli, address: str) -> None:
    """It is not taken for one that this run gave up, which would be waited for."""
    code = """
import sys
import threading
from cmwq.cli import cluster, main
from cmwq.cli.child import Closing
def call(self, function, *args): raise Closing
cluster.Cluster.call = call
sys.exit(main())
"""
    done = cli("exec", "--cluster", address, "a", "b", "--", "echo", code=("-c", code))
    assert done.returncode == 1
    assert done.stderr.count(b": ended by the cluster\n") == 2


def test_one_task_that_nobody_wants_is_ended_alone() -> None:
    from cmwq.cli.child import Closing, Ended
    from cmwq.cli.cluster import Commands, _end_soon

    commands = Commands(5.0)
    ended: dict[str, Ended] = {}

    def run(seconds: str) -> None:
        with commands.one_more() as children:
            running[seconds] = children
            ended[seconds] = children.run("/bin/sleep", ["sleep", seconds], (len, len), None)

    running: dict[str, object] = {}
    threads = [threading.Thread(target=run, args=(seconds,)) for seconds in ("1000", "1001")]
    for thread in threads:
        thread.start()
    until(lambda: all(seconds in running and running[seconds]._running for seconds in ("1000", "1001")))  # type: ignore[attr-defined]
    _end_soon(running["1000"])  # type: ignore[arg-type]
    threads[0].join(HANG)
    assert ended["1000"].given_up
    assert "1001" not in ended
    run("0")
    assert not ended["0"].given_up
    commands.end(signal.SIGKILL)
    threads[1].join(HANG)
    assert ended["1001"].given_up
    with pytest.raises(Closing), commands.one_more():
        pass


def test_times_are_those_of_the_command_and_not_of_its_wait_for_a_worker(cli: Cli, folder: Path, address: str) -> None:
    code = """
import sys, time
from cmwq.cli import cluster, main
call = cluster.Cluster.call
def late(self, *args):
    time.sleep(3)  # the scheduler's
    printed = call(self, *args)
    time.sleep(1)
    return printed
cluster.Cluster.call = late
sys.exit(main())
"""
    args = ("exec", "--cluster", address, "--job-log", "jobs", "--retries", "1", "--quiet")
    began = time.time()
    assert cli(*args, "0.2", "x", "--", "sleep", code=("-c", code)).returncode == 1
    jobs = {job["item"]: job for job in map(json.loads, (folder / "jobs").read_text().splitlines())}
    assert 0.2 <= jobs["0.2"]["seconds"] < 3
    assert jobs["x"]["seconds"] < 3  # of two tries
    assert all(job["start"] > began + 3 for job in jobs.values())


def test_a_cluster_without_cmwq_is_said_in_one_line(cli: Cli, folder: Path) -> None:
    (folder / "without").mkdir()
    (folder / "without" / "sitecustomize.py").write_text("import sys\nsys.modules['cmwq'] = None\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    host, _, port = address.partition(":")
    without = environment(PYTHONPATH=str(folder / "without"))
    scheduler = ["-m", "distributed.cli.dask_scheduler", "--host", host, "--port", port, "--no-dashboard"]
    worker = ["-m", "distributed.cli.dask_worker", f"tcp://{address}", "--no-nanny", "--no-dashboard"]
    running = [subprocess.Popen([sys.executable, *scheduler], cwd=folder, env=environment(), stderr=subprocess.DEVNULL)]
    try:
        until(lambda: _answers(host, int(port)))
        with open(folder / "said", "wb") as said:
            running.append(subprocess.Popen([sys.executable, *worker], cwd=folder, env=without, stderr=said))
        until(lambda: b"Registered to" in (folder / "said").read_bytes())
        for args in (("exec", "a", "--", "echo"), ("map", "targets:same", "a")):  # and the worker lives on
            done = cli(args[0], "--cluster", f"tcp://{address}", *args[1:])
            assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1), done.stderr
            assert b"cmwq is to be installed at the scheduler and the workers" in done.stderr
        assert running[-1].poll() is None
    finally:
        for process in running:
            process.terminate()
            process.wait(HANG)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port)).close()
    except OSError:
        return False
    return True
