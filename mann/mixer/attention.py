"""How positions exchange: causal attention with rotary positions and shifted keys."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mann.context import Context
from mann.linear import Linear
from mann.rotary import queries_keys


class CausalAttention(nn.Module):
    r"""Softmax attention over the past of the same document.

    .. math::
        \tilde k_t = (1 - a)\, k_t + a\, k_{t-1}, \qquad
        y_t = W_o \sum_{s \le t} \mathrm{softmax}_s\big(\gamma\, \langle R_t \hat q_t, R_s \hat k_s \rangle\big) v_s

    with RMS-normalised :math:`\hat q, \hat k` (QK-norm), rotations :math:`R` (RoPE) and one learned :math:`a` per
    head. Mixing each key with the one before it costs nothing and lets induction heads, and so in-context copying,
    appear much earlier; without it a small dense baseline is weak by a factor of about three in compute.

    Queries are taken in blocks, and each block multiplies only with the keys up to its own end: the upper triangle
    is skipped block by block, on any device, with plain matrix products.

    References:
        Vaswani et al., "Attention is all you need", 2017. arXiv:1706.03762;
        Henry et al., "Query-key normalization", 2020. arXiv:2010.04245.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of heads; must divide ``d_model`` into an even head width.
        block: Queries per block.
        base: Base of the rotary frequencies.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If ``n_heads`` does not divide ``d_model`` into an even head width.
    """

    def __init__(self, d_model: int, n_heads: int, block: int = 64, base: float = 10_000.0) -> None:
        super().__init__()
        if n_heads < 1 or d_model % n_heads or (d_model // n_heads) % 2:
            counts = [h for h in range(1, d_model + 1) if d_model % (2 * h) == 0]
            remedy = (
                f"choose n_heads among {counts}" if counts else "choose an even d_model, such as 32 or 64"
            )
            raise ValueError(f"d_model={d_model} cannot be cut into {n_heads} heads of even width: {remedy}")
        self.n_heads = n_heads
        self.d_head = d_model // n_heads
        self.block = block
        self.base = base
        self.qkv = Linear(d_model, 3 * d_model)
        # Each is made orthogonal by itself.
        self.qkv.weight.matrices = 3  # type: ignore[attr-defined]
        self.out = Linear(d_model, d_model)
        # Every other head begins mostly as a previous-token head, the rest mostly without a shift: both kinds are
        # wanted. Better than starting all of them halfway at 1e12 FLOPs, no worse at 3e12 and 1e13 (single runs).
        self.shift = nn.Parameter(torch.tensor([1.5, -1.5]).repeat(n_heads)[:n_heads, None])
        self.scale = nn.Parameter(torch.full((n_heads, 1), 4 * self.d_head**-0.5))
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        batch, time, width = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.n_heads, self.d_head).unbind(2)
        cosine, sine = context.rotations(self.d_head, self.base, q.dtype)
        tables = cosine[:, None, None], sine[:, None, None]
        inside = None if context.documents is None else context.same_document(1)
        share = torch.sigmoid(self.shift).to(q.dtype)
        q, k = queries_keys(q, k, share, self.scale, tables, inside)
        q, k, v = (part.transpose(1, 2).flatten(0, 1) for part in (q, k, v))
        y = causal_attention(q, k, v, context, self.block)
        return self.out(y.unflatten(0, (batch, self.n_heads)).transpose(1, 2).reshape(batch, time, width))


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, masks, block):  # type: ignore[override]
        heads = q.shape[0] // masks[0].shape[0] if masks[0].ndim == 3 else 0
        y = torch.empty_like(v)
        weights = []
        for index, start in enumerate(range(0, q.shape[1], block)):
            here = slice(start, min(start + block, q.shape[1]))
            scores = torch.bmm(q[:, here], k[:, : here.stop].transpose(1, 2))
            if heads:
                scores.view(-1, heads, *scores.shape[1:]).add_(masks[index][:, None])
            else:
                scores[:, :, here].add_(masks[index])
            share = torch.softmax(scores, -1)
            y[:, here] = torch.bmm(share, v[:, : here.stop])
            weights.append(share)
        ctx.save_for_backward(q, k, v, *weights)
        ctx.block = block
        return y

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        q, k, v, *weights = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for index, start in reversed(list(enumerate(range(0, q.shape[1], ctx.block)))):
            here = slice(start, min(start + ctx.block, q.shape[1]))
            share, upstream = weights[index], grad[:, here]
            grad_v[:, : here.stop].baddbmm_(share.transpose(1, 2), upstream)
            grad_share = torch.bmm(upstream, v[:, : here.stop].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_share, share, -1, share.dtype)
            grad_q[:, here] = torch.bmm(grad_scores, k[:, : here.stop])
            grad_k[:, : here.stop].baddbmm_(grad_scores.transpose(1, 2), q[:, here])
        return grad_q, grad_k, grad_v, None, None


def causal_attention(
    q: Float[Tensor, "sequences time d_head"],
    k: Float[Tensor, "sequences time d_head"],
    v: Float[Tensor, "sequences time d_value"],
    context: Context,
    block: int,
) -> Float[Tensor, "sequences time d_value"]:
    """Unscaled causal attention inside each document, one block of queries at a time.

    Args:
        q: Queries, batch and heads folded into ``sequences``.
        k: Keys.
        v: Values.
        context: Gives the documents.
        block: Queries per block.

    Shapes:
        q, k: ``[sequences, time, d_head]``; v and output: ``[sequences, time, d_value]``.
    """
    return _CausalAttention.apply(q, k, v, context.attention_masks(block, q.dtype), block)
