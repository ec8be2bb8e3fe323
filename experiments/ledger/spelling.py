"""Functions whose kernels differ from device to device, or from train to eval, billed by what they compute."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental import _config as fx_config

from experiments.ledger.attention import backward_cost, forward_cost
from experiments.ledger.price import Cost

_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
# Whoever compiles a function has imported one of these; importing them for everybody takes seconds.
_COMPILERS = {"torch._dynamo", "torch.nn.attention.flex_attention"}
ATTENTION = "scaled_dot_product_attention"


class Meter(Protocol):
    """What bills a whole function as one operator: the ledger."""

    def watching(self) -> bool:
        """Whether operators called from here would be billed one by one."""
        ...

    def as_one(self, operator: str, forward: Cost, backward: Cost) -> AbstractContextManager[None]:
        """Bill everything inside, and its backward, as ``operator`` at the costs given."""
        ...


def spell(meter: Meter, stack: ExitStack) -> None:
    """Until ``stack`` unwinds, bill attention and dropout by their meaning.

    Attention picks among flash, efficient and plain kernels by device, dropout and mask; dropout exists in training
    only; the fused encoder layer exists in evaluation only. Each would otherwise change the bill of the same model.
    Compiled functions run uncompiled meanwhile.

    Args:
        meter: The ledger.
        stack: Undoes everything.
    """
    _replace(stack, ATTENTION, functools.partial(_attention, meter))
    for name in _DROPOUTS:
        _replace(stack, name, functools.partial(_dropout, meter))
    if not _COMPILERS.isdisjoint(sys.modules):
        # Compiled code hides its operators. Run as written, it is seen, and is left as fast as it was.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
    # A selection by a mask that has no values takes everything, as attention does.
    stack.enter_context(fx_config.patch(meta_nonzero_assume_all_nonzero=True))  # type: ignore[attr-defined]
    stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
    torch.backends.mha.set_fastpath_enabled(False)


def _replace(
    stack: ExitStack, name: str, make: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
) -> None:
    original = getattr(F, name)
    setattr(F, name, functools.wraps(original)(make(original)))
    stack.callback(setattr, F, name, original)


def _dropout(meter: Meter, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def dropout(*args: Any, **kwargs: Any) -> Tensor:
        if not meter.watching():
            return original(*args, **kwargs)
        with meter.as_one("dropout", Cost(), Cost()):
            return original(*args, **kwargs)

    return dropout


def _attention(meter: Meter, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        given = query, key, value, attn_mask
        if not meter.watching():
            return original(*given, dropout_p, is_causal, **kwargs)
        for_query, for_key, for_value, for_mask = (
            tensor is not None and tensor.requires_grad for tensor in given
        )
        wanted = for_query, for_key, for_value, for_mask
        nothing = Cost()
        with meter.as_one("nothing", nothing, nothing):
            forward = forward_cost(*given, is_causal)
            backward = backward_cost(*given, is_causal, wanted) if any(wanted) else nothing
        with meter.as_one(f"aten.{ATTENTION}", forward, backward):
            # The plain kernel lays its results out head by head; the fused one lays the output out like the query
            # and gradients time by time. Unless both do, copies made later differ, and so do the bills.
            if (query.is_meta or dropout_p > 0) and query.ndim == 4:
                parts = (_TimeMajorGradient.apply(tensor) for tensor in (query, key, value))
                return _laid_out_like(query, original(*parts, attn_mask, dropout_p, is_causal, **kwargs))
            return original(*given, dropout_p, is_causal, **kwargs)

    return attention


def _laid_out_like(query: Tensor, x: Tensor) -> Tensor:
    strides = torch.empty_like(query).stride()
    order = sorted(range(query.ndim), key=lambda dim: -strides[dim])
    return x.permute(order).contiguous().permute([order.index(dim) for dim in range(query.ndim)])


class _TimeMajorGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:  # type: ignore[override]
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.transpose(1, 2).contiguous().transpose(1, 2)
