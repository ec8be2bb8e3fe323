"""Exact longest-suffix match over token ids."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int

from retrieval.neighbors import Neighbors
from retrieval.passages import Passages
from retrieval.source import Source

__all__ = ["SuffixSource"]


# Of the matches of one length, this many times k are looked at before turning to shorter ones.
_CANDIDATES = 4

# Sorts behind every neighbour.
_NOTHING = np.iinfo(np.int64).max


@dataclass(frozen=True)
class _Level:
    """Distinct contexts of ``width`` tokens in lexicographic order, most recent token first.

    ``keys[r]`` is the context of rank ``r``, rank 0 being the empty one; the entries that have it stand at
    ``first[r]:first[r + 1]`` of the sorted store. ``children[r]`` is the first rank of this level whose more
    recent half has rank ``r`` in the level below.
    """

    width: int
    keys: np.ndarray
    first: np.ndarray
    children: np.ndarray | None


class SuffixSource(Source):
    r"""Entries whose preceding tokens agree with the query's for the longest stretch.

    The entries are sorted once by their context read backwards (a suffix array of the reversed text, built by
    prefix doubling as in `Suffix arrays <https://doi.org/10.1137/0222058>`_ by Manber and Myers), so the entries that
    match the last :math:`n` tokens are one contiguous range for every :math:`n`, found by binary search. Ranges are
    emptied from the longest match down to one token. Out of a range with more entries than wanted, places
    :math:`i\,g \bmod \text{size}` with :math:`g \approx 0.618\,\text{size}`, coprime to it, are taken: spread
    evenly, and the same whenever asked. Of matches of one length at most four ``k`` are looked at before shorter ones,
    unless excluded entries would leave a query with fewer than ``k``.

    The score is the number of tokens that match. A search does no floating-point arithmetic: its price is bytes, 8 for
    each probe of a binary search over :math:`N` distinct contexts (:math:`\lceil\log_2 N\rceil` probes, each also
    one comparison) and 8 for each candidate (its position and its document).

    Args:
        passages: What to store.
        max_order: Longest match to look for, in tokens.

    Raises:
        ValueError: If ``max_order < 1``, or the store has 2^31 tokens or more.
    """

    def __init__(self, passages: Passages, *, max_order: int = 16) -> None:
        if max_order < 1:
            raise ValueError(f"max_order must be at least 1, got {max_order}")
        if len(passages) >= 2**31:
            raise ValueError(
                "SuffixSource holds fewer than 2^31 tokens; split the passages over several sources"
            )
        begin = time.perf_counter()
        self.passages = passages
        self.depth = max_order
        self._base = passages.vocab_size + 1
        self._unit = max(1, int(63 / math.log2(self._base + 1)))
        self._levels, self._sorted, moved = self._sort(passages.entries())
        self._labels = passages.labels
        self.build_flops = {"sort": 0}
        self.build_bytes = {"sort": moved}
        self.build_seconds = time.perf_counter() - begin
        self.fingerprint = hashlib.sha256(f"suffix-1 {max_order} {passages.fingerprint}".encode()).hexdigest()

    def _sort(self, entries: np.ndarray) -> tuple[list[_Level], np.ndarray, int]:
        n, unit, passages = len(entries), self._unit, self.passages
        # Passages have one position that is no entry, their last: neighbours in a passage are neighbours here.
        age = np.minimum(entries - passages.starts(entries), 2 * self.depth).astype(
            np.int16 if n else np.int64
        )
        keys = np.zeros(n, np.int64)
        if n:
            recent = passages.tokens[entries].astype(np.int64) + 1
            for j in range(min(unit, n)):
                weight = self._base ** (unit - 1 - j)
                keys[j:] += np.where(age[j:] >= j, recent[: n - j] * weight, 0)
            del recent
        levels: list[_Level] = []
        width, moved = unit, 0
        while True:
            order = np.argsort(keys)
            keys = keys[order]
            fresh = np.concatenate([[True], keys[1:] != keys[:-1]]) if n else np.zeros(0, bool)
            rank = np.empty(n, np.int32)
            rank[order] = np.cumsum(fresh, dtype=np.int32)
            del order
            distinct = np.concatenate([np.zeros(1, np.int64), keys[fresh]])
            first = np.concatenate([[0], np.flatnonzero(fresh), [n]]).astype(np.int32)
            children = None
            if levels:
                children = np.searchsorted(distinct, np.arange(len(levels[-1].keys) + 1) << 32).astype(
                    np.int32
                )
            levels.append(_Level(width, distinct, first, children))
            moved += 2 * 16 * n * max(1, math.ceil(math.log2(max(n, 2))))
            if width >= self.depth:
                break
            keys = rank.astype(np.int64) << 32
            if width < n:
                keys[width:] |= np.where(age[width:] >= width, rank[: n - width], 0)
            width *= 2
        # Sorting rank and place together keeps equal contexts in the order of the text.
        places = np.sort((rank.astype(np.int64) << 32) | np.arange(n)) & (2**32 - 1)
        return levels, entries[places].astype(np.int32), moved

    def _ranges(self, context: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Where in the sorted store the entries stand that match 1, 2, ... tokens or more; and bytes."""
        n = len(context)
        known = (context >= 0).sum(1)
        # Half-open ranges of ranks, at the first level wide enough to tell them.
        ranks = np.zeros((self.depth + 1, 2, n), np.int32)
        # Neighbouring keys share the path of a binary search, so ask in sorted order.
        key = self._key(context, min(self._unit, self.depth))
        order = np.argsort(key)
        moved, level, follows = 0, 0, np.zeros(0, bool)
        low, high = np.zeros((2, n, self.depth + 1), np.int64)
        for length in range(1, self.depth + 1):
            at = self._levels[level]
            if length > at.width:
                level, at = level + 1, self._levels[level + 1]
                follows = self._follows(context, at.width // 2)
            if level == 0:
                rows = order[known[order] >= length]
                step = self._base ** (self._unit - length)
                wanted = key[rows] // step * step
                found = np.searchsorted(at.keys, wanted), np.searchsorted(at.keys, wanted + step)
            else:
                rows = order[(known[order] >= length) & (ranks[length - 1, 1] > ranks[length - 1, 0])[order]]
                half = at.width // 2
                older = self._older(context, ranks, rows, follows[rows], level, length - half)
                prefix = ranks[half, 0, rows].astype(np.int64) << 32
                found = (
                    np.searchsorted(at.keys, prefix | older[0]),
                    np.searchsorted(at.keys, prefix | older[1]),
                )
            ranks[length, :, rows] = np.stack(found, axis=1)
            low[rows, length - 1], high[rows, length - 1] = at.first[found[0]], at.first[found[1]]
            # Beyond the first level the older part of the context is looked up as well.
            moved += 8 * (2 if level == 0 else 4) * _probes(at.keys) * len(rows)
        return low, high, moved

    def _key(self, context: np.ndarray, length: int) -> np.ndarray:
        """The last tokens as one number, most recent first; the place of a missing one is 0."""
        key = np.zeros(len(context), np.int64)
        for j in range(length):
            key += (context[:, j] + 1) * self._base ** (self._unit - 1 - j)
        return key

    def _follows(self, context: np.ndarray, places: int) -> np.ndarray:
        """Rows whose older tokens are the recent tokens of the row that many places before, as in running text."""
        width = min(places, self.depth - places)
        follows = np.zeros(len(context), bool)
        if len(context) > places:
            follows[places:] = (context[places:, places : places + width] == context[:-places, :width]).all(1)
        return follows

    def _older(
        self,
        context: np.ndarray,
        ranks: np.ndarray,
        rows: np.ndarray,
        follows: np.ndarray,
        level: int,
        length: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ranks below a level of the older part of contexts, taken from the row that asked for it or searched for."""
        half = self._levels[level].width // 2
        low, high = ranks[length][:, np.maximum(rows - half, 0)]
        own = next(i for i, at in enumerate(self._levels) if length <= at.width)
        for between in self._levels[own + 1 : level]:
            assert between.children is not None
            low, high = between.children[low], between.children[high]
        if not follows.all():
            apart = np.flatnonzero(~follows)
            part = np.ascontiguousarray(context[rows[apart], half : half + length])
            low[apart], high[apart] = self._search(level - 1, part)
        return low, high

    def _search(self, level: int, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Half-open range of ranks at a level of the contexts that begin with all the given tokens."""
        at, length = self._levels[level], part.shape[1]
        if level == 0:
            low = self._key(part, length)
            high = low + self._base ** (self._unit - length)
            return np.searchsorted(at.keys, low), np.searchsorted(at.keys, high)
        half = at.width // 2
        low, high = self._search(level - 1, part[:, :half])
        if length <= half:
            assert at.children is not None
            return at.children[low], at.children[high]
        older = self._search(level - 1, part[:, half:])
        prefix = low.astype(np.int64) << 32
        found, end = np.searchsorted(at.keys, prefix | older[0]), np.searchsorted(at.keys, prefix | older[1])
        return found, np.where(high > low, end, found)

    def find(self, context: Int[np.ndarray, "n depth"], k: int, exclude: Int[np.ndarray, " n"]) -> Neighbors:
        """See :meth:`Source.search`."""
        n = len(context)
        low, high, moved = self._ranges(context)
        best = np.full((n, k), _NOTHING)
        rows, wanted = np.arange(n), k + k // 2 * bool((exclude >= 0).any())
        while len(rows):
            best[rows], looked = self._pick(low[rows], high[rows], wanted, k, exclude[rows])
            moved += 8 * int(looked.sum())
            short = (best[rows, -1] == _NOTHING) & (looked < (high - low)[rows, 0])
            rows, wanted = rows[short], 4 * wanted
        ids = torch.from_numpy(np.where(best == _NOTHING, -1, best & (2**40 - 1)))
        length = torch.from_numpy(self.depth - (best >> 40))
        return Neighbors.of(length.float(), ids, bytes=moved)

    def _pick(
        self, low: np.ndarray, high: np.ndarray, wanted: int, k: int, exclude: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Up to ``k`` of ``wanted`` candidates, as sorted words (missing tokens, position); and how
        many candidates each row had."""
        n = len(low)
        size = high - low
        own = size[:, :-1] - size[:, 1:]  # matches exactly this long
        longer = np.minimum(own, max(_CANDIDATES * k, wanted // self.depth))[:, ::-1].cumsum(1)[:, ::-1]
        longer = np.minimum(np.pad(longer, ((0, 0), (0, 1))), wanted)
        take = longer[:, :-1] - longer[:, 1:]
        row, order = np.nonzero(take)
        # Within a row the longest first.
        row, order = row[::-1], order[::-1]
        count, span = take[row, order], own[row, order]
        stride = np.maximum(1, (span * 0.618033988749895).astype(np.int64))
        while len(clash := np.flatnonzero((count < span) & (np.gcd(stride, span) != 1))):
            stride[clash] += 1
        stride[count == span] = 1
        flat = np.repeat(np.arange(len(row)), count)
        i = np.arange(len(flat)) - np.repeat(np.cumsum(count) - count, count)
        offset = i * stride[flat] % span[flat]
        begin, inner = low[row, order], low[row, order + 1]
        # The longer match's range lies inside this one: step over it.
        before = np.where(size[row, order + 1] > 0, inner - begin, span)
        skip = size[row, order + 1]
        place = begin[flat] + offset + np.where(offset >= before[flat], skip[flat], 0)
        position = self._sorted[place]
        allowed = self._labels[position] != exclude[row[flat]]
        flat_row = row[flat][allowed]
        word = ((self.depth - 1 - order[flat][allowed]) << 40) | position[allowed]
        # Rows run downwards; a place within a row counts from its first allowed candidate.
        kept = np.bincount(flat_row, minlength=n)
        ends = np.cumsum(kept[::-1])[::-1]
        place = np.arange(len(flat_row)) - (ends - kept)[flat_row]
        best = np.full((n, k), _NOTHING)
        use = place < k
        best[flat_row[use], place[use]] = word[use]
        best.sort(axis=1)
        return best, take.sum(1)


def _probes(keys: np.ndarray) -> int:
    return math.ceil(math.log2(len(keys) + 1))
