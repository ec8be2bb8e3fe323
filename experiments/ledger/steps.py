"""Which steps cost the same: their kinds, and how many of each were taken."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from experiments.ledger.bill import Bill

#: Steps that are watched in search of a kind that went by unwatched.
PATIENCE = 20


class Steps:
    """Prices of kinds of steps, each from a step that was watched, and the number of steps of each kind.

    A kind has two parts: ``before``, what can be known when a step begins, and ``after``, what only its end tells
    (which optimizers stepped). A step that turns out to be of a kind never watched is billed as the dearest kind that
    began alike, until one of its own kind has been watched; for that, the next :data:`PATIENCE` steps that begin
    alike are.
    """

    def __init__(self) -> None:
        self.watched = self._settled = 0
        self._exact = Bill()
        self._exact_flops = self._exact_bytes = 0
        self._prices: dict[tuple[str, str], Bill] = {}
        self._flops: dict[tuple[str, str], int] = {}
        self._bytes: dict[tuple[str, str], int] = {}
        self._taken: dict[tuple[str, str], int] = {}
        self._patience: dict[tuple[str, str], int] = {}

    def must_watch(self, before: str) -> bool:
        """Whether a step that begins so has to be watched."""
        if any(owed[0] == before and left > 0 for owed, left in self._patience.items()):
            return True
        return self.expected(before) is None

    def expected(self, before: str) -> int | None:
        """FLOPs of a step that begins so, the dearest if several kinds do; ``None`` if none was watched."""
        return max((flops for kind, flops in self._flops.items() if kind[0] == before), default=None)

    def dearest(self) -> int | None:
        """FLOPs of the dearest kind watched."""
        return max(self._flops.values(), default=None)

    def add_watched(self, before: str, after: str, bill: Bill) -> int:
        """Bill a step at what it cost, and those to come of its kind at the same; returns its FLOPs."""
        kind = before, after
        self.watched += 1
        self._waited(before)
        self._patience.pop(kind, None)
        # Steps taken at an earlier price of this kind keep it.
        if kind in self._prices:
            self._settle(kind, self._taken.pop(kind, 0))
        self._prices[kind], self._flops[kind], self._bytes[kind] = bill, bill.flops, bill.bytes
        self._exact.include(bill)
        self._exact_flops += bill.flops
        self._exact_bytes += bill.bytes
        return self._flops[kind]

    def add_unwatched(self, before: str, after: str) -> int:
        """Bill a step at the price of its kind; returns its FLOPs."""
        kind = before, after
        self._taken[kind] = self._taken.get(kind, 0) + 1
        if kind not in self._prices:
            self._patience.setdefault(kind, PATIENCE)
        return self._flops[self._priced(kind)]

    @property
    def flops(self) -> int:
        """FLOPs of all steps so far."""
        return self._exact_flops + sum(self._flops[self._priced(kind)] * n for kind, n in self._taken.items())

    @property
    def bytes(self) -> int:
        """Bytes of all steps so far."""
        return self._exact_bytes + sum(self._bytes[self._priced(kind)] * n for kind, n in self._taken.items())

    @property
    def count(self) -> int:
        """Steps so far."""
        return self.watched + self._settled + sum(self._taken.values())

    @property
    def estimated(self) -> int:
        """Steps whose own kind was never watched."""
        return sum(count for kind, count in self._taken.items() if kind not in self._prices)

    def total(self) -> Bill:
        """All steps so far, as one bill."""
        total = Bill()
        total.include(self._exact)
        for kind, count in self._taken.items():
            total.include(self._prices[self._priced(kind)], count)
        return total

    def to_dict(self) -> dict[str, Any]:
        """Ready for a checkpoint."""
        kinds = [
            {
                "kind": list(kind),
                "steps": self._taken.get(kind, 0),
                "patience": self._patience.get(kind, 0),
                "bill": self._prices[kind].to_dict() if kind in self._prices else None,
            }
            for kind in {**self._prices, **self._taken}
        ]
        exact = {"watched": self.watched, "settled": self._settled, "bill": self._exact.to_dict()}
        return {"exact": exact, "kinds": kinds}

    @classmethod
    def resumed(cls, state: Mapping[str, Any]) -> Steps:
        """What :meth:`to_dict` gave."""
        steps, exact = cls(), state["exact"]
        steps.watched, steps._settled = exact["watched"], exact["settled"]
        steps._exact = Bill.from_dict(exact["bill"])
        steps._exact_flops, steps._exact_bytes = steps._exact.flops, steps._exact.bytes
        for row in state["kinds"]:
            kind = row["kind"][0], row["kind"][1]
            if row["bill"] is not None:
                bill = steps._prices[kind] = Bill.from_dict(row["bill"])
                steps._flops[kind], steps._bytes[kind] = bill.flops, bill.bytes
            if row["steps"]:
                steps._taken[kind] = row["steps"]
            if row["patience"]:
                steps._patience[kind] = row["patience"]
        return steps

    def _priced(self, kind: tuple[str, str]) -> tuple[str, str]:
        if kind in self._prices:
            return kind
        alike = [other for other in self._prices if other[0] == kind[0]]
        return max(alike, key=self._flops.__getitem__)

    def _settle(self, kind: tuple[str, str], count: int) -> None:
        self._exact.include(self._prices[kind], count)
        self._exact_flops += self._flops[kind] * count
        self._exact_bytes += self._bytes[kind] * count
        self._settled += count

    def _waited(self, before: str) -> None:
        for kind in self._patience:
            if kind[0] == before:
                self._patience[kind] -= 1


def batch_signature(batch: Any) -> str:
    """Types and shapes of every tensor in a batch."""
    if isinstance(batch, Tensor):
        stored = f" {batch._nnz()} stored" if batch.layout is not torch.strided else ""
        return f"{str(batch.dtype).removeprefix('torch.')}{list(batch.shape)}{stored}"
    if isinstance(batch, dict):
        return ", ".join(f"{name}: {batch_signature(part)}" for name, part in batch.items())
    if isinstance(batch, (list, tuple)):
        return f"({', '.join(map(batch_signature, batch))})"
    # A dataclass or a PyG graph: what it holds decides; a plain value does not change the work.
    parts = batch.to_dict() if hasattr(batch, "to_dict") else getattr(batch, "__dict__", None)
    return batch_signature(parts) if parts else type(batch).__name__


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
