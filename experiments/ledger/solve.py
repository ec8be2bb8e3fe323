"""Sizes and steps that meet a budget of FLOPs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from experiments.ledger.bill import Bill


@dataclass(frozen=True)
class Match:
    """The size nearest to a budget.

    Args:
        size: Width, number of layers, or whatever was varied.
        flops: What it costs.
        residual: By what share of the budget it misses; negative if it costs less.
    """

    size: int
    flops: int
    residual: float

    def __str__(self) -> str:
        return f"{self.size}: {self.flops:,} FLOPs, {self.residual:+.2%} of the budget"


def match_size(cost: Callable[[int], int], budget: float, sizes: Sequence[int]) -> Match:
    """The size whose cost is nearest to a budget, found by bisection.

    .. code-block:: python

        def cost(hidden):
            return predict(lambda: Dense(hidden), batch, loss=loss, optimizer=AdamW).flops

        print(match_size(cost, predict(...).flops, range(64, 1025)))

    Args:
        cost: FLOPs of a size; must grow with it. Called once for about ``log2`` of the number of sizes.
        budget: FLOPs to meet.
        sizes: Candidates, ascending.

    Raises:
        ValueError: If there are no sizes, or the largest costs no more than the smallest, or the budget is outside.
    """
    if not sizes:
        raise ValueError("no sizes to choose from: give some, such as range(32, 513, 32)")
    cost = lru_cache(maxsize=None)(cost)
    low, high = cost(sizes[0]), cost(sizes[-1])
    if len(sizes) > 1 and high <= low:
        raise ValueError(
            f"size {sizes[-1]} costs no more than {sizes[0]}: give sizes in ascending order of cost"
        )
    if not low <= budget <= high:
        where, bound = ("less", low) if budget < low else ("more", high)
        raise ValueError(
            f"{budget:,.0f} FLOPs are {where} than sizes {sizes[0]} to {sizes[-1]} can cost ({bound:,}): "
            "widen the sizes"
        )
    place = bisect_left(sizes, budget, key=cost)
    size = min(sizes[max(place - 1, 0) : place + 1], key=lambda size: abs(cost(size) - budget))
    return Match(size, cost(size), cost(size) / budget - 1)


def steps_for(step: Bill | int, budget: float) -> int:
    """Whole steps that a budget pays for.

    Args:
        step: Bill or FLOPs of one step.
        budget: FLOPs to spend.
    """
    flops = step.flops if isinstance(step, Bill) else step
    if flops < 1:
        raise ValueError("a step that costs nothing never spends a budget")
    return int(budget // flops)
