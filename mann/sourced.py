"""What a module that reads a store says of it in its checkpoint."""

from __future__ import annotations

from typing import Any

__all__ = ["Sourced"]


class Sourced:
    """Mixed into a module that reads a ``source``: its checkpoint names the store, and refuses another.

    Row numbers, and weights that were learned beside them, mean nothing with another store.
    """

    source: Any
    k: int

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
