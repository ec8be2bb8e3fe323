"""Search of one part of a store: all of its keys, or those its index proposes."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int

from retrieval.datastore.entries import LONGEST
from retrieval.datastore.exclusion import Exclusion
from retrieval.datastore.ranking import Ranking, exact_scores, pair_work
from retrieval.datastore.segment import Part
from retrieval.exact import Metric
from retrieval.index import Index
from retrieval.neighbors import Neighbors
from retrieval.rounding import lengths, rounding
from retrieval.work import Work

__all__ = ["propose", "scan"]

# Keys and queries in one product of matrices: it stays in cache. Of fewer queries, it has up to four times the keys.
_KEYS, _QUERIES = 8192, 256
# Pairs scored by themselves at once; more only where very many entries are equally near.
_PAIRS = 1 << 16
# A shortlist longer than this costs more than to look at every key.
_LONG = 2048
# Keys of more bytes do not stay in memory after a scan.
_LARGE = 256 << 20


def scan(
    part: Part,
    queries: Float[np.ndarray, "n d"],
    rows: Int[np.ndarray, " m"],
    rules: Exclusion,
    best: Ranking,
    metric: Metric,
) -> Work:
    r"""Compare queries with all keys of a part that they may be given; exact.

    A product of matrices finds candidates and :func:`retrieval.datastore.ranking.exact_scores` gives them their
    score. The two differ by :func:`retrieval.rounding.rounding` at most, so an entry is a candidate if its product is
    not more than that below the score of the ``k``-th best so far: none that belongs into the result is missed, and the
    result does not depend on how products round. Where a product may overflow, all entries are candidates. What a query
    may not be given is left out by a mask, whatever its score.

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
    asked = np.zeros(len(queries))
    asked[rows] = lengths(queries[rows])
    candidates = 0
    most = min(len(segment), _KEYS << min(2, max(1, _QUERIES // n).bit_length() - 1))
    room = np.empty((most, d), np.float32)
    product = np.empty((min(n, _QUERIES), most), np.float32)
    for begin in range(0, len(segment), most):
        end = min(begin + most, len(segment))
        keys, longest = segment.float_keys(begin, end, room)
        squares = np.einsum("nd,nd->n", keys, keys) if metric == "l2" else None
        for i in range(0, n, _QUERIES):
            at = rows[i : i + _QUERIES]
            near = product[: len(at), : end - begin]
            error = rounding(asked[at], longest, d, metric)
            with np.errstate(over="ignore", invalid="ignore"):  # such a query's error is infinite
                np.matmul(queries[at], keys.T, out=near)
                if squares is not None:
                    near *= 2
                    near -= squares
                    near -= np.square(asked[at]).astype(np.float32)[:, None]
            hidden = _hidden(part, rules.of_rows(at), begin, end)
            if hidden is not None:
                np.copyto(near, -np.inf, where=hidden)  # so that bounds are of what may be given
            reached = near >= _threshold(near, best.worst[at], error, best.k)[:, None]
            reached[np.isinf(error)] = True
            if hidden is not None:
                reached &= ~hidden
            found = np.flatnonzero(reached)
            candidates += len(found)
            for j in range(0, len(found), _PAIRS):
                row, column = np.divmod(found[j : j + _PAIRS], end - begin)
                row = at[row]
                best.add(row, exact_scores(queries, row, keys, column, metric), segment.ids(begin + column))
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


def _hidden(part: Part, rules: Exclusion, begin: int, end: int) -> np.ndarray | None:
    """Entries that a query must not be given, in one row if they are the same for all."""
    columns = part.segment.columns
    hidden = rules.hidden(columns["documents"][None, begin:end], columns["positions"][None, begin:end])
    if part.dead is None:
        return hidden
    dead = part.dead[None, begin:end]
    return dead if hidden is None else hidden | dead


def _threshold(near: np.ndarray, worst: np.ndarray, error: np.ndarray, k: int) -> np.ndarray:
    """A product of a candidate of each query is no smaller than this."""
    least = worst - error
    empty, m = worst == -np.inf, near.shape[1]
    if empty.any() and m > k:
        # The k-th of these alone is a bound as well, and so is the k-th of the largest of groups, which needs no sort.
        width = max(1, m // (4 * k))
        groups = m // width
        some = near if empty.all() else near[empty]
        largest = some[:, : width * groups].reshape(len(some), width, groups).max(1)
        largest.partition(groups - k, axis=1)
        least[empty] = largest[:, groups - k] - 2 * error[empty]
    with np.errstate(over="ignore"):
        return np.nextafter(least.astype(np.float32), np.float32(-np.inf))


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
    # What an index says where scores may overflow is nothing to go by.
    large = np.isinf(rounding(lengths(queries[rows]), LONGEST, d, metric))
    if large.any():
        work += scan(part, queries, rows[large], rules, best, metric)
        rows = rows[~large]
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
        scores = exact_scores(queries, rows[row], stored, where, metric)
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
