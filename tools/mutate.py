"""Break the code on purpose, one line at a time: some test must notice every time.

Its one job: for each mutant of tests/mutants.toml, copy the tree, apply the mutant to the copy, run the tests it names
there, and report whether they failed (killed) or not (survived).

Guarantees: the tree itself is not touched, but that it is compiled. A mutant whose old text does not occur exactly
once, whose tests do not pass without it, or which breaks so much that no test is run, is an error and not a success:
mutants must not rot. The mutated copy is what runs, never an installed cmwq. A mutant of the C extension is compiled in
its copy; where there is no compiler, that is an error. Exit status: 0 all killed, 1 a survivor, 2 an error.

Two things make the whole list cheap. Without a mutant, each file of tests is run once, with all tests of it that some
mutant names. And the test that killed a mutant is noted in a file, and comes first the next time: with another
interpreter, say. What killed them in some earlier run of the whole list is in tests/killers.json, for those who run it
for the first time; `--record tests/killers.json` writes that file anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trees import ROOT, compile_tree, copy_tree

LIST = ROOT / "tests/mutants.toml"
RECORD = ROOT / "out/mutants.json"
KNOWN = ROOT / "tests/killers.json"
NATIVE = "src/cmwq/_sensor/_native/"
EXTENSION = "src/cmwq/_sensor/_sentinel" + str(sysconfig.get_config_var("EXT_SUFFIX"))
PYTEST_FAILED = 1  # pytest's other statuses: 2 interrupted (a module did not import), 3 internal, 4 usage, 5 no tests
NOT_IMPORTED = 99
LAUNCH = f"""
import ctypes, os, pathlib, sys, traceback
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL: a mutant that hangs doesn't outlive whoever ran it
os.environ.setdefault("CMWQ_DEBUG", "1")  # as tests/conftest.py does, which comes too late here
try:
    import cmwq
except BaseException:
    traceback.print_exc()
    os._exit({NOT_IMPORTED})
import pytest
assert pathlib.Path(cmwq.__file__).is_relative_to(pathlib.Path.cwd()), cmwq.__file__
sys.exit(pytest.main(sys.argv[1:]))
"""


class BadMutant(Exception):
    """The list does not fit the code any more."""


@dataclass(frozen=True)
class Mutant:
    name: str
    rules: tuple[str, ...]
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def is_native(self) -> bool:
        return self.file.startswith(NATIVE)

    def applied(self) -> str:
        """The file's text with the mutant in it."""
        path = ROOT / self.file
        if not ((path.suffix == ".py" and self.file.startswith("src/")) or self.is_native) or not path.is_file():
            raise BadMutant(f"{self.name}: {self.file} is no Python file under src/, nor of the C extension")
        text = path.read_text()
        if (times := text.count(self.old)) != 1:
            raise BadMutant(f"{self.name}: its old text occurs {times} times in {self.file}, not once")
        mutated = text.replace(self.old, self.new)
        try:
            compile("" if self.is_native else mutated, self.file, "exec")
        except SyntaxError as error:
            raise BadMutant(f"{self.name}: {self.file} would not compile: {error}") from None
        if mutated == text:
            raise BadMutant(f"{self.name}: old and new are the same")
        return mutated


@dataclass(frozen=True)
class Outcome:
    verdict: str  # passed, failed, hang, crash, or why it is none of these
    seconds: float
    by: str  # the first failing test, and how it failed
    output: str

    @property
    def killed(self) -> bool:
        return self.verdict in ("failed", "hang", "crash")


def load(path: Path) -> list[Mutant]:
    """All mutants, each checked against the code. Raises BadMutant."""
    mutants = []
    for entry in tomllib.loads(path.read_text()).get("mutant", []):
        try:
            entry = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
            mutants.append(Mutant(**entry))
        except TypeError as error:
            raise BadMutant(f"{entry.get('name', entry)}: {error}") from None
    names = [mutant.name for mutant in mutants]
    for mutant in mutants:
        if names.count(mutant.name) > 1:
            raise BadMutant(f"{mutant.name}: two mutants of that name")
        if not mutant.tests:
            raise BadMutant(f"{mutant.name}: names no tests")
        mutant.applied()
    return mutants


