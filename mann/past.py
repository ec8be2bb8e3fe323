"""The past of the same document as a distribution over the token that comes next.

Position ``s`` has seen the tokens up to ``s``, and its *answer* is token ``s + 1``. A later position ``t > s`` of the
same document knows that answer, so it may point at ``s``. All sums here are over those ``s``, and in logs.

Over a :class:`~mann.State` the past begins in earlier segments, as far as :func:`remembered` holds it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from mann.banded import band_masks, spans
from mann.context import Context
from mann.norm import compute_dtype, sum_dtype
from mann.state import Streaming

__all__ = ["Past", "check_past", "past_mass", "past_masses", "remembered", "token_masses"]

# Queries per block, as attention has them: masks are shared with it.
BLOCK = 64
NOTHING = float("-inf")
LN_2 = math.log(2)
LOG2_E = 1 / LN_2


class Past(NamedTuple):
    """What positions may point at, those of earlier segments in front.

    Args:
        keys: What queries are compared with.
        tokens: The token of each.
        labels: The document of each as :meth:`mann.Context.stream` numbers them; ``None``: one for each row.
        window: How many a position may point at, those just before it; ``None``: all there are.

    Shapes:
        keys: ``[batch, positions, width]``; tokens and labels: ``[batch, positions]``.
    """

    keys: Float[Tensor, "batch positions width"]
    tokens: Int[Tensor, "batch positions"]
    labels: Int[Tensor, "batch positions"] | None
    window: int | None = None


def remembered(
    slot: Streaming,
    keys: Float[Tensor, "batch time width"],
    context: Context,
    cache: int,
    window: int | None,
) -> Past:
    """The past of a segment; with a state, that of the segments before it too.

    Args:
        slot: Whose it is.
        keys: Of this segment.
        context: Gives tokens, documents and the state.
        cache: Positions that are held from one segment to the next.
        window: As :class:`Past` has it.
    """
    if context.state is None:
        return Past(keys, context.tokens, context.documents, window)
    cache = cache if window is None else min(cache, window)
    start = keys.new_zeros(()).expand(len(keys), cache, keys.shape[-1])
    keys = torch.cat([context.state.read(slot, {"keys": start})["keys"].to(keys.dtype), keys], 1)
    context.state.write(slot, keys=keys[:, -cache:])
    return Past(keys, *context.stream(cache), window)


def check_past(cache: int, window: int | None) -> None:
    """Refuse what holds nothing.

    Raises:
        ValueError: If ``cache`` or ``window`` is smaller than 1.
    """
    if cache < 1 or (window is not None and window < 1):
        raise ValueError(f"cache={cache} and window={window} must both be at least 1 (or window None)")


class _PastMass(torch.autograd.Function):
    # A block of queries multiplies with the keys that one of it sees, and no more than its scores is kept. All in base
    # 2: torch's exp takes three times as long as its exp2.
    @staticmethod
    def forward(  # type: ignore[override]
        ctx,
        queries: Tensor,
        keys: Tensor,
        answers: Tensor,
        targets: Tensor,
        masks: list[Tensor],
        window: int | None,
    ) -> tuple[Tensor, Tensor]:
        batch, time, _ = queries.shape
        ctx.spans = spans(time, keys.shape[1] - time, BLOCK, window)
        total = queries.new_empty(batch, time, dtype=sum_dtype(queries))
        hit = torch.empty_like(total)
        kept = []
        for mask, (here, seen) in zip(masks, ctx.spans, strict=True):
            scores = torch.bmm(queries[:, here], keys[:, seen].transpose(1, 2))
            # Of the last keys alone where all see the others.
            scores[..., scores.shape[2] - mask.shape[-1] :] += mask
            wide = scores.to(total.dtype)
            total[:, here] = _log2_sum(wide)
            wrong = answers[:, None, seen] != targets[:, here, None]
            hit[:, here] = _log2_sum(wide.masked_fill(wrong, NOTHING))
            kept.append(scores)
        ctx.save_for_backward(queries, keys, answers, targets, total, hit, *kept)
        return total, hit

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total: Tensor, grad_hit: Tensor):  # type: ignore[override]
        queries, keys, answers, targets, total, hit, *kept = ctx.saved_tensors
        grad_queries, grad_keys = torch.empty_like(queries), torch.zeros_like(keys)
        # Where nobody is right every score of those who are is minus infinity, and so has no share whatever is taken.
        hit = hit.masked_fill(hit == NOTHING, 0.0)
        for scores, (here, seen) in zip(kept, ctx.spans, strict=True):
            wide = scores.to(total.dtype)
            wrong = answers[:, None, seen] != targets[:, here, None]
            grad = (wide - hit[:, here, None]).masked_fill_(wrong, NOTHING).exp2_()
            grad.mul_(grad_hit[:, here, None])
            share = (wide - total[:, here, None]).exp2_()
            grad = grad.addcmul_(share, grad_total[:, here, None]).to(queries.dtype)
            grad_queries[:, here] = torch.bmm(grad, keys[:, seen])
            grad_keys[:, seen].baddbmm_(grad.transpose(1, 2), queries[:, here])
        return grad_queries, grad_keys, None, None, None, None


def _log2_sum(scores: Tensor) -> Tensor:
    """Logarithms to base 2 of the sums of powers of 2."""
    top = scores.amax(-1, keepdim=True)
    top.masked_fill_(top == NOTHING, 0.0)
    return (scores - top).exp2_().sum(-1).log2_().add_(top.squeeze(-1))


def past_mass(
    queries: Float[Tensor, "batch time width"],
    past: Past,
    context: Context,
    targets: Int[Tensor, "batch time"],
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    r"""How much the past weighs, and how much the part of it that is right.

    .. math::
        m_t = \log \sum_{s < t} \exp \langle q_t, k_s \rangle, \qquad
        h_t = \log \sum_{s < t} \exp \langle q_t, k_s \rangle \, [x_{s+1} = y_t]

    over the positions of the same document. Memory is that of the scores below the diagonal, not of a vocabulary.
    First derivatives only.

    Args:
        queries: What to compare.
        past: With what.
        context: Gives the masks that layers share.
        targets: The tokens :math:`y`; one that is no token is never right.

    Shapes:
        queries: ``[batch, time, width]``; targets and both outputs: ``[batch, time]``, minus infinity where there is
        nothing to sum.
    """
    q, k, masks = _shifted(queries * LOG2_E, past, context, BLOCK)
    targets = targets[:, -q.shape[1] :] if q.shape[1] else targets[:, :0]
    total, hit = _PastMass.apply(q, k, past.tokens[:, 1:], targets, masks, past.window)
    return _placed(total * LN_2, past, context), _placed(hit * LN_2, past, context)


def past_masses(
    queries: Float[Tensor, "batch time width"],
    past: Past,
    context: Context,
    vocab_size: int,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time vocab"]]:
    """The same for every token of a vocabulary in place of one target.

    Args:
        queries: What to compare.
        past: With what.
        context: Gives the masks that layers share.
        vocab_size: Number of tokens.

    Shapes:
        queries: ``[batch, time, width]``; outputs: ``[batch, time]`` and ``[batch, time, vocab]``.
    """
    # In base 2 as above, so that both round alike in half precision.
    time, answers = context.tokens.shape[1], past.tokens[:, 1:]
    q, k, masks = _shifted(queries * LOG2_E, past, context, time)
    # One block of queries, or none where a single position has nothing in front of it.
    for _, seen in spans(q.shape[1], k.shape[1] - q.shape[1], time, past.window):
        k, answers = k[:, seen], answers[:, seen]
    scores = torch.bmm(q, k.transpose(1, 2))
    scores = (scores + masks[0] if masks else scores).to(sum_dtype(q)) * LN_2
    masses = token_masses(scores, answers[:, None].expand_as(scores), vocab_size)
    return _placed(scores.logsumexp(-1), past, context), _placed(masses, past, context)


def token_masses(
    logs: Float[Tensor, "*batch n"], tokens: Int[Tensor, "*batch n"], vocab_size: int
) -> Float[Tensor, "*batch vocab"]:
    r"""Sums by token, in logs: :math:`m_v = \log \sum_i e^{l_i} [y_i = v]`.

    Args:
        logs: Logs of what is added up; minus infinity counts nothing.
        tokens: For which token each counts.
        vocab_size: Number of tokens.

    Shapes:
        logs and tokens: ``[*batch, n]``; output: ``[*batch, vocab]``, minus infinity where there is nothing to sum.
    """
    # Each token has a largest of its own: it may weigh too little beside others for any number but a log.
    top = logs.new_full((*logs.shape[:-1], vocab_size), NOTHING)
    top.scatter_reduce_(-1, tokens, logs.detach(), "amax")
    top = top.masked_fill_(top == NOTHING, 0.0)
    mass = torch.zeros_like(top).scatter_add(-1, tokens, (logs - top.gather(-1, tokens)).exp())
    nobody = mass == 0
    return (top + mass.masked_fill(nobody, 1.0).log()).masked_fill(nobody, NOTHING)


def _shifted(
    queries: Tensor, past: Past, context: Context, block: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Queries and keys so that a query's own place is that of the key before it, and the mask of each block."""
    dtype, time = compute_dtype(queries), context.tokens.shape[1]
    held = past.keys.shape[1] - time
    # Without anything in front, the first position has nothing to point at.
    q, k = queries[:, 0 if held else 1 :].to(dtype), past.keys[:, :-1].to(dtype)
    time, held = q.shape[1], k.shape[1] - q.shape[1]
    if held or (past.window is not None and past.window < time):
        window = held + time if past.window is None else past.window
        labels = None if past.labels is None else past.labels[:, :-1]
        return q, k, band_masks(time, held, block, window, labels, q.device, dtype)
    masks = []
    for mask, (here, seen) in zip(
        context.attention_masks(block, dtype), spans(time, 0, block, None), strict=False
    ):
        rows = here.stop - here.start
        masks.append(mask[:, :rows, seen] if mask.ndim == 3 else mask[:rows, :rows])
    return q, k, masks


def _placed(mass: Tensor, past: Past, context: Context) -> Tensor:
    """Sums of shifted queries where they belong; the first position of a document has none."""
    time = context.tokens.shape[1]
    if past.keys.shape[1] == time:
        begins = ~context.same_document(1)
        mass = F.pad(mass, (0,) * (2 * (mass.ndim - 2)) + (1, 0), value=NOTHING)
    else:
        assert past.labels is not None
        begins = (past.labels[:, 1:] != past.labels[:, :-1])[:, -time:]
    return mass.masked_fill(begins if mass.ndim == 2 else begins[..., None], NOTHING)
