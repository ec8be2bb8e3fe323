"""What a price is: a rule for FLOPs and a rule for bytes, each with the sentence that documents it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Traffic:
    """Bytes moved if nothing were fused or cached.

    Args:
        read: Bytes read.
        written: Bytes written.
        random: The part of both at places that the data decide: rows of a gather or a scatter, entries of a search.
    """

    read: int = 0
    written: int = 0
    random: int = 0


@dataclass(frozen=True)
class Cost:
    """Work in exact integers.

    Args:
        flops: Arithmetic operations; a multiply-add is two.
        matmul_flops: The part of ``flops`` done in matrix products, convolutions and attention products.
        bytes_read: Bytes read if nothing were fused or cached.
        bytes_written: Bytes written.
        bytes_random: The part of both at places that the data decide; see :class:`Traffic`.
    """

    flops: int = 0
    matmul_flops: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_random: int = 0

    @classmethod
    def of(cls, flops: int, matmul_flops: int, traffic: Traffic) -> Cost:
        """Arithmetic and traffic together."""
        return cls(flops, matmul_flops, traffic.read, traffic.written, traffic.random)

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    def to_dict(self) -> dict[str, int]:
        """Every number by name, ready for JSON."""
        return {**vars(self), "bytes": self.bytes}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Cost:
        """What :meth:`to_dict` wrote."""
        return cls(**{part.name: int(state[part.name]) for part in fields(cls)})

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.matmul_flops + other.matmul_flops,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
            self.bytes_random + other.bytes_random,
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(
            self.flops * times,
            self.matmul_flops * times,
            self.bytes_read * times,
            self.bytes_written * times,
            self.bytes_random * times,
        )


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
        """Every tensor given, but for those that are there to be overwritten."""
        overwritten = {argument.name for argument in self.func._schema.arguments if _overwritten(argument)}
        kept = [given for name, given in self.kwargs.items() if name not in overwritten]
        return list(tensors((self.args, kept)))

    def written(self) -> list[Tensor]:
        """Every tensor returned or, where nothing is returned, every tensor changed in place."""
        out = list(tensors(self.out))
        if out or self.func._schema.returns:
            return out
        changed = [a.name for a in self.func._schema.arguments if a.alias_info and a.alias_info.is_write]
        return [tensor for name in changed for tensor in tensors(self[name])]


def _overwritten(argument: Any) -> bool:
    """Whether a schema's argument is a place for results; what is changed in place is never by keyword only."""
    return argument.kwarg_only and argument.alias_info is not None and argument.alias_info.is_write


Amount = TypeVar("Amount", int, Traffic)


@dataclass(frozen=True)
class Rule(Generic[Amount]):
    """A number of operations, or the traffic, computed from a call, and the same in words."""

    text: str
    of: Callable[[Call], Amount]


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


def _parts(tensor: Tensor) -> list[Tensor]:
    if tensor.layout is torch.sparse_coo:
        return [tensor._values(), tensor._indices()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.values(), tensor.crow_indices(), tensor.col_indices()]
    return [tensor.values(), tensor.ccol_indices(), tensor.row_indices()]


def numel(tensor: Tensor) -> int:
    """Elements that exist: for a sparse tensor those stored."""
    return _parts(tensor)[0].numel() if is_sparse(tensor) else tensor.numel()


def nbytes(tensor: Tensor) -> int:
    """Bytes behind a tensor; an expanded dimension is stored once, a sparse tensor is its values and indices."""
    if is_sparse(tensor):
        return sum(nbytes(part) for part in _parts(tensor))
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * prod(size if stride or size == 0 else 1 for size, stride in sizes)


def total(counted: Iterable[Tensor]) -> int:
    """Elements of several tensors together."""
    return sum(numel(tensor) for tensor in counted)


def stored(counted: Iterable[Tensor]) -> int:
    """Bytes behind several tensors together."""
    return sum(nbytes(tensor) for tensor in counted)


def _moved(call: Call) -> Traffic:
    read, written = call.read(), call.written()
    sparse = [tensor for tensor in read if is_sparse(tensor)]
    if sparse and any(out is tensor for out in written for tensor in read if not is_sparse(tensor)):
        # Adding a sparse gradient to a dense tensor in place touches only the rows that are stored.
        rows = sum(nbytes(_parts(tensor)[0]) for tensor in sparse)
        return Traffic(stored(sparse) + rows, rows, 2 * rows)
    # A sparse operand says where its dense partner is read.
    random = stored(tensor for tensor in read if not is_sparse(tensor)) if sparse else 0
    return Traffic(stored(read), stored(written), random)


NOTHING: Rule[int] = Rule("0", lambda call: 0)
UNMOVED: Rule[Traffic] = Rule("0", lambda call: Traffic())
MOVED: Rule[Traffic] = Rule("inputs + outputs", _moved)
WRITTEN: Rule[Traffic] = Rule("outputs", lambda call: Traffic(0, stored(call.written())))


@dataclass(frozen=True)
class Price:
    """The price of an operator.

    Args:
        flops: Rule for all arithmetic.
        bytes: Rule for bytes read, written, and moved at places that the data decide.
        because: Why, in a few words, for the table people read.
        matmul: Rule for the part that is matrix products, included in ``flops``.
    """

    flops: Rule[int] = NOTHING
    bytes: Rule[Traffic] = MOVED
    because: str = ""
    matmul: Rule[int] = NOTHING

    def __call__(self, call: Call) -> Cost:
        return Cost.of(self.flops.of(call), self.matmul.of(call), self.bytes.of(call))


def priced(price: Price, *names: str) -> dict[str, Price]:
    """The same price for several aten operators, or overloads, named without their trailing underscore."""
    return {f"aten.{name}": price for name in names}
