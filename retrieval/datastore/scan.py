"""Search of one part of a store: all of its keys, or those its index proposes."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int

from retrieval.datastore.exclusion import Exclusion
from retrieval.datastore.ranking import Ranking, pair_scores, pair_work
from retrieval.datastore.segment import Part
from retrieval.exact import Metric
from retrieval.index import Index
from retrieval.neighbors import Neighbors
from retrieval.work import Work

__all__ = ["propose", "scan"]

# Keys and queries in one product of matrices: it stays in cache.
_KEYS, _QUERIES = 8192, 256
# Pairs scored by themselves at once; more only where very many entries are equally near.
_PAIRS = 1 << 16
# A shortlist longer than this costs more than to look at every key.
_LONG = 2048
# Keys of more bytes do not stay in memory after a scan.
_LARGE = 256 << 20
# Unit roundoff of 32-bit floats.
_UNIT = 2.0**-24


def scan(
    part: Part,
    queries: Float[np.ndarray, "n d"],
    rows: Int[np.ndarray, " m"],
    rules: Exclusion,
    best: Ranking,
    metric: Metric,
) -> Work:
    r"""Compare queries with all keys of a part that they may be given; exact.

    A product of matrices finds candidates and :func:`retrieval.datastore.ranking.pair_scores` gives them their
    score. Both round: by :math:`e = d\,2^{-24}\,\lVert q \rVert \lVert x \rVert` at most (squared distance:
    :math:`(\lVert q \rVert + \lVert x \rVert)^2` in place of the product of lengths). An entry is a candidate if its
    product is not more than :math:`2e` below the score of the ``k``-th best so far; so none that belongs into the
    result is missed, and the result does not depend on how products round.

    Work: of a pair :math:`2d` FLOPs (:math:`3d` by squared distance); each key is read once, and written and read again
    where it is stored in 16 bits; a product is written and read. Candidates:
    :func:`retrieval.datastore.ranking.pair_work`.

    Args:
        part: Where to look.
        queries: Finite queries.
        rows: Which of them ask.
        rules: What each may be given.
        best: Takes what is found.
        metric: ``"ip"`` or ``"l2"``.

    Shapes:
        queries: ``[n, d]``, rows: ``[m]``
    """
    segment, n, d = part.segment, len(rows), queries.shape[1]
    asked = np.sqrt(np.einsum("nd,nd->n", queries, queries))
    candidates = 0
    product = np.empty((min(n, _QUERIES), min(len(segment), _KEYS)), np.float32)
    for begin in range(0, len(segment), _KEYS):
        end = min(begin + _KEYS, len(segment))
        keys = np.asarray(segment.columns["keys"][begin:end], np.float32)
        squares = np.einsum("nd,nd->n", keys, keys)
        longest = float(np.sqrt(squares.max()))
        ids = segment.ids(np.arange(begin, end))
        for i in range(0, n, _QUERIES):
            at = rows[i : i + _QUERIES]
            near = product[: len(at), : end - begin]
            np.matmul(queries[at], keys.T, out=near)
            size = asked[at] * longest
            if metric == "l2":
                near *= 2
                near -= squares
                near -= np.square(asked[at])[:, None]
                size = np.square(asked[at] + longest)
            _hide(near, part, rules.of_rows(at), begin, end)
            error = (1.01 * (d + 8) * _UNIT) * size
            least = _threshold(near, best.worst[at], error, best.k)
            found = np.flatnonzero(near >= least[:, None])
            candidates += len(found)
            for j in range(0, len(found), _PAIRS):
                row, column = np.divmod(found[j : j + _PAIRS], end - begin)
                row = at[row]
                best.add(row, pair_scores(queries, row, keys, column, metric), ids[column])
    if segment.columns["keys"].nbytes > _LARGE:
        segment.release()
    itemsize = segment.columns["keys"].itemsize
    copied = 0 if itemsize == 4 else 4 * d * len(segment)
    pairs = n * len(segment)
    work = Work(
        (2 if metric == "ip" else 3) * d * pairs,
        itemsize * d * len(segment) + copied + 4 * d * n + 4 * pairs,
        copied + 4 * pairs,
    )
    work.bytes_read += 8 * (rules.by_document + rules.by_position) * len(segment)
    return work + pair_work(candidates, d, 4, metric)


def _hide(near: np.ndarray, part: Part, rules: Exclusion, begin: int, end: int) -> None:
    columns = part.segment.columns
    hidden = rules.hidden(columns["documents"][None, begin:end], columns["positions"][None, begin:end])
    if hidden is not None:
        near[hidden] = -np.inf
    if part.dead is not None:
        near[:, part.dead[begin:end]] = -np.inf


def _threshold(near: np.ndarray, worst: np.ndarray, error: np.ndarray, k: int) -> np.ndarray:
    """Least product of a candidate of each query; above minus infinity, so that what is hidden is none."""
    least = worst - 2 * error
    empty = np.flatnonzero(worst == -np.inf)
    if len(empty):
        lowest = np.finfo(np.float32).min
        least[empty] = lowest
        if near.shape[1] > k:  # the best of these alone: the k-th is a bound as well
            kth = torch.from_numpy(near[empty]).topk(k).values[:, -1].numpy()
            least[empty] = np.maximum(lowest, kth - 4 * error[empty])
    return least


def propose(
    part: Part,
    index: Index,
    queries: Float[np.ndarray, "n d"],
    rows: Int[np.ndarray, " m"],
    rules: Exclusion,
    best: Ranking,
    metric: Metric,
) -> tuple[np.ndarray, Work]:
    """Ask a part's index, and go on behind what a query may not be given until it has ``k`` entries.

    Candidates get their score from the stored keys. Where a query has fewer than ``k`` entries that it may be given, or
    the last of the list is as near as the ``k``-th, so that others may be too, a list of twice the length is asked for,
    for those queries only, and in the end all keys are looked at.

    Args:
        part: Where to look.
        index: Its index.
        queries: Finite queries.
        rows: Which of them ask.
        rules: What each may be given.
        best: Takes what is found.
        metric: ``"ip"`` or ``"l2"``.

    Shapes:
        queries: ``[n, d]``, rows: ``[m]``

    Returns:
        Queries for which the index gave out with fewer than ``k`` entries, and the work.
    """
    segment, d = part.segment, queries.shape[1]
    length, work = min(2 * best.k, len(segment)), Work()
    gave_out: list[np.ndarray] = []
    while len(rows):
        if length > max(_LONG, 16 * best.k):
            work += scan(part, queries, rows, rules, best, metric)
            break
        found = index.neighbors([torch.from_numpy(queries[rows])], length)
        work += _work_of(found)
        places, there = found.ids.numpy(), found.mask.numpy()
        allowed = _allowed(part, rules.of_rows(rows), places, there)
        # The last of a list is scored as well, hidden or not: what is behind it is no nearer.
        scored = allowed.copy()
        scored[:, -1] = there[:, -1]
        row, column = np.nonzero(scored)
        unique, where = np.unique(places[row, column], return_inverse=True)
        stored = segment.take("keys", unique).float().numpy()
        scores = pair_scores(queries, rows[row], stored, where, metric)
        work += pair_work(len(row), d, segment.columns["keys"].itemsize, metric)
        last = np.full(len(rows), -np.inf, np.float32)
        at_end = column == places.shape[1] - 1
        last[row[at_end]] = scores[at_end]
        given = allowed[row, column]
        best.add(rows[row[given]], scores[given], segment.ids(unique)[where[given]])
        open_ended = there[:, -1] & (there.sum(1) < len(segment))
        gave_out.append(rows[~there[:, -1] & (allowed.sum(1) < best.k)])
        rows, length = rows[open_ended & (last >= best.worst[rows])], min(2 * length, len(segment))
    return np.concatenate(gave_out) if gave_out else rows, work


def _allowed(part: Part, rules: Exclusion, places: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Which candidates are entries that their query may be given."""
    allowed = there if part.dead is None else there & ~part.dead[places]
    if not (rules.by_document or rules.by_position):
        return allowed
    stamps = (part.segment.take(name, places.ravel()).numpy() for name in ("documents", "positions"))
    hidden = rules.hidden(*(stamp.reshape(places.shape) for stamp in stamps))
    return allowed if hidden is None else allowed & ~hidden


def _work_of(found: Neighbors) -> Work:
    read = found.bytes - found.bytes_written
    return Work(found.flops, read, found.bytes_written, found.bytes_random, found.intops)
