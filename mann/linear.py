"""Linear maps without bias; in float32 on CPUs through oneDNN.

MKL, which torch takes for float32 products on CPUs, leaves the wide vector units of AMD's processors unused; oneDNN,
inside torch too, runs the same product on them twice as fast.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from mann.norm import compute_dtype

# Multiply-adds from which oneDNN's ten microseconds a call are earned back.
WORTH = 1 << 20
# None in builds of torch without oneDNN.
_onednn: Any = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
)

# The copy belongs to the operator, as copies do that libraries make inside their products: no bill shows either, and
# bills agree on every device.
torch.library.define("mnemograph::transposed_product", "(Tensor x, Tensor weight) -> Tensor")


@torch.library.impl("mnemograph::transposed_product", "cpu")
def _transposed_product(x: Tensor, weight: Tensor) -> Tensor:
    return product(x, weight).t().contiguous()


@torch.library.register_fake("mnemograph::transposed_product")
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(weight.shape[0], x.shape[0])


_products = [torch.ops.mnemograph.transposed_product, *([] if _onednn is None else [_onednn])]


@register_flop_formula(_products)
def _flops(x_shape: torch.Size, weight_shape: torch.Size, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * x_shape.numel() * weight_shape[0]


# One bill on every device, whichever library multiplies.
_flops.billed_as = "aten.mm"  # type: ignore[attr-defined]


def product(
    x: Float[Tensor, "*batch width"], weight: Float[Tensor, "out width"]
) -> Float[Tensor, "*batch out"]:
    r"""The product :math:`x W^\top` by the faster library; not recorded by autograd.

    Args:
        x: Vectors in the last dimension.
        weight: One row per output.

    Shapes:
        x: ``[..., width]``; weight: ``[out, width]``; output: ``[..., out]``.
    """
    if _through_onednn(x, weight):
        return _onednn(x, weight, None, "none", [], "")
    return x @ weight.t()


def weight_gradient(
    grad: Float[Tensor, "rows out"], x: Float[Tensor, "rows width"]
) -> Float[Tensor, "out width"]:
    r"""The gradient of the weight in :func:`product`, :math:`G^\top x`; not recorded by autograd.

    Args:
        grad: Gradient of the output.
        x: What was multiplied.

    Shapes:
        grad: ``[rows, out]``; x: ``[rows, width]``; output: ``[out, width]``.
    """
    if not _through_onednn(x.t(), grad.t()):
        return grad.t() @ x
    # oneDNN copies a first factor that is transposed, so that is the narrower one. What comes out transposed is
    # turned: autograd would copy it anyway.
    if grad.shape[1] <= x.shape[1]:
        return product(grad.t(), x.t())
    return torch.ops.mnemograph.transposed_product(x.t(), grad.t())


def _through_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        _onednn is not None
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() * weight.shape[0] >= WORTH
    )


def _own_gradient(x: Tensor, weight: Tensor) -> bool:
    return (
        _through_onednn(x, weight)
        and compute_dtype(x) == torch.float32
        # Torch's copy of a strided input is billed everywhere; oneDNN would make it unseen.
        and x.is_contiguous()
        # Transforms of torch.func know torch's own operators only.
        and not torch._C._are_functorch_transforms_active()
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_x, grad_weight = None, None
        if ctx.needs_input_grad[0]:
            grad_x = product(grad, weight.t()).view(x.shape)
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(grad, x.view(-1, x.shape[-1]))
        return grad_x, grad_weight


class Linear(nn.Linear):
    r"""A linear map without bias.

    .. math:: y = W x

    First derivatives only where oneDNN multiplies: large products in float32 on CPUs, outside of ``torch.func``.

    Args:
        d_in: Width of the input.
        d_out: Width of the output.

    Shapes:
        input: ``[..., d_in]``; output: ``[..., d_out]``.
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, bias=False)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        if _own_gradient(x, self.weight):
            return _Linear.apply(x, self.weight)
        return F.linear(x, self.weight)
