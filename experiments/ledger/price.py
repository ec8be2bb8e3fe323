"""What a price is: a rule for FLOPs and a rule for bytes, each with the sentence that documents it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """Work in exact integers.

    Args:
        flops: Arithmetic operations; a multiply-add is two.
        matmul_flops: The part of ``flops`` done in matrix products, convolutions and attention products.
        bytes: Bytes read and written if nothing were fused or cached.
    """

    flops: int = 0
    matmul_flops: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops, self.matmul_flops + other.matmul_flops, self.bytes + other.bytes
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(self.flops * times, self.matmul_flops * times, self.bytes * times)


@dataclass(frozen=True)
class Call:
    """One operator as it was called: its arguments by name, and what it returned."""

    func: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    out: Any = None

    def __getitem__(self, name: str) -> Any:
        """The argument called ``name`` in the operator's schema, or its default; None if it has none so called."""
        if name in self.kwargs:
            return self.kwargs[name]
        for position, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                return self.args[position] if position < len(self.args) else argument.default_value
        return None

    def first(self) -> Any:
        """The first argument."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    def read(self) -> list[Tensor]:
        """Every tensor given."""
        return list(tensors((self.args, self.kwargs)))

    def written(self) -> list[Tensor]:
        """Every tensor returned or, where nothing is returned, every tensor changed in place."""
        out = list(tensors(self.out))
        if out or self.func._schema.returns:
            return out
        changed = [a.name for a in self.func._schema.arguments if a.alias_info and a.alias_info.is_write]
        return [tensor for name in changed for tensor in tensors(self[name])]


@dataclass(frozen=True)
class Rule:
    """A number computed from a call, and the same in words."""

    text: str
    of: Callable[[Call], int]


def tensors(nested: Any) -> Iterator[Tensor]:
    """Every tensor inside lists, tuples and dicts, in order."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict):
        yield from tensors(list(nested.values()))
    elif isinstance(nested, (list, tuple)):
        for item in nested:
            yield from tensors(item)


def is_sparse(tensor: Tensor) -> bool:
    """Whether only the stored values of ``tensor`` exist."""
    return tensor.layout is not torch.strided


def _stored(tensor: Tensor) -> list[Tensor]:
    if tensor.layout is torch.sparse_coo:
        return [tensor._values(), tensor._indices()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.values(), tensor.crow_indices(), tensor.col_indices()]
    return [tensor.values(), tensor.ccol_indices(), tensor.row_indices()]


def numel(tensor: Tensor) -> int:
    """Elements that exist: for a sparse tensor those stored."""
    return _stored(tensor)[0].numel() if is_sparse(tensor) else tensor.numel()


def nbytes(tensor: Tensor) -> int:
    """Bytes behind a tensor; an expanded dimension is stored once, a sparse tensor is its values and indices."""
    if is_sparse(tensor):
        return sum(nbytes(part) for part in _stored(tensor))
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * prod(size if stride or size == 0 else 1 for size, stride in sizes)


def total(counted: Iterable[Tensor]) -> int:
    """Elements of several tensors together."""
    return sum(numel(tensor) for tensor in counted)


def _moved(call: Call) -> int:
    read, written = call.read(), call.written()
    sparse = [tensor for tensor in read if is_sparse(tensor)]
    if sparse and any(out is tensor for out in written for tensor in read if not is_sparse(tensor)):
        # Adding a sparse gradient to a dense tensor in place touches only the rows that are stored.
        return sum(nbytes(tensor) + 2 * nbytes(_stored(tensor)[0]) for tensor in sparse)
    return sum(map(nbytes, read)) + sum(map(nbytes, written))


NOTHING = Rule("0", lambda call: 0)
MOVED = Rule("inputs + outputs", _moved)
WRITTEN = Rule("outputs", lambda call: sum(map(nbytes, call.written())))


@dataclass(frozen=True)
class Price:
    """The price of an operator.

    Args:
        flops: Rule for all arithmetic.
        bytes: Rule for bytes read and written.
        because: Why, in a few words, for the table people read.
        matmul: Rule for the part that is matrix products, included in ``flops``.
    """

    flops: Rule = NOTHING
    bytes: Rule = MOVED
    because: str = ""
    matmul: Rule = NOTHING

    def __call__(self, call: Call) -> Cost:
        return Cost(self.flops.of(call), self.matmul.of(call), self.bytes.of(call))


def priced(price: Price, *names: str) -> dict[str, Price]:
    """The same price for several aten operators, named without their trailing underscore."""
    return {f"aten.{name}": price for name in names}
