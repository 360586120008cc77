"""cmwq.contrib.dask on clusters that are harassed: workers killed all the time, a network that is cut, TLS.

Network namespaces need root and `ip`; each test says what it lacks.
"""

from __future__ import annotations

import datetime
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, until

distributed = pytest.importorskip("distributed", reason="Dask distributed can't be imported here")
contrib = pytest.importorskip("cmwq.contrib.dask")

from contrib.dask_works import burn, cluster_of_processes, note, notes  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(300)]

WORKS = 10_000
ENOUGH = 200.0  # seconds: only a hang takes so long


def tenth(number: int) -> int:
    """Blocks, computes a little, and is safe to repeat."""
    time.sleep(0.001 * (number % 5))
    burn(0.0002)
    return number * 10


def test_nothing_that_is_repeatable_is_lost_while_a_worker_is_killed_every_second() -> None:
    with cluster_of_processes(n_workers=3, threads_per_worker=1) as (cluster, client):
        client.register_plugin(contrib.CmwqPlugin())
        over = threading.Event()
        killed: list[int] = []

        def kill_every_second() -> None:
            while not over.wait(1.0):
                # Not one that is just starting: its nanny would give up. And never the last one.
                there = set(cluster.scheduler.workers)
                pids = [nanny.pid for nanny in list(cluster.workers.values()) if nanny.worker_address in there]
                if len(pids) > 1 and None not in pids:
                    victim = random.choice(pids)
                    with suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
                        killed.append(victim)

        killer = threading.Thread(target=kill_every_second)
        # A work that was sent to four workers that died one after the other is given up by Dask: its own limit.
        client.run_on_scheduler(_allow_failures)
        try:
            with contrib.ClusterWorkQueue("harassed", client=client, repeatable=True, max_active=200) as queue:
                killer.start()
                futures = [queue.submit(tenth, number) for number in range(WORKS)]
                assert [future.result(ENOUGH) for future in futures] == [number * 10 for number in range(WORKS)]
        finally:
            over.set()
            killer.join(HANG)
        assert len(killed) >= 3


def _allow_failures(dask_scheduler: Any) -> None:
    dask_scheduler.allowed_failures = 1000


# ------------------------------------------------------------------------------------- a network that is cut


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with addresses of their own, and a cable between them: their names."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and `ip`")
    mark = f"{os.getpid():x}"
    hosts = (f"cmwq-{mark}-a", f"cmwq-{mark}-b")
    try:
        try:
            for host in hosts:
                ip("netns", "add", host)
            ip("link", "add", f"a{mark}", "type", "veth", "peer", "name", f"b{mark}")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr}")
        for host, end, address in zip(hosts, (f"a{mark}", f"b{mark}"), ("10.77.0.1/24", "10.77.0.2/24"), strict=True):
            ip("link", "set", end, "netns", host)
            ip("-n", host, "address", "add", address, "dev", end)
            ip("-n", host, "link", "set", end, "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", f"a{mark}"], check=False, capture_output=True)


