"""What an arm of your own is made of, as text that changes when it does."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Mapping, Set
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from experiments.arms import Arm
from experiments.errors import RunError

_OURS = ("experiments", "mann", "gnn", "retrieval")  # in every row's revision already


def definition(arm: Arm) -> str:
    """Twelve hexadecimal digits over what fills an arm's slots and where its neighbours come from.

    Functions and classes count by what they say, comments left out, and by what they use of their own module; arguments
    by their values. What they use of other modules of yours counts only as far as it is named in an argument. The rest
    of the file, such as the study's seeds and budgets, does not count.

    Raises:
        RunError: If an argument cannot be told from another one the next time.
    """
    told = _Told(arm.name)
    return _digest(f"{told.of(arm.slots, ())} {told.of(arm.source, ())}")


class _Told:
    def __init__(self, arm: str) -> None:
        self.arm = arm

    def of(self, thing: Any, above: tuple[int, ...]) -> str:
        if id(thing) in above:
            return "again"
        above = (*above, id(thing))
        if isinstance(thing, functools.partial):
            return f"partial{self.of((thing.func, *thing.args, thing.keywords), above)}"
        if isinstance(thing, list | tuple):
            return f"({', '.join(self.of(part, above) for part in thing)})"
        if isinstance(thing, Mapping):
            return f"{{{', '.join(sorted(self.of(pair, above) for pair in thing.items()))}}}"
        if isinstance(thing, Set):  # in an order that the next process shares
            return f"{{{', '.join(sorted(self.of(part, above) for part in thing))}}}"
        if isinstance(thing, Tensor | np.ndarray):
            values = np.asarray(thing.detach().cpu().float() if isinstance(thing, Tensor) else thing)
            return f"{thing.dtype} {tuple(thing.shape)} {hashlib.sha256(values.tobytes()).hexdigest()}"
        if isinstance(thing, CodeType):
            return self._code(thing, above)
        if isinstance(thing, ModuleType):
            return thing.__name__
        if isinstance(thing, MethodType):
            return f"{self.of(thing.__self__, above)}.{self.of(thing.__func__, above)}"
        if isinstance(thing, FunctionType | type):
            return self._made(thing, above)
        if callable(thing) and isinstance(name := getattr(thing, "__qualname__", None), str):
            return f"{getattr(thing, '__module__', None)}.{name}"  # written in C: it has no more to say
        return self._value(thing, above)

    def _made(self, thing: FunctionType | type, above: tuple[int, ...]) -> str:
        module, name = thing.__module__ or "", thing.__qualname__
        if module.partition(".")[0] in _OURS or not _is_own(module):
            return f"{module}.{name}"
        if isinstance(thing, FunctionType):
            return f"{name} {self._function(thing, above)}"
        bases = [self.of(base, above) for base in thing.__bases__]
        held = {key: value for key, value in vars(thing).items() if not key.startswith("__")}
        methods = [_function_of(value) for value in vars(thing).values()]
        used = [self._used(method, above) for method in methods if method is not None]
        plain = [
            f"{key}={self.of(value, above)}"
            for key, value in sorted(held.items())
            if isinstance(value, bool | int | float | str | tuple | list | Mapping | Set)
        ]
        return f"{name} {_source(thing)} {bases} {used} {plain}"

    def _function(self, function: FunctionType, above: tuple[int, ...]) -> str:
        defaults = self.of((function.__defaults__, function.__kwdefaults__), above)
        return f"{self._code(function.__code__, above)} {defaults} {self._used(function, above)}"

    def _used(self, function: FunctionType, above: tuple[int, ...]) -> list[str]:
        """What a function takes from around it."""
        if function.__module__ and not _is_own(function.__module__):
            return []
        held = inspect.getclosurevars(function)
        return [
            f"{name}={self.of(value, above)}"
            for name, value in sorted({**held.globals, **held.nonlocals}.items())
        ]

    def _code(self, code: CodeType, above: tuple[int, ...]) -> str:
        return _digest(f"{code.co_code.hex()} {code.co_names} {self.of(code.co_consts, above)}")

    def _value(self, thing: Any, above: tuple[int, ...]) -> str:
        kind = f"{type(thing).__module__}.{type(thing).__qualname__}"
        if isinstance(thing, nn.Module):
            return f"{self.of(type(thing), above)} {thing} {self.of(thing.state_dict(), above)}"
        if type(thing).__repr__ is not object.__repr__ and " at 0x" not in (said := repr(thing)):
            return said
        if hasattr(thing, "__dict__"):
            return f"{self.of(type(thing), above)} {self.of(vars(thing), above)}"
        if type(thing).__repr__ is object.__repr__:
            return kind
        raise RunError(
            f"arm {self.arm!r} is made with a {kind} that says of itself only where it is in memory ({said}), so a "
            "later run could not tell whether it is the same. Give the class a __repr__ that says what it is, or make "
            "the object inside of the arm's function"
        )


def _function_of(member: Any) -> FunctionType | None:
    """The function of a class's own behind a member, if there is one."""
    member = getattr(member, "__func__", member)  # of a class, or static
    member = getattr(member, "fget", member)  # of a property
    return member if isinstance(member, FunctionType) else None


def _source(made: type) -> str:
    """What a class says, without comments and however its lines are broken."""
    try:
        text = textwrap.dedent(inspect.getsource(made))
    except (OSError, TypeError):
        return "without source"
    return _digest(ast.dump(ast.parse(text)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_own(module: str) -> bool:
    """Whether a module is neither torch nor anything else that is installed."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and not {"site-packages", "dist-packages"} & set(Path(file).parts)
