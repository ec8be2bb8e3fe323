"""What a memory's source is: given tokens, the stored entries whose context resembles theirs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from retrieval.neighbors import Neighbors
from retrieval.passages import Passages
from retrieval.search import Searchable, run_search

__all__ = ["Source", "query_context"]


class Source(Searchable, ABC):
    """A store of :class:`Passages` that can be asked, at every position of a batch, for similar contexts.

    A query at ``(b, t)`` sees ``tokens[b, :t + 1]`` of its own document and nothing else; an entry's key sees the
    tokens of its own passage up to itself. Subclasses find neighbours from the last :attr:`depth` tokens.

    Attributes:
        passages: What is stored.
        depth: How many tokens, the current one included, a query is made of at most.
        build_flops: Floating-point operations spent on building the store, by kind of work.
        build_bytes: Bytes moved while building, by kind of work.
        build_seconds: Time spent on building.
        fingerprint: Hexadecimal digest of everything that defines the answers.
    """

    passages: Passages
    depth: int
    build_flops: dict[str, int]
    build_bytes: dict[str, int]
    build_seconds: float
    fingerprint: str

    # Queries handled at once: bounds the memory of a search, never changes its result.
    chunk = 32768

    @abstractmethod
    def find(self, context: Int[np.ndarray, "n depth"], k: int, exclude: Int[np.ndarray, " n"]) -> Neighbors:
        """Neighbours of contexts, most recent token first and -1 where there is none; called by :meth:`search`."""

    def search(
        self,
        tokens: Int[Tensor, "batch time"],
        k: int,
        *,
        documents: Int[Tensor, "batch time"] | None = None,
        exclude: Int[Tensor, "batch time"] | None = None,
        at: Bool[Tensor, "batch time"] | None = None,
    ) -> Neighbors:
        """The ``k`` best entries at every position of a batch.

        Args:
            tokens: Token ids.
            k: Neighbours per position.
            documents: Labels inside the batch: a query's context ends where the label changes. By default each
                row is one document.
            exclude: Label of the *stored* document whose passages a query must not be given, -1 for none. The
                search goes on behind excluded entries until it has ``k`` others or there are no more.
            at: True where neighbours are wanted; other positions are not searched for and have none. By default all.

        Shapes:
            tokens, documents, exclude, at: ``[batch, time]``, result: ``[batch, time, k]``

        Raises:
            ValueError: If shapes differ, ``k < 1``, or a token is outside the store's vocabulary.
        """
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise ValueError(
                f"search needs integer tokens [batch, time], got {tokens.dtype} {tuple(tokens.shape)}"
            )
        if k < 1:
            raise ValueError(f"search needs k >= 1, got {k}")
        for name, other in (("documents", documents), ("exclude", exclude), ("at", at)):
            if other is not None and other.shape != tokens.shape:
                raise ValueError(
                    f"{name} {tuple(other.shape)} must have the shape of tokens {tuple(tokens.shape)}"
                )
        labels = torch.zeros_like(tokens) if documents is None else documents
        banned = torch.full_like(tokens, -1) if exclude is None else exclude
        return run_search(self, [tokens, labels, banned, *([] if at is None else [at])], k)

    def neighbors(self, inputs: Sequence[Tensor], k: int) -> Neighbors:
        """The search behind the operator; call :meth:`search`."""
        tokens, labels, banned, *at = (x.numpy().astype(np.int64, copy=False) for x in inputs)
        if not tokens.size or not self.passages.n_entries:
            return Neighbors.none(*tokens.shape, k)
        low, high = int(tokens.min()), int(tokens.max())
        if not 0 <= low <= high < self.passages.vocab_size:
            raise ValueError(
                f"tokens {low}..{high} are outside the store's vocabulary of {self.passages.vocab_size}; "
                "was the store built with another tokenizer?"
            )
        context = query_context(tokens, labels, self.depth).reshape(-1, self.depth)
        banned = banned.reshape(-1)
        if not at:
            return self._found(context, k, banned).view(*tokens.shape, k)
        rows = np.flatnonzero(at[0])
        if not len(rows):
            return Neighbors.none(*tokens.shape, k)
        found, placed = self._found(context[rows], k, banned[rows]), Neighbors.none(len(context), k)
        for part, whole in (
            (found.scores, placed.scores),
            (found.ids, placed.ids),
            (found.mask, placed.mask),
        ):
            whole[rows] = part
        return replace(placed, **found.work).view(*tokens.shape, k)

    def _found(self, context: np.ndarray, k: int, exclude: np.ndarray) -> Neighbors:
        """Neighbours of contexts, as many at once as memory allows."""
        pieces = [slice(i, i + self.chunk) for i in range(0, len(context), self.chunk)]
        return Neighbors.cat([self.find(context[piece], k, exclude[piece]) for piece in pieces])


def query_context(
    tokens: Int[np.ndarray, "batch time"], documents: Int[np.ndarray, "batch time"], depth: int
) -> Int[np.ndarray, "batch time {depth}"]:
    """The last ``depth`` tokens at every position, most recent first, -1 before the row or the document begins."""
    _, time = tokens.shape
    start = np.zeros(tokens.shape, np.int64)
    change = documents[:, 1:] != documents[:, :-1]
    start[:, 1:] = np.maximum.accumulate(np.where(change, np.arange(1, time), 0), axis=1)
    at = np.arange(time)[None, :, None] - np.arange(depth)
    found = np.take_along_axis(tokens[:, :, None], np.maximum(at, 0), axis=1)
    return np.where(at >= start[:, :, None], found, -1)
