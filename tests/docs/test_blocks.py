"""Every block of Python and every block of commands in the documents is run, and prints what the page says."""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from docs.blocks import (
    DOCS,
    PAGES,
    ROOT,
    Block,
    Program,
    agrees,
    blocks,
    folder,
    run_commands,
    run_program,
    run_script,
    steps,
)

# Absent where only a part of the tree was copied (tools/trees.py).
pytestmark = pytest.mark.skipif(not PAGES, reason="no documents here")

RUN = [page for page in PAGES if steps(page)]


@pytest.mark.parametrize("page", RUN, ids=[str(page.relative_to(ROOT)) for page in RUN])
def test_what_the_page_shows_runs(page: Path) -> None:
    done, reasons = 0, []
    with folder() as where:
        for step in steps(page):
            reason = step.why_not()
            if reason is not None:
                reasons.append(f"{step.at}: {reason}")
                continue
            if isinstance(step, Program):
                run_program(step, where)
            elif "file" in step.notes:
                Path(where, step.notes["file"]).write_text(step.text)
            elif step.language == "sh":
                run_script(step, where)
            else:
                run_commands(step, where)
            done += 1
    if not done:
        pytest.skip("; ".join(reasons))


def test_many_blocks_are_run() -> None:
    """Nobody has changed the marks of the blocks so that none is found any more."""
    programs = [step for page in PAGES for step in steps(page) if isinstance(step, Program)]
    with_output = [program for program in programs if program.output is not None]
    commands = [block for page in PAGES for block in blocks(page) if block.language == "console"]
    assert len(programs) >= 60
    assert len(with_output) >= 40
    assert len(commands) >= 6


