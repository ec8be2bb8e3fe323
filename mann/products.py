"""Products of many pairs of matrices; in float32 on AMD's processors through oneDNN.

MKL, which torch takes for them, leaves the wide vector units of these processors unused, as :mod:`mann.linear` says.
oneDNN inside torch multiplies one pair a call, which pays from some size up.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

__all__ = ["products"]

# Multiply-adds of a pair from which a call of its own is earned back.
_WORTH = 1 << 21
# None in builds of torch without oneDNN.
_onednn: Any = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
)


def products(
    a: Float[Tensor, "n rows d"], b: Float[Tensor, "n d columns"]
) -> Float[Tensor, "n rows columns"]:
    """The product of each pair of matrices, by the faster library; not recorded by autograd.

    Args:
        a: First factors.
        b: Second factors.

    Shapes:
        a: ``[n, rows, d]``; b: ``[n, d, columns]``; result: ``[n, rows, columns]``
    """
    return torch.ops.mnemograph.products(a, b)


# One operator, so that the bill is the same on every device.
torch.library.define("mnemograph::products", "(Tensor a, Tensor b) -> Tensor")


@torch.library.impl("mnemograph::products", "CompositeExplicitAutograd")
def _products(a: Tensor, b: Tensor) -> Tensor:
    if a.is_cpu and a.dtype == b.dtype == torch.float32 and _pays(a, b):
        pairs = zip(a.unbind(), b.mT.unbind(), strict=True)
        return torch.stack([_onednn(x, weight, None, "none", [], "") for x, weight in pairs])
    return torch.bmm(a, b)


@torch.library.register_fake("mnemograph::products")
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(*a.shape[:2], b.shape[2])


@cache
def _mkl_is_slow() -> bool:
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    amd = str(found.get("cpu_name", "")).startswith("AMD")
    return _onednn is not None and amd and bool(found.get("avx512_f", False))


def _pays(a: Tensor, b: Tensor) -> bool:
    size = a.shape[1] * a.shape[2] * b.shape[2]
    return len(a) > 0 and size >= _WORTH and _mkl_is_slow() and _dense(a) and _dense(b)


def _dense(x: Tensor) -> bool:
    """Whether each matrix or its transpose lies in one piece: others oneDNN multiplies a thousand times slower."""
    rows, columns = x.shape[1:]
    return x.stride()[1:] in ((columns, 1), (1, rows))


@register_flop_formula(torch.ops.mnemograph.products)
def _flops(a_shape: torch.Size, b_shape: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * a_shape.numel() * b_shape[2]


_flops.billed_as = "aten.bmm"  # type: ignore[attr-defined]
