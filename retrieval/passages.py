"""Tokens in passages, each belonging to a document: what a store remembers."""

from __future__ import annotations

import hashlib
import warnings
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["Passages"]


class Passages:
    r"""A flat array of tokens, cut into passages, each carrying the label of its document.

    An *entry* is a position :math:`p` whose successor lies in the same passage: its key is made of the tokens up to and
    including :math:`p`, its answer is token :math:`p+1`. Nothing read around an entry ever crosses the edge
    of its passage. Two regimes use this one class: whole documents (one passage a document) and training windows
    (several passages may share a document).

    Args:
        tokens: Token ids, unsigned integers; may be memory-mapped.
        offsets: Where passages begin, and the end: passage ``j`` is ``tokens[offsets[j]:offsets[j + 1]]``.
        documents: Document label of each passage, not negative; by default each passage is its own document.
        vocab_size: Number of distinct tokens. Token 0 marks the beginning of a document.

    Shapes:
        tokens: ``[n]``; offsets: ``[m + 1]``; documents: ``[m]``

    Raises:
        TypeError: If ``tokens`` are not unsigned integers.
        ValueError: If offsets do not run from 0 to ``n`` without a step back, labels are missing or negative, or a
            token is not below ``vocab_size``.
    """

    def __init__(
        self, tokens: np.ndarray, offsets: np.ndarray, documents: np.ndarray | None = None, *, vocab_size: int
    ) -> None:
        if tokens.ndim != 1 or tokens.dtype.kind != "u":
            raise TypeError(
                f"Passages needs a flat array of unsigned tokens, got {tokens.dtype} of shape {tokens.shape}; "
                "convert with tokens.astype(np.uint16)"
            )
        offsets = np.ascontiguousarray(offsets, dtype=np.int64)
        if offsets.ndim != 1 or not len(offsets) or offsets[0] != 0 or offsets[-1] != len(tokens):
            raise ValueError(f"offsets must run from 0 to the number of tokens, {len(tokens)}")
        if (np.diff(offsets) < 0).any():
            raise ValueError("offsets must not decrease")
        n = len(offsets) - 1
        labels = np.arange(n) if documents is None else np.ascontiguousarray(documents, dtype=np.int64)
        if labels.shape != (n,):
            raise ValueError(f"{n} passages need {n} document labels, got shape {labels.shape}")
        if n and labels.min() < 0:
            raise ValueError("document labels must not be negative: -1 means 'exclude nothing' in a search")
        if len(tokens) and int(tokens.max()) >= vocab_size:
            raise ValueError(f"token {int(tokens.max())} is outside a vocabulary of {vocab_size}")
        self.tokens = tokens
        self.offsets = offsets
        self.documents = labels
        self.vocab_size = vocab_size

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"Passages({len(self):,} tokens in {len(self.offsets) - 1:,} passages, vocab_size={self.vocab_size})"

    @property
    def n_entries(self) -> int:
        """Number of positions that have an answer."""
        return int(np.maximum(np.diff(self.offsets) - 1, 0).sum())

    def entries(self) -> np.ndarray:
        """Positions of all entries, ascending, int64."""
        last = self.offsets[1:][np.diff(self.offsets) > 0] - 1
        return np.delete(np.arange(len(self), dtype=np.int64), last)

    @cached_property
    def labels(self) -> np.ndarray:
        """Document label of every token (int32 where labels allow), made on first use."""
        small = not len(self.documents) or self.documents.max() < 2**31
        return np.repeat(self.documents.astype(np.int32 if small else np.int64), np.diff(self.offsets))

    def positions(self, document: int) -> np.ndarray:
        """Positions of all tokens of a document, ascending, int64."""
        which = np.flatnonzero(self.documents == document)
        parts = [np.arange(self.offsets[j], self.offsets[j + 1]) for j in which]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def starts(self, positions: np.ndarray) -> np.ndarray:
        """First position of the passage around each position."""
        return self.offsets[np.searchsorted(self.offsets, positions, side="right") - 1]

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of tokens, cuts, labels and vocabulary size."""
        digest = hashlib.sha256(f"passages-1 {self.vocab_size} {self.tokens.dtype.str}".encode())
        for array in (self.tokens, self.offsets, self.documents):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @cached_property
    def _signed(self) -> Tensor:
        # PyTorch gathers signed integers only, and warns of a read-only map, which is never written here.
        signed = self.tokens.view(self.tokens.dtype.str.replace("u", "i"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(np.asarray(signed))

    @cached_property
    def _begins(self) -> Tensor:
        """Whether a passage begins at each token, and one more after the last token."""
        begins = torch.zeros(len(self) + 1, dtype=torch.bool)
        begins[torch.from_numpy(self.offsets)] = True
        return begins

    def window(
        self, ids: Int[Tensor, "*batch"], before: int, after: int
    ) -> Int[Tensor, "*batch {before}+1+{after}"]:
        """Tokens around positions, from ``before`` places before to ``after`` places after; 0 outside the passage.

        Place ``before`` of the last axis holds the token at the position itself.

        Args:
            ids: Positions, as a search returns them.
            before: Tokens to read before each position.
            after: Tokens to read after each position.

        Shapes:
            ids: ``[*batch]``, result: ``[*batch, before + 1 + after]``

        Raises:
            IndexError: If a position is outside the store.
        """
        where = ids.detach() if ids.is_meta else ids.detach().cpu()
        shape = (before + 1 + after, *where.shape)
        self._check(where)
        if not len(self):
            return torch.zeros(shape, dtype=torch.int64, device=ids.device).movedim(0, -1)
        # Places come first in memory, so that whoever reads one place of every window reads it in one go.
        offsets = torch.arange(-before, after + 1, device=where.device).unsqueeze(1)
        span = where.reshape(-1) + offsets
        # Between a place and its neighbour on the way to the position, does a passage begin?
        edges = (span + (offsets < 0)).clamp_(0, len(self))
        begins, signed = _like(where, self._begins), _like(where, self._signed)
        outside = begins.index_select(0, edges.view(-1)).view(span.shape)
        outside[before].fill_(False)
        for place in range(before + 2, len(outside)):
            outside[place] |= outside[place - 1]
        for place in range(before - 2, -1, -1):
            outside[place] |= outside[place + 1]
        found = signed.index_select(0, span.clamp_(0, len(self) - 1).view(-1)).long()
        found &= (1 << (8 * self.tokens.dtype.itemsize)) - 1 if self.tokens.dtype.itemsize < 8 else -1
        return found.view(span.shape).masked_fill_(outside, 0).view(shape).movedim(0, -1).to(ids.device)

    def _check(self, where: Tensor) -> None:
        """Refuse positions outside the store."""
        if not where.numel():
            return
        ends = where.aminmax()
        # Positions that exist in shape only, to find out what a model costs, have no values to check.
        if where.is_meta or isinstance(where, FakeTensor):
            return
        first, last = (int(end) for end in ends)
        # Where there is no neighbour the id is 0, in an empty store too.
        if not 0 <= first <= last < max(len(self), 1):
            raise IndexError(f"position outside a store of {len(self)} tokens: {first}..{last}")


def _like(where: Tensor, table: Tensor) -> Tensor:
    return torch.empty_like(table, device="meta") if where.is_meta else table
