"""What is published: how the extension is asked for, archives that depend on the source alone, checks that can fail.

`make release-check` builds and tries the archives themselves; here are the decisions.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from conftest import module_of

ROOT = Path(__file__).resolve().parent.parent

# Absent where only a part of the tree was copied (tools/trees.py).
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="no setup.py here")


@pytest.fixture
def setup() -> ModuleType:
    pytest.importorskip("setuptools")
    return module_of(ROOT / "setup.py")


# ------------------------------------------------------------------------------------------- what is asked for


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: None)


@pytest.mark.usefixtures("linux")
def test_one_word_says_what_becomes_of_the_extension(setup: ModuleType) -> None:
    optional, required, abi3 = map(setup.extension, ("optional", "required", "abi3"))
    assert (optional.optional, required.optional, abi3.optional) == (True, False, False)
    assert [bool(each.py_limited_api) for each in (optional, required, abi3)] == [False, False, True]
    assert abi3.define_macros == [("Py_LIMITED_API", "0x030B0000")]
    assert optional.define_macros == required.define_macros == []
    assert setup.extension("none") is None
    with pytest.raises(SystemExit, match="'yes' is none of"):
        setup.extension("yes")


def test_a_free_threaded_Python_has_no_limited_API(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: name == "Py_GIL_DISABLED")
    assert setup.extension("required") is not None
    with pytest.raises(SystemExit, match="free-threaded"):
        setup.extension("abi3")


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_have_none_and_say_so_if_one_is_required(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert setup.extension("optional") is None
    for wanted in ("required", "abi3"):
        with pytest.raises(SystemExit, match=f"needs Linux, this is {system}"):
            setup.extension(wanted)


# ------------------------------------------------------------------------------------------- archives


def archive_of(folder: Path, names: list[str], time: float, mode: int) -> Path:
    """A .tar.gz of these files in this order, with these marks of where and when it was made."""
    for name in names:
        path = folder / "cmwq-1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the text of {name}\n")
        path.chmod(mode | (0o100 if name.endswith(".sh") else 0))
        os.utime(path, (time, time))
    made = folder / "made.tar.gz"
    with tarfile.open(made, "w:gz") as archive:
        for name in names:
            archive.add(folder / "cmwq-1" / name, f"cmwq-1/{name}")
    return made


def test_an_archive_of_the_source_depends_on_the_source_alone(setup: ModuleType, tmp_path: Path) -> None:
    names = ["a.py", "b/c.py", "b/run.sh"]
    one = archive_of(tmp_path / "one", names, 1e9, 0o600)
    other = archive_of(tmp_path / "other", names[::-1], 1.5e9, 0o644)
    assert one.read_bytes() != other.read_bytes()
    for path in (one, other):
        setup.normalise(path, 1234567890)
    assert one.read_bytes() == other.read_bytes()
    with tarfile.open(one) as archive:
        members = {member.name: member for member in archive}
        assert {name: member.mode for name, member in members.items()} == {
            "cmwq-1/a.py": 0o644,
            "cmwq-1/b/c.py": 0o644,
            "cmwq-1/b/run.sh": 0o755,
        }
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members.values()} == {(1234567890, 0, 0, "", "")}
        content = archive.extractfile("cmwq-1/b/c.py")
        assert content is not None
        assert content.read() == b"the text of b/c.py\n"


def test_an_incomplete_archive_of_the_source_is_noticed(tool: Callable[[str], ModuleType], tmp_path: Path) -> None:
    check = tool("release_check")
    archive = archive_of(tmp_path, ["a.py", "b.so"], 1e9, 0o644)
    with pytest.raises(check.Failed, match=r"missing: \['tests/x.py'\]; made from the source, .*: \['b.so'\]"):
        check.check_sdist(archive, ["a.py", "tests/x.py", ".github/workflows/ci.yml"])
    assert check.check_sdist(archive_of(tmp_path / "2", ["a.py"], 1e9, 0o644), ["a.py"]) == "1 files"


WHOLE = {
    "cmwq/__init__.py": "",
    "cmwq/py.typed": "",
    "cmwq/_sensor/_sentinel.pyi": "",
    "cmwq/observing/dashboard/static/index.html": "",
    "cmwq-1.0.dist-info/METADATA": "License-Expression: MIT\nRequires-Python: >=3.11\n",
}
EXTENSION = {"cmwq/_sensor/_sentinel.abi3.so": ""}


def wheel_of(folder: Path, tags: str, files: dict[str, str]) -> Path:
    path = folder / f"cmwq-1.0-{tags}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.mark.parametrize(
    ("tags", "files", "wrong"),
    [
        ("cp311-abi3-linux_x86_64", WHOLE, "has the extensions"),
        ("cp312-abi3-linux_x86_64", WHOLE | EXTENSION, "is not cp311-abi3"),
        ("cp311-abi3-linux_x86_64", WHOLE | {"cmwq/_sensor/_sentinel.cpython-311-x.so": ""}, "has the extensions"),
        ("cp311-abi3-linux_x86_64", WHOLE | EXTENSION | {"tests/conftest.py": ""}, "files of others: .*conftest"),
        ("cp311-abi3-linux_x86_64", WHOLE | EXTENSION | {"cmwq-1.0.dist-info/METADATA": ""}, "licence"),
        (
            "cp311-abi3-linux_x86_64",
            {name: text for name, text in (WHOLE | EXTENSION).items() if "typed" not in name},
            "lacks cmwq/py.typed",
        ),
    ],
)
def test_what_is_wrong_with_a_wheel_is_noticed(
    tool: Callable[[str], ModuleType], tmp_path: Path, tags: str, files: dict[str, str], wrong: str
) -> None:
    check = tool("release_check")
    kind = check.Kind("abi3", "abi3", "", "cp311-abi3", (), "_sentinel.abi3.")
    assert check.check_wheel(kind, wheel_of(tmp_path, "cp311-abi3-linux_x86_64", WHOLE | EXTENSION))
    (tmp_path / "wrong").mkdir()
    with pytest.raises(check.Failed, match=wrong):
        check.check_wheel(kind, wheel_of(tmp_path / "wrong", tags, files))


def test_archives_that_differ_are_told_with_what_differs(tool: Callable[[str], ModuleType], tmp_path: Path) -> None:
    check = tool("release_check")
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    one = wheel_of(folders[0], "py3-none-any", WHOLE)
    other = wheel_of(folders[1], "py3-none-any", WHOLE | {"cmwq/__init__.py": "# changed\n"})
    assert check.check_same({"pure": one}, {"pure": one}) == "1 archives, byte by byte"
    with pytest.raises(check.Failed, match=r"py3-none-any.whl \(cmwq/__init__.py\)"):
        check.check_same({"pure": one}, {"pure": other})


# ------------------------------------------------------------------------------------------- beside the archives


def test_the_bill_of_materials_says_what_is_there(tool: Callable[[str], ModuleType], tmp_path: Path) -> None:
    sbom = tool("sbom")
    wheel = wheel_of(tmp_path, "py3-none-any", WHOLE)
    made = sbom.bill([wheel], 0)
    assert made == sbom.bill([wheel], 0), "the same archives have the same bill"
    assert made["metadata"]["timestamp"] == "1970-01-01T00:00:00Z"
    carried, file = made["components"]
    assert carried["name"] == "uplot"
    assert f"(v{carried['version']})" in (sbom.VENDOR / "uPlot.iife.min.js").read_text()[:100]
    assert file == {
        "type": "file",
        "bom-ref": wheel.name,
        "name": wheel.name,
        "hashes": [{"alg": "SHA-256", "content": sbom.digest(wheel)}],
    }
    assert made["serialNumber"] != sbom.bill([], 0)["serialNumber"]


def test_one_version_everywhere() -> None:
    """In the metadata and in the package; the release workflow compares them with the tag."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f'__version__ = "{project["version"]}"' in (ROOT / "src/cmwq/__init__.py").read_text()


