"""Find the Pythons on this machine that cmwq supports, and run a command for each.

Its one job: `interpreters.py` prints a tag (3.11, 3.13t) and a path per line; `--run COMMAND ...` runs the command for
each instead, with {tag} and {python} filled in, one after the other, and prints a summary last.

Guarantees: one interpreter per version and ABI, the one that runs this file first; each can make a virtual environment.
The exit status of `--run` is 1 if any failed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

OLDEST = (3, 11)
PROBE = """
import ensurepip, platform, sys, sysconfig, venv
assert platform.python_implementation() == "CPython"
print(*sys.version_info[:2], "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else "-", sys.executable)
"""
CLOSING = re.compile(r"^=+ .* in \d+\.\d+s.* =+$|^\d+ \w+.* in \d+\.\d+s")  # pytest's last line


def candidates() -> Iterator[Path]:
    """Where one may be, the preferred ones first; repeats, and some that are not what they seem."""
    yield Path(sys.executable)
    for directory in os.get_exec_path():
        yield from sorted(p for p in Path(directory).glob("python3*") if re.fullmatch(r"python3(\.\d+t?)?", p.name))
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(pyenv.glob("versions/*/bin/python"))
    yield from sorted(Path("/opt").glob("*/bin/python3.*t"))


def probe(path: Path) -> tuple[tuple[int, int], str, str] | None:
    """Version, "t" or "", the interpreter itself; None for one that can't be used."""
    try:
        done = subprocess.run([path, "-c", PROBE], capture_output=True, text=True, timeout=30, cwd="/")
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    major, minor, threading, python = done.stdout.strip().split(" ", 3)
    return (int(major), int(minor)), threading.strip("-"), python


def interpreters() -> dict[str, str]:
    """Tag -> path."""
    found: dict[str, str] = {}
    for path in dict.fromkeys(candidates()):
        probed = probe(path)
        if probed is not None and probed[0] >= OLDEST:
            (major, minor), threading, python = probed
            found.setdefault(f"{major}.{minor}{threading}", python)
    return found


def run(command: list[str]) -> tuple[int, str]:
    """Exit status, and pytest's closing line if there was one."""
    closing = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if CLOSING.match(line):
                closing = line.strip("= \n")
    return process.returncode, closing


def main(argv: list[str]) -> int:
    found = interpreters()
    if not argv:
        for tag, python in found.items():
            print(tag, python, sep="\t")
        return 0
    if argv[0] != "--run" or len(argv) == 1:
        print("usage: interpreters.py [--run COMMAND ...]", file=sys.stderr)
        return 2
    summary, failures = [], 0
    for tag, python in found.items():
        print(f"\n== {tag}: {python}", flush=True)
        status, closing = run([word.replace("{tag}", tag).replace("{python}", python) for word in argv[1:]])
        failures += status != 0
        summary.append(f"  {tag:6} {'FAILED' if status else 'passed'}  {closing}".rstrip())
    print("\n" + "\n".join(summary))
    return 1 if failures or not found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
