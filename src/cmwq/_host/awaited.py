"""Which lock a thread waits for, and which thread holds it, as far as their stacks tell.

What is *sure*: the lock that is waited for is what the expression in the waiting frame names, in its locals or globals,
and an `RLock` tells its owner. A thread that is within the body of `with lock:`, for the same object, holds it. A
*guess*: a function has called `lock.acquire()` on an earlier line than the one it is at, and no `lock.release()` in
between. Nothing is said of a lock whose holder has left the function that acquired it.

Nothing of the program's is evaluated: no `repr`, no property, no `__getattr__`, no `__eq__`. Names are looked up in a
frame, attributes where an object, its slots and its class store them, and what has a key or an index in dictionaries,
lists and tuples. Source is read before frames are looked at, and the
other threads run meanwhile. So the answer is of about one moment, good enough for threads that have not moved for
seconds. Without a GIL nothing is said, since frames of running threads can't be read safely there.
"""

from __future__ import annotations

import ast
import linecache
import os
import re
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from types import CodeType, FrameType, MemberDescriptorType
from typing import Any

from cmwq._core.ports import Awaited
from cmwq._errors import PACKAGE

_RLOCK = type(threading.RLock())
_LOCK = type(threading.Lock())
_LOCKS = (_LOCK, _RLOCK)
_LIBRARY = os.path.dirname(threading.__file__) + os.sep
_STANDARD = frozenset((threading.__file__, _LIBRARY + "queue.py"))
"""Files whose classes wait for their caller: an Event, a Condition, a Queue, a Semaphore, a Thread."""
_KINDS = {
    ("Thread", "join"): "the end of {}", ("Event", "wait"): "{} to be set", ("Condition", "wait"): "{} to be notified",
    ("Condition", "wait_for"): "{} to be notified", ("Barrier", "wait"): "the others at {}",
    ("Queue", "get"): "an item of {}", ("Queue", "put"): "room in {}", ("Queue", "join"): "the end of all tasks of {}",
    ("Semaphore", "acquire"): "a place of {}", ("Semaphore", "__enter__"): "a place of {}",
}  # fmt: skip
"""What a method of a class of the standard library waits for."""
_WAITS = frozenset(("acquire", "acquire_lock", "__enter__"))
MAX_DEPTH = 60
"""So many frames of a stack are looked at."""
MAX_LOCKS = 16
"""Of so many locks the holder is looked for: of those for which most threads wait."""
MAX_SEARCHED = 10_000
"""Of so many entries of a dictionary one is looked for."""
_KEYS = (str, int, bytes, bool, type(None))
"""Keys of these types, not of ones derived from them, can be compared without calling anything of the program's."""
MISSING = object()


