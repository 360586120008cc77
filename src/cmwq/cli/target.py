"""From "module:attribute.path" to the function. Everything that can go wrong is a `Refusal`.

Guarantees: no import by cmwq or the standard library, however late, is answered from the current directory, because
that comes after the standard library on the path. (`python -m cmwq` is Python's own doing: there it comes first.) With
PYTHONSAFEPATH or `python -P` it is not on the path at all. If the current directory has a module of the target's name,
that one is taken.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from typing import Any

from cmwq.cli.output import Refusal, describe


def load(name: str) -> Callable[[str], Any]:
    """The callable of that name. Its module is imported, also from the current directory. Raises Refusal."""
    module_name, colon, path = name.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), *path.split(".")]):
        raise Refusal(f"target {name!r} is not of the form module:function")
    found: Any = _import(module_name)
    done = module_name
    for attribute in path.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise Refusal(f"{done!r} has no attribute {attribute!r}") from None
        except Exception as error:
            raise Refusal(f"reading {attribute!r} of {done!r} raised {describe(error)}") from error
        done += ("." if ":" in done else ":") + attribute
    if not callable(found):
        raise Refusal(f"target {name!r} is not callable: it is {_a(type(found).__name__)}")
    if inspect.iscoroutinefunction(found):
        raise Refusal(f"target {name!r} is a coroutine function; cmwq map calls plain functions, on threads")
    return found  # type: ignore[no-any-return]


def _import(name: str) -> object:
    here = _here()
    if here is not None:
        if "" not in sys.path and here not in sys.path:  # the path of a console script starts with the script's folder
            sys.path.insert(_after_the_standard_library(), here)
        _refuse_a_namesake(name.partition(".")[0], here)
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything: a script may raise SystemExit
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            why = " (safe path: the current directory is not searched)" if sys.flags.safe_path else ""
            raise Refusal(f"no module named {error.name!r}{why}") from None
        raise Refusal(f"importing {name!r} raised {describe(error)}") from error


def _here() -> str | None:
    """The current directory, if it is to be imported from."""
    if sys.flags.safe_path:
        return None
    try:
        return os.getcwd()
    except OSError:  # removed, or not accessible
        return None


def _after_the_standard_library() -> int:
    """The index on the path for the current directory: before installed packages, as usual; after Python's own."""
    standard = os.path.dirname(os.__file__)
    own = {standard, os.path.join(standard, "lib-dynload")}
    return max((place for place, folder in enumerate(sys.path, 1) if folder in own), default=0)


def _refuse_a_namesake(top: str, here: str) -> None:
    """Refuse to import another module of that name than the one in the current directory, which the user means."""
    mine = PathFinder.find_spec(top, [here])
    if mine is None or mine.origin is None:  # none, or a folder without __init__.py, which yields to every module
        return
    taken = getattr(sys.modules.get(top), "__file__", None)
    if top not in sys.modules:
        other = importlib.util.find_spec(top)
        taken = None if other is None else other.origin
    if taken is None or not os.path.exists(taken) or not os.path.samefile(taken, mine.origin):
        whose = "Python's own" if top in sys.stdlib_module_names else "another"
        raise Refusal(
            f"{mine.origin!r} can't be imported: {whose} module {top!r} comes first; rename yours "
            f"(to mean the other, set PYTHONSAFEPATH=1)"
        )


def _a(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
