"""A readout that interpolates with counts after the longest match of the text in a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.context import Context
from mann.norm import sum_dtype
from mann.readout.base import IGNORE, Readout, SoftmaxReadout
from mann.sourced import Sourced
from retrieval import Neighbors, Source, SuffixSource
from retrieval.search import Searchable, run_search
from retrieval.source import query_context
from retrieval.work import Work

__all__ = ["SuffixCounts", "SuffixReadout"]

NOTHING = float("-inf")
# Matches whose next tokens are read at once.
PIECE = 1 << 22


class SuffixReadout(Sourced, Readout):
    r"""Interpolates the vocabulary distribution with the counts of all tokens after the longest match.

    .. math::
        p_t(v) = (1 - \lambda_t)\, \mathrm{softmax}(W x_t)_v + \lambda_t \frac{c_t(v)}{c_t}, \qquad
        \lambda_t = \sigma\big(a_{\ell_t} + b \log c_t\big)

    with :math:`\ell_t` the longest suffix of the text that the store holds, :math:`c_t` how often it does, and
    :math:`c_t(v)` how often with token :math:`v` next: the backed-off estimate of an n-gram model without a bound on
    :math:`n` but the source's. What weight a length deserves, :math:`a_\ell`, and how it grows with the number of
    matches, :math:`b`, is learned. Where nothing matches, :math:`\lambda_t = 0`.

    Every match is counted, not ``k`` of them, where a :class:`retrieval.SuffixSource` is asked here. Neighbours that
    were found beforehand, or by another source, are counted themselves: those of the highest score, which is taken for
    the length. A :class:`~mann.State` carries the last tokens, so that a match may begin in an earlier segment.

    A store may hold the text that is trained on, and then its longest match is that text itself. So in train mode a
    loss wants to be told what to hide: ``exclude`` beside the tokens (-1: nothing), :meth:`hiding`, or neighbours found
    with it.

    Reference:
        Liu et al., "Infini-gram: Scaling unbounded n-gram language models to a trillion tokens", 2024.
        arXiv:2401.17377.

    Args:
        d_model: Width of the residual stream.
        vocab_size: Number of tokens.
        source: Where matches come from.
        k: Neighbours per position, where these are counted.
        max_order: Longest match with a weight of its own; by default the longest the source looks for, or 16 where it
            does not say.

    Shapes:
        x: ``[batch, time, width]``; targets and loss: ``[batch, time]``; log-probabilities:
        ``[batch, time, vocab]``.

    Raises:
        ValueError: If the source has another vocabulary; in train mode, if nobody has said what a loss must not be
            given.
    """

    def __init__(
        self, d_model: int, vocab_size: int, source: Source, k: int = 16, max_order: int | None = None
    ) -> None:
        super().__init__()
        if source.passages.vocab_size != vocab_size:
            raise ValueError(
                f"a source of {source.passages.vocab_size} tokens cannot be read by a model of {vocab_size}: build it "
                "with the model's tokenizer"
            )
        self.source = source
        self.k = k
        self.counts = SuffixCounts(source) if isinstance(source, SuffixSource) else None
        self.excluded: Tensor | None = None
        self.softmax = SoftmaxReadout(d_model, vocab_size)
        self.by_length = nn.Parameter(torch.zeros(1 + (max_order or getattr(source, "depth", 16))))
        self.by_count = nn.Parameter(torch.zeros(()))

    @contextmanager
    def hiding(self, exclude: Int[Tensor, "batch time"]) -> Iterator[None]:
        """Count nothing of a stored document, for all forward passes inside; as ``exclude`` beside the tokens.

        For a :class:`retrieval.SuffixSource` alone.

        Args:
            exclude: Label of the stored document that each position must not be given, -1 for none.
        """
        before, self.excluded = self.excluded, exclude
        try:
            yield
        finally:
            self.excluded = before

    def log_weights(
        self, length: Int[Tensor, "batch time"], total: Float[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        r"""Logs of :math:`\lambda / c` and of :math:`1 - \lambda`."""
        nothing = total == 0
        log_total = total.masked_fill(nothing, 1.0).log()
        gate = self.by_length[length.clamp(max=len(self.by_length) - 1)] + self.by_count * log_total
        weight = (F.logsigmoid(gate) - log_total).masked_fill(nothing, NOTHING)
        return weight, F.logsigmoid(-gate).masked_fill(nothing, 0.0)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        context: Context,
        targets: Int[Tensor, "batch time"] | None = None,
    ) -> Tensor:
        vocab_size, dtype = self.softmax.head.out_features, sum_dtype(x)
        exclude = context.exclude if self.excluded is None or self.counts is None else self.excluded
        if targets is not None:
            self.refuse_own(context, exclude)
        if self.counts is None or context.neighbors is not None:
            counted, length, total = self._of_neighbors(context, targets, vocab_size)
        else:
            counted, length, total = self.counts.search(context, exclude, targets)
        weight, vocabulary = self.log_weights(length, total.to(dtype))
        # A count of nothing has minus infinity for a logarithm, and no gradient.
        logs = counted.to(dtype).log()
        if targets is None:
            return torch.logaddexp(self.softmax(x, context) + vocabulary[..., None], logs + weight[..., None])
        log_p = vocabulary - self.softmax(x, context, targets)
        return -torch.logaddexp(log_p, logs + weight).masked_fill(targets == IGNORE, 0.0)

    def _of_neighbors(
        self, context: Context, targets: Tensor | None, vocab_size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Counts among the neighbours that match for the longest, the length, and how many they are."""
        found = context.retrieve(self.source, self.k)
        answers = context.window(self.source, self.k, 0, 1)[..., 1]
        length = found.scores[..., 0]
        longest = found.mask & (found.scores == length[..., None])
        if targets is None:
            counts = torch.zeros(*length.shape, vocab_size, device=length.device)
            counts.scatter_add_(-1, answers, longest.float())
        else:
            counts = (longest & (answers == targets[..., None])).sum(-1)
        return counts, length.long().clamp(min=0), longest.sum(-1)


