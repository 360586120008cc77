"""The shape of the code is what the documents say it is: layers, sizes, letters, declarations, exports, links.

Everything is read from the source; nothing is imported. An exception says why it is one, and must still be needed.
"""

from __future__ import annotations

import ast
import concurrent.futures
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = ROOT / "src/cmwq"
Function = ast.FunctionDef | ast.AsyncFunctionDef
FOLDERS = ("_workqueue", "_pool", "_core")
"""The core: each of their modules has a place of its own in the order. The letters of the legend are for them."""
CORE = sorted(path for folder in FOLDERS for path in (CODE / folder).glob("*.py"))
DOCUMENTS = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md")) + sorted(CODE.rglob("README.md"))

# Absent where only a part of the tree was copied (tools/trees.py).
with_documents = pytest.mark.skipif(not DOCUMENTS[0].exists(), reason="no documents here")

LAYERS = """
    cli, contrib
    cmwq
    observing
    aio, _awaiting, executor, events, testing
    _workqueue: batch, twin, queue, map
    _workqueue: options, submitting, queueing, gate, periodic, serving, asking
    _workqueue: runtime, end, freezer, drain, settings
    _workqueue: picture, place_view, watchdog, report, recording, snapshot, subscriptions
    _workqueue: work, work_future, future, audience, readers, delay, queued, room, item_end, place_end, unfetched
    _workqueue: wait, inserting, pwq, measured, learning, learned, rising, phase
    _pool: pools, hotplug
    _pool: pool, manager, rescuer, worker_thread, hogs, children, memory, lending, alarm
    _pool: mend, closing, recovery, leaks, invariants, blocking, lane, worker
    _pool: observed, events, ring, figures, reasons, policy, item
    _core: config, checks, naming, records
    _host, _sensor
    _core: ports, held, ranks, here, weakly, surely, told, asleep, tables, log
    _errors
"""
"""The order of modules, the highest first: a module imports only what stands further on. A package is one entry.

The same is drawn in ARCHITECTURE.md.
"""

UPWARD = {
    ("_core.records", "_sensor"): "the structs that C and Python share are in the one C extension",
    ("_core.surely", "_sensor"): "only C can give one thread more frames than the recursion limit leaves",
    ("_workqueue.twin", "_sensor"): "the hot path in C is in the same",
    ("_workqueue.runtime", "_host"): "a runtime without a host of its own takes that of this process",
    ("_workqueue.runtime", "_sensor"): "a runtime without a sensor of its own takes the best that works here",
}
"""Imports that break a rule: the core points at no host and no sensor."""

SYSTEM = {
    ("_core/log.py", "threading"): "which thread is the main one, where signals raise",
    ("_workqueue/readers.py", "threading"): "local: which holds the thread has; Event: what `Told` stands for",
    ("_core/told.py", "threading"): "Lock: in place of `threading.Event`",
    ("_core/asleep.py", "threading"): "get_ident, main_thread: that one hears signals",
    ("_pool/worker.py", "threading"): "local: the current thread's worker",
    ("_pool/ring.py", "threading"): "get_ident: which thread queued a work",
    ("_core/here.py", "threading"): "local: the current thread's host",
    (
        "_core/surely.py",
        "threading",
    ): "local, Lock: which threads have more frames; a host's lock needs this module itself",
    ("_core/held.py", "threading"): "local: where the current thread took which lock, in the debug mode",
    ("_workqueue/subscriptions.py", "threading"): "get_ident: is it the callback that waits for its own end?",
}
"""What the core takes of the modules that the ports stand for."""

MODULE, FUNCTION, ATTRIBUTES = 450, 60, 30

LARGE = {
    "_workqueue/queue.py": (535, "`WorkQueue` is the face that users see: most of it is what its methods promise"),
    "testing/sim_host.py": (650, "one machine: threads, locks, timers and CPUs share the baton"),
}
"""Modules that are larger than they should be, how large they may be, and why."""

LONG = {
    "_pool/worker_thread.py: process_works": (66, "the hot loop, on purpose in one piece: see `_pool/README.md`"),
}

RICH = {
    "_pool/pool.py: WorkerPool": (40, "one record of all that is decided under L, and of what looks after it"),
    "_pool/worker.py: Worker": (40, "a worker's place in the pool and what it executes are one record"),
}

