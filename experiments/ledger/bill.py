"""A bill: exact work by phase, operator and module, added up, printed, saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from experiments.ledger.price import Cost

#: Where work is billed that ran inside no module: the loss, clipping, the optimizer.
OUTSIDE = "(outside)"


class Bill:
    """FLOPs and bytes, as exact integers.

    Every number is kept by (phase, operator, module), and every view is a sum of those.
    ``by_operator`` and ``by_phase`` add up to the total. ``by_module`` gives each module everything done inside it,
    so a parent contains its children; the root and ``"(outside)"`` add up to the total.

    Args:
        root: Name under which the model as a whole is listed.
    """

    def __init__(self, root: str = "") -> None:
        self.root = root
        self._work: dict[tuple[str, str, str], Cost] = {}

    def add(self, kind: str, flops: int = 0, bytes: int = 0) -> None:  # noqa: A002 - the unit is the name
        """Bill work done outside torch to the phase ``kind``.

        Args:
            kind: Phase, such as "search" or "build".
            flops: Arithmetic operations.
            bytes: Bytes read and written.
        """
        self.record(kind, kind, OUTSIDE, Cost(int(flops), 0, int(bytes)))

    def record(self, phase: str, operator: str, module: str, cost: Cost) -> None:
        """Bill ``cost`` to one operator in one module."""
        key = phase, operator, module
        self._work[key] = self._work.get(key, Cost()) + cost

    def include(self, other: Bill, times: int = 1) -> None:
        """Bill everything on another bill, ``times`` over."""
        self.root = self.root or other.root
        for (phase, operator, module), cost in other._work.items():
            self.record(phase, operator, module, cost * times)

    def total(self) -> Cost:
        """Everything."""
        return sum(self._work.values(), Cost())

    @property
    def flops(self) -> int:
        """All arithmetic operations."""
        return self.total().flops

    @property
    def matmul_flops(self) -> int:
        """Those of matrix products, convolutions and attention products."""
        return self.total().matmul_flops

    @property
    def bytes(self) -> int:
        """Bytes read and written, as if nothing were fused or cached."""
        return self.total().bytes

    def costs(self, by: str) -> dict[str, Cost]:
        """Cost by "phase", "operator" or "module".

        Args:
            by: Which of the three.
        """
        if by not in ("phase", "operator", "module"):
            raise ValueError(f"a bill is by phase, operator or module, not by {by!r}")
        costs: dict[str, Cost] = {}
        for (phase, operator, module), cost in self._work.items():
            owners = {"phase": [phase], "operator": [operator], "module": self._lineage(module)}[by]
            for owner in owners:
                costs[owner] = costs.get(owner, Cost()) + cost
        return costs

    def _lineage(self, module: str) -> list[str]:
        if module == OUTSIDE:
            return [OUTSIDE]
        parts = module.split(".")
        names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)] if module != self.root else []
        return [self.root, *names] if self.root else names

    by_phase = property(lambda self: self._flops("phase"), doc="FLOPs of each phase.")
    by_operator = property(lambda self: self._flops("operator"), doc="FLOPs of each operator.")
    by_module = property(lambda self: self._flops("module"), doc="FLOPs of each module and all inside it.")
    bytes_by_phase = property(lambda self: self._bytes("phase"), doc="Bytes of each phase.")
    bytes_by_operator = property(lambda self: self._bytes("operator"), doc="Bytes of each operator.")
    bytes_by_module = property(lambda self: self._bytes("module"), doc="Bytes of each module.")

    def _flops(self, by: str) -> Mapping[str, int]:
        return {name: cost.flops for name, cost in self.costs(by).items()}

    def _bytes(self, by: str) -> Mapping[str, int]:
        return {name: cost.bytes for name, cost in self.costs(by).items()}

    def closed(self) -> Bill:
        """The numbers alone, as they are now."""
        bill = Bill(self.root)
        bill.include(self)
        return bill

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; :meth:`from_dict` reads it back."""
        work = [
            {"phase": phase, "operator": operator, "module": module, **vars(cost)}
            for (phase, operator, module), cost in sorted(self._work.items())
        ]
        views = {
            f"by_{by}": {name: vars(cost) for name, cost in self.costs(by).items()}
            for by in ("phase", "operator", "module")
        }
        return {**vars(self.total()), "root": self.root, **views, "work": work}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Bill:
        """The bill that :meth:`to_dict` wrote."""
        bill = Bill(state["root"])
        for row in state["work"]:
            cost = Cost(int(row["flops"]), int(row["matmul_flops"]), int(row["bytes"]))
            bill.record(row["phase"], row["operator"], row["module"], cost)
        return bill

    def __str__(self) -> str:
        """A plain table: phases, modules, operators."""
        total = self.total()
        rows = [_header()]
        for by, order in (("phase", None), ("module", _by_name), ("operator", None)):
            rows += ["", by]
            costs = {name: cost for name, cost in self.costs(by).items() if cost != Cost()}
            for name, cost in sorted(costs.items(), key=order or _by_flops):
                rows.append(_row(name or OUTSIDE, cost, total))
        return "\n".join([*rows, "", _row("total", total, total)])


def _by_flops(item: tuple[str, Cost]) -> tuple[int, int, str]:
    return -item[1].flops, -item[1].bytes, item[0]


def _by_name(item: tuple[str, Cost]) -> list[tuple[bool, int, str]]:
    # Layer 10 comes after layer 9.
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in item[0].split(".")]


_COLUMNS: tuple[tuple[str, Callable[[Cost, Cost], str]], ...] = (
    ("FLOPs", lambda cost, total: f"{cost.flops:,}"),
    ("share", lambda cost, total: f"{cost.flops / max(total.flops, 1):.1%}"),
    ("matmul FLOPs", lambda cost, total: f"{cost.matmul_flops:,}"),
    ("bytes", lambda cost, total: f"{cost.bytes:,}"),
    ("share", lambda cost, total: f"{cost.bytes / max(total.bytes, 1):.1%}"),
)
_WIDTHS = (20, 8, 20, 20, 8)


def _header() -> str:
    return " " * 46 + "".join(name.rjust(width) for (name, _), width in zip(_COLUMNS, _WIDTHS, strict=True))


def _row(name: str, cost: Cost, total: Cost) -> str:
    cells = [show(cost, total).rjust(width) for (_, show), width in zip(_COLUMNS, _WIDTHS, strict=True)]
    return f"  {name:<44}" + "".join(cells)