def trial(tests: Sequence[str], timeout: float, mutant: Mutant | None = None) -> Outcome:
    """Run the tests in a copy of the tree, with that mutant in it."""
    with tempfile.TemporaryDirectory(prefix="cmwq-mutant-") as name:
        copy = Path(name).resolve()
        copy_tree(copy)
        if mutant is not None:
            (copy / mutant.file).write_text(mutant.applied())
            if mutant.is_native and (errors := build(copy)):
                return Outcome("the C extension did not compile", 0, "", errors)
        return run_tests(copy, tests, timeout)


def build(copy: Path) -> str:
    """Compile that tree's C extension in place. What the compiler said, if it failed."""
    command = [*(os.environ.get("CC") or "cc").split(), "-std=gnu11", "-O1", "-fPIC", "-shared"]
    include = f"-I{sysconfig.get_path('include')}"
    (copy / EXTENSION).unlink(missing_ok=True)
    try:
        done = subprocess.run(
            [*command, include, NATIVE + "module.c", "-o", EXTENSION], cwd=copy, text=True, capture_output=True
        )
    except OSError as error:
        return str(error)
    return done.stderr if done.returncode else ""


def run_tests(copy: Path, tests: Sequence[str], timeout: float) -> Outcome:
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"},
        "PYTHONPATH": str(copy / "src"),  # before site-packages, so before the editable install
        "PYTHONDONTWRITEBYTECODE": "1",
        # All seeds and places that the tests have: some mutants are broken at few. 0: does `make test` notice, too?
        "CMWQ_THOROUGH": os.environ.get("CMWQ_THOROUGH", "1"),
        "COLUMNS": "250",  # room for the reason in the closing lines
    }
    options = f"-x -q -p no:cacheprovider -o timeout={timeout:.0f}".split()
    began = time.monotonic()
    # To a file and not a pipe: what a hanging test started may outlive it and hold the pipe open.
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *options, *tests],
            cwd=copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        hung = False
        try:
            # pytest's own limit comes first and names the test; this one is for a hang outside of any test.
            process.wait(timeout * 1.5)
        except subprocess.TimeoutExpired:
            hung = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        output = log.read()
    return Outcome(verdict(process.returncode, hung, output), time.monotonic() - began, first_failure(output), output)


def verdict(status: int, hung: bool, output: str) -> str:
    if hung or (status == PYTEST_FAILED and re.search(r"Timeout \(?>|\+\+ Timeout \+\+", output)):
        return "hang"
    if status < 0:
        return "crash"
    return {
        0: "passed",
        PYTEST_FAILED: "failed",
        2: "a test module did not import",
        4: "pytest did not understand the tests' names",
        5: "no tests were run",
        NOT_IMPORTED: "cmwq did not import",
    }.get(status, f"pytest ended with {status}")


def first_failure(output: str) -> str:
    """Of pytest's closing lines. What was logged begins with ERROR, too, and names no test."""
    found = re.search(r"^(?:FAILED|ERROR) tests/(.+)", output, re.MULTILINE)
    return found[1] if found else ""


def check_baseline(mutants: list[Mutant], jobs: ThreadPoolExecutor, timeout: float) -> dict[str, float]:
    """The tests pass as they are, else nothing can be said. The seconds of each file. Raises BadMutant."""
    files: dict[str, list[str]] = {}
    for test in dict.fromkeys(test for mutant in mutants for test in mutant.tests):
        files.setdefault(file_of(test), []).append(test)
    whole = {name: [name] if name in tests else tests for name, tests in files.items()}

    def attempt(tests: list[str]) -> Outcome:
        outcome = trial(tests, 4 * timeout)
        return outcome if outcome.verdict == "passed" else trial(tests, 4 * timeout)  # by the others' noise, maybe

    seconds = {}
    for (name, tests), outcome in zip(whole.items(), jobs.map(attempt, whole.values()), strict=True):
        if outcome.verdict != "passed":
            raise BadMutant(f"without any mutant, {' '.join(tests)}: {outcome.verdict}\n{outcome.output}")
        print(f"without a mutant: {name} passes in {outcome.seconds:.1f} s", flush=True)
        seconds[name] = outcome.seconds
    return seconds