def test_make_setup_knows_which_extension_is_loaded(
    tool: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside that of the limited API, which all Pythons would take, this Python's own is taken, as the import does."""
    environment = tool("environment")
    monkeypatch.setattr(environment, "SENTINEL", tmp_path / "_sentinel")
    assert environment.loaded() is None
    limited = tmp_path / "_sentinel.so"
    limited.write_bytes(b"for all")
    assert environment.loaded() == ["_sentinel.so", environment.digest(limited)]
    own = tmp_path / f"_sentinel{sysconfig.get_config_var('EXT_SUFFIX')}"
    own.write_bytes(b"its own")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = importlib.util.find_spec("_sentinel")
    assert found is not None
    assert found.origin == str(own)
    assert environment.loaded() == [own.name, environment.digest(own)]


# ------------------------------------------------------------------------------------------- workflows

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
with_workflows = pytest.mark.skipif(not WORKFLOWS, reason="not in the archive of the source")


@with_workflows
def test_actions_are_pinned_by_their_major_version() -> None:
    used = [name for path in WORKFLOWS for name in re.findall(r"uses: (\S+)", path.read_text())]
    assert len(used) > 10
    assert [name for name in used if not re.fullmatch(r"[\w.-]+/[\w.-]+@(v\d+|release/v\d+)", name)] == []


@with_workflows
def test_every_Python_that_the_metadata_names_is_tested_and_built_for() -> None:
    import tomllib

    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = [found[1] for each in classifiers if (found := re.fullmatch(r".*:: Python :: (3\.\d+)", each))]
    tested = re.search(r"python: (\[.*\])", (ROOT / ".github/workflows/ci.yml").read_text())
    assert tested is not None
    assert [version for version in versions if f'"{version}"' not in tested[1]] == []
    release = (ROOT / ".github/workflows/release.yml").read_text()
    for build in re.findall(r'build: "(.*)"', release):
        assert [version for version in versions if f"cp{version.replace('.', '')}-*" not in build.split()] == []


@with_workflows
def test_only_one_job_may_publish_and_only_of_a_tag() -> None:
    release = (ROOT / ".github/workflows/release.yml").read_text()
    jobs = dict(re.findall(r"^  (\w+):\n((?:    .*\n|\n)+)", release[release.index("\njobs:") :], re.MULTILINE))
    publishing = [name for name, text in jobs.items() if "gh-action-pypi-publish" in text]
    assert publishing == ["publish"]
    assert "if: github.event_name == 'push' && github.ref_type == 'tag'" in jobs["publish"]
    assert "environment: pypi" in jobs["publish"]
    assert {name for name, text in jobs.items() if "id-token: write" in text} == {"gather", "publish"}
    assert "password" not in release.partition("jobs:")[2]
