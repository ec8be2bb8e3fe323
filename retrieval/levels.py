"""Contexts in lexicographic order at widths that double: what an exact longest-suffix match searches in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.passages import Passages
from retrieval.stored import mapped

__all__ = ["Level", "packed", "read_levels", "sort_levels", "write_levels"]


@dataclass(frozen=True)
class Level:
    """Distinct contexts of ``width`` tokens in lexicographic order, most recent token first.

    ``keys[r]`` is the context of rank ``r``, rank 0 being the empty one; the entries that have it stand at
    ``first[r]:first[r + 1]`` of the sorted store. ``children[r]`` is the first rank of this level whose more
    recent half has rank ``r`` in the level below.
    """

    width: int
    keys: np.ndarray
    first: np.ndarray
    children: np.ndarray | None


def packed(vocab_size: int) -> tuple[int, int]:
    """Base of the numbers that tokens are packed into, and how many tokens fit into 63 bits."""
    base = vocab_size + 1
    return base, max(1, int(63 / math.log2(base + 1)))


def sort_levels(passages: Passages, depth: int) -> tuple[list[Level], np.ndarray, int]:
    """Sort all entries of passages by their context, read backwards, by prefix doubling.

    While it sorts it needs up to 75 bytes for each token, measured on 5 million; what it returns is 36 of them.

    Args:
        passages: What to sort.
        depth: Longest context that has to be told from others, in tokens.

    Returns:
        The levels, the positions of the entries in sorted order, and the bytes that sorting has moved.
    """
    entries = passages.entries()
    base, unit = packed(passages.vocab_size)
    n = len(entries)
    # Passages have one position that is no entry, their last: neighbours in a passage are neighbours here.
    age = np.minimum(entries - passages.starts(entries), 2 * depth).astype(np.int16 if n else np.int64)
    keys = np.zeros(n, np.int64)
    if n:
        recent = passages.tokens[entries].astype(np.int64) + 1
        for j in range(min(unit, n)):
            weight = base ** (unit - 1 - j)
            keys[j:] += np.where(age[j:] >= j, recent[: n - j] * weight, 0)
        del recent
    levels: list[Level] = []
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
            children = np.searchsorted(distinct, np.arange(len(levels[-1].keys) + 1) << 32).astype(np.int32)
        levels.append(Level(width, distinct, first, children))
        moved += 2 * 16 * n * max(1, math.ceil(math.log2(max(n, 2))))
        if width >= depth:
            break
        keys = rank.astype(np.int64) << 32
        if width < n:
            keys[width:] |= np.where(age[width:] >= width, rank[: n - width], 0)
        width *= 2
    # Sorting rank and place together keeps equal contexts in the order of the text.
    places = np.sort((rank.astype(np.int64) << 32) | np.arange(n)) & (2**32 - 1)
    return levels, entries[places].astype(np.int32), moved


def write_levels(folder: Path, levels: Sequence[Level]) -> list[int]:
    """Write levels into a snapshot's folder.

    Args:
        folder: Where to.
        levels: What to write.

    Returns:
        Their widths, to keep in the manifest.
    """
    for number, level in enumerate(levels):
        for name in ("keys", "first", "children"):
            array = getattr(level, name)
            if array is not None:
                np.save(folder / f"level-{number}-{name}.npy", array, allow_pickle=False)
    return [level.width for level in levels]


def read_levels(folder: Path, widths: Sequence[int]) -> list[Level]:
    """Levels that :func:`write_levels` wrote, memory-mapped.

    Args:
        folder: Where they are.
        widths: What it returned.

    Raises:
        SnapshotError: If a file is missing or no array.
    """
    return [
        Level(
            width,
            mapped(folder, f"level-{number}-keys"),
            mapped(folder, f"level-{number}-first"),
            mapped(folder, f"level-{number}-children") if number else None,
        )
        for number, width in enumerate(widths)
    ]
