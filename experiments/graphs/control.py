"""The dense control: a perceptron without a graph whose training costs as many FLOPs as a graph network's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from experiments.errors import RunError
from experiments.graphs.recipes import Recipe
from experiments.ledger import match_size, steps_for

__all__ = ["WIDEST", "matched"]

WIDEST = 1 << 14


def matched(recipe: Recipe, budget: int, epoch_flops: Callable[[Recipe], int]) -> Recipe:
    """A perceptron's recipe whose training costs what a budget says, as nearly as whole widths allow.

    It is widened; where the recipe itself costs more than the budget, it is trained for fewer epochs.

    Args:
        recipe: Of the perceptron; its epochs are kept, and it never stops before them.
        budget: FLOPs of training, and of what goes before it.
        epoch_flops: FLOPs of an epoch of a recipe.

    Raises:
        RunError: If no width up to :data:`WIDEST` costs as much.
    """
    recipe = replace(recipe, patience=None)
    narrowest = int(recipe.options["hidden"])

    def of_width(width: int) -> Recipe:
        return replace(recipe, options={**recipe.options, "hidden": width})

    def cost(width: int) -> int:
        return recipe.epochs * epoch_flops(of_width(width))

    if budget <= cost(narrowest):
        epochs = steps_for(epoch_flops(recipe), budget)
        return replace(recipe, epochs=max(epochs, 1))
    widest = 2 * narrowest
    while cost(widest) < budget:
        widest *= 2
        if widest > WIDEST:
            raise RunError(f"no perceptron up to width {WIDEST} costs {budget:,} FLOPs: add --no-control")
    return of_width(match_size(cost, budget, range(narrowest, widest + 1)).size)
