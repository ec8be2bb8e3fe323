"""Softmax attention over a band of the past, in blocks of queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from mann.context import Context
from mann.norm import sum_dtype

__all__ = ["attend", "band_masks", "spans", "window_masks"]

# What to add to the scores of a block's last keys: [queries, keys], or [batch, queries, keys].
Masks = Sequence[Tensor]


def spans(time: int, held: int, block: int, window: int | None) -> list[tuple[slice, slice]]:
    """For each block of queries, its positions and those of the keys that any of them sees.

    Args:
        time: Queries.
        held: Keys in front of the first query's own.
        block: Queries per block.
        window: Keys that a query sees, its own the last; ``None``: all.

    Raises:
        ValueError: If a block has no queries.
    """
    if block < 1:
        raise ValueError(f"block={block}: give at least 1 query per block, such as 64")
    found = []
    for start in range(0, time, block):
        end = min(start + block, time)
        first = 0 if window is None else max(0, held + start - window + 1)
        found.append((slice(start, end), slice(first, held + end)))
    return found


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, masks, block, window, totals):  # type: ignore[override]
        ctx.spans = spans(q.shape[1], k.shape[1] - q.shape[1], block, window)
        y = v.new_empty(*q.shape[:2], v.shape[2])
        total = q.new_empty(q.shape[:2] if totals else (0,), dtype=sum_dtype(q))
        weights = []
        for mask, (here, seen) in zip(masks, ctx.spans, strict=True):
            scores = torch.bmm(q[:, here], k[:, seen].transpose(1, 2))
            part = scores[..., scores.shape[2] - mask.shape[-1] :]
            if mask.ndim == 3:
                part.unflatten(0, (len(mask), -1)).add_(mask[:, None])
            else:
                part.add_(mask)
            share = torch.softmax(scores, -1)
            y[:, here] = torch.bmm(share, v[:, seen])
            if totals:
                # The largest weight is that of the largest score, one over the sum.
                total[:, here] = scores.amax(-1).to(total.dtype) - share.amax(-1).to(total.dtype).log()
            weights.append(share)
        ctx.save_for_backward(q, k, v, *weights)
        ctx.totals = totals
        return y, total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_total):  # type: ignore[override]
        q, k, v, *weights = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for share, (here, seen) in reversed(list(zip(weights, ctx.spans, strict=True))):
            upstream = grad[:, here]
            grad_v[:, seen].baddbmm_(share.transpose(1, 2), upstream)
            grad_share = torch.bmm(upstream, v[:, seen].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_share, share, -1, share.dtype)
            if ctx.totals:
                grad_scores.addcmul_(share, grad_total[:, here, None].to(share.dtype))
            grad_q[:, here] = torch.bmm(grad_scores, k[:, seen])
            grad_k[:, seen].baddbmm_(grad_scores.transpose(1, 2), q[:, here])
        return grad_q, grad_k, grad_v, None, None, None, None


def attend(
    q: Float[Tensor, "sequences time d_head"],
    k: Float[Tensor, "sequences positions d_head"],
    v: Float[Tensor, "sequences positions d_value"],
    masks: Masks,
    block: int,
    window: int | None = None,
    totals: bool = False,
) -> tuple[Float[Tensor, "sequences time d_value"], Tensor]:
    r"""Unscaled softmax attention of each query to the last ``window`` keys, its own the last of them.

    Each block multiplies only with the keys that one of its queries sees, so the cost is linear in ``window``, with
    plain matrix products on any device. Keys may begin before the queries do; the last stand at the same positions.
    First derivatives only.

    Args:
        q: Queries, batch and heads folded into ``sequences``.
        k: Keys.
        v: Values.
        masks: For each block what to add to the scores of its last keys, as :func:`band_masks` and
            :meth:`mann.Context.attention_masks` give them; minus infinity hides a key.
        block: Queries per block.
        window: Keys that a query sees; ``None``: all up to its own.
        totals: Whether to return :math:`\log \sum_s \exp \langle q, k_s \rangle` too, by which two reads of one
            query are joined.

    Shapes:
        q: ``[sequences, time, d_head]``; k: ``[sequences, held + time, d_head]``; v: ``[sequences, held + time,
        d_value]``; results: ``[sequences, time, d_value]`` and ``[sequences, time]`` (empty without ``totals``)
    """
    return _Attend.apply(q, k, v, masks, block, window, totals)


def window_masks(
    context: Context,
    block: int,
    window: int,
    dtype: torch.dtype,
    held: int = 0,
    labels: Int[Tensor, "batch positions"] | None = None,
) -> list[Tensor]:
    """The masks of a window over this segment, for :func:`attend`: those all layers share, where it hides nothing.

    Args:
        context: Gives tokens and documents.
        block: Queries per block.
        window: Keys that a query sees.
        dtype: Of the masks.
        held: Keys of earlier segments, in front.
        labels: Document of each key; ``None``: as the context has them, or one document where keys are held.
    """
    time = context.tokens.shape[1]
    if not held and window >= time:
        return context.attention_masks(block, dtype)
    labels = context.documents if labels is None and not held else labels
    return band_masks(time, held, block, window, labels, context.tokens.device, dtype)


def band_masks(
    time: int,
    held: int,
    block: int,
    window: int,
    labels: Int[Tensor, "batch positions"] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The masks of a band, for :func:`attend`.

    Args:
        time: Queries.
        held: Keys in front of them.
        block: Queries per block.
        window: Keys that a query sees.
        labels: Document of each key, the last of which are those of the queries; ``None``: one document.
        device: Where the masks shall be.
        dtype: Of the masks.
    """
    places = torch.arange(held + time, device=device)
    masks: dict[tuple[int, int, bool], Tensor] = {}
    found = []
    for here, seen in spans(time, held, block, window):
        own = slice(held + here.start, held + here.stop)
        if labels is None:
            # Where the band has not left the row's beginning, earlier keys than the block's are visible to all.
            near = slice(own.start if own.stop <= window else seen.start, seen.stop)
            key = own.stop - own.start, near.stop - near.start, own.stop <= window
            if key not in masks:
                masks[key] = _hidden(places[own], places[near], window, dtype)
            found.append(masks[key])
        else:
            mask = _hidden(places[own], places[seen], window, dtype)
            other = labels[:, own, None] != labels[:, None, seen]
            found.append(mask.expand(len(labels), -1, -1).masked_fill(other, float("-inf")))
    return found


def _hidden(queries: Tensor, keys: Tensor, window: int, dtype: torch.dtype) -> Tensor:
    """Minus infinity where a key comes after a query, or has left its window."""
    age = queries[:, None] - keys
    hidden = (age < 0) | (age >= window)
    return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, float("-inf"))
