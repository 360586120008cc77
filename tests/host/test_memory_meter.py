"""How much memory is left, as the system tells it (A11): in cgroups of both versions, and on the machine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cmwq._core.ports import Memory
from cmwq._host import memory
from cmwq._host.memory import Meter

MIB = 1 << 20
MACHINE = "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n"


class System:
    """Cgroups, and a machine, as the kernel shows them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folders: list[Path] = []
        self._root = root
        monkeypatch.setattr(memory, "cgroup_folders", lambda controller: map(str, self.folders))
        monkeypatch.setattr(memory, "_MEMINFO", root / "meminfo")
        self.now = 0.0
        self.meter = Meter(lambda: self.now)
        self.write(root / "meminfo", MACHINE)

    def write(self, file: Path, text: str) -> None:
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    def cgroup(self, name: str, **files: str) -> Path:
        folder = self._root / name
        for file, text in files.items():
            self.write(folder / file.replace("__", "."), text + "\n")
        self.folders.append(folder)
        return folder


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    return System(tmp_path, monkeypatch)


def test_A11_without_a_cgroup_the_machine_decides(system: System) -> None:
    assert system.meter() == Memory(8 << 30, 16 << 30, "the machine")


def test_A11_v2_high_and_max(system: System) -> None:
    folder = system.cgroup(
        "own", memory__max=str(400 * MIB), memory__high=str(300 * MIB), memory__current=str(100 * MIB)
    )
    assert system.meter() == Memory(100 * MIB, 300 * MIB, str(folder))


def test_A11_v1_and_its_way_to_say_that_there_is_no_limit(system: System) -> None:
    system.cgroup("own", memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes=str(200 * MIB))
    outer = system.cgroup("outer", memory__limit_in_bytes=str(500 * MIB), memory__usage_in_bytes=str(200 * MIB))
    assert system.meter() == Memory(200 * MIB, 500 * MIB, str(outer))


def test_A11_cache_that_can_be_given_back_does_not_count_when_it_matters(system: System) -> None:
    stat = f"anon 1\ninactive_file {100 * MIB}\nactive_file {50 * MIB}\ntotal_inactive_file 7\n"
    folder = system.cgroup("own", memory__max=str(300 * MIB), memory__current=str(290 * MIB), memory__stat=stat)
    assert system.meter() == Memory(140 * MIB, 300 * MIB, str(folder))


def test_A11_the_tightest_of_several_decides(system: System) -> None:
    system.cgroup("own", memory__max=str(1000 * MIB), memory__current=str(100 * MIB))
    outer = system.cgroup("outer", memory__max=str(2000 * MIB), memory__current=str(1900 * MIB))
    assert system.meter() == Memory(1900 * MIB, 2000 * MIB, str(outer))


def test_A11_a_new_limit_is_found_within_a_second(system: System) -> None:
    folder = system.cgroup("own", memory__max="max", memory__current=str(100 * MIB))
    assert system.meter().source == "the machine"  # type: ignore[union-attr]
    system.write(folder / "memory.max", str(200 * MIB))
    system.now = 1.01
    assert system.meter() == Memory(100 * MIB, 200 * MIB, str(folder))


@pytest.mark.parametrize("text", ["", "nonsense\n", "MemTotal: x kB\n"])
def test_A11_what_can_not_be_read_is_not_known(system: System, text: str, tmp_path: Path) -> None:
    system.write(tmp_path / "meminfo", text)
    system.cgroup("own", memory__max=str(300 * MIB), memory__current="what")
    assert system.meter() is None


def test_A11_free_memory_is_given_back_when_it_is_scarce_and_not_all_the_time(system: System) -> None:
    asked: list[int] = []
    system.meter._trim = asked.append
    system.cgroup("own", memory__max=str(300 * MIB), memory__current=str(100 * MIB))
    system.meter()
    assert asked == []
    system.write(system.folders[0] / "memory.current", str(290 * MIB))
    system.meter()
    system.meter()
    assert asked == [0]
    system.now += 0.2
    system.meter()
    assert asked == [0, 0]


def test_A11_here_it_is_known() -> None:
    seen = Meter(time.monotonic)()
    if Path("/proc/meminfo").exists():
        assert seen is not None
        assert 0 <= seen.used <= seen.limit
