"""Topology: which CPUs share what. On this machine, and on machines that are described in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cmwq._host import ThreadHost, topology
from cmwq._host.topology import SCOPES, Topology, parse_cpu_list

Groups = tuple[tuple[int, ...], ...]

SERVER = range(128)
SMALL = range(32)

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Machine:
    """Writes what the kernel would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.topology = Topology(str(root))

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def remove(self, folder: str) -> None:
        shutil.rmtree(self.root / folder)

    def core(self, *cpus: int, name: str = "core_cpus_list") -> None:
        for cpu in cpus:
            self.write(f"cpu/cpu{cpu}/topology/{name}", ",".join(map(str, cpus)))

    def cache(self, index: int, level: int, kind: str, *cpus: int) -> None:
        for cpu in cpus:
            folder = f"cpu/cpu{cpu}/cache/index{index}"
            self.write(f"{folder}/level", str(level))
            self.write(f"{folder}/type", kind)
            self.write(f"{folder}/shared_cpu_list", ",".join(map(str, cpus)))

    def node(self, number: int, cpus: str) -> None:
        self.write(f"node/node{number}/cpulist", cpus)


def describe(root: Path, cores: int) -> Machine:
    """2 sockets, a node each; 4 cores to an L3; cores of 2 threads, with numbers n and n + cores."""
    machine = Machine(root)
    for core in range(cores):
        threads = core, core + cores
        machine.core(*threads)
        machine.cache(0, 1, "Data", *threads)
        machine.cache(1, 1, "Instruction", *threads)
        machine.cache(2, 2, "Unified", *threads)
    for first in range(0, cores, 4):
        second = first + cores
        machine.cache(3, 3, "Unified", *range(first, first + 4), *range(second, second + 4))
    half = cores // 2
    for node, first in enumerate((0, half)):
        machine.node(node, f"{first}-{first + half - 1},{first + cores}-{first + cores + half - 1}")
    machine.write("node/possible", "0-1")
    return machine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Topology:
    """128 CPUs. Thousands of files: written once, changed by nobody."""
    machine = describe(tmp_path_factory.mktemp("server"), 64)
    assert (machine.root / "node/node1/cpulist").read_text() == "32-63,96-127\n"
    return machine.topology


