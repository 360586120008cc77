"""From "module:attribute.path" to the function. Everything that can go wrong is a `Refusal`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from cmwq.cli.output import Refusal, describe


def load(name: str) -> Callable[[str], Any]:
    """The callable of that name. Its module is imported, also from the current directory."""
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
    here = os.getcwd()
    if "" not in sys.path and here not in sys.path:  # a console script's path starts with the script's folder
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything: SystemExit where it is a script
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise Refusal(f"no module named {error.name!r}") from None
        raise Refusal(f"importing {name!r} raised {describe(error)}") from error


def _a(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
