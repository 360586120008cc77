"""What surrounds a place in a shell's line, and so which quotes a variable needs there to be taken as it is.

Guarantees: where the reader says which quotes, all shells that are POSIX read the line as it does. What it doesn't
understand (a here-document, quotes within `"${...}"`, what only some shells know) it refuses once a placeholder comes
after it, and so it does with a line that isn't closed at its end, which a misreading would leave behind. It refuses
arithmetic as well: bash executes `a[$(...)]` there, whatever quotes are around it. So it does in the list of an array,
`a=([$(...)]=1)`.
"""

from __future__ import annotations

import re
from typing import NoReturn

from cmwq.cli.output import Refusal

# Where words are read: at the top, within (...) or $(...), within `...`, within case ... esac, within a=(...)
PLAIN, PARENTHESES, BACKQUOTES, CASE, LIST = "", "(", "`", "case", "=("
SINGLE, DOUBLE, ESCAPES, COMMENT = "'", '"', "$'", "#"
SUM, GROUP = "((", "(( ("  # arithmetic, and parentheses in it
BRACES, IN_VALUE, IN_PATTERN, STRANGE = "${", '"${-', '"${%', "${?"  # ${...}; the others but the last: in double quotes

COMMANDS = (PLAIN, PARENTHESES, BACKQUOTES, CASE, LIST)
_BRACES = (BRACES, IN_VALUE, IN_PATTERN, STRANGE)
_QUOTED = (DOUBLE, IN_VALUE, IN_PATTERN, STRANGE, SUM, GROUP)  # a ${...} in these has no quotes of its own

AROUND = {
    **dict.fromkeys((*COMMANDS, BRACES, IN_PATTERN), '"%s"'),
    **dict.fromkeys((DOUBLE, IN_VALUE, SUM, GROUP, COMMENT), "%s"),
    SINGLE: "'\"%s\"'",
}
"""What is to stand around a variable, by what surrounds it."""

_BEFORE_COMMANDS = {
    *("if", "then", "else", "elif", "do", "while", "until", "!", "{"),
    *("for", "select", "function", "time", "coproc"),
}
_PARAMETER = re.compile(r"\$\{(?:#?\w+|#?[@*#?$!-])(\}|:?[-=+?]|##?|%%?|//?)?", re.ASCII)
_REDIRECTION = re.compile(r"<<<|<<|[<>][&|]?")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(?:\[.*\])?\+?=", re.ASCII | re.DOTALL)
_SUBSCRIPT = re.compile(r"[A-Za-z_]\w*\[[^]]*", re.ASCII)
_PLAIN_WORD = re.compile(r"[\w./:=,@%+-]*", re.ASCII)


class _Frame:
    """Something that was opened and is to be closed. The other attributes are for where commands are read."""

    __slots__ = ("first", "kind", "nr_words", "redirected", "word")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.word = ""  # what was read of the current word
        self.first = kind not in (CASE, LIST)  # this word, or the next, is where a command begins
        self.nr_words = 0
        self.redirected = ""  # by what, if this word, or the next, is where something is redirected