UNDECLARED = {
    "_workqueue/audience.py: Audience._tell_waiters": "it is about the condition, which is the standard library's",
    "_pool/events.py: Tap.tell_lost": "it does not know its pool",
    "_pool/mend.py: Mendable.mend": "each owner names its own lock",
    "_workqueue/queued.py: Queued.add_future": "it depends on whether it was queued yet",
    "_pool/recovery.py: mourn": "the thread may have died within a section",
    "_pool/recovery.py: recover": "it was interrupted at any moment",
    "_workqueue/watchdog.py: Watchdog.begin": "it asks for nothing",
    "_workqueue/report.py: _executed": "it does not know the pool",
    "_workqueue/learning.py: begin": "it depends on whether the place is known yet",
    "_workqueue/learning.py: end": "the same",
    "_workqueue/pwq.py: PoolWorkQueue._adopt_limit": "the same",
    "_workqueue/work_future.py: WorkFuture.of": "it depends on whether the item was queued yet",
    "_host/__init__.py: ThreadHost.stop_timers": "which locks those are is up to the timers' functions",
    "_host/locks.py: PyLock.wake": "it checks that itself, always",
    "_host/locks.py: _Thread.forget": "this is the lock",
    "_host/locks.py: _begin": "this is the lock",
    "_host/locks.py: _mend_if_it_can": "this is the lock",
    "_host/timers.py: Timers._drop_all": "after a fork nobody holds the lock",
    "_host/timers.py: Timers.close": "which locks those are is up to the timers' functions",
    "_sensor/_ticking.py: TickingSensor.ring": "it does not know the pool",
    "cli/window.py: Window._has_room": "its lock is the command's own, and not the host's",
}
"""Functions whose docstring speaks of locks held, for no decorator of `held` can say it."""

LOOKS = {
    "_workqueue/delay.py: Delay.choose_place": "at worst it chooses a place for a delay that is over",
    "_workqueue/end.py: _take_back": "is it the queueing that was found listed?",
    "_workqueue/queued.py: Queued.be_over": "the pool's lock is enough to clear it",
    "_workqueue/queued.py: Queued.is_awaited": "is it this one?",
    "_workqueue/queueing.py: queue": "the fast path: a work found pending was so; else it looks again with W",
    "_workqueue/wait.py: pending_of": "the work runs on, and what it was queued with can't begin before it ends",
    "_workqueue/work.py: Work._drop_taken": "is it what was taken back?",
    "_workqueue/work.py: Work._is_on_its_way": "for `pending`, which says why nothing is overlooked",
    "_workqueue/work.py: Work.is_idle": "who calls it holds W, or looks again with W if it says yes",
    "_workqueue/work.py: Work.pending": "it only tells; what moves meanwhile is looked for by `_is_on_its_way`",
}
"""Functions that look at what a work is pending with (`work`) without its lock, and why they may."""

