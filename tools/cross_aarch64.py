"""The C extension for 64-bit ARM, on a machine that is none: cross-compiled, locks and parkers tested under qemu.

Its one job: with Debian's cross compiler, an ARM Python from Debian's packages, unpacked into out/aarch64, and qemu's
emulation of one process, build the extension for the whole and for the limited API, and run `TESTS` with it.

Guarantees: nothing is installed, unless --install says so, and then only Debian's packages `PACKAGES`; what is
downloaded for ARM goes to out/aarch64, with lists of packages of its own. What is missing is said in a line, and then
the status is 0: this is an extra. 1: something was built or tested, and failed.

What is not tested: the sensors. qemu translates system calls, so /proc tells the host's numbers for the threads of the
emulated process; idle priority is the host's, too. And ARM's weaker order of memory is not emulated faithfully on x86.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out/aarch64"
SYSROOT = OUT / "root"
TRIPLE = "aarch64-linux-gnu"
COMPILER = f"{TRIPLE}-gcc"
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
PACKAGES = ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user"]
"""Debian's, for this machine."""
PURE = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pytest_timeout.py", "pygments", "py.py")
"""Packages of pure Python that the tests need, taken from the environment that runs this."""
TESTS = ["tests/host/test_locks.py", "tests/sensors/test_parker.py"]
CHILDLESS = "not in_the_child"
"""Of these, those that start no other program, which would have to be emulated by a binfmt of the system's."""
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers"]
FLAGS += ["-Wno-cast-function-type", "-fPIC", "-shared"]


class Missing(Exception):
    """What can't be had here, in words."""


def run(command: list[str | Path], cwd: Path = ROOT, environment: dict[str, str] | None = None) -> str:
    """What it printed, run in `cwd`. Raises RuntimeError with that, if it failed."""
    done = subprocess.run(
        [str(word) for word in command], env={**os.environ, **(environment or {})}, cwd=cwd, text=True,
        errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {' '.join(map(str, command))}\n{done.stdout[-4000:]}")
    return done.stdout


def tools(install: bool) -> Path:
    """The emulator; the compiler is there too then. Raises Missing."""
    if install:
        run(["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES])
    emulator = next(filter(None, map(shutil.which, EMULATORS)), None)
    if shutil.which(COMPILER) is None or emulator is None:
        raise Missing(f"it needs {COMPILER} and {EMULATORS[1]}: apt-get install {' '.join(PACKAGES)}, or --install")
    return Path(emulator)


def apt(*arguments: str, cwd: Path = ROOT) -> str:
    """apt-get for ARM's packages, with lists of its own in OUT. Raises Missing."""
    state, cache = OUT / "apt/state", OUT / "apt/cache"
    (state / "lists/partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives/partial").mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "Dir::State": state, "Dir::Cache": cache,
        "Dir::State::status": state / "status", "APT::Sandbox::User": "root",
    }  # fmt: skip
    command = ["apt-get", *(word for key, value in options.items() for word in ("-o", f"{key}={value}")), *arguments]
    try:
        return run([*command], cwd)
    except (RuntimeError, OSError) as error:
        raise Missing(f"Debian's packages for ARM can't be had: {error}") from None


def python() -> Path:
    """An ARM Python with its headers, unpacked in SYSROOT. Raises Missing."""
    found = sorted(SYSROOT.glob("usr/bin/python3.1[0-9]"))
    if found:
        return found[0]
    apt("update")
    planned = apt("install", "--print-uris", "--yes", "--no-install-recommends", "python3", "libpython3-dev")
    names = re.findall(r"^'[^']*' (\S+)_[^_]+_\w+\.deb ", planned, re.MULTILINE)
    debs = OUT / "debs"
    debs.mkdir(exist_ok=True)
    wanted = [name for name in names if not name.startswith(("dpkg", "perl", "debconf", "gcc-1"))]
    apt("download", *wanted, cwd=debs)
    for deb in sorted(debs.glob("*.deb")):
        run(["dpkg", "-x", deb, SYSROOT])
    found = sorted(SYSROOT.glob("usr/bin/python3.1[0-9]"))
    if not found:
        raise Missing("Debian's packages for ARM have no python3")
    return found[0]


def build(version: str, folder: Path, *, limited: bool) -> Path:
    """The extension for that ARM Python, in a copy of the source in that folder."""
    shutil.copytree(ROOT / "src/cmwq", folder / "cmwq", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    suffix = ".abi3.so" if limited else f".cpython-{version.replace('.', '')}-{TRIPLE}.so"
    made = folder / f"cmwq/_sensor/_sentinel{suffix}"
    include = SYSROOT / f"usr/include/python{version}"
    # Debian's pyconfig.h asks for one in a folder of the machine's name.
    headers: list[str | Path] = ["-isystem", include, "-isystem", SYSROOT / "usr/include"]
    macro = ["-DPy_LIMITED_API=0x030B0000"] if limited else []
    run([COMPILER, *FLAGS, *macro, *headers, folder / "cmwq/_sensor/_native/module.c", "-o", made])
    return made


def borrowed(folder: Path) -> None:
    """What the tests need of other people's pure Python."""
    import pytest

    site = Path(pytest.__file__).parent.parent
    for name in PURE:
        source = site / name
        if source.is_dir():
            shutil.copytree(source, folder / name, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy(source, folder)


def rehearse(install: bool) -> int:
    emulator, failures = tools(install), 0
    there = python()
    version = there.name.removeprefix("python")
    for limited in (False, True):
        name = "the limited API" if limited else f"Python {version}"
        folder = OUT / ("limited" if limited else "whole")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            made = build(version, folder, limited=limited)
            print(f"built for {name}: {made.name}, {made.stat().st_size} bytes")
            borrowed(folder)
            environment = {"PYTHONPATH": f"{folder}:{ROOT / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}
            emulated: list[str | Path] = [emulator, "-L", SYSROOT, there]
            where = "import cmwq._sensor._sentinel as s, platform; print(platform.machine(), s.__file__)"
            print(run([*emulated, "-c", where], environment=environment).strip())
            # The environment's own options name plugins that are not there.
            output = run(
                [
                    *emulated,
                    "-m",
                    "pytest",
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    "-p",
                    "pytest_timeout",
                    "-k",
                    CHILDLESS,
                    *TESTS,
                ],
                environment=environment,
            )
            print(output.strip().splitlines()[-1])
        except RuntimeError as error:
            print(f"{name}: {error}")
            failures += 1
    print(f"aarch64: {'FAILED' if failures else 'passed'}")
    return 1 if failures else 0


def main(argv: list[str]) -> int:
    if platform.machine() == "aarch64":
        print("aarch64: this machine is one: run make test")
        return 0
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        return rehearse("--install" in argv)
    except Missing as missing:
        print(f"aarch64: skipped. {missing}")
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
