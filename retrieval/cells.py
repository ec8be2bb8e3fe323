"""Which lists of a store to look into: cells of contexts whose last tokens are alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int, UInt8

from retrieval.encoder import ContextEncoder
from retrieval.ordering import ID, words
from retrieval.runtime import threads
from retrieval.shortlist import ragged

__all__ = ["Cells"]

# Clusters of fourth tokens, which crowded cells are split by.
_FOURTH = 16


class Cells:
    r"""A product quantizer of the last tokens: the coarse quantizer of :class:`retrieval.ContextSource`.

    At each of the last three places the vocabulary is divided into clusters of tokens that are followed by similar
    tokens, the most frequent ones alone in theirs. A cell is a triple of clusters, as in the inverted multi-index
    (`Babenko and Lempitsky <https://ieeexplore.ieee.org/document/6248038>`_ ), but since a place holds one of finitely
    many tokens, its cluster is looked up instead of being computed. A query visits cells by the sum of the similarities
    of its tokens to the three clusters.

    A cell is one inverted list. Text being what it is, some triples are so frequent that one of them holds more than a
    query should look at: such a cell is split into a list for each cluster of the fourth token, which a query visits by
    the similarity of its own.

    Args:
        encoder: Gives tokens their vectors and places their weights.
        clusters: Number of clusters at each of the three places.
        reach: How many clusters a query considers at each of them.
        seed: Of the clustering.

    Attributes:
        sizes: Entries of each list, after :meth:`split`.
    """

    def __init__(
        self,
        encoder: ContextEncoder,
        clusters: Sequence[int],
        reach: Sequence[int] = (8, 6, 4),
        seed: int = 0,
    ) -> None:
        self.encoder = encoder
        self.flops = 0
        self._of: list[np.ndarray] = []
        self._nearest: list[np.ndarray] = []
        self._score: list[np.ndarray] = []
        with threads(1):  # as in the encoder: what is built follows from the inputs alone
            places = zip((*clusters, _FOURTH), (*reach, _FOURTH + 1), strict=True)
            for place, (wanted, near) in enumerate(places):
                cluster, centers = self._divide(min(wanted, encoder.vocab_size), seed + place)
                similar = encoder.blend * encoder.vectors @ centers.T
                similar[np.arange(len(cluster)), cluster] += 1 - encoder.blend
                similar *= encoder.weights[place]
                self.flops += (2 * encoder.rank + 2) * similar.size
                nearest = np.argsort(-similar, axis=1, kind="stable")[:, :near]
                self._of.append(cluster)
                self._nearest.append(nearest)
                if place < len(clusters):  # lists of a cell are ordered, not scored
                    self._score.append(np.take_along_axis(similar, nearest, 1))
        self.shape = tuple(int(cluster.max()) + 1 for cluster in self._of[:3])
        self.n = int(np.prod(self.shape))

    def _divide(self, wanted: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Cluster of every token, "no token" last and alone; and the clusters' mean vectors, weighted by counts."""
        encoder = self.encoder
        vocab = encoder.vocab_size
        order = np.argsort(-encoder.counts, kind="stable")
        alone = wanted if wanted == vocab else wanted // 2
        cluster = np.zeros(vocab + 1, np.int64)
        cluster[order[:alone]] = np.arange(alone)
        rest, groups = order[alone:], wanted - alone
        if len(rest):
            vectors = torch.from_numpy(encoder.vectors[rest])
            generator = torch.Generator().manual_seed(seed)
            centers = vectors[torch.randperm(len(rest), generator=generator)[:groups]]
            for _ in range(10):
                nearest = (vectors @ centers.T).argmax(1)
                sums = torch.zeros_like(centers).index_add_(0, nearest, vectors)
                centers = torch.nn.functional.normalize(sums, dim=1)
            cluster[rest] = alone + nearest.numpy()
            self.flops += 10 * 2 * len(rest) * groups * encoder.rank
        cluster[vocab] = wanted
        weight = np.append(encoder.counts, 1.0).astype(np.float32)
        mean = np.zeros((wanted + 1, encoder.rank), np.float32)
        np.add.at(mean, cluster, encoder.vectors * weight[:, None])
        total = np.bincount(cluster, weights=weight, minlength=wanted + 1)
        self.flops += 2 * encoder.vectors.size
        return cluster, (mean / np.maximum(total, 1)[:, None]).astype(np.float32)

    def of(self, context: Int[np.ndarray, "n three"]) -> Int[np.ndarray, " n"]:
        """Cell of contexts, most recent token first and -1 where there is none."""
        first, second, third = (self._of[j][context[:, j]] for j in range(3))
        return (first * self.shape[1] + second) * self.shape[2] + third

    def nearest(self, context: Int[np.ndarray, "n three"]) -> Int[np.ndarray, "n m"]:
        """Cells a query considers, best first, and of equal ones the first."""
        ids = [self._nearest[j][context[:, j]] for j in range(3)]
        scores = [self._score[j][context[:, j]] for j in range(3)]
        n = len(context)
        cell = (ids[0][:, :, None, None] * self.shape[1] + ids[1][:, None, :, None]) * self.shape[2]
        cell = (cell + ids[2][:, None, None, :]).reshape(n, -1)
        score = scores[0][:, :, None, None] + scores[1][:, None, :, None] + scores[2][:, None, None, :]
        return np.sort(words(score.reshape(n, -1), cell), axis=1) & ID

    @property
    def nearest_flops(self) -> int:
        """Operations of choosing one query's cells."""
        return 2 * int(np.prod([table.shape[1] for table in self._nearest[:3]]))

    def alike(self, context: Int[np.ndarray, "n three"]) -> Int[np.ndarray, "n m"]:
        """All cells of the clusters a query considers for its last token, best first."""
        under = self.shape[1] * self.shape[2]
        return (self._nearest[0][context[:, 0]][:, :, None] * under + np.arange(under)).reshape(
            len(context), -1
        )

    def fourth(self, context: Int[np.ndarray, "n four"]) -> UInt8[np.ndarray, " n"]:
        """Cluster of the fourth token of contexts."""
        return self._of[3][context[:, 3]].astype(np.uint8)

    def split(
        self, cell: Int[np.ndarray, " n"], fourth: UInt8[np.ndarray, " n"], most: int
    ) -> Int[np.ndarray, " n"]:
        """Number of each stored context's list, given its cell and fourth cluster; cells of over ``most`` are split."""
        self._held = np.bincount(cell, minlength=self.n)
        self._width = np.where(self._held > most, int(self._of[3].max()) + 1, 1)
        self._start = np.cumsum(self._width) - self._width
        number = self._start[cell] + np.where(self._width[cell] > 1, fourth, 0)
        self.sizes = np.bincount(number, minlength=int(self._width.sum()))
        return number

    def occupied(self, cells: Int[np.ndarray, "n m"], scan: int) -> Int[np.ndarray, "n l"]:
        """The first of the given cells that hold anything, up to ``scan`` entries; -1 behind them."""
        held = self._held[cells]
        visit = (held > 0) & (np.cumsum(held, axis=1) - held < scan)
        return ragged(visit.sum(1), cells[visit])

    def lists(
        self, cells: Int[np.ndarray, "n m"], context: Int[np.ndarray, "n four"], scan: int
    ) -> Int[np.ndarray, "n l"]:
        """Numbers of the lists in each query's cells, up to ``scan`` entries; -1 behind them.

        Args:
            cells: From :meth:`occupied`; one choice serves all queries of the same last three tokens.
            context: The queries.
            scan: Entries after which a query has seen enough; the list that reaches it is the last.
        """
        row, place = np.nonzero(cells >= 0)
        cell = cells[row, place]
        width = self._width[cell]
        part = np.arange(width.sum()) - np.repeat(np.cumsum(width) - width, width)
        row, cell, crowded = (np.repeat(array, width) for array in (row, cell, width > 1))
        number = self._start[cell]
        number[crowded] += self._nearest[3][context[row[crowded], 3], part[crowded]]
        size = self.sizes[number]
        seen = np.cumsum(size) - size
        seen -= seen[np.searchsorted(row, row)]
        visit = (size > 0) & (seen < scan)
        return ragged(np.bincount(row[visit], minlength=len(cells)), number[visit])