IMPLEMENTED = {
    "Item": {
        "_workqueue/future.py": ("Future", "BoundedFuture"),
        "_workqueue/queued.py": ("Queued",),
        "_workqueue/asking.py": ("Ask",),
    },
    "Source": {"_workqueue/pwq.py": ("PoolWorkQueue",)},
}
"""The protocols of `item` whose methods say what they need held, and who has these methods."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def files() -> list[Path]:
    return sorted(CODE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(CODE).as_posix()


def definitions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Each function and class of a file, as `file: Class.method`."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield f"{name_of(path)}: {prefix}{node.name}", node  # type: ignore[misc]
                yield from walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.If | ast.Try):
                yield from walk(node.body + node.orelse, prefix)

    return walk(tree(path).body, "")


# ------------------------------------------------------------------------------------------- layers


def order() -> list[str]:
    """The entries of LAYERS, the highest first: `cli`, `_workqueue.queue`."""
    found = []
    for line in LAYERS.split("\n"):
        package, _, names = line.strip().rpartition(": ")
        found += [f"{package}.{name}".lstrip(".") for name in names.split(", ") if name]
    return found


def entry_of(module: str) -> str:
    """Under which name a module stands in the order; `module` is without its leading `cmwq.`."""
    first, _, rest = module.partition(".")
    if first in FOLDERS and rest:
        return f"{first}.{rest}"
    return "cli" if first == "__main__" else first or "cmwq"


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """What a file imports when it runs, also within functions: (module, name of it or empty)."""

    def walk(node: ast.AST) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.orelse:
                yield from walk(child)
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return walk(tree(path))


def dependencies() -> set[tuple[str, str]]:
    """Which entry imports which."""
    found = set()
    for path in files():
        here = entry_of(name_of(path).removesuffix(".py").removesuffix("__init__").rstrip("/").replace("/", "."))
        for module, name in imported(path):
            if module.partition(".")[0] != "cmwq":
                continue
            inner = module.removeprefix("cmwq").lstrip(".")
            there = CODE / inner.replace(".", "/") / name
            if name and (there.is_dir() or there.with_suffix(".py").exists()):
                inner = f"{inner}.{name}".lstrip(".")
            found.add((here, entry_of(inner)))
    return {(here, there) for here, there in found if here != there and here not in FOLDERS}


def test_every_module_has_its_place_in_the_order() -> None:
    there = {entry_of(name_of(path).removesuffix(".py").replace("/", ".")) for path in files()}
    there = {name.removesuffix("__init__").rstrip(".") or "cmwq" for name in there} - {*FOLDERS}
    assert sorted(there) == sorted(order())


def test_imports_point_down() -> None:
    height = {name: -index for index, name in enumerate(order())}
    upward = {(here, there) for here, there in dependencies() if height[here] < height[there]}
    assert sorted(upward - {*UPWARD}) == [], "these import what stands above them"


def test_pools_know_nothing_of_named_queues() -> None:
    """Not even by name: what they need of one is said by the protocols of `item`. Annotations of what is only looked
    at, or handed on, aside.
    """
    assert [pair for pair in dependencies() if pair[0].startswith("_pool.") and pair[1].startswith("_workqueue.")] == []


def test_the_core_points_at_no_host_and_no_sensor() -> None:
    outward = {pair for pair in dependencies() if pair[0].startswith(FOLDERS) and pair[1] in ("_host", "_sensor")}
    assert outward == set(UPWARD)


def test_the_core_meets_the_system_through_its_ports() -> None:
    system = {"threading", "_thread", "time", "signal", "select", "socket", "subprocess"}
    found = {(name_of(path), module) for path in CORE for module, _ in imported(path) if module in system}
    assert found == set(SYSTEM)


def test_only_one_module_calls_the_standard_librarys_logging() -> None:
    """Handlers of other people raise: `_core.log` says what that would end."""
    for path in CODE.rglob("*.py"):
        module = path.relative_to(CODE)
        if module.parts[0] not in ("cli", "contrib") and module.parts != ("_core", "log.py"):
            assert ("logging", "") not in set(imported(path)), module


@with_documents
def test_ARCHITECTURE_draws_the_layers_as_they_are() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    drawn = re.search(r"## Layers\n.*?\n\n((?:    [^\n]*\n)+)", text, re.DOTALL)
    assert drawn is not None
    lines = [re.split(r"\s{2,}", line.strip())[0] for line in drawn[1].splitlines()]
    assert lines == [line.strip() for line in LAYERS.strip().splitlines()]


# ------------------------------------------------------------------------------------------- sizes


def check_budget(sizes: dict[str, int], budget: int, exceptions: dict[str, tuple[int, str]]) -> None:
    over = {name: size for name, size in sizes.items() if size > exceptions.get(name, (budget,))[0]}
    assert over == {}, "too large: split it, or say in the list of exceptions why not"
    needless = [name for name in exceptions if sizes.get(name, 0) <= budget]
    assert needless == [], "it is small enough now: take it off the list of exceptions"


def test_modules_are_short() -> None:
    check_budget({name_of(path): path.read_text().count("\n") for path in files()}, MODULE, LARGE)


def test_functions_are_short() -> None:
    sizes = {
        name: (node.end_lineno or 0) - node.lineno + 1
        for path in files()
        for name, node in definitions(path)
        if not isinstance(node, ast.ClassDef)
    }
    check_budget(sizes, FUNCTION, LONG)


def attributes(node: ast.ClassDef) -> set[str]:
    return {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and ast.unparse(each.value) == "self"
    }


def test_classes_have_little_state() -> None:
    sizes = {
        name: len(attributes(node))
        for path in files()
        for name, node in definitions(path)
        if isinstance(node, ast.ClassDef)
    }
    check_budget(sizes, ATTRIBUTES, RICH)


# ------------------------------------------------------------------------------------------- locks and letters


def letters() -> set[str]:
    """Those of the legend in pool.py."""
    found = set(re.findall(r"^#   (\S)    ", ast.get_docstring(tree(CODE / "_pool/pool.py")) or "", re.MULTILINE))
    assert {"I", "L", "~"} <= found, "the legend was not found"
    return found


def assigned(node: ast.stmt) -> list[str]:
    """The fields of self that a statement assigns."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    flat = [each for target in targets for each in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [t.attr for t in flat if isinstance(t, ast.Attribute) and ast.unparse(t.value) == "self"]


