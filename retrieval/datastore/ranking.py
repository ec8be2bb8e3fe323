"""The best entries so far of each query, in one total order, scored by one kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from retrieval.exact import Metric
from retrieval.neighbors import Neighbors
from retrieval.ordering import NOTHING, unpacked, words
from retrieval.runtime import faiss
from retrieval.work import Work

__all__ = ["Ranking", "exact_scores", "pair_work"]

# Sorts behind every id.
_NOBODY = np.iinfo(np.int64).max


def exact_scores(
    queries: Float[np.ndarray, "n d"],
    rows: Int[np.ndarray, " m"],
    keys: Float[np.ndarray, "p d"],
    places: Int[np.ndarray, " m"],
    metric: Metric,
) -> Float[np.ndarray, " m"]:
    r"""Score of each pair ``(queries[rows], keys[places])``, each by itself in 32-bit floats.

    A product of matrices rounds differently with its shape; here a pair's score depends on nothing but the pair.

    Shapes:
        queries: ``[n, d]``, keys: ``[p, d]``, rows, places: ``[m]``, result: ``[m]``
    """
    m, d = len(rows), queries.shape[1]
    asked, scores = np.ascontiguousarray(queries[rows]), np.empty(m, np.float32)
    places = np.ascontiguousarray(places, np.int64)
    compare = faiss.fvec_inner_products_by_idx if metric == "ip" else faiss.fvec_L2sqr_by_idx
    compare(*map(faiss.swig_ptr, (scores, asked, keys, places)), d, m, 1)
    return scores if metric == "ip" else -scores


def pair_work(n: int, d: int, itemsize: int, metric: Metric) -> Work:
    """Work of scoring ``n`` pairs: each key is looked up where the data says, each query is copied to its side."""
    read = itemsize * d * n
    return Work((2 if metric == "ip" else 3) * d * n, read + 4 * d * n, 4 * d * n, read)


class Ranking:
    """The ``k`` best entries so far of each of ``n`` queries, by (score descending, id ascending).

    Entries come in any order, in parts, and more than once; the result is the same.

    Args:
        n: Number of queries.
        k: Entries to keep of each.
    """

    def __init__(self, n: int, k: int) -> None:
        self.k = k
        self.scores = np.full((n, k), -np.inf, np.float32)
        self.ids = np.full((n, k), _NOBODY)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def worst(self) -> np.ndarray:
        """Score that an entry must reach to matter to each query; minus infinity where fewer than ``k`` were found."""
        return self.scores[:, -1]

    @property
    def short(self) -> np.ndarray:
        """Queries with fewer than ``k`` entries."""
        return np.flatnonzero(self.ids[:, -1] == _NOBODY)

    def add(
        self, rows: Int[np.ndarray, " m"], scores: Float[np.ndarray, " m"], ids: Int[np.ndarray, " m"]
    ) -> None:
        """Take candidates into account; one that is there already has the same score as before.

        A score that is not finite, because it overflows, is no neighbour's.

        Shapes:
            rows, scores, ids: ``[m]``
        """
        worst = self.worst[rows]
        matters = np.isfinite(scores) & ((scores > worst) | (scores == worst) & (ids < self.ids[rows, -1]))
        if not matters.all():
            rows, scores, ids = rows[matters], scores[matters], ids[matters]
        if not len(rows):
            return
        touched, local, counts = np.unique(rows, return_inverse=True, return_counts=True)
        # Candidates beside what is there already, a line for each query.
        order = np.argsort(local, kind="stable")
        local = local[order]
        place = self.k + np.arange(len(rows)) - (np.cumsum(counts) - counts)[local]
        score = np.full((len(touched), self.k + int(counts.max())), -np.inf, np.float32)
        id_ = np.full(score.shape, _NOBODY)
        score[:, : self.k], id_[:, : self.k] = self.scores[touched], self.ids[touched]
        score[local, place], id_[local, place] = scores[order], ids[order]
        # Ids are 64 bits wide, words have room for 32: their ranks come in the same order.
        known, rank = np.unique(id_, return_inverse=True)
        packed = words(score, rank.reshape(score.shape))
        packed[id_ == _NOBODY] = NOTHING
        packed.sort(axis=1)
        twice = (packed[:, 1:] == packed[:, :-1]) & (packed[:, 1:] != NOTHING)
        if twice.any():
            packed[:, 1:][twice] = NOTHING
            packed.sort(axis=1)
        best, rank = unpacked(packed[:, : self.k])
        self.scores[touched], self.ids[touched] = best, np.where(rank < 0, _NOBODY, known[rank])

    def neighbors(self, batch: Sequence[int], work: Work) -> Neighbors:
        """What was found, in the shape of the batch, with what it took."""
        ids = torch.from_numpy(np.where(self.ids == _NOBODY, -1, self.ids)).view(*batch, self.k)
        return Neighbors.of(torch.from_numpy(self.scores).view(*batch, self.k), ids, **work.counts)
