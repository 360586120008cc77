"""Run tests with the C extension built for ThreadSanitizer, which reports accesses that race.

Its one job: copy the tree, build the extension there with `-fsanitize=thread`, run the tests of the sensors, the locks
and the hot path in C (or those given), and say what was reported. Exit status: 0 no report, 1 some, or failed tests, 2
no build. Where it can't be done that is said, and the status is 0.

Guarantees: the tree itself is never touched, its own build of the extension included.

What it sees with a GIL is the C of this project and the C library's locks, with the sanitizer's library loaded before
the interpreter, which is not instrumented. That is enough: the GIL is a mutex of the C library. A free-threaded Python
hands objects from thread to thread in ways of its own, which then look like races; so it has to be one that was
configured with `--with-thread-sanitizer`, and of what is reported there only that counts in which this project's C is
one of the two that race. (The interpreter has races of its own, which its developers list.)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from trees import copy_tree

MODULE = "src/cmwq/_sensor/_native/module.c"
EXTENSION = "src/cmwq/_sensor/_sentinel" + str(sysconfig.get_config_var("EXT_SUFFIX"))
FLAGS = ["-fsanitize=thread", "-std=gnu11", "-g", "-O1"]
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
INSTRUMENTED = "--with-thread-sanitizer" in str(sysconfig.get_config_var("CONFIG_ARGS"))
TESTS = ["tests/sensors", "tests/host", "tests/twin/test_twin_cases.py", "tests/model/test_stress.py"]
LEFT_OUT = ["tests/host/test_timers.py::test_G2_an_fn_that_forks_leaves_no_timer_thread_in_the_child"]
"""In an instrumented Python the sanitizer dies where a thread forks and ends in the child, without our C as well."""
SUPPRESSIONS = """
# The C library frees a dead thread's variables when it uses its stack again, after a join that is not seen as one.
race:_dl_deallocate_tls
"""
REPORTED = "WARNING: ThreadSanitizer:"
OURS = "/_native/"
ACCESS = re.compile(r"^  (?:Previous )?(?:atomic )?(?:[Rr]ead|[Ww]rite) of size .*$", re.MULTILINE)
INLINED = ("/Include/", "pyatomic", "sanitizer", "libtsan")


def main(argv: list[str]) -> int:
    compiler = (os.environ.get("CC") or "cc").split()
    if FREE_THREADED and not INSTRUMENTED:
        return skip("this Python is free-threaded, and was not configured with --with-thread-sanitizer")
    with tempfile.TemporaryDirectory(prefix="cmwq-tsan-") as name:
        copy = Path(name).resolve()
        if (reason := why_not(compiler, copy)) is not None:
            return skip(reason)
        copy_tree(copy, "*.so")
        include = f"-I{sysconfig.get_path('include')}"
        if subprocess.run(
            [*compiler, *FLAGS, "-fPIC", "-shared", include, MODULE, "-o", EXTENSION], cwd=copy
        ).returncode:
            print("the extension could not be built with ThreadSanitizer")
            return 2
        return run(copy, None if INSTRUMENTED else library(compiler), argv or TESTS)


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


def is_ours(report: str) -> bool:
    """Is this project's C one of the two that race? What is inlined from headers counts as the code around it."""
    for access in ACCESS.finditer(report):
        for frame in report[access.end() :].lstrip("\n").split("\n\n")[0].splitlines():
            if not any(name in frame for name in INLINED):
                if OURS in frame:
                    return True
                break
    return False


def run(copy: Path, preload: str | None, tests: list[str]) -> int:
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
        **({} if preload is None else {"LD_PRELOAD": preload}),
        "TSAN_OPTIONS": " ".join(f"{key}={value}" for key, value in options.items()),
        # Before site-packages, so before the editable install.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(copy / "src"), os.environ.get("PYTHONPATH")])),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CMWQ_DEBUG": "0",  # else the hot path is in Python
    }
    without = [f"--deselect={test}" for test in LEFT_OUT] if INSTRUMENTED else []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *without, *tests], cwd=copy, env=environment
    )
    every = [
        report
        for path in sorted(copy.glob("report.*"))
        for report in path.read_text(errors="replace").split("=" * 18 + "\n")
        if REPORTED in report
    ]
    reports = [report for report in every if not INSTRUMENTED or is_ours(report)]
    for report in reports:
        print(report)
    print(
        f"ThreadSanitizer: {len(reports)} reports, {len(every) - len(reports)} more of the interpreter alone, "
        f"tests {'failed' if done.returncode else 'passed'}"
    )
    return 1 if reports or done.returncode else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