def file_of(test: str) -> str:
    return test.partition("::")[0]


def exists(test: str) -> bool:
    """Whether there is that test, whatever its parameters, or that file or folder of tests."""
    file, _, name = test.partition("[")[0].partition("::")
    path = ROOT / file
    return path.exists() and (not name or f"def {name.rpartition('::')[2]}(" in path.read_text())


class Record:
    """Which test killed each mutant the last time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._killers: dict[str, str] = {}
        for each in KNOWN, path:
            if each.is_file():
                self._killers |= json.loads(each.read_text())

    def first(self, mutant: Mutant) -> tuple[str, ...]:
        """The test to begin with, if it is still one of those that the mutant names."""
        killer = self._killers.get(mutant.name, "")
        name = killer.partition("[")[0]
        named = any(name == test or name.startswith((f"{test}::", f"{test}/")) for test in mutant.tests)
        return (name,) if named and exists(name) else ()

    def note(self, mutant: Mutant, outcome: Outcome) -> None:
        self._killers[mutant.name] = f"tests/{outcome.by}".partition(" - ")[0] if outcome.by else ""
        self._path.parent.mkdir(exist_ok=True)
        self._path.write_text(json.dumps(self._killers, indent=1, sort_keys=True) + "\n")


def run_all(mutants: list[Mutant], parallel: int, timeout: float, record: Record) -> int:
    width = max(len(mutant.name) for mutant in mutants)
    survivors: list[str] = []
    errors: list[str] = []
    compile_tree()

    with ThreadPoolExecutor(parallel) as jobs:
        baseline = check_baseline(mutants, jobs, timeout)

        def attempt(mutant: Mutant) -> Outcome:
            known = sum(baseline[name] for name in {file_of(test) for test in mutant.tests})
            return trial((*record.first(mutant), *mutant.tests), min(timeout, 30 + 5 * known), mutant)

        for mutant, outcome in zip(mutants, jobs.map(attempt, mutants), strict=True):
            if outcome.killed:
                word, note = "killed", outcome.by + (f" ({outcome.verdict})" if outcome.verdict != "failed" else "")
                record.note(mutant, outcome)
            elif outcome.verdict == "passed":
                word, note = "SURVIVED", " ".join(mutant.tests)
                survivors.append(mutant.name)
            else:
                word, note = "ERROR", outcome.verdict
                errors.append(f"{mutant.name}: {outcome.verdict}\n{outcome.output}")
            rules = ",".join(mutant.rules)
            print(f"{mutant.name:{width}}  {rules:8}  {word:8}  {outcome.seconds:5.1f} s  {note}".rstrip(), flush=True)
    killed = len(mutants) - len(survivors) - len(errors)
    print(f"{killed} of {len(mutants)} mutants killed" + "".join(f"; {name} survived" for name in survivors))
    if errors:
        print("\n".join(errors), file=sys.stderr)
        return 2
    return 1 if survivors else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mutants (default: all)")
    parser.add_argument("--list", action="store_true", help="check the list against the code and print it; run nothing")
    parser.add_argument("--parallel", type=int, default=2, metavar="N", help="mutants tried at a time (default 2)")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="per mutant (default 300)")
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE", help="which test killed each mutant")
    options = parser.parse_args()
    try:
        mutants = load(LIST)
        if unknown := set(options.names).difference(mutant.name for mutant in mutants):
            raise BadMutant(f"{', '.join(sorted(unknown))}: no such mutant; --list names them")
        chosen = [mutant for mutant in mutants if not options.names or mutant.name in options.names]
        if options.list:
            for mutant in chosen:
                print(f"{mutant.name}  {','.join(mutant.rules)}  {mutant.file}  {' '.join(mutant.tests)}")
            return 0
        return run_all(chosen, options.parallel, options.timeout, Record(options.record))
    except BadMutant as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