def test_every_field_of_the_core_has_a_letter_of_the_legend() -> None:
    known, without = letters(), []
    for path in CORE:
        lines = path.read_text().splitlines()
        for name, node in definitions(path):
            if not name.endswith(".__init__"):
                continue
            for statement in ast.walk(node):
                if not (isinstance(statement, ast.stmt) and assigned(statement)):
                    continue
                comments = [line.partition("# ")[2] for line in lines[statement.lineno - 1 : statement.end_lineno]]
                comment = re.sub(r"type: ignore\S*  # ", "", " ".join(comments)).strip()
                if not re.match(rf"[{''.join(known)}](?![\w'])", comment):
                    without.append(f"{name}: {', '.join(assigned(statement))}")
    assert without == [], "say in a comment, by a letter of the legend in pool.py, what guards these"


def declared(node: ast.AST) -> list[str]:
    """What decorators of `held` say of a function."""
    if not isinstance(node, ast.FunctionDef):
        return []
    said = [ast.unparse(each) for each in node.decorator_list]
    return [each for each in said if re.match(r"(holding|holding_any|not_holding)\(|outside$", each)]


def test_contexts_are_declared_and_not_told() -> None:
    told = set()
    for path in files():
        for name, node in definitions(path):
            sentence = re.search(r"Context: ((?:[^.]|\.(?=\w))*)", ast.get_docstring(node) or "")
            if sentence and re.search(r"\bheld\b|\block\b", sentence[1]):
                told.add(name)
    assert sorted(told - set(UNDECLARED)) == [], "say it by a decorator of `held`, which is checked"
    assert sorted(set(UNDECLARED) - told) == [], "these need no exception any more"


@pytest.mark.parametrize("protocol", IMPLEMENTED)
def test_who_implements_a_protocol_declares_what_that_does(protocol: str) -> None:
    says = {
        name.partition(f": {protocol}.")[2]: declared(node)
        for name, node in definitions(CODE / "_pool/item.py")
        if f": {protocol}." in name and declared(node)
    }
    assert len(says) >= 5
    seen = set()
    for file, classes in IMPLEMENTED[protocol].items():
        for name, node in definitions(CODE / file):
            owner, _, method = name.partition(": ")[2].partition(".")
            if owner in classes and method in says:
                assert declared(node) == says[method], name
                seen.add(method)
    assert seen == set(says)


def looks(node: ast.AST, file: str) -> Iterator[ast.AST]:
    """The looks in a function at what a work is pending with, but for those in a section of its lock."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.With) and any(
            re.search(r"\b(work|self)\.(_here\(\)|_lock)$", ast.unparse(each.context_expr)) for each in child.items
        ):
            continue
        if isinstance(child, ast.Attribute) and child.attr in ("_item", "_delay", "_moving"):
            of = ast.unparse(child.value)
            works = of in ("work", "self.work") or (of == "self" and file in ("work.py", "periodic.py"))
            if works and isinstance(child.ctx, ast.Load):
                yield child
        yield from looks(child, file)


def test_who_looks_whether_a_work_is_pending_holds_its_lock() -> None:
    """Else the work may move meanwhile, and be found neither delayed nor queued (F2, F5)."""
    without = {
        name
        for path in CORE
        for name, node in definitions(path)
        if isinstance(node, Function)
        and not any(re.search(r"^holding\('self\.(work\.)?_lock'\)", said) for said in declared(node))
        and any(looks(node, path.name))
    }
    assert sorted(without - set(LOOKS)) == [], "look with the work's lock held, and act before it is released"
    assert sorted(set(LOOKS) - without) == [], "these need no exception any more"


def test_every_lock_of_the_core_comes_from_the_host() -> None:
    made = [
        f"{name_of(path)}: {ast.unparse(call.func)}"
        for path in CORE
        for call in ast.walk(tree(path))
        if isinstance(call, ast.Call) and re.search(r"\b(allocate_lock|R?Lock)$", ast.unparse(call.func))
    ]
    # These are no locks of the core's order. The first is held for a few calls of C, and of no simulation; on the other
    # one thread sleeps, in place of a `threading.Event`.
    assert made == ["_core/surely.py: Lock", "_core/told.py: Lock"]


def test_no_lock_is_held_over_a_yield() -> None:
    """The frame may then end on another thread, or never. And since Python 3.14 no thread can release the RLock that
    another one took, which the locks in Python are made of.
    """
    assert [
        f"{name_of(path)}:{section.lineno}"
        for path in sorted(CODE.rglob("*.py"))
        for section in ast.walk(tree(path))
        if isinstance(section, ast.With)
        and any(re.search(r"\b_?lock\b", ast.unparse(item.context_expr)) for item in section.items)
        and any(isinstance(each, ast.Yield | ast.YieldFrom) for each in ast.walk(section))
    ] == []


SHARED_BY_ALL = [*CORE, *(path for name in ("_host", "_sensor", "executor") for path in (CODE / name).rglob("*.py"))]
GOTTEN = {
    "os.environ": "no dictionary",
    "self._pools": "likewise: `Pools.get`",
    "self._verdict": "its key is a word of the source, which is nobody's",
    "_default": "likewise",
    "_CALLS": "likewise; read once",
    "_WORDS": "made when the module is imported, for the words of a picture",
    "_places.by_rank": "each thread's own",
    "me.deferred": "mostly the thread's own; one entry each, for what was interrupted",
    "self.used": "one look's, and only its own thread's",
    "self._progress": "read by the thread of the ticks alone",
    "frame.f_locals": "a stack that is looked at",
    "outer.f_locals": "likewise",
    "frame.f_globals": "likewise",
}
"""What is asked with `get` in modules that all threads run, though it is an attribute or a module's; and why it may."""


