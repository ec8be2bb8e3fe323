"""Groups of rows, each multiplied by a matrix of its own: what the experts of a mixture compute."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from mann.linear import product, weight_gradient
from mann.norm import compute_dtype

__all__ = ["grouped_linear"]


def grouped_linear(
    x: Float[Tensor, "rows width"], weight: Float[Tensor, "groups out width"], ends: Int[Tensor, "groups"]
) -> Float[Tensor, "rows out"]:
    r"""The product :math:`y_i = W_{g(i)} x_i`, rows of one group standing together.

    Nothing is padded and no row is left out. First derivatives only.

    Args:
        x: Rows, those of the first group first.
        weight: A matrix for each group.
        ends: Where each group ends; the last at the number of rows.

    Shapes:
        x: ``[rows, width]``; weight: ``[groups, out, width]``; ends: ``[groups]``; output: ``[rows, out]``.
    """
    kind = compute_dtype(x)
    return _Grouped.apply(x.to(kind), weight.to(kind), ends)


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight, ends)
        return torch.ops.mnemograph.grouped_product(x, weight, ends)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, weight, ends = ctx.saved_tensors
        wanted, weighted, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        return (
            torch.ops.mnemograph.grouped_product(grad, weight.mT, ends) if wanted else None,
            torch.ops.mnemograph.grouped_weight_gradient(grad, x, ends) if weighted else None,
            None,
        )


def _spans(ends: Tensor) -> list[slice]:
    stops = ends.tolist()
    return [slice(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


# As operators they have one bill on every device, and one before there are values: it does not depend on who comes into
# which group. Inside they take the faster library, group by group.
torch.library.define("mnemograph::grouped_product", "(Tensor x, Tensor weight, Tensor ends) -> Tensor")
torch.library.define("mnemograph::grouped_weight_gradient", "(Tensor grad, Tensor x, Tensor ends) -> Tensor")


@torch.library.impl("mnemograph::grouped_product", "CompositeExplicitAutograd")
def _grouped_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    result = x.new_empty(len(x), weight.shape[1])
    if not x.is_meta:
        for span, matrix in zip(_spans(ends), weight, strict=True):
            if span.stop > span.start:
                result[span] = product(x[span], matrix)
    return result


@torch.library.impl("mnemograph::grouped_weight_gradient", "CompositeExplicitAutograd")
def _grouped_weight_gradient(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    result = x.new_zeros(len(ends), grad.shape[1], x.shape[1])
    if not x.is_meta:
        for span, matrix in zip(_spans(ends), result, strict=True):
            if span.stop > span.start:
                matrix.copy_(weight_gradient(grad[span], x[span]))
    return result


@register_flop_formula(torch.ops.mnemograph.grouped_product)
def _flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * x.numel() * weight[1]


@register_flop_formula(torch.ops.mnemograph.grouped_weight_gradient)
def _gradient_flops(grad: torch.Size, x: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * x.numel() * grad[1]


for _formula in (_flops, _gradient_flops):
    _formula.billed_as = "aten._grouped_mm"  # type: ignore[attr-defined]
