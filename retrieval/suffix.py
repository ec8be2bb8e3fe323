"""Exact longest-suffix match over token ids."""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from retrieval.levels import packed, read_levels, sort_levels, write_levels
from retrieval.neighbors import Neighbors
from retrieval.passages import Passages
from retrieval.snapshot import SnapshotError, open_snapshot, writing_snapshot
from retrieval.source import Source
from retrieval.stored import mapped, stored_passages, write_passages

__all__ = ["SuffixSource"]

_KIND, _VERSION = "suffix source", 1
# What the manifest keeps of a source, by the names of its attributes.
_KEPT = ("depth", "build_flops", "build_bytes", "build_seconds", "fingerprint")

# Of the matches of one length, this many times k are looked at before turning to shorter ones.
_CANDIDATES = 4

# Sorts behind every neighbour.
_NOTHING = np.iinfo(np.int64).max


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

    :meth:`save` writes the sorted store to a folder and :meth:`open` maps it into memory: the same answers, bit for
    bit, at once. Sorting needs up to 75 bytes of memory for each token, the result 36 of them.

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
        self._base, self._unit = packed(passages.vocab_size)
        self._levels, self._sorted, moved = sort_levels(passages, max_order)
        self._labels = passages.labels
        self.build_flops = {"sort": 0}
        self.build_bytes = {"sort": moved}
        self.build_seconds = time.perf_counter() - begin
        self.fingerprint = hashlib.sha256(f"suffix-1 {max_order} {passages.fingerprint}".encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the sorted store and its passages to a folder, whole or not at all; what is there is replaced.

        Args:
            path: Where to.
        """
        about: dict[str, Any] = {name: getattr(self, name) for name in _KEPT}
        with writing_snapshot(path, _KIND, _VERSION, about) as folder:
            about["passages"] = write_passages(folder, self.passages)
            about["widths"] = write_levels(folder, self._levels)
            np.save(folder / "sorted.npy", self._sorted, allow_pickle=False)
            np.save(folder / "labels.npy", self._labels, allow_pickle=False)

    @classmethod
    def open(cls, path: str | Path, passages: Passages | None = None, *, verify: bool = True) -> SuffixSource:
        """Open what :meth:`save` wrote, memory-mapped: nothing is sorted, and a search reads what it needs.

        Args:
            path: Where it is.
            passages: What it was built from, to share them with others; by default the copy in the folder.
            verify: Whether to compare checksums, which reads every file once; without it opening takes milliseconds
                whatever the size, and lengths are still compared.

        Raises:
            SnapshotError: If it is missing, damaged, foreign, of a newer format, or of other passages.
        """
        path = Path(path)
        about = open_snapshot(path, _KIND, _VERSION, verify=verify)
        source = cls.__new__(cls)
        try:
            vars(source).update({name: about[name] for name in _KEPT})
            source.passages = stored_passages(path, about["passages"], passages)
            source._levels = read_levels(path, about["widths"])
        except KeyError as missing:
            raise SnapshotError(f"{path} does not say its {missing}: delete it and build it again") from None
        source._base, source._unit = packed(source.passages.vocab_size)
        source._sorted, source._labels = mapped(path, "sorted"), mapped(path, "labels")
        return source

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
