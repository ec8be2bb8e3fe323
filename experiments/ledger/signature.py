"""What decides the work of a step before it is taken: the batch and the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Number
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_SEQUENCES = (list, tuple, set, frozenset)


def batch_signature(batch: Any) -> str:
    """What decides the work that a batch makes: shapes, types, lengths, whole numbers.

    Fractions, and text in lists, are taken for data that the work does not depend on. Of an object that is neither a
    tensor, an array nor a container, its attributes count.
    """
    return _signature(batch, frozenset())


def _signature(part: Any, above: frozenset[int]) -> str:
    if isinstance(part, Tensor):
        return _tensor(part)
    if part is None or isinstance(part, (Integral, str)):
        return repr(part)
    if isinstance(part, np.ndarray):
        return f"{part.dtype}{list(part.shape)}"
    if isinstance(part, (Number, bytes, type)) or id(part) in above:
        return type(part).__name__
    above = above | {id(part)}
    if isinstance(part, Mapping):
        return f"{{{', '.join(f'{name}: {_signature(value, above)}' for name, value in part.items())}}}"
    if isinstance(part, _SEQUENCES):
        return f"({', '.join(_several(part, above))})"
    # A dataclass or a PyG graph.
    held = part.to_dict() if hasattr(part, "to_dict") else _attributes(part)
    if not held and hasattr(part, "__len__"):
        return f"{type(part).__name__} of {len(part)}"
    return type(part).__name__ + (_signature(held, above) if held else "")


def _several(parts: Iterable[Any], above: frozenset[int]) -> list[str]:
    """Each of them once with its number in a row, for long lists are of equals."""
    counted: list[tuple[str, int]] = []
    for part in parts:
        text = "str" if isinstance(part, str) else _signature(part, above)
        if counted and counted[-1][0] == text:
            counted[-1] = text, counted[-1][1] + 1
        else:
            counted.append((text, 1))
    return [text if times == 1 else f"{times} {text}" for text, times in counted]


def _tensor(tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_nested:
        # Which sequence has which length is a matter of the data; how many there are, and how much in all, is not.
        return f"{kind} {tensor.size(0)} sequences of {tensor.numel()}"
    stored = f" {tensor._nnz()} stored" if tensor.layout is not torch.strided else ""
    return f"{kind}{list(tensor.shape)}{stored}"


def _attributes(part: Any) -> dict[str, Any]:
    slots = [kind.__dict__.get("__slots__", ()) for kind in type(part).__mro__]
    names = [name for given in slots for name in ([given] if isinstance(given, str) else given)]
    names += getattr(part, "__dict__", ())
    return {name: getattr(part, name) for name in names if hasattr(part, name)}


class ModelSignature:
    """What of a model decides its work beside the batch: sizes, what is trained, and what it says itself.

    Args:
        model: Its parameters and buffers are looked at now; a module inside it that has a method ``work_signature`` is
            asked each step.
    """

    def __init__(self, model: nn.Module) -> None:
        held = [*model.named_parameters(), *model.named_buffers()]
        shapes = ("lazy" if is_lazy(x) else f"{list(x.shape)}{x.dtype}{x.requires_grad}" for _, x in held)
        text = ";".join(shapes)
        self._sizes = hashlib.sha256(text.encode()).hexdigest()[:8]
        asked = (getattr(part, "work_signature", None) for part in model.modules())
        self._asked: list[Callable[[], Any]] = [ask for ask in asked if callable(ask)]

    def __str__(self) -> str:
        return " ".join([f"model {self._sizes}", *(str(ask()) for ask in self._asked)])
