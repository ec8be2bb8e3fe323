"""Which lists of a store to look into: cells of contexts whose last tokens are alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from retrieval.encoder import ContextEncoder
from retrieval.runtime import threads

__all__ = ["ID", "Cells", "words"]

# The bits of a word that hold the id.
ID = 2**32 - 1


def words(scores: Float[np.ndarray, "*shape"], ids: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """Integers in the order (score descending, id ascending): the bits of a float, made monotone, before the id."""
    bits = scores.view(np.int32)
    bits = bits ^ ((bits >> 31) & np.int32(2**31 - 1))
    return (~bits.astype(np.int64) << 32) | ids


class Cells:
    r"""A product quantizer of the last three tokens: the coarse quantizer of :class:`retrieval.ContextSource`.

    At each of the three places the vocabulary is divided into clusters of tokens that are followed by similar tokens,
    the most frequent ones alone in theirs. A cell is a triple of clusters, as in the inverted multi-index (`Babenko and
    Lempitsky <https://ieeexplore.ieee.org/document/6248038>`_ ), but since a place holds one of finitely many tokens,
    its cluster is looked up instead of being computed. A query visits cells by the sum of the similarities of its
    tokens to the three clusters.

    Args:
        encoder: Gives tokens their vectors and places their weights.
        clusters: Number of clusters at each place.
        reach: How many clusters a query considers at each place.
        seed: Of the clustering.
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
            for place, (wanted, near) in enumerate(zip(clusters, reach, strict=True)):
                cluster, centers = self._divide(min(wanted, encoder.vocab_size), seed + place)
                similar = encoder.blend * encoder.vectors @ centers.T
                similar[np.arange(len(cluster)), cluster] += 1 - encoder.blend
                similar *= encoder.weights[place]
                self.flops += (2 * encoder.rank + 2) * similar.size
                nearest = np.argsort(-similar, axis=1, kind="stable")[:, :near]
                self._of.append(cluster)
                self._nearest.append(nearest)
                self._score.append(np.take_along_axis(similar, nearest, 1))
        self.shape = tuple(int(cluster.max()) + 1 for cluster in self._of)
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
        return 2 * int(np.prod([table.shape[1] for table in self._nearest]))

    def alike(self, context: Int[np.ndarray, "n three"]) -> Int[np.ndarray, "n m"]:
        """All cells of the clusters a query considers for its last token, best first."""
        under = self.shape[1] * self.shape[2]
        return (self._nearest[0][context[:, 0]][:, :, None] * under + np.arange(under)).reshape(
            len(context), -1
        )