@pytest.fixture
def small(tmp_path: Path) -> Machine:
    """The same with 32 CPUs, to be changed. Nodes: 0-7,16-23 and 8-15,24-31."""
    return describe(tmp_path, 16)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Nothing is known of it yet."""
    return Machine(tmp_path)


def is_partition(groups: Groups, cpus: Iterable[int]) -> bool:
    return sorted(cpu for group in groups for cpu in group) == sorted(set(cpus)) and all(groups)


def refines(fine: Groups, coarse: Groups) -> bool:
    return all(any(set(small) <= set(large) for large in coarse) for small in fine)


# ------------------------------------------------------------------------------------ this machine


@pytest.mark.parametrize("scope", SCOPES)
def test_A1_the_groups_partition_the_cpus_of_this_machine(scope: str) -> None:
    host = ThreadHost()
    groups = host.cpu_groups(scope, host.cpus())
    assert is_partition(groups, host.cpus())
    assert list(groups) == sorted(tuple(sorted(group)) for group in groups)


def test_A1_a_host_reads_the_topology_once_for_each_set_of_cpus(
    monkeypatch: pytest.MonkeyPatch, server: Topology
) -> None:
    reads: list[tuple[str, tuple[int, ...]]] = []

    class Counting(Topology):
        def groups(self, scope: str, cpus: Iterable[int]) -> Groups:
            reads.append((scope, tuple(cpus)))
            return server.groups(scope, cpus)

    monkeypatch.setattr(topology, "Topology", Counting)
    host = ThreadHost()
    for cpus in ((0, 1, 64), (0, 32)):
        monkeypatch.setattr(topology, "cpus", lambda cpus=cpus: cpus)
        for _ in range(2):
            host.cpu_groups("smt", host.cpus())
            host.cpu_groups("numa", host.cpus())
    assert host.cpu_groups("numa", host.cpus()) == ((0,), (32,))
    assert reads == [("smt", (0, 1, 64)), ("numa", (0, 1, 64)), ("smt", (0, 32)), ("numa", (0, 32))]


def test_a_scope_that_does_not_exist_is_named(machine: Machine) -> None:
    with pytest.raises(ValueError, match=r"'socket' is no scope: cpu, smt, cache, numa, system are"):
        machine.topology.groups("socket", [0])


# ------------------------------------------------------------------------------------ a described server


def test_A1_a_server_is_grouped_by_what_its_cpus_share(server: Topology) -> None:
    groups = {scope: server.groups(scope, SERVER) for scope in SCOPES}
    assert groups["cpu"] == tuple((n,) for n in range(128))
    assert groups["smt"] == tuple((n, n + 64) for n in range(64))
    assert groups["cache"] == tuple((*range(n, n + 4), *range(n + 64, n + 68)) for n in range(0, 64, 4))
    assert groups["numa"] == ((*range(32), *range(64, 96)), (*range(32, 64), *range(96, 128)))
    assert groups["system"] == (tuple(range(128)),)


def test_A1_only_allowed_cpus_are_grouped(server: Topology) -> None:
    allowed = [97, 0, 64, 6, 33, 5, 97]
    assert server.groups("cpu", allowed) == ((0,), (5,), (6,), (33,), (64,), (97,))
    assert server.groups("smt", allowed) == ((0, 64), (5,), (6,), (33, 97))
    assert server.groups("cache", allowed) == ((0, 64), (5, 6), (33, 97))
    assert server.groups("numa", allowed) == ((0, 5, 6, 64), (33, 97))
    assert server.groups("system", allowed) == ((0, 5, 6, 33, 64, 97),)
    assert {server.groups(scope, []) for scope in SCOPES} == {()}


@untimed
@given(cpus=st.sets(st.integers(0, 127), max_size=24) | st.sets(st.integers(60, 72)))
@example(cpus=set(SERVER))
def test_A1_every_scope_is_a_partition_and_refines_the_next(server: Topology, cpus: set[int]) -> None:
    groups = [server.groups(scope, cpus) for scope in SCOPES]
    for found in groups:
        assert is_partition(found, cpus)
    for fine, coarse in pairwise(groups):
        assert refines(fine, coarse)


# ------------------------------------------------------------------------------------ what is missing or wrong


def test_without_caches_the_node_is_what_cpus_share(small: Machine) -> None:
    for cpu in SMALL:
        small.remove(f"cpu/cpu{cpu}/cache")
    assert small.topology.groups("cache", SMALL) == small.topology.groups("numa", SMALL)
    assert len(small.topology.groups("cache", SMALL)) == 2


def test_without_nodes_the_machine_is_one(small: Machine) -> None:
    small.remove("node")
    assert small.topology.groups("numa", SMALL) == (tuple(SMALL),)
    assert len(small.topology.groups("cache", SMALL)) == 4


def test_where_nothing_is_known_cpus_are_alone_or_all_together(machine: Machine) -> None:
    found = {scope: machine.topology.groups(scope, [0, 1, 2]) for scope in SCOPES}
    alone, together = ((0,), (1,), (2,)), ((0, 1, 2),)
    assert found == {"cpu": alone, "smt": alone, "cache": together, "numa": together, "system": together}


def test_an_offline_cpu_is_alone_and_disturbs_nobody(small: Machine) -> None:
    """The kernel takes its folders away, and its number out of the others' lists."""
    small.remove("cpu/cpu18/topology")
    small.remove("cpu/cpu18/cache")
    small.core(2)
    small.cache(3, 3, "Unified", 0, 1, 2, 3, 16, 17, 19)
    small.node(0, "0-7,16-17,19-23")
    online = [cpu for cpu in SMALL if cpu != 18]
    assert small.topology.groups("smt", online)[:4] == ((0, 16), (1, 17), (2,), (3, 19))
    assert small.topology.groups("cache", online)[0] == (0, 1, 2, 3, 16, 17, 19)
    for scope in SCOPES[:-1]:
        assert {*small.topology.groups(scope, SMALL)} == {*small.topology.groups(scope, online), (18,)}


def test_the_older_name_of_a_cores_cpus_is_known(machine: Machine) -> None:
    machine.core(0, 2, name="thread_siblings_list")
    machine.core(1, 3, name="thread_siblings_list")
    assert machine.topology.groups("smt", range(4)) == ((0, 2), (1, 3))


