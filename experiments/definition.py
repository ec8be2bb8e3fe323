"""What an arm of your own is made of, as text that changes when it does."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from experiments.arms import Arm
from experiments.revision import code_digest

_OURS = ("experiments", "mann", "gnn", "retrieval")  # in every row's revision already


def definition(arm: Arm) -> str:
    """Twelve hexadecimal digits over what fills an arm's slots and where its neighbours come from.

    Functions and classes count by what they say and by what they use of their own module, arguments by their ``repr``.
    What they use of other modules of yours counts only as far as it is named in an argument.
    """
    return hashlib.sha256(f"{_told(arm.slots, ())} {_told(arm.source, ())}".encode()).hexdigest()[:12]


def _told(thing: Any, above: tuple[int, ...]) -> str:
    if id(thing) in above:
        return "again"
    above = (*above, id(thing))
    if isinstance(thing, functools.partial):
        parts = [thing.func, *thing.args, *sorted(thing.keywords.items())]
        return f"partial({', '.join(_told(part, above) for part in parts)})"
    if isinstance(thing, (list, tuple)):
        return f"({', '.join(_told(part, above) for part in thing)})"
    if isinstance(thing, Mapping):
        return f"{{{', '.join(_told(pair, above) for pair in thing.items())}}}"
    if isinstance(thing, ModuleType):
        return thing.__name__
    module = getattr(thing, "__module__", "") or ""
    if isinstance(thing, (FunctionType, type)):
        name = f"{module}.{thing.__qualname__}"
        if module.partition(".")[0] in _OURS or not _is_own(module):
            return name
        if isinstance(thing, type):
            return f"{name} {code_digest((module,))}"
        return f"{name} {_of_function(thing, above)}"
    return (
        repr(thing) if type(thing).__repr__ is not object.__repr__ else f"{module}.{type(thing).__qualname__}"
    )


def _of_function(function: FunctionType, above: tuple[int, ...]) -> str:
    held = inspect.getclosurevars(function)
    used = {**held.globals, **held.nonlocals}
    told = [f"{name}={_told(value, above)}" for name, value in sorted(used.items())]
    defaults = _told((function.__defaults__, function.__kwdefaults__), above)
    return f"{_of_code(function.__code__)} {defaults} {told}"


def _of_code(code: CodeType) -> str:
    constants = [_of_code(part) if isinstance(part, CodeType) else repr(part) for part in code.co_consts]
    return hashlib.sha256(code.co_code + repr((code.co_names, constants)).encode()).hexdigest()[:12]


def _is_own(module: str) -> bool:
    """Whether a module is neither torch nor anything else that is installed."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and not {"site-packages", "dist-packages"} & set(Path(file).parts)
