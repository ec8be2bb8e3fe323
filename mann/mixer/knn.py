"""Attention that goes on past its window: to the nearest of what has left it, in the row and in earlier segments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.banded import attend, spans, window_masks
from mann.context import Context
from mann.found import attend_found
from mann.gates import Gate
from mann.norm import sum_dtype
from mann.projection import Stream, StreamingQueriesKeysValues, fold
from mann.topk import top_ids
from retrieval import Neighbors, RollingMemory

# Queries compared at a time, and columns that top_ids chooses from several times as fast as from twice as many.
_BLOCK, _FEW = 64, 256


class KNNAttention(StreamingQueriesKeysValues):
    r"""Attention to a window, and to the ``k`` nearest of all positions that have left it.

    .. math::
        y_t = W_o \big[ (1 - g)\, \mathrm{attention}(t - w < s \le t) +
        g\, \mathrm{attention}(\text{the } k \text{ largest } \langle q_t, k_s \rangle,\, s \le t - w) \big]

    with one learned gate :math:`g = \sigma(b)` a head, 0 where nothing has left the window. The positions that have
    left it are those of the same document in the row, and, given a :class:`~mann.State`, those of earlier segments: the
    last ``window - 1`` are carried as keys and values with their gradient, older ones go into a
    :class:`retrieval.RollingMemory`, without. It is read before it is written, and what is written has left the window
    of every query to come, so no position is heard twice, and segments equal one row as long as the memory holds it.

    Memories have no positions: far queries and keys are compared without rotation. Keys are normalised, as the paper
    advises, so those that an earlier state of the network stored remain comparable.

    Reference:
        Wu et al., "Memorizing Transformers", 2022. arXiv:2203.08913.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of heads; must divide ``d_model`` into an even head width.
        k: Far positions that a query hears.
        window: Near positions that it hears all of, its own the last of them.
        capacity: Entries of the memory, for each row and head.
        combine: ``"gate"``: as above. ``"softmax"``: one softmax over near and far scores.
        rotated: Rotate far queries and keys too. With ``"softmax"`` and ``k`` as long as the row this is
            :class:`~mann.CausalAttention`. A memory knows no positions, so there can be no state.
        block: Queries per block.
        base: Base of the rotary frequencies.
        memory: Further arguments of :class:`retrieval.RollingMemory`, such as ``{"backend": "ivf"}``.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If ``n_heads`` does not divide ``d_model`` into an even head width, a size is smaller than 1, or
            ``combine`` is unknown; on a call with a state if ``rotated``.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        k: int = 32,
        window: int = 256,
        capacity: int = 2048,
        combine: str = "gate",
        rotated: bool = False,
        block: int = 64,
        base: float = 10_000.0,
        memory: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(d_model, n_heads, base)
        if min(k, window, capacity) < 1:
            raise ValueError(f"k={k}, window={window} and capacity={capacity} must all be at least 1")
        if combine not in ("gate", "softmax"):
            raise ValueError(f"combine must be 'gate' or 'softmax', got {combine!r}")
        self.k, self.window, self.capacity, self.block = k, window, capacity, block
        self.combine = combine
        self.rotate_far = rotated
        self.settings = dict(memory or {})
        self.gate = nn.Parameter(torch.zeros(n_heads)) if combine == "gate" else None
        self.opened = Gate()

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        if self.rotate_far and context.state is not None:
            raise ValueError(
                "rotated=True has no use for a state, whose memory knows no positions: leave one away"
            )
        stream = self.stream(x, context, self.window - 1)
        near_q, near_k = (fold(part) for part in self.rotated(stream, context))
        v, joined = fold(stream.v), self.combine == "softmax"
        sizes = x.shape[1], stream.held, self.block, self.window
        labels = stream.labels
        if context.state is not None and labels is not None and not labels.is_meta and not labels.any():
            # One document, which fills all that is held: only places hide, and masks of places are few and small.
            labels = None
        masks = window_masks(context, self.block, self.window, v.dtype, stream.held, labels)
        near, total = attend(near_q, near_k, v, masks, self.block, self.window, totals=joined)
        q, k = (near_q, near_k) if self.rotate_far else (fold(stream.q), fold(stream.k))
        parts = []
        if sum(sizes[:2]) > self.window:
            parts.append(_row(q, k, v, labels, self.window, min(self.k, sum(sizes[:2]) - self.window)))
        if context.state is not None:
            memory = context.state.memory(self, partial(self._memory, len(x), x.device))
            if len(memory):
                parts.append(_memory(q, memory, context.documents, self.k))
            self._remember(memory, stream, context)
            self.leave(stream, context)
        if not parts:
            return self.merge(near)
        far, far_total, there = (part.unflatten(0, q.shape[:2]) for part in _read(q, parts, self.k))
        if self.gate is None:
            share = self.opened(far_total - total.to(far_total.dtype))
        else:
            share = self.opened(self.gate).repeat(len(x))[:, None] * there
        return self.merge(torch.lerp(near, far.to(near.dtype), share[..., None].to(near.dtype)))

    def _memory(self, rows: int, device: torch.device) -> RollingMemory:
        sizes = rows, self.n_heads, self.capacity, self.d_head, self.d_head
        return RollingMemory(*sizes, device=device, **self.settings)

    @torch.no_grad()
    def _remember(self, memory: RollingMemory, stream: Stream, context: Context) -> None:
        """Stores what leaves the window with this segment, of the document that goes on."""
        time = stream.q.shape[1]
        if context.documents is not None:
            memory.reset(context.documents[:, -1] != 0)
        labels = torch.zeros_like(context.tokens) if stream.labels is None else stream.labels
        counts = (labels[:, :time] == labels[:, -1:]).sum(1)
        for n in counts.unique().tolist():
            rows = counts == n
            if n:
                keys, values = (part[rows, time - n : time].transpose(1, 2) for part in (stream.k, stream.v))
                memory.add(keys, values, rows=rows)