class SuffixCounts(Searchable):
    """How often each token follows the longest match, counted in the sorted text of a source.

    Entries that match are one range of the sorted text; queries with the same range share its count. Its price: that of
    finding ranges, then 12 bytes for each entry of a range (its place, its token at random) and 8 more where a document
    is excluded, and one addition of integers each.

    Args:
        source: The sorted text.
    """

    def __init__(self, source: SuffixSource) -> None:
        self.source = source

    def search(
        self,
        context: Context,
        exclude: Int[Tensor, "batch time"] | None,
        targets: Int[Tensor, "batch time"] | None,
    ) -> tuple[Tensor, Int[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """Counts of the targets (of all tokens, if there are none), lengths of the matches, and their numbers."""
        held = 0 if context.state is None else self.source.depth - 1
        tokens, labels = context.stream(held)
        asked = F.pad(torch.ones_like(context.tokens, dtype=torch.bool), (held, 0))
        banned = torch.full_like(tokens, -1) if exclude is None else F.pad(exclude, (held, 0), value=-1)
        wanted = [] if targets is None else [F.pad(targets, (held, 0), value=-1)]
        k = self.source.passages.vocab_size + 1 if targets is None else 2
        found = run_search(self, [tokens, labels, banned, asked, *wanted], k)
        scores, length = found.scores[:, held:], found.ids[:, held:, 0]
        total, counts = scores[..., 0], scores[..., 1:]
        return counts if targets is None else counts.squeeze(-1), length, total

    def neighbors(self, inputs: Sequence[Tensor], k: int) -> Neighbors:
        """The count behind the operator; call :meth:`search`.

        Scores are the number of matches, then counts; the first id is the length of the match.
        """
        tokens, labels, banned, asked, *wanted = (x.numpy().astype(np.int64, copy=False) for x in inputs)
        source, shape = self.source, tokens.shape
        scores, length = np.zeros((tokens.size, k), np.float32), np.zeros(tokens.size, np.int64)
        work = Work()
        if tokens.size and source.passages.n_entries:
            if not 0 <= tokens.min() <= tokens.max() < source.passages.vocab_size:
                raise ValueError(
                    f"tokens {tokens.min()}..{tokens.max()} are outside the store's vocabulary of "
                    f"{source.passages.vocab_size}; was the store built with another tokenizer?"
                )
            context = query_context(tokens, labels, source.depth).reshape(-1, source.depth)
            flat = [banned.reshape(-1), *(target.reshape(-1) for target in wanted)]
            rows = np.flatnonzero(asked)
            for i in range(0, len(rows), source.chunk):
                part = rows[i : i + source.chunk]
                length[part], scores[part], cost = self._counted(context[part], k, *(x[part] for x in flat))
                work += cost
        ids = np.repeat(length, k).reshape(scores.shape)
        return Neighbors(
            torch.from_numpy(scores).view(*shape, k),
            torch.from_numpy(ids).view(*shape, k),
            torch.from_numpy(scores > 0).view(*shape, k),
            **work.counts,
        )

    def _counted(
        self, context: np.ndarray, k: int, banned: np.ndarray, targets: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, Work]:
        """The lengths of the matches of some queries, and their scores."""
        scores = np.zeros((len(context), k), np.float32)
        low, high, moved = self.source._ranges(context)
        length, work = (high > low).sum(1), Work(0, moved)
        rows = np.flatnonzero(length)
        while len(rows):
            last = length[rows] - 1
            ranges = np.stack([low[rows, last], high[rows, last], banned[rows]], 1)
            ranges, which = np.unique(ranges, axis=0, return_inverse=True)
            which = which.reshape(-1)
            ends = np.cumsum(ranges[:, 1] - ranges[:, 0])
            begin = 0
            while begin < len(ranges):
                # One range at least, however many match.
                room = PIECE + (ends[begin - 1] if begin else 0)
                end = max(begin + 1, int(np.searchsorted(ends, room, side="right")))
                here = np.flatnonzero((which >= begin) & (which < end))
                asked = None if targets is None else targets[rows[here]]
                found, cost = self._of_ranges(ranges[begin:end], which[here] - begin, asked)
                scores[rows[here]] = found
                work += cost
                begin = end
            # Where all matches of a length are of the excluded document, shorter ones may have others.
            rows = rows[scores[rows, 0] == 0]
            length[rows] -= 1
            rows = rows[length[rows] > 0]
        return length, scores, work

    def _of_ranges(
        self, ranges: np.ndarray, which: np.ndarray, targets: np.ndarray | None
    ) -> tuple[np.ndarray, Work]:
        """Of each query, whose range is ``ranges[which]``, the number of matches, then counts of tokens."""
        source, vocab_size = self.source, self.source.passages.vocab_size
        sizes = ranges[:, 1] - ranges[:, 0]
        of = np.repeat(np.arange(len(ranges)), sizes)
        position = source._sorted[
            np.arange(len(of)) + np.repeat(ranges[:, 0] - np.cumsum(sizes) + sizes, sizes)
        ]
        read = len(of)
        work = Work(read, 4 * read + 8 * read, 0, 8 * read, read)
        if (ranges[:, 2] >= 0).any():
            work += Work(0, 8 * read, 0, 8 * read)
            kept = source._labels[position] != ranges[of, 2]
            of, position = of[kept], position[kept]
        answers = source.passages.tokens[position.astype(np.int64) + 1]
        total = np.bincount(of, minlength=len(ranges))[which]
        code, count = np.unique(of * vocab_size + answers, return_counts=True)
        if targets is None:
            counts = np.zeros((len(ranges), vocab_size), np.float32)
            counts.reshape(-1)[code] = count
            return np.concatenate([total[:, None], counts[which]], 1), work
        wanted = which * vocab_size + targets
        at = np.minimum(np.searchsorted(code, wanted), max(len(code) - 1, 0))
        # A target that is no token would be a token of the range before.
        hit = (targets >= 0) & (code[at] == wanted) if len(code) else np.zeros(len(which), bool)
        return np.stack([total, np.where(hit, count[at] if len(code) else 0, 0)], 1), work
