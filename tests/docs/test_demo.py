"""The demo runs, says what came out, and draws it."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest
from conftest import module_of

DEMO = Path(__file__).resolve().parents[2] / "demo"

# Absent where only a part of the tree was copied (tools/trees.py).
pytestmark = pytest.mark.skipif(not DEMO.exists(), reason="no demo here")


@pytest.fixture(scope="module")
def picture() -> ModuleType:
    return module_of(DEMO / "picture.py")


def test_what_was_under_way_is_averaged_over_each_part(picture: ModuleType) -> None:
    assert picture.under_way([(0.0, 2.0), (1.0, 4.0)], 4.0, 4) == [1.0, 2.0, 1.0, 1.0]
    assert picture.under_way([(0.5, 1.0)], 4.0, 2) == [0.25, 0.0]
    assert picture.under_way([(0.0, 4.1)], 4.0, 2) == [1.0, 1.0], "an end that comes late is the last moment's"
    assert picture.under_way([], 1.0, 3) == [0.0, 0.0, 0.0]


def test_the_fastest_comes_first_and_the_longest_is_the_longest_row(picture: ModuleType) -> None:
    slow = picture.Row("ThreadPoolExecutor(2)", 4.0, 2, 1234, [(0.0, 4.0), (0.0, 4.0)])
    fast = picture.Row("cmwq.Executor()", 1.0, 8, 99, [(0.0, 1.0)] * 8)
    first, second = picture.terminal([slow, fast], 100).splitlines()
    assert first.startswith("cmwq")
    assert second.startswith("Thread")
    assert "1.00 s, 8 threads, 99 switches" in first
    lengths = [len(re.findall("[▁▂▃▄▅▆▇█]", line)) for line in (first, second)]
    assert lengths[1] == pytest.approx(4 * lengths[0], abs=4)
    assert max(map(len, (first, second))) <= 100


def test_the_drawing_is_an_svg_with_a_shape_for_each(picture: ModuleType) -> None:
    rows = [picture.Row(f"n{n} <&>", 0.5 * n, n, n, [(0.0, 0.5 * n)] * n) for n in range(1, 6)]
    root = ET.fromstring(picture.svg(rows, "a <title>"))
    names = [each.tag.rpartition("}")[2] for each in root.iter()]
    assert names.count("polygon") == 5
    assert "n3 <&>" in "".join(root.itertext())
    for polygon in (each for each in root.iter() if each.tag.endswith("polygon")):
        points = [tuple(map(float, point.split(","))) for point in polygon.attrib["points"].split()]
        assert all(0 <= x <= picture.WIDTH and y >= 0 for x, y in points)


def test_the_demo_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO / "stdlib.py"), "--limit", "25", "--rounds", "2", "--picture", "drawn/demo.svg"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "medians of 2 rounds" in done.stdout
    assert re.search(r"^cmwq\.Executor\(\) .*[▁▂▃▄▅▆▇█]+.* threads, .* switches$", done.stdout, re.MULTILINE)
    assert re.search(r"All 5 produced the same results, in every round: sha256 [0-9a-f]{16}", done.stdout)
    assert ET.parse(tmp_path / "drawn/demo.svg").getroot().tag.endswith("svg")
