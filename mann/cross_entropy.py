"""The head and its loss in one step, in cache-sized pieces."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mann.linear import product, weight_gradient
from mann.norm import compute_dtype, sum_dtype

# Rows whose logits are in flight at once: 128 rows of 2,048 float32 logits are one megabyte, which stays in cache.
ROWS = 128


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        dtype = compute_dtype(x)
        x_low, weight_low = x.to(dtype), weight.to(dtype)
        logits = product(x_low, weight_low)
        nll = torch.cat(
            [
                -torch.log_softmax(piece, -1, dtype=sum_dtype(piece)).gather(-1, wanted)
                for piece, wanted in zip(logits.split(ROWS), targets[:, None].split(ROWS), strict=True)
            ]
        ).squeeze(-1)
        ctx.save_for_backward(x_low, weight_low, targets, logits)
        ctx.dtypes = (x.dtype, weight.dtype)
        return nll

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, weight, targets, logits = ctx.saved_tensors
        dtype = x.dtype
        error = torch.softmax(logits, -1)
        # On the flat view: a scatter along the rows would copy the whole matrix to float32 and back.
        rows = torch.arange(len(targets), device=targets.device)
        error.view(-1).index_add_(0, rows * logits.shape[1] + targets, -torch.ones_like(error[:, 0]))
        scale = grad[:, None].to(dtype)
        # The upstream gradient scales rows of the thin factors instead of the wide error matrix.
        grad_x = product(error, weight.t()) * scale
        grad_weight = weight_gradient(error, x * scale)
        return grad_x.to(ctx.dtypes[0]), grad_weight.to(ctx.dtypes[1]), None


def linear_cross_entropy(
    x: Float[Tensor, "rows width"], weight: Float[Tensor, "vocab width"], targets: Int[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    r"""Per-row cross entropy of :math:`\mathrm{softmax}(x W^\top)` without float32 logits of the whole batch.

    .. math:: \ell_i = -\log \frac{\exp(x_i^\top w_{y_i})}{\sum_v \exp(x_i^\top w_v)}

    Logits are kept in the autocast type, normalised in float32 piece by piece, and turned into gradients in one
    pass; equal to ``F.cross_entropy(x @ weight.T, targets, reduction="none")`` up to rounding.

    Args:
        x: Final hidden states.
        weight: Output embedding.
        targets: Token ids, all valid.

    Shapes:
        x: ``[rows, width]``; weight: ``[vocab, width]``; targets and output: ``[rows]``.
    """
    return _LinearCrossEntropy.apply(x, weight, targets)