class Reader:
    """Reads a shell's line from left to right. Raises Refusal."""

    def __init__(self) -> None:
        self._stack = [_Frame(PLAIN)]
        self._lost: str | None = None  # since when it can't tell any more
        self._dollar = False  # just before, and it means nothing yet
        self._document = False  # one begins at the end of the line
        self.escaped = False  # by a backslash

    @property
    def within(self) -> str:
        return self._stack[-1].kind

    @property
    def plain(self) -> bool:
        """Whether a value without special characters means the same here without quotes, if what follows is as plain.

        Where a command begins it doesn't: it could be a keyword, or a part of an assignment.
        """
        frame = self._stack[-1]
        return frame.kind in COMMANDS and not frame.first and _PLAIN_WORD.fullmatch(frame.word) is not None

    def read(self, text: str) -> None:
        index = 0
        while index < len(text) and self._lost is None:
            index += self._take(text, index)

    def place(self, number: bool) -> str:
        """A placeholder stands here: what is to stand around its variable. number: it is never anything else."""
        kind = self.within
        if self._lost is not None:
            _refuse(f"after {self._lost}, where its quotes can't be told: put the item into a variable before (x={{}})")
        if self.escaped:
            _refuse("after a backslash: --shell quotes items itself, so leave the backslash out")
        if self._dollar or kind == STRANGE:
            _refuse("as a part of a parameter's name or expansion: put the item into a variable before (x={})")
        if kind == ESCAPES:
            _refuse("within $'...', which shells read differently: leave the $ out")
        if not number and self._commands().kind == LIST:
            _refuse("in the list of an array, where some shells would execute a part of an item ([...]=)")
        if self._commands().redirected == "<<":
            _refuse("as the end of a here-document, which isn't expanded")
        if not number and self._counts():
            _refuse("in arithmetic, where some shells would execute a part of an item; only {#} may stand there")
        self._add("{}")
        return AROUND[kind]

    def end(self) -> None:
        """The line ends here."""
        if self._lost is not None:  # and no placeholder has come since
            return
        if self.within == COMMENT:
            self._stack.pop()
        if self.within in COMMANDS:
            self._end_word("\n")
        if len(self._stack) > 1:
            opened = self._stack[-1].kind.strip(" ")
            raise Refusal(f"the line for the shell opens {opened} and doesn't close it, or in a way that can't be told")

    @property
    def complete(self) -> bool:
        """Whether what follows in the next line is certainly another command."""
        return not (self.escaped or self._document)

    def _counts(self) -> bool:
        """Whether what stands here is evaluated as arithmetic."""
        for frame in reversed(self._stack):
            if frame.kind in COMMANDS:
                return _SUBSCRIPT.fullmatch(frame.word) is not None
            if frame.kind in (SUM, GROUP):
                return True
        return False

    # Each of the following reads a character, or a few that belong together, and returns how many; 0: it only closed
    # something, and the character is to be read again.

    def _take(self, text: str, index: int) -> int:
        character, kind = text[index], self.within
        self._dollar = False
        if self.escaped:
            self.escaped = False
            self._add("" if character == "\n" else "\\")
            return 1
        if character in ")`" and self._at_esac():
            self._end_word()
            return 0
        if character in "`\\" and kind != COMMENT and self._in_backquotes(text, index):
            return self._lose("a backslash or quotes within `...` (write $(...))")
        if character in "`$" and self._commands().redirected == "<<":
            return self._lose("a here-document (<<)")
        if kind in (SINGLE, ESCAPES, COMMENT):
            return self._skip(text, index, kind)
        if character == "\\":
            self.escaped = True
        elif character == "$":
            return self._parameter(text, index, kind)
        elif character in '"`':
            if kind == IN_VALUE:
                return self._lose('quotes within "${...}"')
            self._open_or_close(character)
        elif kind in COMMANDS:
            return self._command(text, index)
        elif kind in _BRACES:
            return self._braces(character, kind)
        elif kind in (SUM, GROUP):
            return self._sum(text, index, kind)
        return 1

    def _in_backquotes(self, text: str, index: int) -> bool:
        """Whether a shell would first look at this for itself, because an outer `...` has not ended."""
        if not any(frame.kind == BACKQUOTES for frame in self._stack):
            return False
        return self.within != BACKQUOTES if text[index] == "`" else text[index + 1 : index + 2] in ("`", "$", "\\", '"')

    def _skip(self, text: str, index: int, kind: str) -> int:
        character = text[index]
        if kind == COMMENT:
            if character == "\n" or (character == "`" and any(frame.kind == BACKQUOTES for frame in self._stack)):
                self._stack.pop()
                return 0
        elif character == "'":
            self._stack.pop()
        elif kind == ESCAPES and character == "\\":
            return self._lose("$'...' with \\'") if text.startswith("\\'", index) else 2
        return 1

    def _parameter(self, text: str, index: int, kind: str) -> int:
        self._add("$")
        if text.startswith("$((", index):
            return self._open(SUM, 3)
        if text.startswith("$(", index):
            return self._open(PARENTHESES, 2)
        if text.startswith("$'", index) and kind not in _QUOTED:
            return self._open(ESCAPES, 2)
        if text.startswith(("$[", "$\\\n"), index):
            return self._lose(f"{text[index : index + 2]}, which shells read differently")
        if text.startswith("${", index):
            match = _PARAMETER.match(text, index)
            if match is None or match[1] is None:
                return self._open(STRANGE, 2 if match is None else len(match[0]))
            if match[1] == "}":
                return len(match[0])
            quoted = IN_VALUE if match[1][-1] in "-=+?" else IN_PATTERN
            return self._open(quoted if kind in _QUOTED else BRACES, len(match[0]))
        self._dollar = not text.startswith("$$", index)
        return 1 if self._dollar else 2

    def _command(self, text: str, index: int) -> int:
        character, frame = text[index], self._stack[-1]
        if character in " \t\n;&|":
            self._end_word(character)
            if self.within != LIST:
                self._stack[-1].first = self._stack[-1].first or character not in " \t"
            if character == "\n" and self._document:
                return self._lose("a here-document (<<)")
        elif character in "<>":
            return self._redirection(text, index, frame)
        elif character == "(":
            if _ASSIGNMENT.fullmatch(frame.word):
                return self._open(LIST, 1)
            self._end_word()
            return self._open(SUM, 2) if text.startswith("((", index) else self._open(PARENTHESES, 1)
        elif character == ")":
            return self._close_parenthesis(frame)
        elif character == "'":
            self._add(character)
            return self._open(SINGLE, 1)
        elif character == "#" and not frame.word:
            return self._open(COMMENT, 1)
        else:
            frame.word += character
        return 1

    def _redirection(self, text: str, index: int, frame: _Frame) -> int:
        if frame.word.isdigit():
            frame.word = ""
        self._end_word()
        match = _REDIRECTION.match(text, index)
        assert match is not None
        self._stack[-1].redirected = match[0]
        self._document = self._document or match[0] == "<<"
        return len(match[0])

    def _at_esac(self) -> bool:
        frame = self._stack[-1]
        return frame.kind == CASE and frame.first and frame.word == "esac"

    def _close_parenthesis(self, frame: _Frame) -> int:
        if frame.kind == CASE:
            frame.word, frame.first = "", True  # it was the end of a pattern
            return 1
        self._end_word()
        if frame.kind == LIST:  # the end of the word a=(...)
            self._stack.pop()
            return 1
        if frame.kind != PARENTHESES:
            raise Refusal("the line for the shell has a ) that nothing opened, or opened in a way that can't be told")
        self._stack.pop()
        outer = self._stack[-1]
        outer.first = outer.first or not outer.word  # (...) or f(), and not $(...)
        return 1

    def _end_word(self, by: str = "") -> None:
        """Where commands are read. Keywords count where a command begins, and only if they stand for themselves."""
        frame = self._stack[-1]
        word, frame.word = frame.word, ""
        if not word:
            return
        if frame.redirected:
            frame.redirected = ""
            return
        frame.nr_words += 1
        first, frame.first = frame.first, False
        if frame.kind == CASE and frame.nr_words == 2:  # "in"
            frame.first = True
        elif first and word == "case" and by in (" ", "\t", "\n"):
            self._stack.append(_Frame(CASE))
        elif first and word == "esac" and frame.kind == CASE:
            self._stack.pop()
        elif first:
            frame.first = word in _BEFORE_COMMANDS or _ASSIGNMENT.match(word) is not None

    def _braces(self, character: str, kind: str) -> int:
        if character == "}":
            self._stack.pop()
        elif character == "'":
            return self._open(SINGLE, 1) if kind == BRACES else self._lose('quotes within "${...}"')
        return 1

    def _sum(self, text: str, index: int, kind: str) -> int:
        if text[index] == "(":
            return self._open(GROUP, 1)
        if text[index] == "'":
            return self._lose("quotes within ((...))")
        if text[index] == ")":
            if kind == SUM and not text.startswith("))", index):
                return self._lose("(( without )) (for parentheses in parentheses write ( ()")
            self._stack.pop()
            return 1 + (kind == SUM)
        return 1

    def _open_or_close(self, character: str) -> None:
        if self.within == character:
            if character == BACKQUOTES:
                self._end_word("\n")
            self._stack.pop()
        else:
            self._add(character)
            self._open(character, 1)

    def _open(self, kind: str, length: int) -> int:
        self._stack.append(_Frame(kind))
        return length

    def _add(self, text: str) -> None:
        """To the word that is being read, be it in the middle of something that was opened in it."""
        self._commands().word += text

    def _commands(self) -> _Frame:
        """The innermost place where commands are read."""
        return next(frame for frame in reversed(self._stack) if frame.kind in COMMANDS)

    def _lose(self, what: str) -> int:
        self._lost = what
        return 1


def _refuse(where: str) -> NoReturn:
    raise Refusal(f"--shell: a placeholder {where}")