def globals_of(path: Path) -> set[str]:
    """The names that the module assigns."""
    targets = [
        target
        for node in tree(path).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def test_no_dictionary_that_threads_share_is_asked_with_get() -> None:
    """Without a GIL, `dict.get` may wait for itself, which is long (`_core.tables`). A local name is taken for a
    dictionary of the function's own.
    """
    asked = {
        ast.unparse(call.func.value)
        for path in SHARED_BY_ALL
        for call in ast.walk(tree(path))
        if isinstance(call, ast.Call) and call.args
        if isinstance(call.func, ast.Attribute) and call.func.attr == "get"
        if isinstance(call.func.value, ast.Attribute | ast.Subscript)
        or (isinstance(call.func.value, ast.Name) and call.func.value.id in globals_of(path))
        or path.name == "tables.py"
    }
    assert sorted(asked - set(GOTTEN)) == [], "look it up with `_core.tables.lookup`"
    assert sorted(set(GOTTEN) - asked) == [], "these need no exception any more"


# ------------------------------------------------------------------------------------------- what users see


def exported(path: Path) -> list[str]:
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def public_files() -> list[Path]:
    return [path for path in files() if not re.search(r"(^|/)_(?!_)", name_of(path))]


def origin(path: Path, name: str) -> Function | ast.ClassDef | None:
    """The definition of a name that a module exports; None: a value, or a module."""
    for node in tree(path).body:
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            there = CODE / (node.module or "").removeprefix("cmwq").lstrip(".").replace(".", "/")
            if (there / name).with_suffix(".py").exists():
                return None
            return origin(there / "__init__.py" if there.is_dir() else there.with_suffix(".py"), name)
    return None


def test_every_public_name_is_exported_once_and_in_order() -> None:
    homes: dict[str, list[str]] = {}
    for path in files():
        names = exported(path)
        assert names == sorted(set(names)), f"{name_of(path)}: __all__ is in order, each name once"
        for name in names:
            if not name_of(path).startswith(("aio.", "contrib/")):  # they use the name for the same thing there
                homes.setdefault(name, []).append(name_of(path))
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}
    package = CODE / "__init__.py"
    visible = {
        alias.asname or alias.name
        for node in tree(package).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cmwq._")
        for alias in node.names
    }
    assert {name for name in visible if name[0] != "_"} <= set(exported(package)), "imported, and not exported"


def public_callables() -> Iterator[tuple[str, Function, ast.ClassDef | None]]:
    """Each exported function, and each public method of an exported class, with its class."""
    for path in public_files():
        for name in exported(path):
            node = origin(path, name)
            if isinstance(node, Function):
                yield name, node, None
            elif node is not None:
                for method in node.body:
                    if isinstance(method, Function) and not method.name.startswith("_"):
                        yield f"{name}.{method.name}", method, node


