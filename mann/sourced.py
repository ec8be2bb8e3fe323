"""What a module that reads a store says of it in its checkpoint."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor

from mann.context import Context

__all__ = ["Sourced"]


class Sourced:
    """Mixed into a module that reads a ``source``: its checkpoint names the store, and refuses another.

    Row numbers, and weights that were learned beside them, mean nothing with another store.

    Attributes:
        every: Neighbours are read at the ends of chunks of so many tokens alone, counted from the beginning of each
            document; 1: everywhere. Who searches beforehand need not look elsewhere.
    """

    source: Any
    k: int
    training: bool
    every: int = 1

    def refuse_own(self, context: Context, exclude: Int[Tensor, "batch time"] | None) -> None:
        """Refuse to learn from a store that may hold the answers.

        Args:
            context: Gives neighbours that were found beforehand, if there are any.
            exclude: What a search is told to leave out.

        Raises:
            ValueError: In train mode, if there is neither.
        """
        if self.training and context.neighbors is None and exclude is None:
            raise ValueError(
                f"{type(self).__name__} is trained on what it finds, and a store that holds the training text gives "
                "the answers away: give exclude= beside the tokens, the label of the stored document that each "
                "position must not be given (all -1 if the store holds none of this text), or neighbors= found with "
                "exclude"
            )

    def get_extra_state(self) -> dict[str, Any]:
        """What it was trained with, so that a checkpoint refuses another store."""
        return {"source": "" if self.source is None else self.source.fingerprint, "k": self.k}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuse a checkpoint that was trained with another store."""
        ours = Sourced.get_extra_state(self)["source"]
        if state["source"] != ours:
            trained, here = (name[:12] or "none" for name in (state["source"], ours))
            raise ValueError(
                f"the checkpoint was trained with source {trained}, this module has {here}: rebuild the store it was "
                "trained with"
            )
