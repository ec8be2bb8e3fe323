"""The past of the same document as a distribution over the token that comes next.

Position ``s`` has seen the tokens up to ``s``, and its *answer* is token ``s + 1``. A later position ``t > s`` of the
same document knows that answer, so it may point at ``s``. All sums here are over those ``s``, and in logs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from mann.context import Context
from mann.norm import compute_dtype, sum_dtype

__all__ = ["past_mass", "past_masses", "token_masses"]

# Queries per block, as attention has them: masks are shared with it.
BLOCK = 64
NOTHING = float("-inf")
LN_2 = math.log(2)
LOG2_E = 1 / LN_2


class _PastMass(torch.autograd.Function):
    # A block of queries multiplies with the keys up to its own end, and no more than its scores is kept. All in base 2:
    # torch's exp takes three times as long as its exp2.
    @staticmethod
    def forward(  # type: ignore[override]
        ctx, queries: Tensor, keys: Tensor, answers: Tensor, targets: Tensor, masks: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        batch, time, _ = queries.shape
        total = queries.new_empty(batch, time, dtype=sum_dtype(queries))
        hit = torch.empty_like(total)
        kept = []
        for index, start in enumerate(range(0, time, BLOCK)):
            here = slice(start, min(start + BLOCK, time))
            scores = torch.bmm(queries[:, here], keys[:, : here.stop].transpose(1, 2))
            rows, mask = scores.shape[1], masks[index]
            if mask.ndim == 3:
                scores += mask[:, :rows, : here.stop]
            else:  # of the last keys alone
                scores[..., start:] += mask[:rows, :rows]
            wide = scores.to(total.dtype)
            total[:, here] = _log2_sum(wide)
            wrong = answers[:, None, : here.stop] != targets[:, here, None]
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
        for scores, start in zip(kept, range(0, queries.shape[1], BLOCK), strict=True):
            here = slice(start, min(start + BLOCK, queries.shape[1]))
            wide = scores.to(total.dtype)
            wrong = answers[:, None, : here.stop] != targets[:, here, None]
            grad = (wide - hit[:, here, None]).masked_fill_(wrong, NOTHING).exp2_()
            grad.mul_(grad_hit[:, here, None])
            share = (wide - total[:, here, None]).exp2_()
            grad = grad.addcmul_(share, grad_total[:, here, None]).to(queries.dtype)
            grad_queries[:, here] = torch.bmm(grad, keys[:, : here.stop])
            grad_keys[:, : here.stop].baddbmm_(grad.transpose(1, 2), queries[:, here])
        return grad_queries, grad_keys, None, None, None


def _log2_sum(scores: Tensor) -> Tensor:
    """Logarithms to base 2 of the sums of powers of 2."""
    top = scores.amax(-1, keepdim=True)
    top.masked_fill_(top == NOTHING, 0.0)
    return (scores - top).exp2_().sum(-1).log2_().add_(top.squeeze(-1))


def past_mass(
    queries: Float[Tensor, "batch time width"],
    keys: Float[Tensor, "batch time width"],
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
        keys: With what.
        context: Gives tokens and documents.
        targets: The tokens :math:`y`; one that is no token is never right.

    Shapes:
        queries and keys: ``[batch, time, width]``; targets and both outputs: ``[batch, time]``, minus infinity where
        there is nothing to sum.
    """
    q, k, masks = _shifted(queries * LOG2_E, keys, context, BLOCK)
    total, hit = _PastMass.apply(q, k, context.tokens[:, 1:], targets[:, 1:], masks)
    return _placed(total * LN_2, context), _placed(hit * LN_2, context)


def past_masses(
    queries: Float[Tensor, "batch time width"],
    keys: Float[Tensor, "batch time width"],
    context: Context,
    vocab_size: int,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time vocab"]]:
    """The same for every token of a vocabulary in place of one target.

    Args:
        queries: What to compare.
        keys: With what.
        context: Gives tokens and documents.
        vocab_size: Number of tokens.

    Shapes:
        queries and keys: ``[batch, time, width]``; outputs: ``[batch, time]`` and ``[batch, time, vocab]``.
    """
    # In base 2 as above, so that both round alike in half precision.
    q, k, masks = _shifted(queries * LOG2_E, keys, context, context.tokens.shape[1])
    mask = masks[0][..., : q.shape[1], : q.shape[1]]
    scores = (torch.bmm(q, k.transpose(1, 2)) + mask).to(sum_dtype(q)) * LN_2
    masses = token_masses(scores, context.tokens[:, None, 1:].expand_as(scores), vocab_size)
    return _placed(scores.logsumexp(-1), context), _placed(masses, context)


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
    queries: Tensor, keys: Tensor, context: Context, block: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Queries without the first and keys without the last, so that a query's own place is that of the key before it."""
    dtype = compute_dtype(queries)
    return queries[:, 1:].to(dtype), keys[:, :-1].to(dtype), context.attention_masks(block, dtype)


def _placed(mass: Tensor, context: Context) -> Tensor:
    """Sums of shifted queries where they belong; the first position of a document has none."""
    begins = ~context.same_document(1)
    widths = (0,) * (2 * (mass.ndim - 2)) + (1, 0)
    placed = F.pad(mass, widths, value=NOTHING)
    return placed.masked_fill(begins if mass.ndim == 2 else begins[..., None], NOTHING)
