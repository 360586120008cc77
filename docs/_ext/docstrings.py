"""Docstrings as this project writes them, made into reStructuredText for autodoc.

Its one job: `converted(lines)`. A docstring is plain English: paragraphs, lines `name: what it is` for arguments whose
continuation is indented, indented examples, lists with dashes, and names in single backticks. Guarantees: a character
that means something to reStructuredText only is escaped; a name in backticks that may be one of ours is a reference,
which stays a plain name where it is none; the number of a promise, such as E9, is a link to the page of the promises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from textwrap import dedent
from typing import Any

import cmwq

ENTRY = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*|each field of `Config`[^:]*): (.*)")
"""The first line of an argument's description."""
NAME = re.compile(r"(?:cmwq\.)?(?:[A-Z]\w*(?:\.\w+)*|\w+(?:\.\w+)+|\w+)(?:\(\))?$")
"""What may be a name of ours: a class, something dotted, or a call."""


PUBLIC = {name: getattr(cmwq, name) for name in cmwq.__all__}
ERRORS = "|".join(name for name, thing in PUBLIC.items() if isinstance(thing, type) and issubclass(thing, Exception))
PROMISES = "|".join(
    re.findall(r"^\| ([A-H]\d+) \|", (Path(__file__).resolve().parent.parent / "promises.md").read_text(), re.MULTILINE)
)


def paragraphs(lines: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            part.append(line)
        elif part:
            yield part
            part = []


def inline(text: str) -> str:
    """One paragraph's text, escaped."""
    pieces = re.split(r"(`[^`]*`)", text)
    for number, piece in enumerate(pieces):
        if number % 2:
            pieces[number] = named(piece[1:-1])
        else:
            escaped = re.sub(r"([*|\\])", r"\\\1", re.sub(r"(?<=\w)_(?!\w)", r"\\_", piece))
            escaped = re.sub(r"docs/([\w/-]+)\.md", r":doc:`/\1`", escaped)
            escaped = re.sub(rf"(?<![\w-])({PROMISES})(?![\w-])", r":doc:`\1 </promises>`", escaped)
            pieces[number] = re.sub(rf"\b({ERRORS})\b(?!`)", r":py:obj:`\1 <cmwq.\1>`", escaped)
    joined = ""
    for number, piece in enumerate(pieces):  # markup has to end at a blank or a sign: an escaped blank is neither
        if number % 2:
            joined += ("" if not joined or re.search(r"[\s(\"'\[{<\-/:]$", joined) else "\\ ") + piece
            following = pieces[number + 1][:1]
            joined += "\\ " if re.match(r"[\w(]", following) else ""
        else:
            joined += piece
    return joined


def named(text: str) -> str:
    bare = text.removesuffix("()")
    if NAME.match(text) and (text != bare or "." in bare or bare[0].isupper()):
        known = bare.partition(".")[0] in cmwq.__all__
        return f":py:obj:`{text} <{'cmwq.' * known}{bare}>`"
    return f"``{text}``"


def apart(text: str, parameters: frozenset[str]) -> list[str]:
    """The descriptions of several arguments that stand in one paragraph, each by itself."""
    found = [""]
    for sentence in re.split(r"(?<=\.) (?=[a-z_]+: )", text):
        if sentence.partition(":")[0] in parameters or not found[-1]:
            found.append(sentence)
        else:
            found[-1] += " " + sentence
    return found[1:]


def block(lines: list[str], parameters: frozenset[str]) -> Iterator[str]:
    """One paragraph of a docstring as lines of reStructuredText."""
    indents = [len(line) - len(line.lstrip()) for line in lines]
    if min(indents) >= 4:
        yield ".. code-block:: python"
        yield ""
        yield from ("    " + line for line in dedent("\n".join(lines)).splitlines())
        return
    if ENTRY.match(lines[0]) or re.match(r"\s*- ", lines[0]):
        entries: list[list[str]] = []
        for line in lines:
            if not entries or (line == line.lstrip() and (ENTRY.match(line) or line.startswith("- "))):
                entries.append([])
            entries[-1].append(line.strip())
        for text in (text for entry in entries for text in apart(" ".join(entry), parameters)):
            match = ENTRY.match(text)
            if match:
                bold = (f"**{name}**" if name.isidentifier() else inline(name) for name in match[1].split(", "))
                yield f"* {', '.join(bold)}: {inline(match[2])}"
            else:
                yield f"* {inline(text.removeprefix('- '))}"
        return
    first, *rest = apart(" ".join(line.strip() for line in lines), parameters)
    yield inline(first)
    if rest:
        yield ""
        for text in rest:
            name, _, words = text.partition(": ")
            yield f"* **{name}**: {inline(words)}"


def converted(lines: list[str], parameters: frozenset[str] = frozenset()) -> list[str]:
    found: list[str] = []
    for part in paragraphs(lines):
        # A paragraph may go over into the descriptions of arguments.
        split = next((i for i, line in enumerate(part) if i and ENTRY.match(line) and follows(part, i)), len(part))
        for piece in (part[:split], part[split:]):
            if piece:
                found += [*block(piece, parameters), ""]
    return found


def follows(part: list[str], index: int) -> bool:
    """Whether an argument's description begins at this line: the line before ends a sentence, not indented."""
    return part[index - 1].rstrip().endswith((".", ")")) and part[0] == part[0].lstrip() and not ENTRY.match(part[0])


def process(app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    try:
        parameters = frozenset(signature(thing).parameters)
    except (TypeError, ValueError):  # it is nothing to be called
        parameters = frozenset()
    lines[:] = converted(lines, parameters)


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
