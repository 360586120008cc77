"""Run the tests that need servers of other people: `tests/services`.

Its one job: `services.py [PYTEST OPTIONS]` installs the Debian packages that these servers are in, where they are
missing and this may be done (root, and `apt-get`), and runs the tests. A test whose server is not there is skipped, and
says why. The servers are started by the tests, on free ports, and stopped by them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests/services"
PACKAGES = {
    "redis-server": "redis-server",
    "prometheus": "prometheus",
    "chromium": "chromium",
    "node": "nodejs",
}
"""Which package each program is in."""


def missing() -> list[str]:
    return [package for program, package in PACKAGES.items() if shutil.which(program) is None]


def install(packages: list[str]) -> None:
    """Install them without starting what is in them. Says what can't be installed, and why."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"not installed: {', '.join(packages)} (that takes root, and apt-get)", flush=True)
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # 1: services don't start
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        print(f"{done.stdout}\nnot installed: {', '.join(packages)}", flush=True)


def main(arguments: list[str]) -> int:
    if packages := missing():
        install(packages)
    return subprocess.call([sys.executable, "-m", "pytest", str(TESTS), *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
