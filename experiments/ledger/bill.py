"""A bill: exact work by phase, operator and module, added up, printed, saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from experiments.ledger.price import Cost, Traffic

#: Where work is billed that ran inside no module: the loss, clipping, the optimizer.
OUTSIDE = "(outside)"
#: The phase of what a checkpoint computes a second time.
RECOMPUTE = "recompute"


class Bill:
    """FLOPs and bytes, as exact integers.

    Every number is kept by (phase, operator, module), and every view is a sum of those.
    ``by_operator`` and ``by_phase`` add up to the total. ``by_module`` gives each module everything done inside it,
    so a parent contains its children; the root and ``"(outside)"`` add up to the total.

    Args:
        root: Name under which the model as a whole is listed.

    Attributes:
        upper_bound: Whether an attention mask had no values, as on the meta device: every pair was taken to live.
    """

    def __init__(self, root: str = "") -> None:
        self.root = root
        self.upper_bound = False
        self._work: dict[tuple[str, str, str], Cost] = {}

    def add(
        self, kind: str, flops: int = 0, bytes_read: int = 0, bytes_written: int = 0, bytes_random: int = 0
    ) -> None:
        """Bill work done outside torch to the phase ``kind``.

        Args:
            kind: Phase, such as "search" or "build".
            flops: Arithmetic operations.
            bytes_read: Bytes read.
            bytes_written: Bytes written.
            bytes_random: The part of both at places that the data decide.
        """
        traffic = Traffic(int(bytes_read), int(bytes_written), int(bytes_random))
        self.record(kind, kind, OUTSIDE, Cost.of(int(flops), 0, traffic))

    def record(self, phase: str, operator: str, module: str, cost: Cost) -> None:
        """Bill ``cost`` to one operator in one module."""
        key = phase, operator, module
        self._work[key] = self._work.get(key, Cost()) + cost

    def include(self, other: Bill, times: int = 1) -> None:
        """Bill everything on another bill, ``times`` over."""
        self.root = self.root or other.root
        self.upper_bound |= other.upper_bound
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
    def recompute_flops(self) -> int:
        """Operations that activation checkpointing does a second time."""
        return self.by_phase.get(RECOMPUTE, 0)

    @property
    def needed_flops(self) -> int:
        """Operations without those: what the model needs, where :attr:`flops` is what is done."""
        return self.flops - self.recompute_flops

    @property
    def bytes(self) -> int:
        """Bytes read and written, as if nothing were fused or cached."""
        return self.total().bytes

    @property
    def bytes_read(self) -> int:
        """Bytes read."""
        return self.total().bytes_read

    @property
    def bytes_written(self) -> int:
        """Bytes written."""
        return self.total().bytes_written

    @property
    def bytes_random(self) -> int:
        """The part of both at places that the data decide."""
        return self.total().bytes_random

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
            {"phase": phase, "operator": operator, "module": module, **cost.to_dict()}
            for (phase, operator, module), cost in sorted(self._work.items())
        ]
        views = {
            f"by_{by}": {name: cost.to_dict() for name, cost in self.costs(by).items()}
            for by in ("phase", "operator", "module")
        }
        total = {**self.total().to_dict(), "needed_flops": self.needed_flops}
        return {**total, "upper_bound": self.upper_bound, "root": self.root, **views, "work": work}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Bill:
        """The bill that :meth:`to_dict` wrote."""
        bill = Bill(state["root"])
        bill.upper_bound = state.get("upper_bound", False)
        for row in state["work"]:
            bill.record(row["phase"], row["operator"], row["module"], Cost.from_dict(row))
        return bill

    def __str__(self) -> str:
        """A plain table: phases, modules, operators; the totals to the last digit."""
        return self.table()

    def table(self, least: float = 0.0) -> str:
        """A plain table: phases, modules, operators; the totals to the last digit.

        Args:
            least: Share of all bytes; an operator that moves less, at a thousandth of the FLOPs or fewer, shares a row.
        """
        total = self.total()
        rows = [" " * _NAME + "".join(name.rjust(width) for name, width, _ in _COLUMNS)]
        for by, order in (("phase", None), ("module", _by_name), ("operator", None)):
            rows += ["", by]
            costs = {name: cost for name, cost in self.costs(by).items() if cost != Cost()}
            small = [name for name, cost in costs.items() if by == "operator" and _small(cost, total, least)]
            folded = [costs.pop(name) for name in small] if len(small) > 1 else []
            for name, cost in sorted(costs.items(), key=order or _by_flops):
                rows.append(_row(name or OUTSIDE, cost, total))
            if folded:
                rows.append(_row(f"... and {len(folded)} more", sum(folded, Cost()), total))
        done = f"{total.flops:,} FLOPs"
        if self.recompute_flops:
            done += f" done, {self.needed_flops:,} needed (the rest is computed again by checkpoints)"
        moved = f"{total.bytes:,} bytes moved if nothing is fused or cached"
        bound = ["at most: an attention mask had no values here, and hid nothing"] if self.upper_bound else []
        return "\n".join([*rows, "", _row("total", total, total), "", done, moved, *bound])


def _small(cost: Cost, total: Cost, least: float) -> bool:
    return 1000 * cost.flops <= total.flops and cost.bytes < least * total.bytes


def _by_flops(item: tuple[str, Cost]) -> tuple[int, int, str]:
    return -item[1].flops, -item[1].bytes, item[0]


def _by_name(item: tuple[str, Cost]) -> list[tuple[bool, int, str]]:
    # Layer 10 comes after layer 9.
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in item[0].split(".")]


def short(amount: int) -> str:
    """Four digits and a prefix: ``12.35 G``."""
    value, prefixes = float(amount), iter(" kMGTPE")
    prefix = next(prefixes)
    while value >= 999.95 and (larger := next(prefixes, None)) is not None:
        value, prefix = value / 1000, larger
    return f"{value:.0f}  " if prefix == " " else f"{value:.4g} {prefix}"


_NAME = 42
_COLUMNS: tuple[tuple[str, int, Callable[[Cost, Cost], str]], ...] = (
    ("FLOPs", 11, lambda cost, total: short(cost.flops)),
    ("share", 8, lambda cost, total: f"{cost.flops / max(total.flops, 1):.1%}"),
    ("matmul", 11, lambda cost, total: short(cost.matmul_flops)),
    ("bytes read", 12, lambda cost, total: short(cost.bytes_read)),
    ("written", 11, lambda cost, total: short(cost.bytes_written)),
    ("random", 11, lambda cost, total: short(cost.bytes_random)),
    ("share", 8, lambda cost, total: f"{cost.bytes / max(total.bytes, 1):.1%}"),
)


def _row(name: str, cost: Cost, total: Cost) -> str:
    cells = [show(cost, total).rjust(width) for _, width, show in _COLUMNS]
    return f"  {name:<{_NAME - 2}}" + "".join(cells)
