"""`cmwq doctor` and `cmwq bench`: what they say is there, and true where it can be checked."""

from __future__ import annotations

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

from .conftest import Cli


def test_doctor_json(cli: Cli) -> None:
    done = cli("doctor", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    report = json.loads(done.stdout)
    assert report["python"]["version"] in sys.version
    assert report["python"]["gil"] is getattr(sys, "_is_gil_enabled", lambda: True)()
    assert report["cpu"]["cpus"] == sorted(os.sched_getaffinity(0))
    assert 1 <= report["cpu"]["limit"] <= len(report["cpu"]["cpus"])
    assert report["sensor"]["sensors"][report["sensor"]["name"]] == "works"
    assert report["sensor"]["reason"]
    assert report["sensor"]["latency"]["rounds"] > 0
    if os.geteuid() == 0:
        assert report["highpri"]["nice"] == -20  # E7
    assert report["highpri"]["reason"]
    names = {cap["name"] for cap in report["threads"]["caps"]}
    assert {"RLIMIT_NPROC", "threads-max", "max_workers"} <= names


def test_doctor_text_names_every_limit(cli: Cli) -> None:
    said = cli("doctor", env={"CMWQ_SENSOR": "procfs"}).stdout.decode()
    assert "Sensor     procfs: asked for" in said
    for fact in ("GIL", "p50", "p99", "CPU limit", "Quota", "Highpri", "threads-max", "max_workers"):
        assert fact in said


def test_doctor_sees_affinity(cli: Cli) -> None:
    one = min(os.sched_getaffinity(0))
    code = ("-c", f"import os, sys; os.sched_setaffinity(0, [{one}]); from cmwq.cli import main; sys.exit(main())")
    report = json.loads(cli("doctor", "--json", code=code).stdout)
    assert report["cpu"]["cpus"] == [one]
    assert report["cpu"]["limit"] == report["sensor"]["latency"]["sleepers"] == 1


def test_doctor_says_when_nobody_notices() -> None:
    from cmwq.cli.doctor import measure

    with ThreadPoolExecutor(2) as unmanaged:
        assert measure(unmanaged, 2, rounds=3) == ([], 3)  # where a sleeping thread holds its place


def test_doctor_with_a_wrong_wish(cli: Cli) -> None:
    done = cli("doctor", env={"CMWQ_SENSOR": "tea leaves"})
    assert done.returncode == 2
    assert done.stderr.startswith(b"cmwq doctor: error: ")
    assert done.stderr.count(b"\n") == 1


def test_bench_quick(cli: Cli, folder: Path) -> None:
    done = cli("bench", "--quick", "--json", "times.json")
    assert (done.returncode, done.stderr) == (0, b"")
    written = json.loads((folder / "times.json").read_text())
    assert len(written["results"]) == 5
    for result in written["results"]:
        assert result["workload"] in done.stdout.decode()
        assert len(set(map(len, result["seconds"].values()))) == 1
        assert {"cmwq", "2", "32", "128"} <= set(result["seconds"])
        assert result["best"] != "cmwq"
    printed = re.search(r"geometric mean of best/cmwq: (\d+\.\d\d) ", done.stdout.decode())
    assert printed is not None
    assert abs(float(printed[1]) - written["geometric_mean"]) <= 0.0051  # each is rounded, to two and four digits


def test_bench_svg_without_matplotlib(cli: Cli) -> None:
    hidden = (
        "-c",
        "import importlib.util as u, sys; real = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'matplotlib' else real(name, *a);"
        "from cmwq.cli import main; sys.exit(main())",
    )
    done = cli("bench", "--quick", "--svg", "chart.svg", code=hidden)
    assert done.returncode == 2
    assert done.stderr.startswith(b"cmwq bench: error: --svg needs matplotlib")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")
def test_bench_chart(tmp_path: Path) -> None:
    from cmwq.cli.bench import Result, draw

    draw([Result("w", 1, {"cmwq": [1.0], "2": [2.0]})], str(tmp_path / "chart.svg"))
    assert "<svg" in (tmp_path / "chart.svg").read_text()


@pytest.mark.parametrize("option", ["--json", "--svg"])
def test_bench_unwritable_file_is_known_before(cli: Cli, option: str) -> None:
    if option == "--svg" and find_spec("matplotlib") is None:
        pytest.skip("needs matplotlib")
    done = cli("bench", option, "no/such/folder/file")
    assert done.returncode == 2
    assert done.stderr == b"cmwq bench: error: no/such/folder/file: No such file or directory\n"


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((5, 5), "medians of 5 turns. Python"),
        ((4, 4), "medians of 4 turns, not 5, because time ran out. Python"),
        ((3, 5), "medians of 3 to 5 turns, not 5, because time ran out. Python"),
    ],
)
def test_bench_says_of_how_many_turns_its_figures_are_medians(
    counts: tuple[int, int], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from cmwq.cli.bench import Result, print_table

    print_table([Result("w", 1, {"cmwq": [1.0] * count, "2": [2.0] * count}) for count in counts])
    assert words in capsys.readouterr().out


def test_ratio_is_best_size_over_cmwq() -> None:
    from cmwq.cli.bench import Result, geometric_mean

    results = [
        Result("a", 1, {"cmwq": [1.0, 9.0, 1.0], "2": [4.0], "8": [2.0]}),
        Result("b", 1, {"cmwq": [4.0], "2": [2.0]}),
    ]
    assert [result.best() for result in results] == ["8", "2"]
    assert [result.ratio() for result in results] == [2.0, 0.5]
    assert geometric_mean(results) == pytest.approx(1)