def awaited(threads: Iterable[Any]) -> dict[int, Awaited]:
    """Return what the threads wait for, by the `id` of the thread object. Left out: those of which nothing is known."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return {}
    for frame in sys._current_frames().values():  # so that no file is read between two looks at frames
        for code in {each.f_code for each in _stack(frame)}:
            with suppress(Exception):
                _statements(code)
    frames = sys._current_frames()
    waits: list[tuple[int, str, object]] = []
    at: dict[int, int] = {}  # which frame waits for which lock: it does not hold that one, but frames below it may
    for thread in threads:
        innermost = frames.get(getattr(thread, "ident", None) or 0)
        with suppress(Exception):  # a frame may go on while it is looked at
            seen = None if innermost is None else _waits_for(innermost)
            if seen is not None:
                waits.append((id(thread), *seen[:2]))
                at[id(seen[2])] = id(seen[1])
    locks = {id(lock): lock for _, _, lock in waits}
    most = Counter(id(lock) for _, _, lock in waits if lock is not MISSING).most_common(MAX_LOCKS)
    holders = {key: _holder_of(locks[key], frames, at) for key, _ in most}
    does = {holder: _does(frames.get(holder)) for holder, _ in holders.values()}
    found = {}
    for key, words, lock in waits:
        holder, sure = holders.get(id(lock), (0, False))
        found[key] = Awaited(words, holder, _name_of(holder), sure, does.get(holder, ""))
    return found


def _does(innermost: FrameType | None) -> str:
    """What the thread does: what it waits for, or where it is in the program; empty if that is not known."""
    if innermost is None:
        return ""
    with suppress(Exception):  # as above
        seen = _waits_for(innermost)
        if seen is not None:
            return f"waits for {seen[0]}"
    for frame in _stack(innermost):
        code = frame.f_code
        if not code.co_filename.startswith((PACKAGE, _LIBRARY, "<frozen")):
            return f"is at {os.path.basename(code.co_filename)}:{frame.f_lineno}, in {code.co_name}"
    return ""


def _name_of(ident: int) -> str:
    thread = getattr(threading, "_active", {}).get(ident)
    return str(thread.name) if isinstance(thread, threading.Thread) else f"thread {ident}" if ident else ""


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    for _ in range(MAX_DEPTH):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


# ----------------------------------------------------------------------------------- what is waited for


def _waits_for(frame: FrameType) -> tuple[str, object, FrameType] | None:
    """What the innermost frame waits for: words, the lock if it is one (else something that has no holder), and the
    frame of the program in which that is.
    """
    outer, owner, lock, method = frame, None, None, ""
    while outer.f_code.co_filename in _STANDARD and outer.f_code.co_name != "run" and outer.f_back is not None:
        owner = outer.f_locals.get("self", owner)
        if owner is not None and outer is frame and outer.f_code.co_name in _WAITS:
            lock = _stored(owner, "_lock")  # a Condition whose lock another thread has
        outer, method = outer.f_back, outer.f_code.co_name
    # Was it called by the code of a work, or is it itself what a work or a thread calls?
    called = not outer.f_code.co_filename.startswith((PACKAGE, *_STANDARD))
    where = (
        f" ({os.path.basename(outer.f_code.co_filename)}:{outer.f_lineno}, in {outer.f_code.co_name})" if called else ""
    )
    expression = _expression_at(outer) if called else None
    text = "" if expression is None else ast.unparse(expression)
    if owner is None:
        if expression is None:
            return None
        found = _resolve(expression, outer)
        if not _is_of(found, _LOCKS):
            return None
        return f"the {'RLock' if type(found) is _RLOCK else 'lock'} {text}{where}", found, outer
    kind = type(owner).__name__
    name = f"the {kind} {text}" if text else _a(kind)
    if _is_of(lock, _LOCKS):
        return f"the lock of {name}{where}", lock, outer
    bases = (each.__name__ for each in type.__dict__["__mro__"].__get__(type(owner)))
    what = next((_KINDS[base, method] for base in bases if (base, method) in _KINDS), "{}")
    return f"{what.format(name)}{where}", MISSING, outer


def _a(kind: str) -> str:
    return f"{'an' if kind[:1] in 'AEIOU' else 'a'} {kind}"


def _expression_at(frame: FrameType) -> ast.expr | None:
    """The object on which the frame's current call waits: X of `with X:`, of `X.acquire()`, of `X.get()`."""
    code = frame.f_code
    place = next(islice(code.co_positions(), frame.f_lasti // 2, None), None)
    if place is None:
        return None
    line, last, first_column, last_column = place
    if line is None or last is None or first_column is None or last_column is None:
        return None
    lines = linecache.getlines(code.co_filename, frame.f_globals)[line - 1 : last]
    return _expression_in("".join(lines), first_column, last_column) if lines else None


@lru_cache(maxsize=512)
def _expression_in(text: str, first_column: int, last_column: int) -> ast.expr | None:
    """The same, of these lines, of which the call has a part, from one column of the first to one of the last."""
    data = [line.encode() for line in text.splitlines(keepends=True)]
    data[-1] = data[-1][:last_column]
    data[0] = data[0][first_column:]
    text = b"".join(data).decode().strip()
    if text.startswith("with "):
        node: ast.AST = _parsed(text.partition("\n")[0].rstrip(" :") + ": pass", text.partition("\n")[0])
        items = [each for each in ast.walk(node) if isinstance(each, ast.With)]
        return items[0].items[0].context_expr if items else None
    expression = ast.parse(text, mode="eval").body
    if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Attribute):
        return expression.func.value
    return expression


def _resolve(node: ast.expr, frame: FrameType) -> object:
    """The object that an expression of names, attributes and keys stands for, without evaluating anything."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Tuple):
        found = tuple(_resolve(each, frame) for each in node.elts)
        return MISSING if any(each is MISSING for each in found) else found
    if isinstance(node, ast.Subscript):
        return _item(_resolve(node.value, frame), _resolve(node.slice, frame))
    if isinstance(node, ast.Name):
        found = frame.f_locals.get(node.id, MISSING)
        return frame.f_globals.get(node.id, MISSING) if found is MISSING else found
    if isinstance(node, ast.Attribute):
        owner = _resolve(node.value, frame)
        name = node.attr
        if name.startswith("__") and not name.endswith("__") and "self" in frame.f_locals:
            name = f"_{type(frame.f_locals['self']).__name__.lstrip('_')}{name}"
        return MISSING if owner is MISSING else _stored(owner, name)
    return MISSING


def _item(container: Any, key: object) -> object:
    """What a dictionary, list or tuple has there."""
    kind = type(container)  # not `isinstance`: it may ask the object for its class
    if issubclass(kind, dict) and dict.__len__(container) <= MAX_SEARCHED:
        shape = _shape(key)
        if shape is not None:
            return next((value for each, value in dict.items(container) if _shape(each) == shape), MISSING)
    if type(key) is int:
        with suppress(IndexError):
            if issubclass(kind, list):
                return list.__getitem__(container, key)
            if issubclass(kind, tuple):
                return tuple.__getitem__(container, key)
    return MISSING


def _is_of(thing: object, kinds: tuple[type, ...]) -> bool:
    """Whether it is of one of these types exactly. Not by `in`, which asks a metaclass what its classes equal."""
    kind = type(thing)
    return any(kind is each for each in kinds)


def _shape(key: object) -> object:
    """The key, and of what types it is made, so that it can be compared; None: it can't."""
    if _is_of(key, _KEYS):
        return type(key), key
    if type(key) is tuple:
        parts = [_shape(each) for each in key]
        return None if None in parts else parts
    return None


def _stored(owner: object, name: str) -> object:
    """The attribute, if the object or its class simply store it."""
    try:
        own = object.__getattribute__(owner, "__dict__")
        if name in own:
            return own[name]
    except AttributeError:
        pass
    for kind in type.__dict__["__mro__"].__get__(owner if issubclass(type(owner), type) else type(owner)):
        found = type.__dict__["__dict__"].__get__(kind).get(name, MISSING)
        if type(found) is MemberDescriptorType:
            with suppress(AttributeError):
                return found.__get__(owner)
        if found is not MISSING:
            return found if _is_of(found, _LOCKS) else MISSING
    return MISSING


# ----------------------------------------------------------------------------------- who holds it


def _holder_of(lock: object, frames: dict[int, FrameType], at: dict[int, int]) -> tuple[int, bool]:
    """The identifier of the thread that holds the lock, and whether that is sure. 0: not known.

    at: the frames that wait, and for which lock.
    """
    if type(lock) is _RLOCK:
        owner = re.search(r"owner=(\d+)", _RLOCK.__repr__(lock))
        return (int(owner[1]), True) if owner else (0, False)
    if type(lock) is not _LOCK or not lock.locked():
        return 0, False
    guess = 0
    for ident, innermost in frames.items():
        for frame in _stack(innermost):
            with suppress(Exception):
                held = None if at.get(id(frame)) == id(lock) else _holds(frame, lock)
                if held:
                    return ident, True
                if held is False:
                    guess = guess or ident
    return guess, False


def _holds(frame: FrameType, lock: object) -> bool | None:
    """True: the frame is within `with lock:`. False: it has called `lock.acquire()`, as it seems. None: neither."""
    line, seems = frame.f_lineno, False
    for kind, first, last, expression in _statements(frame.f_code):
        if kind == "with" and first <= line <= last and _is_lock(_resolve(expression, frame), lock):
            return True
        if kind == "acquire" and first < line and _resolve(expression, frame) is lock:
            seems = True
        if kind == "release" and first < line and _resolve(expression, frame) is lock:
            seems = False
    return False if seems else None


def _is_lock(found: object, lock: object) -> bool:
    """Whether this is the lock, or a Condition around it."""
    return found is lock or (issubclass(type(found), threading.Condition) and _stored(found, "_lock") is lock)


@lru_cache(maxsize=512)
def _statements(code: CodeType) -> tuple[tuple[str, int, int, ast.expr], ...]:
    """The statements of a function, or of a module, that take and release something, in order: (kind, first line, last
    line, what). Those of functions within it are not its own.
    """
    last_line = max((line for _, _, line in code.co_lines() if line is not None), default=0)
    first_line = code.co_firstlineno
    lines = linecache.getlines(code.co_filename)[first_line - 1 : last_line + 1]
    source = textwrap.dedent("".join(lines)).splitlines(keepends=True)
    tree = _parsed(*("".join(source[: len(source) - cut]) for cut in range(3)))  # it may end within the next statement
    found: list[tuple[str, int, int, ast.expr]] = []
    offset = first_line - 1
    for node in _own(tree, code.co_name):
        if isinstance(node, ast.With | ast.AsyncWith):
            body = offset + node.body[0].lineno, offset + (node.body[-1].end_lineno or 0)
            found += [("with", *body, item.context_expr) for item in node.items]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found.append((node.func.attr, offset + node.lineno, offset + node.lineno, node.func.value))
    return tuple(sorted(found, key=lambda each: each[1]))


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def _own(tree: ast.AST, name: str) -> Iterator[ast.AST]:
    """The nodes of the module, or of the function of that name with which the tree begins, without the bodies of
    functions and classes within it. (A lambda's line tells of nothing else.)
    """
    if name == "<lambda>":
        yield from ast.walk(tree)
        return
    todo = [tree]
    if name != "<module>" and isinstance(tree, ast.Module) and tree.body and isinstance(tree.body[0], _SCOPES):
        todo = [*tree.body[0].body]
    while todo:
        node = todo.pop()
        if not isinstance(node, _SCOPES):
            yield node
            todo += ast.iter_child_nodes(node)


def _parsed(*sources: str) -> ast.AST:
    """The syntax tree of the first of these texts that has one."""
    for source in sources:
        with suppress(SyntaxError):
            return ast.parse(source)
    return ast.Module([], [])
