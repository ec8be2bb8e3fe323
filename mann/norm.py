"""RMS normalisation without a gain, in few passes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILON = 1e-6


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type matrix products of ``x`` run in: autocast's where it is on, else that of ``x``."""
    kind = x.device.type
    # The meta device, where bills are predicted, has no autocast to ask about.
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if autocast else x.dtype


def sum_dtype(x: Tensor) -> torch.dtype:
    """The type to add up numbers of ``x`` in: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


class _RMSNorm(torch.autograd.Function):
    # The chain of five small operators that autograd would record costs more than the arithmetic on narrow models.
    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True, dtype=sum_dtype(x)) + EPSILON)
        y = (x * inverse).to(dtype)
        ctx.save_for_backward(y, inverse)
        ctx.dtype = x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        y, inverse = ctx.saved_tensors
        along = (grad * y).mean(-1, keepdim=True, dtype=sum_dtype(y))
        return torch.addcmul(grad, y, along.to(y.dtype), value=-1).mul(inverse).to(ctx.dtype), None


def rms_norm(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    r"""Scale each vector to unit root mean square.

    .. math:: y = x \, / \sqrt{\tfrac{1}{d} \sum_i x_i^2 + \epsilon}

    Under autocast the result is already in the type the next matrix product wants. First derivatives only.

    Reference:
        Zhang and Sennrich, "Root mean square layer normalization", 2019. arXiv:1910.07467.

    Args:
        x: Vectors in the last dimension.

    Shapes:
        input and output: ``[..., width]``.
    """
    return _RMSNorm.apply(x, compute_dtype(x))
