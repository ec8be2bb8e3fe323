"""What was read before, kept with the model's cache of keys and values, so that generation goes on from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mann.memory import BigramMemory, Engram, ExternalMemory, NGramMemory
from mann.readout import KNNReadout, PointerReadout
from retrieval import Datastore

__all__ = ["History", "history_of", "keep", "length_of", "reach"]

_NAME = "_mnemograph_history"


def reach(module: nn.Module) -> int | None:
    """How many earlier tokens what is said at a position depends on, and on no earlier states; ``None``: on both, all.

    Args:
        module: What is attached.
    """
    if isinstance(module, BigramMemory):
        return 1
    if isinstance(module, NGramMemory) or (isinstance(module, Engram) and module.taps is None):
        return max(module.orders) - 1
    if isinstance(module, KNNReadout) and isinstance(module.datastore, Datastore):
        return 0
    if isinstance(module, (ExternalMemory, PointerReadout, KNNReadout)) and module.source is not None:
        return module.source.depth - 1
    return None


@dataclass(frozen=True)
class History:
    """Everything before the first position of a call.

    Args:
        tokens: Token ids.
        labels: Document of each; ``None``: one for each row.
        states: What parts without :func:`reach` were given, by their names.

    Shapes:
        tokens and labels: ``[batch, time]``; states: ``[batch, time, width]``.
    """

    tokens: Int[Tensor, "batch time"]
    labels: Int[Tensor, "batch time"] | None
    states: dict[str, Tensor]

    def rows(self, index: Tensor) -> History:
        """Of some rows, or of the same in another order."""
        return self._each(lambda part: part[index.to(part.device)])

    def first(self, time: int) -> History:
        """As it was when there were fewer positions."""
        return self._each(lambda part: part[:, :time])

    def _each(self, change: Any) -> History:
        return replace(
            self,
            tokens=change(self.tokens),
            labels=None if self.labels is None else change(self.labels),
            states={name: change(state) for name, state in self.states.items()},
        )


def length_of(cache: Any) -> int:
    """Positions that a cache holds.

    Raises:
        ValueError: If it is of a kind that memories cannot follow.
    """
    if cache is None:
        return 0
    if not hasattr(cache, "get_seq_length") or getattr(cache, "is_compileable", False):
        raise ValueError(
            f"a memory cannot follow a {type(cache).__name__}: use the ordinary DynamicCache, or use_cache=False"
        )
    return int(cache.get_seq_length())


def keep(cache: Any, history: History) -> None:
    """Keep what was read with a cache; when rows of it are chosen, repeated or put in another order, they are here too.

    Args:
        cache: A cache of transformers.
        history: All that it holds.
    """
    if not hasattr(cache, _NAME):
        for name in ("reorder_cache", "batch_select_indices", "batch_repeat_interleave"):
            if hasattr(cache, name):
                # Bound, so that a copy of the cache has a history of its own.
                setattr(cache, name, MethodType(_FOLLOWING[name], cache))
    setattr(cache, _NAME, history)


def history_of(cache: Any, rows: int) -> History | None:
    """What was read before; ``None``: nothing.

    Args:
        cache: A cache of transformers, or none.
        rows: Of the batch that goes on.

    Raises:
        ValueError: If it is not known.
    """
    time = length_of(cache)
    if not time:
        return None
    history: History | None = getattr(cache, _NAME, None)
    if history is None or history.tokens.shape[1] < time:
        raise ValueError(
            f"the cache holds {time} positions of which a memory knows "
            f"{0 if history is None else history.tokens.shape[1]}: it was filled before something was attached, or "
            "changed by hand. Begin with a new cache"
        )
    if len(history.tokens) != rows:
        raise ValueError(f"a batch of {rows} rows for a cache of {len(history.tokens)}: begin with a new one")
    return history.first(time)


def _reorder(cache: Any, beam_idx: Tensor) -> None:
    type(cache).reorder_cache(cache, beam_idx)
    setattr(cache, _NAME, getattr(cache, _NAME).rows(beam_idx))


def _select(cache: Any, indices: Tensor) -> None:
    type(cache).batch_select_indices(cache, indices)
    setattr(cache, _NAME, getattr(cache, _NAME).rows(indices))


def _repeat(cache: Any, repeats: int) -> None:
    type(cache).batch_repeat_interleave(cache, repeats)
    history = getattr(cache, _NAME)
    setattr(cache, _NAME, history.rows(torch.arange(len(history.tokens)).repeat_interleave(repeats)))


_FOLLOWING = {
    "reorder_cache": _reorder,
    "batch_select_indices": _select,
    "batch_repeat_interleave": _repeat,
}