@dataclass
class _Far:
    """Scores of far positions, which of them there are, and where their keys and values are.

    Shapes:
        scores, mask, rows: ``[sequences * time, k]``; keys, values: ``[rows, d_head]``
    """

    scores: Tensor
    mask: Tensor
    rows: Tensor
    keys: Tensor
    values: Tensor


def _read(q: Tensor, parts: list[_Far], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the ``k`` best of all parts: what they say; the logarithm of the sum of exponentials; where there are any."""
    scores = torch.cat([part.scores for part in parts], -1).to(sum_dtype(q))
    mask = torch.cat([part.mask for part in parts], -1)
    before = [0, *accumulate(len(part.keys) for part in parts[:-1])]
    rows = torch.cat([part.rows + n for part, n in zip(parts, before, strict=True)], -1)
    if scores.shape[-1] > k:
        best = top_ids(scores.masked_fill(~mask, float("-inf")), k)
        scores, mask, rows = (part.gather(-1, best) for part in (scores, mask, rows))
    tables = [part.keys for part in parts], [part.values for part in parts]
    far, total = attend_found(q.flatten(0, 1), scores, rows, mask, *tables)
    return far, total, mask.any(-1)


def _row(q: Tensor, k: Tensor, v: Tensor, labels: Tensor | None, window: int, count: int) -> _Far:
    """The nearest of the positions in the row that have left the window."""
    ids, scores = _nearest(q.detach(), k.detach(), labels, window, count)
    rows = ids + torch.arange(0, len(k) * k.shape[1], k.shape[1], device=k.device)[:, None, None]
    scores, rows = scores.flatten(0, 1), rows.flatten(0, 1)
    return _Far(scores, scores > float("-inf"), rows, k.flatten(0, 1), v.flatten(0, 1))


def _nearest(
    q: Float[Tensor, "sequences time d"],
    k: Float[Tensor, "sequences positions d"],
    labels: Int[Tensor, "batch positions"] | None,
    window: int,
    count: int,
) -> tuple[Int[Tensor, "sequences time count"], Float[Tensor, "sequences time count"]]:
    """Where the largest scores are among keys that have left each query's window, and the scores.

    Where there are not as many, the score is minus infinity.
    """
    places = torch.arange(k.shape[1], device=k.device)
    ids = torch.zeros(*q.shape[:2], count, dtype=torch.int64, device=k.device)
    found = torch.full_like(ids, float("-inf"), dtype=q.dtype)
    for here, seen in spans(q.shape[1], k.shape[1] - q.shape[1], _BLOCK, None):
        begin, last = seen.stop - here.stop + here.start, seen.stop - window
        own = places[begin : seen.stop]
        if last < 1:
            continue
        # Some keys more than have left, so that the columns divide into parts; they are hidden as others are.
        parts = -(-last // _FEW)
        last = min(len(places), -(-last // parts) * parts)
        scores = torch.bmm(q[:, here], k[:, :last].transpose(1, 2))
        # What has left the window of the first query has left all of them.
        first = 0 if labels is not None else max(0, begin - window + 1)
        hidden = own[:, None] - places[first:last] < window
        if labels is not None:
            hidden = (hidden | (labels[:, own, None] != labels[:, None, :last])).repeat_interleave(
                len(q) // len(labels), 0
            )
        scores[..., first:].masked_fill_(hidden, float("-inf"))
        best = _best(scores, min(count, last), parts)
        width = best.shape[-1]
        ids[:, here, :width], found[:, here, :width] = best, scores.gather(-1, best)
    return ids, found


def _best(scores: Tensor, k: int, parts: int) -> Tensor:
    """As :func:`top_ids`, by the best of each part where the columns divide into parts."""
    each, rest = divmod(scores.shape[-1], parts)
    if rest or parts == 1 or k > each:
        return top_ids(scores, k)
    some = top_ids(scores.unflatten(-1, (parts, each)), k)
    some = (some + torch.arange(0, parts * each, each, device=some.device)[:, None]).flatten(-2)
    return some.gather(-1, top_ids(scores.gather(-1, some), k))


def _memory(q: Tensor, memory: RollingMemory, documents: Tensor | None, k: int) -> _Far:
    """The nearest entries of a memory, for positions of the document that is carried on."""
    live = min(memory.settings["capacity"], int(memory.written.max()))
    asked = q.detach().float().unflatten(0, (-1, memory.settings["heads"]))
    found = memory.search(asked, min(k, live))
    keys, values, rows = _copies(memory, found, live)
    mask = found.mask
    if documents is not None:
        mask = mask & (documents == 0)[:, None, :, None]
    return _Far(found.scores.flatten(0, 2), mask.flatten(0, 2), rows.flatten(0, 2), keys, values)


def _copies(memory: RollingMemory, found: Neighbors, live: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of what was found, as tables, and the row of each: the memory will be written to.

    Of few queries what they found is copied, of many everything there is.
    """
    batch, heads, time, k = found.ids.shape
    written = memory.written.to(found.ids.device)
    if time * k <= live:
        past = memory.gather(found)
        rows = torch.arange(found.ids.numel(), device=found.ids.device).view(found.ids.shape)
    else:
        first = (written - live)[:, None, None, None]
        names = first + torch.arange(live, device=written.device)
        past = memory.gather(names.expand(-1, heads, -1, -1))
        begin = torch.arange(0, batch * heads * live, live, device=written.device).view(batch, heads, 1, 1)
        rows = (found.ids - first + begin).masked_fill(~found.mask, 0)
    return past.keys.flatten(0, 3), past.values.flatten(0, 3), rows
