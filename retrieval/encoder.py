"""A fixed, cheap encoding of the tokens that come before a position."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from jaxtyping import Float, Int, Integer

from retrieval.passages import Passages

__all__ = ["ContextEncoder"]


class ContextEncoder:
    r"""Contexts as vectors whose inner product is a decayed, softened suffix match.

    Token :math:`v` has a vector :math:`\phi(v) = [\sqrt{a}\,e_v ; \sqrt{1 - a}\,1_v]`: what usually follows it, and
    which token it is. A context is its last ``depth`` tokens side by side, each scaled by how far back it stands:

    .. math:: k(x, y) = \sum_{j} w_j \left( a\, e_{x_j} \cdot e_{y_j} + (1 - a)\, [x_j = y_j] \right),
              \qquad w_j \propto \gamma^j, \quad \sum_j w_j = 1,

    which is 1 for equal contexts. :math:`e_v` are the leading left singular vectors, scaled to length 1, of the
    positive pointwise mutual information between a token and its successor, counted in the store (`Levy and Goldberg
    <https://papers.nips.cc/paper/5477>`_ ). In a vocabulary of more than :attr:`table_size` tokens the rarest resemble
    nothing. There is nothing to train by gradients and nothing the network could change, so neighbours can be looked
    up beforehand.

    :meth:`kernel` gives :math:`k` exactly, by table. :meth:`sketch` gives vectors of ``4 * width`` dimensions for an
    index, whose inner product approximates it: one block of ``width`` dimensions for each of the last three tokens
    and one for the rotated sum of all earlier ones.

    Args:
        passages: Where to count which token follows which.
        depth: Tokens of context, at least 4.
        decay: :math:`\gamma`.
        blend: :math:`a`.
        width: Dimensions of a block of a sketch, even.
        rank: Dimensions of :math:`e`.
        seed: Of the random parts of sketches and of the decomposition.

    Raises:
        ValueError: If a parameter is out of range.
    """

    # The table of similarities is square: beyond this many tokens, the rarest resemble nothing.
    table_size = 4096

    def __init__(
        self,
        passages: Passages,
        *,
        depth: int = 12,
        decay: float = 0.6,
        blend: float = 0.5,
        width: int = 24,
        rank: int = 24,
        seed: int = 0,
    ) -> None:
        if depth < 4 or not 0 < decay <= 1 or not 0 <= blend <= 1 or width < 2 or width % 2:
            raise ValueError(
                "ContextEncoder needs depth >= 4, 0 < decay <= 1, 0 <= blend <= 1 and an even width, got "
                f"depth={depth}, decay={decay}, blend={blend}, width={width}"
            )
        self.vocab_size = passages.vocab_size
        self.depth, self.decay, self.blend, self.width, self.rank, self.seed = (
            depth,
            decay,
            blend,
            width,
            rank,
            seed,
        )
        self.flops: dict[str, int] = {}
        self.bytes: dict[str, int] = {}
        weights = decay ** np.arange(depth)
        self.weights = (weights / weights.sum()).astype(np.float32)
        counts = np.bincount(passages.tokens, minlength=self.vocab_size)
        self.counts = counts
        frequent = np.sort(np.argsort(-counts, kind="stable")[: self.table_size])
        self._row = np.full(self.vocab_size + 1, len(frequent), np.int32)  # the last token id is "none"
        self._row[frequent] = np.arange(len(frequent))
        self.vectors = np.zeros((self.vocab_size + 1, rank), np.float32)
        self.vectors[frequent] = self._decompose(passages, frequent)
        self._table = self._similarities(frequent)
        self._sketches = self._project()
        about = f"context-1 {depth} {decay} {blend} {width} {rank} {seed}"
        self.fingerprint = hashlib.sha256(f"{about} {passages.fingerprint}".encode()).hexdigest()

    def _decompose(self, passages: Passages, frequent: np.ndarray) -> np.ndarray:
        size = len(frequent)
        inside = self._row[passages.tokens]
        follows = np.ones(len(passages), bool)
        follows[passages.offsets[1:][np.diff(passages.offsets) > 0] - 1] = False
        follows[:-1] &= (inside[:-1] < size) & (inside[1:] < size)
        first = np.flatnonzero(follows[:-1])
        pairs = np.bincount(inside[first].astype(np.int64) * size + inside[first + 1], minlength=size * size)
        joint = torch.from_numpy(pairs.reshape(size, size)).float()
        row, column = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True) ** 0.75
        information = (joint * column.sum() / (row * column).clamp_min(1e-9)).clamp_min(1).log()
        rank = min(self.rank, size)
        sample = min(rank + 10, size)
        # Randomized subspace iteration (Halko, Martinsson and Tropp), with a generator of its own.
        generator = torch.Generator().manual_seed(self.seed)
        basis = information @ torch.randn(size, sample, generator=generator)
        for _ in range(2):
            basis = information @ (information.T @ torch.linalg.qr(basis).Q)
        basis = torch.linalg.qr(basis).Q
        left, values, _ = torch.linalg.svd(basis.T @ information, full_matrices=False)
        vectors = (basis @ left)[:, :rank] * values[:rank].sqrt()
        vectors = torch.nn.functional.normalize(vectors, dim=1)
        self.flops["tokens"] = 2 * size * size * sample * 6 + 12 * size * sample**2 + 8 * size * size
        self.bytes["tokens"] = 2 * passages.tokens.nbytes + 4 * size * size * 14
        return np.pad(vectors.numpy(), ((0, 0), (0, self.rank - rank)))

    def _similarities(self, frequent: np.ndarray) -> np.ndarray:
        size = len(frequent)
        table = np.zeros((size + 1, size + 1), np.float32)
        inner = self.vectors[frequent]
        table[:size, :size] = self.blend * (inner @ inner.T)
        table[np.arange(size), np.arange(size)] += 1 - self.blend
        self.flops["tokens"] += (2 * self.rank + 1) * size * size
        self.bytes["tokens"] += 4 * size * size
        return table

    def _project(self) -> np.ndarray:
        """Sketch of every token at every place, ``[depth, vocab + 1, width]``; the last token, none, is zero."""
        rng = np.random.default_rng(self.seed)
        half = self.width // 2
        # A token's block: its leading meaning beside a random name.
        names = rng.standard_normal((self.vocab_size, half)).astype(np.float32)
        names *= np.sqrt(1 - self.blend) / np.linalg.norm(names, axis=1, keepdims=True)
        meaning = np.pad(self.vectors, ((0, 0), (0, max(0, half - self.rank))))[:-1, :half]
        token = np.concatenate([np.sqrt(self.blend) * meaning, names], axis=1)
        places = []
        for j in range(self.depth):
            turn = (
                np.linalg.qr(rng.standard_normal((self.width, self.width)))[0]
                if j >= 3
                else np.eye(self.width)
            )
            places.append(np.sqrt(self.weights[j]) * token @ turn)
        tables = np.zeros((self.depth, self.vocab_size + 1, self.width), np.float32)
        tables[:, :-1] = places
        self.flops["tokens"] += 2 * self.depth * self.vocab_size * self.width**2
        return tables

    @property
    def dimensions(self) -> int:
        """Dimensions of a sketch."""
        return 4 * self.width

    def token_sketch(self, place: int) -> Float[np.ndarray, "vocab_plus_one width"]:
        """Block that each token gives ``place`` tokens back; the last row is "no token"."""
        return self._sketches[place]

    def tail_sketch(self, context: Int[np.ndarray, "n depth"]) -> Float[np.ndarray, "n width"]:
        """The block of all tokens from the fourth on; ``width`` additions a token."""
        block = np.zeros((len(context), self.width), np.float32)
        for j in range(3, self.depth):
            block += self._sketches[j][context[:, j]]
        return block

    def sketch(self, context: Int[np.ndarray, "n depth"]) -> Float[np.ndarray, "n dimensions"]:
        """Vectors for an index, of contexts with the most recent token first and -1 where there is none."""
        blocks = [self._sketches[j][context[:, j]] for j in range(3)]
        return np.concatenate([*blocks, self.tail_sketch(context)], axis=1)

    def sketch_flops(self, n: int) -> int:
        """Operations of ``n`` sketches."""
        return n * self.width * (self.depth - 3)

    def rows(self, tokens: Integer[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Rows of the table of similarities; a negative token, none, has a row of its own."""
        return self._row[tokens]

    def kernel(
        self, queries: Int[np.ndarray, "n depth"], stored: Integer[np.ndarray, "n m depth"]
    ) -> Float[np.ndarray, "n m"]:
        r""":math:`k` of each query and its own ``m`` stored contexts, exactly; two operations a token.

        The sum runs place by place, so a score does not depend on what else is computed with it.

        Args:
            queries: Contexts as :meth:`rows`, most recent token first.
            stored: The contexts to compare with, as :meth:`rows`, most recent token *last*, as they lie in the text.
        """
        flat, width = self._table.reshape(-1), self._table.shape[1]
        score = np.zeros(stored.shape[:2], np.float32)
        similar, at = np.empty_like(score), np.empty(score.shape, np.int32)
        base = queries.astype(np.int32) * np.int32(width)
        for j in range(self.depth):
            np.add(base[:, j, None], stored[:, :, self.depth - 1 - j], out=at)
            flat.take(at, out=similar, mode="clip")  # without "clip" numpy would go through a copy
            similar *= self.weights[j]
            score += similar
        return score

    def kernel_flops(self, pairs: int) -> int:
        """Operations of that many comparisons."""
        return 2 * self.depth * pairs