def said(node: Function, owner: ast.ClassDef | None) -> str:
    return " ".join(filter(None, (ast.get_docstring(node), owner and ast.get_docstring(owner))))


@cache
def explained_elsewhere() -> frozenset[str]:
    """What a Protocol of ours or `concurrent.futures.Future` explains, for all who implement it."""
    protocols = [
        node
        for path in files()
        for _, node in definitions(path)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).startswith("Protocol") for base in node.bases)
    ]
    ours = {each.name for node in protocols for each in node.body if isinstance(each, ast.FunctionDef)}
    return frozenset(ours) | {name for name in dir(concurrent.futures.Future) if name[0] != "_"}


def needs_no_words(node: Function) -> bool:
    """Its getter has them, or what it implements."""
    return any(ast.unparse(each).endswith((".setter", "overload")) for each in node.decorator_list) or (
        node.name in explained_elsewhere()
    )


def test_every_public_name_has_a_docstring() -> None:
    bare = [name for name, node, _ in public_callables() if not (ast.get_docstring(node) or needs_no_words(node))]
    bare += [
        name
        for path in public_files()
        for name in exported(path)
        if (node := origin(path, name)) is not None and not ast.get_docstring(node)
    ]
    assert bare == []


def test_durations_have_a_unit() -> None:
    """Whoever takes a time says in what: itself, or its class for all its methods."""
    vague = []
    for name, node, owner in public_callables():
        takes = {arg.arg for arg in (*node.args.args, *node.args.kwonlyargs)}
        if takes & {"timeout", "delay", "period", "seconds"} and "second" not in said(node, owner):
            vague.append(name)
    assert vague == []


def test_what_is_raised_is_said() -> None:
    """By whoever raises it in its own body: itself, or its class for all its methods."""
    unsaid = []
    for name, node, owner in public_callables():
        for each in ast.walk(node) if not needs_no_words(node) else ():
            if isinstance(each, ast.Raise) and each.exc is not None:
                error = ast.unparse(each.exc.func if isinstance(each.exc, ast.Call) else each.exc)
                error = error.replace("Refused", "Reentered")  # as it is called to users
                if re.match(r"[A-Z]\w+$", error) and error not in said(node, owner):
                    unsaid.append(f"{name}: {error}")
    assert unsaid == []


def test_every_class_with_methods_says_whether_threads_may_share_it() -> None:
    silent = []
    for path in public_files():
        for name in exported(path):
            node = origin(path, name)
            if not isinstance(node, ast.ClassDef) or any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                continue
            has_methods = any(isinstance(each, ast.FunctionDef) and each.name[0] != "_" for each in node.body)
            if has_methods and "hread" not in (ast.get_docstring(node) or ""):
                silent.append(name)
    assert silent == []


# ------------------------------------------------------------------------------------------- documents


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@with_documents
def test_links_in_documents_lead_somewhere() -> None:
    broken, seen = [], 0
    for document in DOCUMENTS:
        text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "`", text)):
            if re.match(r"[a-z]+:", target):
                continue
            seen += 1
            file, _, anchor = target.partition("#")
            there = (document.parent / file).resolve() if file else document
            if not there.exists() or (anchor and anchor not in anchors(there)):
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert broken == []
    assert seen > 10


@with_documents
def test_the_code_map_names_what_there_is() -> None:
    """Each file of the core stands in it, and what stands in it exists."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    code_map = text[text.index("## Code map") : text.index("## Where to begin")]
    named = set(re.findall(r"[`\s]([a-z_]+\.(?:py|c))`", code_map))
    there = {path.name for path in (*CODE.parent.rglob("*.py"), *CODE.rglob("*.c"))}
    assert sorted(named - there) == [], "the code map names files that are not there"
    unnamed = {path.name for path in CORE} - named - {"__init__.py"}
    assert sorted(unnamed) == [], "the code map leaves these out"


BENCHMARKS = sorted(path.stem for path in (ROOT / "bench").glob("*.py"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_a_benchmark_imports_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are run by hand, and seldom, so a name that moved would be missed."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"cmwq", *BENCHMARKS}:
            raise
        pytest.skip(f"needs {error.name}")


def test_the_decisions_that_are_measured_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    decisions: Any = importlib.import_module("decisions")
    paths = [f"cmwq.{path}" for decision in decisions.DECISIONS for path in decision.paths]
    for path in (*paths, *decisions.SEAMS):
        decisions._find(path)
