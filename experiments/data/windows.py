"""Windows over a stream of tokens, and the one order in which every arm of a seed sees them."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from experiments.data.corpus import CorpusError, Split
from retrieval.passages import Passages

IGNORED = -100
"""Target where the next token is a document marker: what document comes next cannot be told from this one."""


class Windows:
    """A split cut into windows of equal length, side by side; each position is in exactly one.

    Window `i` reads tokens ``i * length`` to ``(i + 1) * length`` of the stream, and its targets are the same
    one further on. What is left at the end, less than a window, is not used.

    Args:
        split: the stream of tokens.
        length: positions in a window.

    Attributes:
        first_document: place in the split of the document each window begins in, ``[windows]``.

    Raises:
        CorpusError: the split is shorter than one window and its last target.
    """

    def __init__(self, split: Split, length: int) -> None:
        if length < 1:
            raise CorpusError(f"windows of length {length}; give 1 or more")
        self.count = (len(split) - 1) // length
        if self.count < 1:
            raise CorpusError(
                f"split {split.name!r} has {len(split)} tokens, fewer than one window of {length} and its"
                " last target; use shorter windows or more text"
            )
        self.split = split
        self.length = length
        # Rows overlap by one token, the last target: a view, nothing is copied until rows are picked.
        self._rows = np.lib.stride_tricks.sliding_window_view(split.tokens, length + 1)[::length][
            : self.count
        ]
        starts = np.arange(self.count, dtype=np.int64) * length
        self.first_document = np.searchsorted(split.offsets, starts, side="right") - 1

    def __len__(self) -> int:
        """The number of windows."""
        return self.count

    def batch(self, index: Int[np.ndarray, " n"] | Int[Tensor, " n"]) -> dict[str, Int[Tensor, "n length"]]:
        """The windows of these indices.

        Args:
            index: which windows, in any order.

        Shapes:
            ``tokens``, ``targets`` (-100 where the next token begins a document, or nothing is asked), ``documents``
            (place of the document in the split) and ``positions`` (place in the stream), all int64 ``[n, length]``.
        """
        chosen = self._checked(index)
        rows = torch.from_numpy(self._rows[chosen].astype(np.int64))
        tokens = rows[:, :-1].contiguous()
        targets = rows[:, 1:]
        targets = targets.masked_fill(targets == 0, IGNORED)
        if self.split.answers is not None:
            places = chosen[:, None] * self.length + np.arange(self.length)
            targets = torch.from_numpy(self.split.answers[places].astype(np.int64))
        # The first column says which document the window begins in; each later marker begins the next one.
        begins = tokens == 0
        begins[:, 0] = False
        documents = begins.cumsum(1).add_(torch.from_numpy(self.first_document[chosen])[:, None])
        starts = torch.from_numpy(chosen * self.length)
        return {
            "tokens": tokens,
            "targets": targets,
            "documents": documents,
            "positions": starts[:, None] + torch.arange(self.length),
        }

    def passages(self, index: Int[np.ndarray, " n"] | Int[Tensor, " n"], vocab_size: int = 2**16) -> Passages:
        """Just the text of these windows, `length` + 1 tokens each, cut where a document begins.

        What a store may hold when it may hold only what an arm was trained on. Windows keep their order, so a
        smaller budget's passages are the first of a larger one's.

        Args:
            index: which windows.
            vocab_size: the corpus' number of tokens.
        """
        chosen = self._checked(index)
        rows = self._rows[chosen]
        markers = rows == 0
        cuts = markers.copy()
        cuts[:, 0] = True
        # A marker in the last column is a target nobody predicts and a document nobody reads: it goes.
        keep = np.ones_like(cuts)
        keep[:, -1] = ~markers[:, -1]
        markers[:, 0] = False
        labels = self.first_document[chosen][:, None] + np.cumsum(markers, axis=1)
        begins = np.flatnonzero(cuts[keep])
        tokens = rows[keep]
        return Passages(
            tokens=tokens,
            offsets=np.append(begins, len(tokens)).astype(np.int64),
            documents=labels[keep][begins].astype(np.int64),
            vocab_size=vocab_size,
        )

    def _checked(self, index: Any) -> np.ndarray:
        chosen = np.asarray(index, dtype=np.int64)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < self.count:
            raise IndexError(
                f"window {chosen.min()}..{chosen.max()} of split {self.split.name!r}, which has {self.count}"
            )
        return chosen


def training_order(n_windows: int, seed: int, epoch: int = 0) -> Int[np.ndarray, " n_windows"]:
    """The order in which windows are trained on: a permutation that depends on nothing but its arguments.

    Windows are sorted by a 64-bit hash of (window, seed, epoch), so no random state is read or advanced, and
    the order is the same on every platform and for every version of numpy. The first windows are what a
    smaller budget sees, hence a prefix of what a larger one sees.

    Args:
        n_windows: how many windows there are.
        seed: the seed shared by all arms that are compared.
        epoch: which pass over the windows.
    """
    stream = mix64(mix64(np.uint64(seed % 2**64)) ^ np.uint64(epoch))
    keys = mix64(np.arange(n_windows, dtype=np.uint64) ^ stream)
    return np.argsort(keys, kind="stable").astype(np.int64)


def evaluation_rows(split: Split, length: int, n_tokens: int | None = None) -> Int[np.ndarray, " n"]:
    """Windows to evaluate on, the same for everyone: of every document one, then of every document another one.

    Losses differ more between documents than between seeds, and a few documents hold most of a split: evenly
    spread over its text, 256 windows of the default corpus tell as much as 36 documents of equal size; spread over its
    documents, as much as 115. Which windows of a document come first is decided by a hash of their number, so
    fewer tokens are a part of more. A window counts for the document that it begins in.

    Args:
        split: the split.
        length: positions in a window.
        n_tokens: about how many tokens to evaluate (rounded up to whole windows); ``None`` for all.
    """
    documents = Windows(split, length).first_document
    count = len(documents)
    wanted = count if n_tokens is None else min(count, max(1, -(-n_tokens // length)))
    hashed = mix64(np.arange(count, dtype=np.uint64))
    by_document = np.lexsort((hashed, documents))
    _, begins, sizes = np.unique(documents, return_index=True, return_counts=True)
    turn = np.empty(count, dtype=np.int64)
    turn[by_document] = np.arange(count) - np.repeat(begins, sizes)
    return np.sort(np.lexsort((hashed, turn))[:wanted])


def mix64(value: Any) -> Any:
    """The finaliser of SplitMix64: a bijection of 64-bit integers without visible pattern."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))
