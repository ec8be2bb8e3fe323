"""Which stored entries a query may be given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["EVERYTHING", "NO_DOCUMENT", "Exclusion"]

# Stands for "no document" in ``exclude`` and ``own``, and for "every stamp" in ``visible_at``.
NO_DOCUMENT = -1
EVERYTHING = int(np.iinfo(np.int64).max)


@dataclass(frozen=True)
class Exclusion:
    r"""The rules of a batch of queries, applied inside the search.

    An entry is hidden from a query if it was deleted, if it is of the document ``exclude``, or if its position is
    ``visible_at`` or later: with the usual stamps, an entry at position :math:`p` answers with token :math:`p + 1`, so
    a query that has seen tokens up to :math:`t` may be given :math:`p < t` and passes ``visible_at=t``. With ``own``,
    positions count in the query's own document only; entries of others are visible whatever theirs.

    Args:
        exclude: Label of the document each query must not be given, -1 for none.
        visible_at: First position that each query must not see; the largest integer hides none.
        own: Label of each query's document, -1 if stamps are those of one clock for the whole store.

    Shapes:
        exclude, visible_at, own: ``[n]``
    """

    exclude: Int[np.ndarray, " n"]
    visible_at: Int[np.ndarray, " n"]
    own: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, exclude: Tensor, visible_at: Tensor, own: Tensor) -> Exclusion:
        """From tensors of one shape, whatever it is."""
        return cls(*(rule.reshape(-1).numpy() for rule in (exclude, visible_at, own)))

    def of_rows(self, rows: np.ndarray | slice) -> Exclusion:
        """The rules of some of the queries."""
        return Exclusion(self.exclude[rows], self.visible_at[rows], self.own[rows])

    @property
    def by_document(self) -> bool:
        """Whether any query looks at the documents of entries."""
        return bool((self.exclude >= 0).any()) or (self.by_position and bool((self.own >= 0).any()))

    @property
    def by_position(self) -> bool:
        """Whether any query looks at the positions of entries."""
        return bool((self.visible_at < EVERYTHING).any())

    def hidden(
        self, documents: Int[np.ndarray, "#n m"], positions: Int[np.ndarray, "#n m"]
    ) -> Bool[np.ndarray, "n m"] | None:
        """Which entries each query must not be given, ``None`` if the rules hide nothing at all.

        Shapes:
            documents, positions: ``[n, m]``, or ``[1, m]`` where all queries look at the same entries
        """
        hidden = None
        if (self.exclude >= 0).any():
            hidden = documents == self.exclude[:, None]
        if self.by_position:
            late = positions >= self.visible_at[:, None]
            if (self.own >= 0).any():
                late &= (documents == self.own[:, None]) | (self.own[:, None] < 0)
            hidden = late if hidden is None else hidden | late
        return hidden
