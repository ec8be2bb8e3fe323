"""Which steps cost the same: their kinds, and how many of each were taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.ledger.bill import Bill

#: Steps that are watched in search of a kind that went by unwatched.
PATIENCE = 20
#: Kinds whose prices are kept.
KINDS = 256


class Steps:
    """Prices of kinds of steps, each from a step that was watched, and the number of steps of each kind.

    A kind has two parts: ``before``, what can be known when a step begins, and ``after``, what only its end tells
    (which optimizers stepped). A step that turns out to be of a kind never watched is billed as the dearest kind that
    began alike, until one of its own kind has been watched; for that, the next :data:`PATIENCE` steps that begin
    alike are.

    Only the :data:`KINDS` kinds seen last are remembered: where every batch is of another shape, none comes back.
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
            del self._prices[kind]
        self._prices[kind], self._flops[kind], self._bytes[kind] = bill, bill.flops, bill.bytes
        self._exact.include(bill)
        self._exact_flops += bill.flops
        self._exact_bytes += bill.bytes
        if len(self._prices) > KINDS:
            self._forget(before)
        return bill.flops

    def add_unwatched(self, before: str, after: str) -> int:
        """Bill a step at the price of its kind; returns its FLOPs."""
        kind = before, after
        self._taken[kind] = self._taken.get(kind, 0) + 1
        if kind in self._prices:
            self._prices[kind] = self._prices.pop(kind)  # the last of them is the one seen last
        else:
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
    def strange(self) -> int:
        """Kinds remembered that were watched."""
        return len(self._prices)

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

    def _forget(self, now: str) -> None:
        """Settle the kinds seen longest ago, but not while steps that began alike wait for their own price."""
        waiting = {now, *(kind[0] for kind in self._taken if kind not in self._prices)}
        before = next((kind[0] for kind in self._prices if kind[0] not in waiting), None)
        for kind in [kind for kind in self._prices if kind[0] == before]:
            self._settle(kind, self._taken.pop(kind, 0))
            for known in (self._prices, self._flops, self._bytes):
                del known[kind]

    def _settle(self, kind: tuple[str, str], count: int) -> None:
        self._exact.include(self._prices[kind], count)
        self._exact_flops += self._flops[kind] * count
        self._exact_bytes += self._bytes[kind] * count
        self._settled += count

    def _waited(self, before: str) -> None:
        for kind in self._patience:
            if kind[0] == before:
                self._patience[kind] -= 1