@contextmanager
def process_on(host: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["ip", "netns", "exec", host, sys.executable, *words]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait(HANG)
        assert process.stdout is not None
        process.stdout.close()


def await_line(process: subprocess.Popen[bytes], text: bytes) -> None:
    """Read its output up to this line; what comes later is read by a thread, so that it is never held up."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            threading.Thread(target=_drain, args=(process,), daemon=True).start()
            return
    raise AssertionError(f"it ended without saying {text!r}")


def _drain(process: subprocess.Popen[bytes]) -> None:
    with suppress(ValueError, OSError):
        assert process.stdout is not None
        for _ in process.stdout:
            pass


CLIENT = """\
import sys, time
from pathlib import Path
from contrib.dask_works import note
import distributed
from cmwq.contrib.dask import ClusterWorkQueue, CmwqPlugin

def work(path, kind, number):
    note(path, f"{kind}{number}")
    time.sleep(0.05)
    return number

def main():
    folder = Path(sys.argv[1])
    client = distributed.Client("tcp://10.77.0.1:8786", timeout=60)
    client.wait_for_workers(2, timeout=60)
    client.register_plugin(CmwqPlugin())
    effects = str(folder / "effects")
    with ClusterWorkQueue("load", client=client, max_active=8) as load, \\
            ClusterWorkQueue("ledger", client=client, ordered=True) as ledger:
        works = [load.submit(work, effects, "w", number) for number in range(600)]
        entries = [ledger.submit(work, effects, "o", number) for number in range(100)]
        outcomes = [future.result(200) == number for number, future in enumerate(works)]
        order = [future.result(200) for future in entries]
    print("done", all(outcomes), order == list(range(100)), flush=True)
    client.close()

if __name__ == "__main__":
    main()
"""


def test_a_node_that_is_cut_off_for_ten_seconds_is_late_and_nothing_is_lost_or_repeated(tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    (tmp_path / "client.py").write_text(CLIENT)
    node = [
        "-m",
        "distributed.cli.dask_worker",
        "tcp://10.77.0.1:8786",
        "--no-nanny",
        "--nthreads",
        "1",
        "--no-dashboard",
    ]
    with two_hosts() as (here, there):
        scheduler = ["-m", "distributed.cli.dask_scheduler", "--host", "10.77.0.1", "--port", "8786", "--no-dashboard"]
        with process_on(here, *scheduler) as head:
            await_line(head, b"Scheduler at:")
            with (
                process_on(here, *node, "--host", "10.77.0.1") as near,
                process_on(there, *node, "--host", "10.77.0.2") as far,
                process_on(here, str(tmp_path / "client.py"), str(tmp_path)) as client,
            ):
                for each in (near, far):
                    await_line(each, b"Registered to:")
                until(lambda: len(notes(effects)) > 50)
                ip("-n", there, "link", "set", f"b{os.getpid():x}", "down")
                time.sleep(10.0)  # the length of the cut is what is tested
                assert client.poll() is None
                ip("-n", there, "link", "set", f"b{os.getpid():x}", "up")
                assert client.stdout is not None
                words = client.stdout.read().decode()
        assert "done True True" in words, words
    found = notes(effects)
    assert len(found) == len(set(found)) == 700, "each ran once"
    ledger = [line for line in found if line.startswith("o")]
    assert ledger == [f"o{number}" for number in range(100)]


# ------------------------------------------------------------------------------------- TLS


def certificate(folder: Path) -> tuple[str, str]:
    """A key and its self-signed certificate, which is also the authority: the paths of both."""
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography can't be imported here")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cmwq")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "key.pem", folder / "certificate.pem"
    plain = serialization.NoEncryption()
    paths[0].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    paths[1].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return str(paths[0]), str(paths[1])


def test_over_tls_works_run_and_whoever_has_no_certificate_is_not_let_in(tmp_path: Path) -> None:
    key, public = certificate(tmp_path)
    security = distributed.Security(
        tls_ca_file=public, require_encryption=True, tls_client_cert=public, tls_client_key=key,
        tls_scheduler_cert=public, tls_scheduler_key=key, tls_worker_cert=public, tls_worker_key=key,
    )  # fmt: skip
    effects = str(tmp_path / "effects")
    with cluster_of_processes(n_workers=1, protocol="tls", security=security) as (cluster, client):
        assert cluster.scheduler_address.startswith("tls://")
        client.register_plugin(contrib.CmwqPlugin())
        with contrib.ClusterWorkQueue("secret", client=client) as queue:
            queue.submit(note, effects, "ran").result(HANG)
        with pytest.raises((OSError, TimeoutError, TypeError)):
            distributed.Client(cluster.scheduler_address, timeout=3, set_as_default=False)
        with pytest.raises((OSError, TimeoutError)):
            distributed.Client(cluster.scheduler_address.replace("tls", "tcp"), timeout=3, set_as_default=False)
    assert notes(effects) == ["ran"]