def test_the_cache_that_counts_is_the_last_that_holds_data(machine: Machine) -> None:
    machine.cache(0, 2, "Data", 0, 1)
    machine.cache(1, 1, "Unified", 0)
    machine.cache(2, 3, "Instruction", 0, 1, 2, 3)
    machine.cache(3, 2, "Unified", 2, 3)
    machine.write("cpu/cpu0/cache/uevent", "")
    assert machine.topology.groups("cache", range(4)) == ((0, 1), (2, 3))


def test_a_cache_may_serve_two_nodes(machine: Machine) -> None:
    machine.cache(0, 3, "Unified", 0, 1, 2, 3)
    machine.node(0, "0,2")
    machine.node(1, "1,3")
    assert machine.topology.groups("cache", range(4)) == ((0, 1, 2, 3),)
    assert machine.topology.groups("numa", range(4)) == ((0, 2), (1, 3))


def test_a_node_without_cpus_is_left_out(machine: Machine) -> None:
    machine.node(0, "0-1")
    machine.node(1, "")
    machine.node(2, "2-3")
    assert machine.topology.groups("numa", range(4)) == ((0, 1), (2, 3))


def test_cpus_that_contradict_each_other_fall_back(machine: Machine) -> None:
    machine.core(0, 1)
    machine.core(1, 2)  # 1 and 2 agree; 0 believes otherwise
    machine.cache(0, 2, "Unified", 0, 1, 2)
    machine.write("cpu/cpu2/cache/index0/shared_cpu_list", "3")
    machine.node(0, "0-1")
    machine.node(1, "1-3")
    assert machine.topology.groups("smt", range(4)) == ((0,), (1, 2), (3,))
    assert machine.topology.groups("numa", range(4)) == ((0, 1, 2, 3),)
    assert machine.topology.groups("cache", range(4)) == ((0, 1, 2, 3),)


GARBAGE = {
    "text": b"none of your business",
    "no text": b"\xff\xfe\x00",
    "nothing": b"",
    "far too many": b"0-99999999999999999999",
    "digits of elsewhere": "\u0661-\u0662".encode(),
    "a folder": None,
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_counts_as_missing(small: Machine, garbage: bytes | None) -> None:
    for file in list(small.root.rglob("*")):
        if file.is_file() and garbage is not None:
            file.write_bytes(garbage)
        elif file.is_file():
            file.unlink()
            file.mkdir()
    found = {scope: small.topology.groups(scope, SMALL) for scope in SCOPES}
    assert found["smt"] == found["cpu"]
    assert found["cache"] == found["numa"] == found["system"] == (tuple(SMALL),)


def test_files_where_folders_should_be_count_as_missing(machine: Machine) -> None:
    machine.write("cpu", "")
    machine.write("node", "")
    assert machine.topology.groups("smt", [0, 1]) == ((0,), (1,))
    assert machine.topology.groups("cache", [0, 1]) == ((0, 1),)


# ------------------------------------------------------------------------------------ the kernel's lists


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0\n", {0}),
        ("0-3,8-11", {0, 1, 2, 3, 8, 9, 10, 11}),
        ("3,1,2-2", {1, 2, 3}),
        ("0-7:2/4", {0, 1, 4, 5}),
        ("1-10:1/4,64", {1, 5, 9, 64}),
        ("0-3:0/2", set()),
    ],
)
def test_a_cpu_list_is_read_as_the_kernel_does(text: str, cpus: set[int]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    "text",
    ["", "a", "1,", ",1", "1,,2", "-1", "3-1", "0-", "0--1", "0-7:2", "0-7:2/0", "0-7:3/2", "0:1/2", "0x3", "1 2"],
)
def test_a_malformed_cpu_list_is_ignored(text: str) -> None:
    assert parse_cpu_list(text) == set()


@untimed
@given(cpus=st.sets(st.integers(0, 300), min_size=1))
def test_what_the_kernel_writes_is_read_back(cpus: set[int]) -> None:
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    assert parse_cpu_list(text + "\n") == cpus


@untimed
@given(text=st.text(alphabet="0123456789-,:/ \n", max_size=30))
def test_no_cpu_list_raises(text: str) -> None:
    assert all(cpu >= 0 for cpu in parse_cpu_list(text))
