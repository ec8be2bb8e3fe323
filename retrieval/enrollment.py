"""Numbers by which torch operators find objects that are no tensors."""

from __future__ import annotations

import itertools
import secrets
import weakref
from typing import Any

import torch

from retrieval.runtime import ProcessLock

__all__ = ["Enrolled", "enroll", "enrolled"]

# Elsewhere in each process: a graph exported with a number finds nothing in another one, not something else.
_numbers = itertools.count(secrets.randbits(62))
_members: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_by_identity: dict[int, int] = {}
_enrolling = ProcessLock()


class Enrolled:
    """An object that operators find by a number, from its making on; a copy is made like any other and has its own."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Make and enroll it."""
        made = super().__new__(cls)
        enroll(made)
        return made


def enroll(member: object) -> int:
    """The number of an object for as long as it lives; the table keeps none alive.

    It belongs to this one object, so it is looked up by identity, and is no attribute: a copy or a pickle would take
    that along and name the object it was made from.
    """
    if torch.compiler.is_dynamo_compiling():
        # The compiler guards what id() was asked of: another object is another graph.
        return _constant(id(member))
    number = _number(member)
    if number is None:
        with _enrolling:
            number = _number(member)
            if number is None:
                number = _by_identity[id(member)] = next(_numbers)
                _members[number] = member
                weakref.finalize(member, _forget, id(member), number).atexit = False
    return number


def _number(member: object) -> int | None:
    number = _by_identity.get(id(member))
    return number if number is not None and _members.get(number) is member else None


@torch.compiler.assume_constant_result
def _constant(identity: int) -> int:
    return _by_identity[identity]


def _forget(identity: int, number: int) -> None:
    if _by_identity.get(identity) == number:
        del _by_identity[identity]


def enrolled(number: int) -> Any:
    """The object of that number.

    Raises:
        RuntimeError: If it is gone.
    """
    member = _members.get(number)
    if member is None:
        raise RuntimeError(f"store {number} of this search no longer exists; keep a reference to it")
    return member
