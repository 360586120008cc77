"""From an item to a command: placeholders, and the quoting of a shell's line.

Guarantees: an item is never part of a program. Without a shell it is an argument or a part of one, whatever it
contains. With a shell it is the value of a variable: the line has "${_cmwq_1}" where the user wrote {}, so nothing in
an item is executed, however the line is quoted. Where a shell would read a variable's value once more, or where that
can't be told, a placeholder is refused. Bytes that are not UTF-8 arrive as they were.

`shown` is for people: what one would type, and a shell that reads it does the same.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Protocol

from cmwq.cli.quoting import SINGLE, Reader

SHELL = "/bin/sh"
_VARIABLE = "_cmwq_"  # and a number; not exported
_HARMLESS = re.compile(r"[\w./:=,@%+-]+", re.ASCII)  # within a word, and within any quotes
_ENDS_PLAINLY = re.compile(r"[\w./:,@%+-]*(?:[ \t\n;|&)`]|\Z)", re.ASCII)
_ASSIGNMENT = re.compile(r"\w+=[\w./:=,@%+-]*", re.ASCII)  # without what is quoted anyway
_KEYWORDS = {
    *("if", "then", "else", "elif", "fi", "do", "done", "case", "esac", "while", "until", "for", "in"),
    *("select", "function", "time", "coproc"),
}
_NAME_BEFORE = re.compile(r"\$\w+\Z", re.ASCII)
_MARKS = re.compile(r"(\{(?:/\.|//|[./#])?\})")


class Template(Protocol):
    """A command that lacks its item."""

    @property
    def word(self) -> str | None:
        """The name of the program; None if it depends on the item."""
        ...

    def argv(self, item: str, number: int) -> list[str]: ...
    def shown(self, item: str, number: int) -> str: ...


def template(words: list[str], shell: bool, mark: str | None) -> Template:
    """The command that these words make. mark: what stands for the item in place of the usual. Raises Refusal."""
    if not shell:
        return Words(words, mark)
    if not words:
        return Itself()
    return Line(" ".join(words), mark)


class Itself:
    """Each item is a line for the shell."""

    word = SHELL

    def argv(self, item: str, number: int) -> list[str]:
        return [SHELL, "-c", "--", item]  # which may begin with a dash

    def shown(self, item: str, number: int) -> str:
        return item


class Words:
    """A command and its arguments. The item is the last one if no placeholder says where it goes."""

    def __init__(self, words: list[str], mark: str | None) -> None:
        parts = [list(_parts(word, mark)) for word in words]
        if not any(callable(part) for word in parts for part in word):
            parts.append([_the_item])
        self._parts = parts
        self.word = None if any(map(callable, parts[0])) else words[0]

    def argv(self, item: str, number: int) -> list[str]:
        return [_joined(parts, item, number) for parts in self._parts]

    def shown(self, item: str, number: int) -> str:
        program, *arguments = self.argv(item, number)
        if program in _KEYWORDS or _ASSIGNMENT.fullmatch(program) is not None:
            return " ".join([f"'{program}'", *map(shlex.quote, arguments)])
        return shlex.join([program, *arguments])


class Line:
    """A line for the shell. Each placeholder becomes a variable, with the quotes that it needs there.

    Positional parameters would not do: they are others within a function, and after `set` or `shift`.
    """

    word = SHELL

    def __init__(self, line: str, mark: str | None) -> None:
        parts = list(_parts(line, mark))
        if not any(callable(part) for part in parts):
            parts += [" ", _the_item]
        reader = Reader()
        self._values: list[Value] = []
        self._typed: list[str | tuple[Value, str]] = []  # a value, and what one would type around it
        self._readable = True  # there is such a line
        script = []
        before = ""
        for part, after in zip(parts, [*parts[1:], ""], strict=True):
            if isinstance(part, str):
                reader.read(part)
                script.append(part)
                self._typed.append(part)
                before = part
                continue
            bare = reader.plain and (callable(after) or _ENDS_PLAINLY.match(after) is not None)
            kind, around = reader.within, reader.place(part is _number)
            if part not in self._values:
                self._values.append(part)
            script.append(around % f"${{{_VARIABLE}{self._values.index(part) + 1}}}")
            self._typed.append((part, "%s" if bare or kind == SINGLE else around))
            if around == "%s" and _NAME_BEFORE.search(before):  # $a{} has a and the item in it, $ab another name
                self._readable = False
            before = ""
        reader.end()
        self._readable = self._readable and reader.complete
        copies = "".join(f"{_VARIABLE}{number}=${number}; " for number in range(1, len(self._values) + 1))
        self._script = f"{copies}set --; {''.join(script)}"

    def argv(self, item: str, number: int) -> list[str]:
        return [SHELL, "-c", self._script, "sh", *(value(item, number) for value in self._values)]

    def shown(self, item: str, number: int) -> str:
        """The line with the item in it, if nothing of the item could mean anything to a shell; else what is run."""
        if self._readable and all(_HARMLESS.fullmatch(value(item, number)) for value in self._values):
            return "".join(part if isinstance(part, str) else part[1] % part[0](item, number) for part in self._typed)
        return shlex.join(self.argv(item, number))


# What stands for what

Value = Callable[[str, int], str]


def _the_item(item: str, number: int) -> str:
    return item


def _stem(item: str, number: int) -> str:
    return os.path.splitext(_trimmed(item))[0]


def _base(item: str, number: int) -> str:
    return os.path.basename(_trimmed(item)) or _trimmed(item)


def _folder(item: str, number: int) -> str:
    return os.path.dirname(_trimmed(item)) or "."


def _base_stem(item: str, number: int) -> str:
    return os.path.splitext(_base(item, number))[0]


def _number(item: str, number: int) -> str:
    return str(number)


_VALUES: dict[str, Value] = {
    "{}": _the_item,
    "{.}": _stem,
    "{/}": _base,
    "{//}": _folder,
    "{/.}": _base_stem,
    "{#}": _number,
}


def _trimmed(path: str) -> str:
    """Without the slashes at its end: a/b/ is b in a."""
    return path.rstrip("/") or path[:1]


def _parts(text: str, mark: str | None) -> Iterator[str | Value]:
    """The text, cut at its placeholders."""
    if mark is None:
        yield from (_VALUES.get(part, part) for part in _MARKS.split(text) if part)
        return
    first, *others = text.split(mark)
    if first:
        yield first
    for other in others:
        yield _the_item
        if other:
            yield other


def _joined(parts: list[str | Value], item: str, number: int) -> str:
    return "".join([part if isinstance(part, str) else part(item, number) for part in parts])
