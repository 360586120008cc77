"""From an item to a command: placeholders, and the quoting of a shell's line.

Guarantees: an item is never part of a program. Without a shell it is an argument or a part of one, whatever it
contains. With a shell it is a positional parameter: the line has "${1}" where the user wrote {}, so nothing in an item
is executed, however the line is quoted. Bytes that are not UTF-8 arrive as they were.

`shown` is for people: what one would type. It is not what is executed.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Protocol

from cmwq.cli.output import Refusal

SHELL = "/bin/sh"
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
        return [SHELL, "-c", item]

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
        return shlex.join(self.argv(item, number))


class Line:
    """A line for the shell. Each placeholder becomes a positional parameter, with the quotes that it needs there."""

    word = SHELL

    def __init__(self, line: str, mark: str | None) -> None:
        parts = list(_parts(line, mark))
        if not any(callable(part) for part in parts):
            parts += [" ", _the_item]
        reader = _Reader()
        self._values: list[Value] = []
        self._shown: list[str | tuple[Value, str]] = []
        script = []
        for part in parts:
            if isinstance(part, str):
                reader.read(part)
                script.append(part)
                self._shown.append(part)
                continue
            if reader.escaped:
                raise Refusal(
                    "a placeholder after a backslash: --shell quotes items itself, so leave the backslash out"
                )
            if part not in self._values:
                self._values.append(part)
            script.append(_QUOTED[reader.within] % (self._values.index(part) + 1))
            self._shown.append((part, reader.within))
        self._script = "".join(script)

    def argv(self, item: str, number: int) -> list[str]:
        return [SHELL, "-c", self._script, "sh", *(value(item, number) for value in self._values)]

    def shown(self, item: str, number: int) -> str:
        return "".join(
            part if isinstance(part, str) else _as_typed(part[0](item, number), part[1]) for part in self._shown
        )


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


# Quoting

_PLAIN, _SINGLE, _DOUBLE, _BACKQUOTES, _PARENTHESES, _SUM, _COMMENT = "", "'", '"', "`", "(", "((", "#"
_QUOTED = {
    _PLAIN: '"${%d}"',
    _PARENTHESES: '"${%d}"',
    _BACKQUOTES: '"${%d}"',
    _DOUBLE: "${%d}",
    _SUM: "${%d}",
    _SINGLE: "'\"${%d}\"'",
    _COMMENT: "${%d}",
}


def _as_typed(value: str, within: str) -> str:
    if within in (_DOUBLE, _SUM):
        return re.sub(r'([\\"$`])', r"\\\1", value)
    if within == _SINGLE:
        return value.replace("'", "'\\''")
    return shlex.quote(value)


class _Reader:
    """Reads a shell's line to know what surrounds its next character.

    A mistake of this (here-documents are not known) makes an item split or quoted twice, but never executed.
    """

    def __init__(self) -> None:
        self._stack = [_PLAIN]
        self._word = False  # a word has begun: # is no comment
        self.escaped = False  # by a backslash

    @property
    def within(self) -> str:
        return self._stack[-1]

    def read(self, text: str) -> None:
        index = 0
        while index < len(text):
            index += self._take(text, index)
        self._word = not text[-1:].isspace()

    def _take(self, text: str, index: int) -> int:
        """Read one character or a few that belong together; how many."""
        character, within = text[index], self.within
        self._word, word = not (character.isspace() or character in ";|&()"), self._word
        if self.escaped:
            self.escaped = False
        elif within == _SINGLE:
            if character == "'":
                self._stack.pop()
        elif within == _COMMENT:
            if character == "\n":
                self._stack.pop()
        elif character == "\\":
            self.escaped = True
        elif text.startswith("$((", index):
            self._stack.append(_SUM)
            return 3
        elif text.startswith("$(", index):
            self._stack.append(_PARENTHESES)
            return 2
        elif within == _SUM and text.startswith("))", index):
            self._stack.pop()
            return 2
        elif character in (within, '"', "`") or within not in (_DOUBLE, _SUM):
            self._nest(character, within, word)
        return 1

    def _nest(self, character: str, within: str, word: bool) -> None:
        if character in ('"', "`"):
            if within == character:
                self._stack.pop()
            else:
                self._stack.append(character)
        elif character in ("'", "(") or (character == "#" and not word):
            self._stack.append(character)
        elif character == ")" and within == _PARENTHESES:
            self._stack.pop()
