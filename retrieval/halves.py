r"""Shortlists of a flat store out of a copy in half the bits, which no neighbour is missing from.

A search of a store that does not fit into a cache waits for memory, so half the bytes are half the time; and products
of bfloat16 are several times as fast where a processor has instructions for them. What is listed here is compared again
with the vectors themselves. How far rounding can move a score is known (:mod:`retrieval.shortlist`), so a list ends
where nothing behind it can be nearer.

Squared distances are inner products of longer vectors: :math:`-\lVert q - x \rVert^2 = 2 \langle (q, 1),
(x, -\lVert x \rVert^2 / 2) \rangle - \lVert q \rVert^2`. Three numbers of bfloat16 hold as many bits as a float32.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retrieval.exact import Metric
from retrieval.rounding import lengths, most_of, rounding
from retrieval.runtime import faiss
from retrieval.shortlist import (
    HIGHEST,
    LOWEST,
    half_floor,
    kth_largest,
    multiplies_bfloat16,
    places_by_group,
    put_in_order,
    ragged,
    rounded,
)

__all__ = ["Halves"]

# Dimensions that a squared distance takes more than an inner product: three are used, and FAISS is fast by eights.
_RAISED = 8
# Queries and scores of one product: with more the scores leave the cache, with fewer the keys are read too often.
_BLOCK, _SCORES = 256, 1 << 21
# Entries of a group, of which the largest score is found first; a product has many more groups than `k`.
_GROUP, _GROUPS = 8, 4
# Entries on a list that say that it is no short one: everything is as near as everything else.
_LONG = 1024
# From so many numbers up, which no cache near the core holds, a scan is faster in half the bits; and for fewer queries
# than this. From so many multiplications up a product is, which has a few steps more (Zen 5, one core).
_SCAN, _SCANNED, _PRODUCT = 1 << 22, 6, 1 << 24
# Entries copied at once.
_ROWS = 1 << 14
# Lists in a row that were not enough, as where one vector is far longer than all others.
_VAIN = 4
_ONES = np.ones((1, 3), np.float32)


class Halves:
    """The vectors of a flat FAISS index once more, in bfloat16.

    Args:
        index: The index; each search takes over what was added to it since.
    """

    def __init__(self, index: Any) -> None:
        self._index = index
        self._metric: Metric = "ip" if index.metric_type == faiss.METRIC_INNER_PRODUCT else "l2"
        self._d = index.d
        self._raised_d = index.d + (0 if self._metric == "ip" else _RAISED)
        kind = faiss.ScalarQuantizer.QT_bf16
        self._codes = faiss.IndexScalarQuantizer(self._raised_d, kind, faiss.METRIC_INNER_PRODUCT)
        # Length of the longest vector, and of the longest part that one lost.
        self._longest = self._lost = 0.0
        self._vain = 0
        self._room = torch.empty(0, dtype=torch.bfloat16, device="cpu")

    @staticmethod
    def fit(index: Any) -> bool:
        """Whether to make a copy: FAISS is fast by eights only, and a mapped file is not to be read into memory."""
        return index.d % 8 == 0 and index.codes.is_owned

    def _grow(self) -> None:
        """Copy what was added since the last time."""
        stored = self._index.ntotal
        if self._codes.ntotal == stored:
            return
        self._vain = 0
        try:
            while (begin := self._codes.ntotal) < stored:
                keys = faiss.rev_swig_ptr(self._index.get_xb(), stored * self._d).reshape(stored, self._d)
                self._add(keys[begin : begin + _ROWS])
        except BaseException:
            # Stopped in the middle, there may be entries that the bounds do not cover.
            self._codes.reset()
            self._longest = self._lost = 0.0
            raise

    def _add(self, keys: Float[np.ndarray, "n d"]) -> None:
        begin, raised, d = self._codes.ntotal, self._raised(keys, self._half_squares(keys)), self._d
        self._codes.add(raised)
        x = torch.from_numpy(keys)
        short = self._matrix()[begin:, :d].float()
        # More than float32 can lose in a sum of squares, some of which may be too small for it.
        found = [
            float(torch.linalg.vector_norm(y, dim=1).max()) * (1 + d * 2.0**-22) + d * 2.0**-62
            for y in (x, x - short)
        ]
        if not math.isfinite(sum(found)):
            found = [math.inf] * 2
        self._longest, self._lost = max(self._longest, found[0]), max(self._lost, found[1])

    def _matrix(self) -> Tensor:
        """The copy where FAISS holds it."""
        stored = self._codes.ntotal
        codes = faiss.rev_swig_ptr(self._codes.codes.data(), 2 * self._raised_d * stored)
        return torch.from_numpy(codes).view(torch.bfloat16).view(stored, self._raised_d)

    @staticmethod
    def _half_squares(keys: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n three"]:
        """Minus half the squared lengths, as sums of three numbers of bfloat16."""
        rest, parts = torch.from_numpy(np.einsum("nd,nd->n", keys, keys, dtype=np.float64) * -0.5), []
        for _ in range(3):
            parts.append(rest.to(torch.bfloat16))
            rest = rest - parts[-1].double()
        return torch.stack(parts, 1).float().numpy()

    def _raised(
        self, x: Float[np.ndarray, "n d"], three: Float[np.ndarray, "#n three"]
    ) -> Float[np.ndarray, "n raised"]:
        """Vectors with three numbers behind them, where scores are squared distances."""
        if self._metric == "ip":
            return x
        raised = np.zeros((len(x), self._raised_d), np.float32)
        raised[:, : self._d] = x
        raised[:, self._d : self._d + 3] = three
        return raised

    def _error(self, x: Float[np.ndarray, "n d"], lost: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The most by which an inner product of copies is off; of squared distances, the most of half of one.

        Args:
            x: Queries.
            lost: Lengths of what rounding takes away from them.
        """
        asked, longest, d = lengths(x), self._longest, self._d
        with np.errstate(over="ignore", invalid="ignore"):
            error = asked * self._lost + lost * (longest + self._lost)
            error += rounding(asked + lost, longest + self._lost, d, "ip")
            if self._metric == "l2":
                square = longest**2
                # Half the square: what three numbers do not hold, and adding them.
                error += square * 2.0**-24 + most_of(square, d) + rounding(asked, longest, d, "l2") / 2
        return error

    def scan(
        self, x: Float[np.ndarray, "n d"], length: int
    ) -> tuple[list[float], Int[np.ndarray, "n length"]]:
        """The nearest copies, compared one by one: the way for few queries.

        Args:
            x: The queries.
            length: Entries wanted of each.

        Returns:
            The most that a pair with an entry which is not listed can score, for each query; and ids.
        """
        self._grow()
        n, raised = len(x), self._raised(x, _ONES)
        scores, ids = np.empty((n, length), np.float32), np.empty((n, length), np.int64)
        self._codes.search_c(n, faiss.swig_ptr(raised), length, faiss.swig_ptr(scores), faiss.swig_ptr(ids))
        # Where a processor multiplies bfloat16, FAISS may round queries too.
        last = scores[:, -1] + self._error(x, rounded(torch.from_numpy(x))[1].numpy())
        if self._metric == "l2":
            last = 2 * last - lengths(x) ** 2 * (1 - 2.0**-40)
        return last.tolist(), ids

    def large(self, stored: int) -> bool:
        """Whether a store of so many vectors is scanned faster in half the bits."""
        return stored * self._d >= _SCAN

    def way(self, n: int, k: int, stored: int) -> Literal["scan", "products", "none"]:
        """Which method finds ``k`` neighbours of ``n`` queries faster than FAISS does in as many vectors themselves."""
        if self._vain >= _VAIN and self._codes.ntotal == stored:
            return "none"
        if n < _SCANNED:
            return "scan" if self.large(stored) and 4 * k < stored else "none"
        if n * stored * self._d < _PRODUCT or not multiplies_bfloat16():
            return "none"
        tile = min(stored, _SCORES // min(n, _BLOCK)) // _GROUP * _GROUP
        return "products" if tile >= _GROUP * _GROUPS * k else "none"

    def note(self, enough: bool) -> None:
        """Take note whether a list was enough: after some in a row that were not, no more are made of these vectors."""
        self._vain = 0 if enough else self._vain + 1

    def products(
        self, x: Float[np.ndarray, "n d"], k: int
    ) -> tuple[Int[np.ndarray, "n c"], Bool[np.ndarray, " n"]]:
        """All entries that may be among the ``k`` nearest, out of products of matrices.

        Args:
            x: The queries, of which one product takes so many at once.
            k: Neighbours wanted.

        Returns:
            Ids, -1 behind them; and the queries for which no list would be short, so that none was made.
        """
        self._grow()
        keys, n, stored = self._matrix(), len(x), self._codes.ntotal
        # Only what is a query's own is rounded.
        short, lost = rounded(torch.from_numpy(self._raised(x, _ONES)))
        choice, whole = _Choice(self._error(x, lost.numpy()), k), stored // _GROUP * _GROUP
        tile = min(whole, _SCORES // n // _GROUP * _GROUP)
        if len(self._room) < n * tile:  # kept: fresh memory costs as much as the choice
            with torch.inference_mode(False):
                self._room = torch.empty(n * tile, dtype=torch.bfloat16, device="cpu")
        for begin in range(0, whole, tile):
            part = keys[begin : min(begin + tile, whole)]
            scores = self._room[: n * len(part)].view(n, len(part))
            torch.mm(short, part.T, out=scores)
            choice.take(scores, begin)
        return choice.listed(range(whole, stored))

    @staticmethod
    def blocks(x: Float[np.ndarray, "n d"]) -> list[Float[np.ndarray, "m d"]]:
        """Queries in as many parts as :meth:`products` take."""
        return [x[i : i + _BLOCK] for i in range(0, len(x), _BLOCK)]


class _Choice:
    """Entries that reach what the ``k`` best so far are sure to reach, one product after the other.

    Of the first the bound is the ``k``-th largest of the largest scores of groups: at least ``k`` entries reach it, few
    more do, and nothing has to be sorted. From then on it is the ``k``-th largest score on the list.

    Args:
        error: The most by which each query's scores may be off.
        k: How many are wanted.
    """

    def __init__(self, error: Float[np.ndarray, " n"], k: int) -> None:
        self._error, self._k = error, k
        self._lost = ~np.isfinite(error)
        self._floor = np.where(self._lost, HIGHEST, LOWEST)
        self._best = np.full((len(error), k), LOWEST, np.int16)
        self._counts = np.zeros(len(error), np.int64)
        self._found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def take(self, scores: Tensor, begin: int) -> None:
        """List what reaches the bound.

        Args:
            scores: What was multiplied, in bfloat16; is changed.
            begin: Id of the first column's entry.
        """
        first, wide = not self._found, scores.shape[1]
        if not first:
            self._look_back()
        # As whole numbers, positive ones are in order; the bits of negative ones are turned only if they matter.
        order = scores.view(torch.int16)
        largest = self._largest(order)
        if first and (kth := kth_largest(largest, self._k)).min() > 0:
            self._raise(kth)
        if self._floor.min() <= 0:
            put_in_order(scores)
            largest = self._largest(order)
            if first:
                self._raise(kth_largest(largest, self._k))
        place = places_by_group(order.numpy(), largest, self._floor)
        row, value = place // wide, order.numpy().ravel()[place]
        self._counts += np.bincount(row, minlength=len(self._counts))
        self._lost |= self._counts > 8 * self._k + _LONG
        if self._lost.any():
            self._floor[self._lost] = HIGHEST
            kept = ~self._lost[row]
            row, place, value = row[kept], place[kept], value[kept]
        self._found.append((row, place - row * wide + begin, value))

    def _look_back(self) -> None:
        """Raise the bound by what was listed last."""
        row, _, value = self._found[-1]
        if len(row):
            values = ragged(np.bincount(row, minlength=len(self._best)), value, int(LOWEST))
            more = values.shape[1]
            self._best = np.partition(np.concatenate([self._best, values], 1), more, axis=1)[:, more:]
            self._raise(self._best[:, 0])

    @staticmethod
    def _largest(order: Tensor) -> Int[np.ndarray, "n groups"]:
        # A group takes every so manyth column, which one pass over contiguous memory finds.
        return order.unflatten(1, (_GROUP, -1)).amax(1).numpy()

    def _raise(self, kth: Int[np.ndarray, " n"]) -> None:
        self._floor = np.maximum(self._floor, half_floor(kth, self._error))

    def listed(self, more: range) -> tuple[Int[np.ndarray, "n c"], Bool[np.ndarray, " n"]]:
        """What is still listed, and some entries more; and the queries whose lists grew too long."""
        row, entry, value = (np.concatenate(arrays) for arrays in zip(*self._found, strict=True))
        if len(self._found) > 1:
            self._look_back()
            kept = np.flatnonzero(value >= self._floor[row])
            kept = kept[np.argsort(row[kept].astype(np.int16), kind="stable")]
            row, entry = row[kept], entry[kept]
        ids = ragged(np.bincount(row, minlength=len(self._floor)), entry)
        rest = np.broadcast_to(np.array(more, np.int64), (len(ids), len(more)))
        return np.ascontiguousarray(np.concatenate([ids, rest], 1)), self._lost
