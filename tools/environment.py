"""Make a virtual environment in which cmwq is installed from this tree, with some of its extras.

Its one job: `environment.py DIRECTORY EXTRA...` leaves DIRECTORY ready, made of the Python that runs this file. The C
extension is built in place if there is a C compiler, and which sensor serves is said. Of the extras `frameworks` and
`peers`, what can't be installed for this Python is left out, and that is said.

Guarantees: nothing is done where nothing changed (Python, this tree's place, pyproject.toml, setup.py, the C sources,
the compiler, what CMWQ_EXTENSION asks for, the extension itself); the stamp that says so is written last, so an
interrupted run is begun again from nothing. No compiler is needed: other people's packages come as wheels only, in
older versions where the newest has none for this Python.

Several environments may share the tree, and so the folder in which the extensions lie. One that was built for a single
Python has its name, and disturbs no other Python. One of the limited API (CMWQ_EXTENSION=abi3) has the same name for
all, so each Python takes it that has none of its own. That is why what this Python would load is compared with what was
built for this environment, and built anew if it is not the same file.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SENTINEL = ROOT / "src/cmwq/_sensor/_sentinel"  # with a suffix that depends on the Python: the C extension
NATIVE = ROOT / "src/cmwq/_sensor/_native"  # what it is built from
BUILD = ROOT / "pyproject.toml", ROOT / "setup.py"  # and how
STAMP = "cmwq.json"
PARTIAL = {"frameworks", "peers"}  # extras of which any part may be missing
SENSOR = """
from cmwq._sensor import NAMES, why_not
for name in NAMES:
    reason = why_not(name)
    print(f"not the sensor {name}: {reason}" if reason else f"sensor: {name}")
    if not reason:
        break
"""


def main(argv: list[str]) -> int:
    directory, extras = Path(argv[0]).absolute(), set(argv[1:])
    version = sys.version.split()[0]
    if sys.version_info < (3, 11):  # noqa: UP036  # whoever runs this may have any Python
        print(f"cmwq needs Python 3.11 or newer; {sys.executable} is {version}. Try: make PYTHON=python3.12 ...")
        return 1
    stamp = directory / STAMP
    before = read(stamp)
    basis = {"python": [sys.version, sys.base_prefix], "root": str(ROOT), "directory": str(directory)}
    fresh = any(before.get(key) != value for key, value in basis.items())
    wanted = {
        **basis,
        "extras": sorted(extras.union([] if fresh else before["extras"])),
        "sources": [digest(path) for path in (*BUILD, *sorted(NATIVE.glob("*.[ch]")))],
        "compiler": compiler(),
        "asked for": os.environ.get("CMWQ_EXTENSION") or "optional",
    }
    if before == {**wanted, "extension": loaded()}:
        return 0
    print(f"setting up {os.path.relpath(directory)}: Python {version}{sys.abiflags}", flush=True)
    stamp.unlink(missing_ok=True)
    if fresh and (status := run([sys.executable, "-m", "venv", "--clear", str(directory)])):
        return status
    python = str(directory / "bin/python")
    # One that was built from other source or by another compiler must not serve if the build now fails.
    for extension in loadable():
        extension.unlink(missing_ok=True)
    project = f"{ROOT}[{','.join(sorted(extras - PARTIAL))}]"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--only-binary=:all:"]
    if status := run([*pip, "--editable", project]):
        return status
    for extra in sorted(PARTIAL.intersection(wanted["extras"])):
        if run([*pip, *parts(extra)], show=False):
            for part in parts(extra):
                if run([*pip, part], show=False):
                    print(f"not installed: {part} (no wheel for this Python)")
    if status := run([python, "-c", SENSOR], show=True):
        return status
    stamp.write_text(json.dumps({**wanted, "extension": loaded()}, indent=1) + "\n")
    return 0


def read(stamp: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(stamp.read_text())
    except (OSError, ValueError):
        return {}
    return found


def parts(extra: str) -> list[str]:
    import tomllib  # not in Pythons that `main` refuses

    found: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def loadable() -> list[Path]:
    """The names under which this Python would take the extension, the first one that exists."""
    return [SENTINEL.with_name(SENTINEL.name + suffix) for suffix in importlib.machinery.EXTENSION_SUFFIXES]


def loaded() -> list[str] | None:
    """The name and the digest of the extension that this Python would load; None: there is none."""
    found = next((path for path in loadable() if path.exists()), None)
    return None if found is None else [found.name, digest(found)]


def compiler() -> str:
    """Which C compiler setuptools would take; whether it works is for the build to find out."""
    command = os.environ.get("CC") or str(sysconfig.get_config_var("CC") or "cc")
    return f"{command}: {shutil.which(command.split()[0])}"


def run(command: list[str], *, show: bool | None = None) -> int:
    """Its exit status; what it printed, if `show`, or by default if it failed."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode if show is None else show:
        print(done.stdout, end="", flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
