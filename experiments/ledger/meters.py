"""Work that depends on the data: what operators say they have done so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.flop_counter import flop_registry

from experiments.ledger.bill import OUTSIDE, Bill
from experiments.ledger.price import Cost, Traffic

Reading = tuple[int, int, int, int]


class Meters:
    """Reads what data-dependent operators have spent since the last reading, without watching them.

    The price of a search is known only after it has run, and differs from step to step. The formula registered beside
    such an operator (``torch.utils.flop_counter.register_flop_formula``) may have an attribute ``so_far``: a function
    that returns what all calls in this process have cost together, as ``(flops, bytes read, bytes written, bytes at
    random places)``. Reading it takes a microsecond, and sees calls of other threads as well.
    """

    def __init__(self) -> None:
        self._known = -1
        self._read: dict[str, Callable[[], Reading]] = {}
        self._last: dict[str, Reading] = {}

    @property
    def operators(self) -> tuple[str, ...]:
        """Names of the operators that have a meter."""
        self._find()
        return tuple(self._read)

    def take(self) -> dict[str, Cost]:
        """What each operator has cost since the last call; what was before the first call is not asked for."""
        self._find()
        taken = {}
        for name, read in self._read.items():
            before, now = self._last[name], read()
            if now != before:
                flops, *moved = (new - old for new, old in zip(now, before, strict=True))
                taken[name] = Cost.of(flops, 0, Traffic(*moved))
                self._last[name] = now
        return taken

    def _find(self) -> None:
        if len(flop_registry) == self._known:
            return
        self._known = len(flop_registry)
        for operator, formula in flop_registry.items():
            read = getattr(formula, "so_far", None)
            name = getattr(formula, "billed_as", str(operator))
            if read is not None and name not in self._read:
                self._read[name], self._last[name] = read, read()


class Metered:
    """Adds up what meters say, and remembers where the work belongs."""

    def __init__(self) -> None:
        self.bill = Bill()
        self.flops = self.bytes = self.most = 0
        self._places: dict[str, tuple[str, str]] = {}

    def place(self, bill: Bill, operators: tuple[str, ...]) -> Bill:
        """What a watched step cost without those operators; notes in which module they ran."""
        rest = Bill(bill.root)
        seen: dict[str, set[tuple[str, str]]] = {}
        for row in bill.to_dict()["work"]:
            if row["operator"] in operators:
                seen.setdefault(row["operator"], set()).add((row["phase"], row["module"]))
            else:
                rest.record(row["phase"], row["operator"], row["module"], Cost.from_dict(row))
        # Two places share one meter: it does not say which of them spent what.
        self._places |= {
            name: next(iter(places)) if len(places) == 1 else (next(iter(places))[0], OUTSIDE)
            for name, places in seen.items()
        }
        return rest

    def add(self, taken: Mapping[str, Cost]) -> int:
        """Bill one reading; returns its FLOPs."""
        spent = 0
        for operator, cost in taken.items():
            phase, module = self._places.get(operator, (_phase(operator), OUTSIDE))
            self.bill.record(phase, operator, module, cost)
            spent += cost.flops
            self.bytes += cost.bytes
        self.flops += spent
        self.most = max(self.most, spent)
        return spent

    def to_dict(self) -> dict[str, Any]:
        """Ready for a checkpoint."""
        return {"bill": self.bill.to_dict(), "most": self.most, "places": dict(self._places)}

    @classmethod
    def resumed(cls, state: Mapping[str, Any]) -> Metered:
        """What :meth:`to_dict` gave."""
        metered = cls()
        metered.bill = Bill.from_dict(state["bill"])
        metered.flops, metered.bytes, metered.most = metered.bill.flops, metered.bill.bytes, state["most"]
        metered._places = {name: (phase, module) for name, (phase, module) in state["places"].items()}
        return metered


def _phase(operator: str) -> str:
    return "search" if operator.endswith(".search") else "forward"
