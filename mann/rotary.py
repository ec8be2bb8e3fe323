"""Queries and keys made ready for attention: shifted, normalised, rotated."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mann.norm import EPSILON, sum_dtype


def rotary_tables(
    time: int, d_head: int, base: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of the rotary angles, each ``[time, d_head]``."""
    frequencies = base ** (-torch.arange(0, d_head, 2, device=device, dtype=torch.float32) / d_head)
    angles = torch.arange(time, device=device, dtype=torch.float32)[:, None] * frequencies
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([cosine, cosine], -1).to(dtype), torch.cat([-sine, sine], -1).to(dtype)


def rotate(x: Float[Tensor, "*batch d_head"], cosine: Tensor, sine: Tensor) -> Float[Tensor, "*batch d_head"]:
    """Turn vectors by tables of :func:`rotary_tables`, broadcast to them; the other way round by ``-sine``."""
    half = x.shape[-1] // 2
    return (x * cosine).addcmul_(torch.cat([x[..., half:], x[..., :half]], -1), sine)


class _QueriesKeys(torch.autograd.Function):
    # By hand because a rotation keeps lengths: the gradient of normalising needs only <grad, output>, the same number
    # gives the gradient of the scale, and some thirty recorded operators become a dozen.
    @staticmethod
    def forward(ctx, q, k, share, scale, tables, inside):  # type: ignore[override]
        earlier = _previous(k, inside)
        difference = earlier.sub_(k)
        z = torch.stack([q, torch.addcmul(k, difference, share)], 2)
        inverse = torch.rsqrt(z.square().mean(-1, keepdim=True, dtype=sum_dtype(z)) + EPSILON)
        inverse[:, :, 0] *= scale
        inverse = inverse.to(z.dtype)
        y = z * inverse if tables is None else rotate(z * inverse, *tables)
        ctx.save_for_backward(y, inverse, difference, share, scale, *(tables or ()))
        ctx.inside = inside
        return y[:, :, 0], y[:, :, 1]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_q, grad_k):  # type: ignore[override]
        y, inverse, difference, share, scale, *tables = ctx.saved_tensors
        grad = torch.stack([grad_q, grad_k], 2)
        along = (grad * y).mean(-1, keepdim=True, dtype=sum_dtype(y))
        grad_scale = along[:, :, 0].sum((0, 1)) * y.shape[-1] / scale
        # y = rotation(unit) with |unit|^2 = d, but the queries carry their scale twice in <grad, y> y.
        along[:, :, 0] /= scale.square()
        grad = torch.addcmul(grad, y, along.to(y.dtype), value=-1).mul_(inverse)
        if tables:
            grad = rotate(grad, tables[0], -tables[1])
        grad_q, grad_k = grad[:, :, 0], grad[:, :, 1]
        grad_share = (grad_k * difference).sum((0, 1, 3), dtype=sum_dtype(y))[:, None].to(share.dtype)
        moved = grad_k * share
        back = torch.cat([moved[:, 1:], torch.zeros_like(moved[:, :1])], 1)
        inside = ctx.inside
        if inside is not None:
            back = back * torch.cat([inside[:, 1:], inside[:, :1]], 1)[..., None, None]
            moved = moved * inside[..., None, None]
        else:
            moved[:, 0] = 0
        grad_k = grad_k - moved + back
        return grad_q, grad_k, grad_share, grad_scale, None, None


def _previous(k: Tensor, inside: Tensor | None) -> Tensor:
    earlier = torch.cat([k[:, :1], k[:, :-1]], 1)
    return earlier if inside is None else torch.where(inside[..., None, None], earlier, k)


def queries_keys(
    q: Float[Tensor, "batch time heads d_head"],
    k: Float[Tensor, "batch time heads d_head"],
    share: Float[Tensor, "heads 1"],
    scale: Float[Tensor, "heads 1"],
    tables: tuple[Tensor, Tensor] | None,
    inside: Bool[Tensor, "batch time"] | None,
) -> tuple[Float[Tensor, "batch time heads d_head"], Float[Tensor, "batch time heads d_head"]]:
    r"""Shift the keys, normalise queries and keys, scale the queries, rotate both.

    .. math::
        \tilde k_t = k_t + a (k_{t-1} - k_t), \qquad
        q'_t = R_t \, \gamma \, \mathrm{rms}(q_t), \qquad k'_t = R_t \, \mathrm{rms}(\tilde k_t)

    First derivatives only.

    References:
        Su et al., "RoFormer", 2021. arXiv:2104.09864;
        Henry et al., "Query-key normalization", 2020. arXiv:2010.04245.

    Args:
        q: Queries.
        k: Keys.
        share: :math:`a`, how much of the previous position's key each key takes over.
        scale: :math:`\gamma`, one number per head.
        tables: Cosines and signed sines, ``[time, 1, 1, d_head]`` each up to broadcasting; ``None``: no rotation.
        inside: True where the previous position belongs to the same document; ``None``: everywhere but at 0.

    Shapes:
        q, k and both outputs: ``[batch, time, heads, d_head]``.
    """
    return _QueriesKeys.apply(q, k, share, scale, tables, inside)