def unseen(text: str) -> set[str]:
    """The names that a program takes and neither makes nor explains, in a comment that has `NAME: what it is`."""
    made = set(dir(builtins)) | {"__file__", "__name__"}
    taken: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name):
            (taken if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            made.add(node.name)
    return taken - made - set(re.findall(r"^ *# (\w+): ", text, re.MULTILINE))


def test_no_program_takes_a_name_that_its_reader_never_saw() -> None:
    """What stands in hidden comments is there for the tests; whoever copies a block hasn't got it."""
    for page in PAGES:
        for step in steps(page):
            shown = step.blocks if isinstance(step, Program) else [step] if step.language == "python" else []
            at = f"{page.relative_to(ROOT)}:{shown[0].line if shown else 0}"
            assert unseen("".join(block.text for block in shown)) == set(), at
    assert unseen("import a.b\n# c: yours\na.b(c, d, len)\n") == {"d"}


@pytest.mark.parametrize(
    ("wanted", "printed", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\n", "b\n", False),
        ("took … s\n", "took 1.25 s\n", True),
        ("took … s\n", "took 1.25 s, and more\n", False),
        ("…two…\n", "one\ntwo\nthree\n", True),
        ("…\n", "", True),
    ],
)
def test_outputs_are_compared(wanted: str, printed: str, same: bool) -> None:
    assert agrees(wanted, printed) is same


@pytest.mark.parametrize(
    ("text", "output", "fault"),
    [
        ("print(1)\n", "2\n", "printed"),
        ("import sys; sys.exit(3)\n", None, "status 3"),
        ("import sys; print('!', file=sys.stderr)\n", None, "wrote to stderr"),
    ],
)
def test_a_program_that_does_something_else_is_noticed(text: str, output: str | None, fault: str) -> None:
    block = Block(ROOT / "page.md", 7, "python", text, {}, output)
    with folder() as where, pytest.raises(AssertionError, match=f"page.md:7.*{fault}"):
        run_program(Program([block]), where)


def test_commands_that_do_something_else_are_noticed() -> None:
    for text, fault in (("$ echo one\ntwo\n", "echo one printed"), ("$ false\n", "false: status 1")):
        with folder() as where, pytest.raises(AssertionError, match=f"page.md:7: {fault}"):
            run_commands(Block(ROOT / "page.md", 7, "console", text, {}), where)


def test_a_script_that_fails_is_noticed() -> None:
    for text in ("false\ntrue\n", "false | cat\n", "no-such-command\n"):
        with folder() as where, pytest.raises(AssertionError, match=r"page.md:7: status 1(27)?\b"):
            run_script(Block(ROOT / "page.md", 7, "sh", text, {}), where)


# ------------------------------------------------------------------------------------------- commands that are not run


def test_every_block_for_the_shell_is_run_or_names_the_tests_that_run_what_it_shows() -> None:
    wrong = []
    for page in PAGES:
        for block in blocks(page):
            if block.language in ("bash", "shell"):
                wrong.append(f"{block.at}: the language is called `sh`")
            if block.language != "sh" or "run" in block.notes:
                continue
            tests = list(filter(None, re.split(r",\s*", block.notes.get("tested", ""))))
            if not tests:
                wrong.append(f"{block.at}: neither run nor tested")
            for test in tests:
                name, _, function = test.partition("::")
                path = ROOT / name
                if not path.is_file() or (function and f"def {function}(" not in path.read_text()):
                    wrong.append(f"{block.at}: there is no {test}")
    assert wrong == []


@cache
def help_of(subcommand: str) -> str:
    command = [sys.executable, "-m", "cmwq", subcommand, "--help"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def shell_lines() -> list[tuple[Block, str]]:
    """Lines of the blocks for a shell, whole ones: those that end in a backslash go on."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.language in ("sh", "console"):
                found += [(block, line) for line in block.text.replace("\\\n", " ").splitlines()]
    return found


def test_commands_in_the_documents_have_the_options_that_they_are_given() -> None:
    unknown, seen = [], 0
    for block, line in shell_lines():
        for subcommand, rest in re.findall(r"\bcmwq (map|exec|doctor|bench|ps|dump|top|dashboard)\b([^|;#]*)", line):
            ours = rest.partition(" -- ")[0]
            for option in re.findall(r"(?<=\s)--[a-z][a-z-]*", ours):
                seen += 1
                if option not in help_of(subcommand):
                    unknown.append(f"{block.page.name}:{block.line}: cmwq {subcommand} {option}")
    assert unknown == []
    assert seen > 5


def test_the_examples_of_the_help_are_those_of_the_page() -> None:
    examples = re.search(r"\nexamples\n((?:  .*\n)+)", help_of("exec"))
    assert examples is not None
    first = next(block.text for block in blocks(DOCS / "exec.md") if block.language == "sh")
    shown = [line for line in first.splitlines() if not line.startswith("#")]
    assert [line.strip() for line in examples[1].splitlines()] == shown


def test_no_help_names_a_file_of_the_repository() -> None:
    """Whoever installed cmwq has none."""
    for subcommand in ("map", "exec", "doctor", "bench", "ps", "dump", "top", "dashboard"):
        assert not re.search(r"\S+\.md\b|\bexamples/|\btools/", help_of(subcommand)), subcommand


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    documents = [*PAGES, *(ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md"))]
    named = {
        (page.name, target)
        for page in documents
        for target in re.findall(r"(?:^|`)(?:\S+=\S+ )?make ([a-z][a-z-]*)(?=[`\s])", page.read_text(), re.MULTILINE)
    }
    assert {pair for pair in named if pair[1] not in targets} == set()
    assert len(named) > 10


# ------------------------------------------------------------------------------------------- the site


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {"index"}
    for page in DOCS.rglob("*.md"):
        for body in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            for line in body.splitlines():
                if line and not line.startswith(":"):
                    listed.add((page.parent / line).resolve().relative_to(DOCS).as_posix())
    there = {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")}
    assert sorted(there - listed) == [], "nobody finds these"
    assert sorted(listed - there) == []


def test_every_example_is_shown() -> None:
    shown = set(re.findall(r"\{literalinclude\} \.\./(\S+)", (DOCS / "examples.md").read_text()))
    assert shown == {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("*.py")}


def test_every_integration_is_in_the_reference() -> None:
    page = (DOCS / "reference/integrations.md").read_text()
    for path in (ROOT / "src/cmwq/contrib").glob("[a-z]*.py"):
        exported = re.search(r"^__all__ = (\(.*?\))$", path.read_text(), re.MULTILINE)
        assert exported, f"{path.name} does not say what is promised"
        row = next((line for line in page.splitlines() if f"`cmwq.contrib.{path.stem}`" in line), "")
        assert set(re.findall(r'"(\w+)"', exported[1])) == set(re.findall(r"`(\w+)`", row)), path.name


def test_every_public_name_is_in_the_reference() -> None:
    import cmwq
    import cmwq.aio
    import cmwq.events
    import cmwq.testing

    text = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    documented = set(re.findall(r"^\.\. auto\w+:: (cmwq\.[\w.]+)", text, re.MULTILINE))
    for module in (cmwq, cmwq.aio, cmwq.events, cmwq.testing):
        missing = {f"{module.__name__}.{name}" for name in module.__all__} - documented
        # modules and typed dictionaries are explained where their names are used; SimSensor is a part of Simulation
        assert missing <= {"cmwq.events", "cmwq.Settings", "cmwq.testing.SimSensor"}
