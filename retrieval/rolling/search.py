r"""Searching rings of keys by inner product: exactly by two ways, and through lists.

A product of matrices rounds differently in another shape, so what it finds would depend on the rest of the batch. Here
it only makes a shortlist. Each entry on it is scored again by a kernel that sees one pair at a time, and these scores,
in the order (score descending, id ascending), are the result. Two ways of rounding a score differ by at most :math:`e`
(:func:`retrieval.rounding.rounding`), so an entry that is not on a list scores at most :math:`e` above the list's last
one. A list that could miss a neighbour is made again in a way that leaves no doubt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrieval.flat import margin
from retrieval.ordering import NOTHING, unpacked, words
from retrieval.rolling.ring import Ring
from retrieval.rolling.shortlist import group_width, reaching
from retrieval.rounding import lengths, rounding
from retrieval.runtime import blas_threshold, faiss
from retrieval.shortlist import multiplies_bfloat16, rounded
from retrieval.work import Work

__all__ = ["Found", "Memory", "anywhere", "dense", "exact", "joined", "settled", "without_strange"]

# Scores of one tile: they should stay in the cache between the product and the choice. A product of fewer queries than
# this, on the other hand, waits for the keys.
_TILE, _QUERIES = 1 << 20, 128
# Scores of one memory from which a product of bfloat16 saves more than it takes to round and to list a few more: 16
# memories of 64 dimensions take as long either way, at 2,048 x 512 two thirds (Zen 5, one core).
_ROUNDED = 1 << 16

Memory = tuple[int, int]
# Given a memory and which of its queries, the slots each of them may not be given.
Forbidden = Callable[[Memory, Any], np.ndarray]


@dataclass
class Found:
    """Scores and write indices of neighbours, those that are missing at minus infinity and -1; and the work.

    Shapes:
        scores, ids: ``[n, k]``
    """

    scores: np.ndarray
    ids: np.ndarray
    work: Work = field(default_factory=Work)


def _longest(ring: Ring, memories: list[Memory]) -> Float[np.ndarray, "m 1"]:
    return np.array([float(ring.norms[memory].max()) for memory in memories])[:, None]


def _error(
    asked: Float[np.ndarray, "m q"], longest: Float[np.ndarray, "m 1"], d: int
) -> Float[np.ndarray, "m q"]:
    return rounding(asked, np.broadcast_to(longest, asked.shape), d, "ip")


def ranked(
    ring: Ring,
    queries: Float[np.ndarray, "n d"],
    keys: Tensor,
    begins: Int[np.ndarray, " n"],
    row: Int[np.ndarray, " n"],
    slots: Int[np.ndarray, "n c"],
    k: int,
) -> Found:
    """The ``k`` best of each query's candidates by their scores one pair at a time.

    Args:
        ring: Where the candidates' write indices are.
        queries: What to compare.
        keys: All keys in one matrix.
        begins: Where in it slot 0 of each query's memory is.
        row: Each query's row.
        slots: The candidates, -1 for none; one that is empty is none.
        k: How many to keep.
    """
    n, c = slots.shape
    scores, none = np.empty((n, c), np.float32), slots < 0
    places = slots + begins[:, None]
    np.putmask(places, none, -1)
    # Of those FAISS says minus infinity, which comes last.
    faiss.fvec_inner_products_by_idx(
        *(faiss.swig_ptr(x) for x in (scores, queries, keys.numpy(), places)), queries.shape[1], n, c
    )
    if not scores.max(initial=-np.inf) < np.inf:
        scores[~(scores < np.inf)] = -np.inf
    first = ring.first[row][:, None]
    age = ring.index.numpy().ravel().take(slots + row[:, None] * ring.capacity) - first
    # A slot of -1 has read some other row's.
    np.putmask(age, none, 0)
    if (empty := age < 0).any():
        scores[empty], age[empty] = -np.inf, 0
    packed = words(scores, age)
    if c > 8 * k:
        packed.partition(k - 1, axis=1)
        packed = packed[:, :k]
    packed.sort(axis=1)
    best, age = unpacked(packed[:, :k])
    ids = age + first
    np.putmask(ids, best == -np.inf, -1)
    if c < k:
        best = np.concatenate([best, np.full((n, k - c), -np.inf, np.float32)], 1)
        ids = np.concatenate([ids, np.full((n, k - c), -1, np.int64)], 1)
    d, listed = queries.shape[1], n * c - int(none.sum())
    return Found(best, ids, Work(2 * d, 4 * d, 0, 4 * d) * listed)


def dense(
    ring: Ring,
    queries: Float[np.ndarray, "m q d"],
    memories: list[Memory],
    k: int,
    forbidden: Forbidden | None = None,
) -> Found:
    """All scores by products of matrices, of which :func:`retrieval.rolling.shortlist.reaching` makes shortlists.

    Args:
        ring: What is stored.
        queries: For each memory as many.
        memories: Row and head of each.
        k: Neighbours of each query.
        forbidden: Slots that a query may not be given.
    """
    m, q, d = queries.shape
    high = max((end for row, _ in memories for _, end in ring.segments(row)), default=0)
    if not high or not q:
        return Found(np.full((m * q, k), -np.inf, np.float32), np.full((m * q, k), -1, np.int64))
    found = Found(np.empty((m * q, k), np.float32), np.empty((m * q, k), np.int64))
    some, many = max(1, _TILE // (q * high)), min(q, max(_QUERIES, _TILE // high))
    asked, longest, factors = lengths(queries), _longest(ring, memories), torch.from_numpy(queries)
    error = _error(asked, longest, d)
    short = multiplies_bfloat16() and q * high >= _ROUNDED
    if short:
        factors, lost = rounded(factors)
        worst = np.array([float(ring.rounded_keys()[1][memory].max()) for memory in memories])[:, None]
        error += lost.numpy() * (longest + worst) + asked * worst
    width = group_width(high, k)
    wide = -(-high // width) * width
    room = torch.empty(min(some, m) * many * wide, dtype=factors.dtype, device="cpu")
    for i in range(0, m, some):
        part = memories[i : i + some]
        keys, begins = ring.float_keys(part)
        row = np.array([row for row, _ in part])
        for j in range(0, q, many):
            some_factors = factors[i : i + some, j : j + many].contiguous()
            each = some_factors.shape[1]
            scores = room[: len(part) * each * wide].view(len(part), each, wide)
            scores[..., high:] = -torch.inf
            stored = (ring.rounded_keys()[0].view(-1, d), ring.begins(part)) if short else (keys, begins)
            _multiply(ring, some_factors, part, *stored, scores[..., :high])
            if forbidden is not None:
                for own, memory in zip(scores, part, strict=True):
                    out = forbidden(memory, slice(j, j + each))[:, :high]
                    own[:, :high].masked_fill_(torch.from_numpy(out), -torch.inf)
            slots = reaching(scores.flatten(0, 1), error[i : i + some, j : j + many].ravel(), k, high)
            x = np.ascontiguousarray(queries[i : i + some, j : j + many]).reshape(-1, d)
            best = ranked(ring, x, keys, begins.repeat(each), row.repeat(each), slots, k)
            for all_found, these in ((found.scores, best.scores), (found.ids, best.ids)):
                all_found.reshape(m, q, k)[i : i + some, j : j + many] = these.reshape(len(part), each, k)
            found.work += best.work
    # One bill on every machine, whatever it multiplies in.
    pairs = q * sum(int(ring.live[row]) for row, _ in memories)
    read = 4 * d * sum(q + int(ring.live[row]) for row, _ in memories)
    found.work += Work(2 * d * pairs, read + 4 * pairs, 4 * pairs)
    return found


def _multiply(
    ring: Ring, queries: Tensor, memories: list[Memory], keys: Tensor, begins: np.ndarray, scores: Tensor
) -> None:
    """All scores by slot, minus infinity where a slot is empty."""
    high = scores.shape[2]
    runs = [ring.segments(row) for row, _ in memories]
    full = high == ring.capacity and all(run == [(0, high)] for run in runs)
    if full and bool((np.diff(begins) == high).all()):
        block = keys[begins[0] : begins[0] + len(memories) * high].view(len(memories), high, -1)
        if len(memories) > 1:
            torch.bmm(queries, block.mT, out=scores)
        else:
            torch.mm(queries[0], block[0].T, out=scores[0])
        return
    for i, begin in enumerate(begins.tolist()):
        if runs[i] != [(0, high)]:
            scores[i].fill_(-torch.inf)
        for low, end in runs[i]:
            torch.mm(queries[i], keys[begin + low : begin + end].T, out=scores[i, :, low:end])


def exact(ring: Ring, queries: Float[np.ndarray, "m q d"], memories: list[Memory], k: int) -> Found:
    """A flat FAISS search of each memory, with a few entries more than wanted.

    Args:
        ring: What is stored.
        queries: For each memory as many.
        memories: Row and head of each.
        k: Neighbours of each query.
    """
    return joined([_exact(ring, x, memory, k) for x, memory in zip(queries, memories, strict=True)], k)


def joined(parts: list[Found], k: int) -> Found:
    """Results of several memories, one after the other."""
    none = Found(np.empty((0, k), np.float32), np.empty((0, k), np.int64))
    return Found(
        np.concatenate([part.scores for part in [none, *parts]]),
        np.concatenate([part.ids for part in [none, *parts]]),
        sum((part.work for part in parts), Work()),
    )


def _exact(ring: Ring, x: np.ndarray, memory: Memory, k: int) -> Found:
    keys, begins = ring.float_keys([memory])
    d, begin, work = x.shape[1], int(begins[0]), Work()
    slots, limit = [np.full((len(x), 1), -1)], np.full(len(x), -np.inf)
    for low, end in ring.segments(memory[0]):
        length = min(end - low, k + margin(k, end - low))
        # On one core a product of matrices wins from four queries up.
        with blas_threshold(4 * d):
            scores, at = faiss.knn(
                x, keys[begin + low : begin + end].numpy(), length, faiss.METRIC_INNER_PRODUCT
            )
        slots.append(np.where(at < 0, -1, at + low))
        if length < end - low:
            limit = np.maximum(limit, scores[:, -1])
        work += Work(2 * d * len(x) * (end - low), 4 * d * (len(x) + end - low))
    return settled(ring, x, memory, keys, begins, np.concatenate(slots, 1), limit, k, work)


def settled(
    ring: Ring,
    x: np.ndarray,
    memory: Memory,
    keys: Tensor,
    begins: np.ndarray,
    slots: np.ndarray,
    limit: np.ndarray,
    k: int,
    work: Work,
    forbidden: Forbidden | None = None,
) -> Found:
    """The best of shortlists; where one could miss a neighbour, :func:`dense` decides.

    Args:
        limit: The largest approximate score that an entry which is not listed can have.
        work: What making the lists took.
    """
    n, row = len(x), np.full(len(x), memory[0])
    found = ranked(ring, x, keys, np.repeat(begins, n), row, slots, k)
    found.work += work
    unsure = _error(lengths(x[None]), _longest(ring, [memory]), x.shape[1])[0]
    missing = (limit > -np.inf) & ~(limit + unsure < found.scores[:, -1])
    doubtful = np.flatnonzero(missing | np.isinf(unsure))
    if len(doubtful):
        forbid = None if forbidden is None else lambda which, at: forbidden(which, doubtful[at])
        again = dense(ring, x[doubtful][None], [memory], k, forbid)
        found.scores[doubtful], found.ids[doubtful] = again.scores, again.ids
        found.work += again.work
    return found


def anywhere(ring: Ring, queries: Tensor, memories: list[Memory], k: int) -> Found:
    """As :func:`dense`, on whatever device the memory is; rounded as that device rounds products of matrices.

    Shapes:
        queries: ``[m, q, d]``
    """
    _, q, d = queries.shape
    parts = []
    for x, (row, head) in zip(queries, memories, strict=True):
        index, first = ring.index[row], int(ring.first[row])
        scores = x.to(ring.device) @ ring.keys[row, head].float().T + 0.0
        bits = scores.view(torch.int32)
        order = ~(bits ^ ((bits >> 31) & (2**31 - 1))).long() << 32 | (index - first).clamp(min=0)
        order[(index < 0) | ~scores.isfinite()] = int(NOTHING)
        top = order.topk(min(k, ring.capacity), largest=False).values.cpu().numpy()
        best, age = unpacked(top)
        short = ((0, 0), (0, k - top.shape[1]))
        best = np.pad(best, short, constant_values=-np.inf)
        ids = np.pad(np.where(age < 0, -1, age + first), short, constant_values=-1)
        n = int(ring.live[row])
        parts.append(Found(best, ids, Work(2 * d * q * n, 4 * d * (q + n) + 4 * q * n, 4 * q * n)))
    return joined(parts, k)


def without_strange(
    queries: Float[np.ndarray, "m q d"],
) -> tuple[Float[np.ndarray, "m q d"], Int[np.ndarray, " strange"]]:
    """Queries, zeros in place of those that are not finite; and which these are, of all in a row."""
    # A sum of what is not finite is not either, and is one pass.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(queries.sum()):
            return queries, np.zeros(0, np.int64)
    strange = ~np.isfinite(queries).all(2, keepdims=True)
    return np.where(strange, np.float32(0), queries), np.flatnonzero(strange)
