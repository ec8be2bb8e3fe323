"""The head and its loss in one step, in cache-sized pieces."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from mann.linear import product, weight_gradient
from mann.norm import compute_dtype, sum_dtype

# Rows whose logits are in flight at once: 128 rows of 2,048 float32 logits are one megabyte, which stays in cache.
ROWS = 128
LOG2_E = math.log2(math.e)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx, x: Tensor, weight: Tensor, targets: Tensor, with_total: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        dtype = compute_dtype(x)
        x_low, weight_low = x.to(dtype), weight.to(dtype)
        logits = product(x_low, weight_low)
        losses, totals = [], []
        for piece, wanted in zip(logits.split(ROWS), targets[:, None].split(ROWS), strict=True):
            z = piece.to(sum_dtype(piece))
            top, target = z.amax(-1, keepdim=True), z.gather(-1, wanted)
            # In base 2: torch's exp goes through a library that takes three times as long as its exp2.
            exponentials = torch.add(top * -LOG2_E, z, alpha=LOG2_E, out=z).exp2_()
            total = exponentials.sum(-1, keepdim=True)
            log_total = total.log()
            losses.append(top - target + log_total)
            if with_total:
                totals.append(top + log_total)
            # The error, softmax - one-hot, takes the place of the logits, which nobody needs any more.
            piece.copy_(
                exponentials.mul_(total.reciprocal()).scatter_add_(-1, wanted, -torch.ones_like(total))
            )
        ctx.save_for_backward(x_low, weight_low, logits, targets if with_total else None)
        ctx.dtypes = (x.dtype, weight.dtype)
        nll = torch.cat(losses).squeeze(-1)
        return (nll, torch.cat(totals).squeeze(-1)) if with_total else nll

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, grad_total: Tensor | None = None):  # type: ignore[override]
        x, weight, error, targets = ctx.saved_tensors
        both = grad if grad_total is None else grad + grad_total
        # The upstream gradient scales rows of the thin factors instead of the wide matrix.
        scale = both[:, None].to(x.dtype)
        grad_x = product(error, weight.t()) * scale
        grad_weight = weight_gradient(error, x * scale)
        if grad_total is not None:
            # The gradient of the sum is the softmax, which is the error and the one-hot that was taken off it.
            upstream = grad_total[:, None]
            grad_x = grad_x + weight.index_select(0, targets) * upstream
            grad_weight = grad_weight + torch.ops.mnemograph.add_to_rows(
                x * upstream, targets[:, None], None, len(weight)
            )
        return grad_x.to(ctx.dtypes[0]), grad_weight.to(ctx.dtypes[1]), None, None


def linear_cross_entropy(
    x: Float[Tensor, "rows width"], weight: Float[Tensor, "vocab width"], targets: Int[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    r"""Per-row cross entropy of :math:`\mathrm{softmax}(x W^\top)` without float32 logits of the whole batch.

    .. math:: \ell_i = -\log \frac{\exp(x_i^\top w_{y_i})}{\sum_v \exp(x_i^\top w_v)}

    Logits are exponentiated once, in float32 and piece by piece, for the loss and for the error that gradients are
    made of, which is kept in the autocast type; equal to ``F.cross_entropy(x @ weight.T, targets, reduction="none")``
    up to rounding.

    Args:
        x: Final hidden states.
        weight: Output embedding.
        targets: Token ids, all valid.

    Shapes:
        x: ``[rows, width]``; weight: ``[vocab, width]``; targets and output: ``[rows]``.
    """
    return _LinearCrossEntropy.apply(x, weight, targets, False)


def linear_cross_entropy_and_total(
    x: Float[Tensor, "rows width"], weight: Float[Tensor, "vocab width"], targets: Int[Tensor, " rows"]
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    r"""What :func:`linear_cross_entropy` gives, and the log of the sum it divides by.

    .. math:: t_i = \log \sum_v \exp(x_i^\top w_v), \qquad x_i^\top w_{y_i} = t_i - \ell_i

    For losses in which the vocabulary shares a softmax with something else: they need these two numbers of a row, and
    its logits no more.

    Args:
        x: Final hidden states.
        weight: Output embedding.
        targets: Token ids, all valid.

    Shapes:
        x: ``[rows, width]``; weight: ``[vocab, width]``; targets and both outputs: ``[rows]``.
    """
    return _LinearCrossEntropy.apply(x, weight, targets, True)
