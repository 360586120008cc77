"""Run tests with the C extension built for ThreadSanitizer, which reports accesses that race.

Its one job: copy the tree, build the extension there with `-fsanitize=thread`, run the tests of the sensors and the
locks (or those given) with the sanitizer's library loaded, and say what it reported. Exit status: 0 no report, 1 some,
or failed tests, 2 no build. Where it can't be done that is said, and the status is 0.

Guarantees: the tree itself is never touched, its own build of the extension included.

What it sees is the C of this project and the C library's locks; the interpreter is not instrumented. With a GIL that is
enough: the GIL is a mutex of the C library. A free-threaded Python hands objects from thread to thread in ways of its
own, which then look like races, so such a Python is refused.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULE = "src/cmwq/_sensor/_native/module.c"
EXTENSION = "src/cmwq/_sensor/_sentinel" + str(sysconfig.get_config_var("EXT_SUFFIX"))
FLAGS = ["-fsanitize=thread", "-std=gnu11", "-g", "-O1"]
TESTS = ["tests/sensors", "tests/host"]
SUPPRESSIONS = """
# The C library frees a dead thread's variables when it uses its stack again, after a join that is not seen as one.
race:_dl_deallocate_tls
"""
REPORTED = "WARNING: ThreadSanitizer:"


def main(argv: list[str]) -> int:
    compiler = (os.environ.get("CC") or "cc").split()
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return skip("this Python is free-threaded, and its own locks would have to be instrumented")
    with tempfile.TemporaryDirectory(prefix="cmwq-tsan-") as name:
        copy = Path(name).resolve()
        if (reason := why_not(compiler, copy)) is not None:
            return skip(reason)
        for part in ("src", "tests"):
            shutil.copytree(
                ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
            )
        shutil.copy(ROOT / "pyproject.toml", copy)
        include = f"-I{sysconfig.get_path('include')}"
        if subprocess.run(
            [*compiler, *FLAGS, "-fPIC", "-shared", include, MODULE, "-o", EXTENSION], cwd=copy
        ).returncode:
            print("the extension could not be built with ThreadSanitizer")
            return 2
        return run(copy, library(compiler), argv or TESTS)


def skip(reason: str) -> int:
    print(f"ThreadSanitizer: skipped, {reason}")
    return 0


def library(compiler: list[str]) -> str:
    """Where the sanitizer's library is, or only its name."""
    command = [*compiler, "-print-file-name=libtsan.so"]
    return subprocess.run(command, text=True, capture_output=True).stdout.strip()


def why_not(compiler: list[str], scratch: Path) -> str | None:
    """Why this compiler, or this kernel, has no ThreadSanitizer; None: it has."""
    if shutil.which(compiler[0]) is None:
        return f"there is no compiler {compiler[0]}"
    source, program = scratch / "probe.c", scratch / "probe"
    source.write_text("int main(void) { return 0; }\n")
    done = subprocess.run([*compiler, *FLAGS, str(source), "-o", str(program)], capture_output=True)
    if done.returncode or not os.path.isabs(library(compiler)):
        return f"{' '.join(compiler)} has none that can be loaded into a program"
    if subprocess.run([str(program)], capture_output=True).returncode:
        return "a program that was built with it does not run here"
    return None


def run(copy: Path, preload: str, tests: list[str]) -> int:
    (copy / "suppressions").write_text(SUPPRESSIONS)
    options = {
        "log_path": copy / "report",
        "suppressions": copy / "suppressions",
        "exitcode": 0,  # tests judge the exit status of programs that they run
        "die_after_fork": 0,
        "report_signal_unsafe": 0,  # handlers of Python's are no signal handlers
        "history_size": 4,
    }
    environment = {
        **os.environ,
        "LD_PRELOAD": preload,
        "TSAN_OPTIONS": " ".join(f"{key}={value}" for key, value in options.items()),
        "PYTHONPATH": str(copy / "src"),  # before site-packages, so before the editable install
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], cwd=copy, env=environment
    )
    reports = [text for path in sorted(copy.glob("report.*")) if REPORTED in (text := path.read_text(errors="replace"))]
    for text in reports:
        print(text)
    number = sum(text.count(REPORTED) for text in reports)
    print(f"ThreadSanitizer: {number} reports, tests {'failed' if done.returncode else 'passed'}")
    return 1 if number or done.returncode else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
