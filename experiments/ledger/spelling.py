"""Functions whose kernels differ from device to device, or from train to eval, billed by what they compute."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import _VF, Tensor
from torch.fx.experimental import _config as fx_config
from torch.utils import _python_dispatch

from experiments.ledger.attention import backward_cost, forward_cost, has_values
from experiments.ledger.batched import meant, spelled_out
from experiments.ledger.price import Cost

# Every function for dropout calls one of these.
_DROPOUTS = ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")
_NOTES = (
    "_is_in_torch_dispatch_mode",
    "_is_in_non_infra_torch_dispatch_mode",
    "_is_in_any_mode_without_ignore_compile_internals",
)
# Whoever compiles a function has imported one of these; importing them for everybody takes seconds.
_COMPILERS = {"torch._dynamo", "torch.nn.attention.flex_attention"}
ATTENTION = "scaled_dot_product_attention"


class Meter(Protocol):
    """What bills a whole function as one operator: the ledger.

    Attributes:
        upper_bound: Whether something was billed that a mask without values may hide.
    """

    upper_bound: bool

    def watching(self) -> bool:
        """Whether operators called from here would be billed one by one."""
        ...

    def as_one(self, operator: str, forward: Cost, backward: Cost) -> AbstractContextManager[None]:
        """Bill everything inside, and its backward, as ``operator`` at the costs given."""
        ...


# Ledgers may overlap in any order and in several threads, but what they replace is everybody's: the first ledger
# replaces it and the last puts it back.
_lock = threading.Lock()
_meters: list[Meter] = []
_replaced = ExitStack()
_uncompiled = False


class _Thread(threading.local):
    ledgers = 0
    assumed = False


# Settings of torch.fx belong to a thread.
_here = _Thread()


def spell(meter: Meter, stack: ExitStack) -> None:
    """Until ``stack`` unwinds, bill attention and dropout by their meaning.

    Attention picks among flash, efficient and plain kernels by device, dropout and mask; dropout exists in training
    only; the fused encoder layer exists in evaluation only. Each would otherwise change the bill of the same model.
    Compiled functions run uncompiled meanwhile.

    Args:
        meter: The ledger.
        stack: Undoes everything.
    """
    with _lock:
        if not _meters:
            _replace_all()
        _meters.append(meter)
        stack.callback(_leave, meter)
        _run_uncompiled()
    stack.enter_context(_all_assumed_nonzero())


def _leave(meter: Meter) -> None:
    global _uncompiled
    with _lock:
        _meters.remove(meter)
        if not _meters:
            _uncompiled = False
            _replaced.close()


@contextmanager
def _all_assumed_nonzero() -> Iterator[None]:
    """A selection by a mask that has no values takes everything, as attention does."""
    config: Any = fx_config
    if not _here.ledgers:
        _here.assumed, config.meta_nonzero_assume_all_nonzero = config.meta_nonzero_assume_all_nonzero, True
    _here.ledgers += 1
    try:
        yield
    finally:
        _here.ledgers -= 1
        if not _here.ledgers:
            config.meta_nonzero_assume_all_nonzero = _here.assumed


def _replace_all() -> None:
    _replace(F, ATTENTION, _attention)
    for name in _DROPOUTS:
        for ending in ("", "_"):
            _replace(torch, name + ending, _dropout)
            _replace(_VF, name + ending, _dropout)
    # torch keeps modes for each thread, but one note for all of whether there are any.
    for note in _NOTES:
        _replaced.callback(setattr, _python_dispatch, note, getattr(_python_dispatch, note))
    _replaced.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
    torch.backends.mha.set_fastpath_enabled(False)


def _run_uncompiled() -> None:
    global _uncompiled
    if not _uncompiled and not _COMPILERS.isdisjoint(sys.modules):
        # Compiled code hides its operators, and entered while they are watched it would stay slow afterwards. Run as
        # written, it is seen, and is left as fast as it was.
        _replaced.enter_context(torch.compiler.set_stance("force_eager"))
        _uncompiled = True


def _replace(home: Any, name: str, make: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> None:
    original, own = getattr(home, name), name in vars(home)
    setattr(home, name, functools.wraps(original)(make(original)))
    if own:
        _replaced.callback(setattr, home, name, original)
    else:  # it stands for an attribute that is looked up elsewhere
        _replaced.callback(delattr, home, name)


def _watching() -> list[Meter]:
    return [meter for meter in tuple(_meters) if meter.watching()]


@contextmanager
def _as_one(meters: list[Meter], operator: str, forward: Cost, backward: Cost) -> Iterator[None]:
    with ExitStack() as stack:
        for meter in meters:
            stack.enter_context(meter.as_one(operator, forward, backward))
        yield


def _dropout(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def dropout(*args: Any, **kwargs: Any) -> Tensor:
        with _as_one(_watching(), "dropout", Cost(), Cost()):
            return original(*args, **kwargs)

    return dropout


def _attention(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        meters, nothing = _watching(), Cost()
        if hasattr(attn_mask, "variant"):
            with _as_one(meters, "nothing", nothing, nothing):
                attn_mask, is_causal = spelled_out(query, key, attn_mask, is_causal)
        given = query, key, value, attn_mask
        if not meters:
            return original(*given, dropout_p, is_causal, **kwargs)
        for_query, for_key, for_value, for_mask = (
            tensor is not None and tensor.requires_grad for tensor in given
        )
        wanted = for_query, for_key, for_value, for_mask
        for meter in meters:
            meter.upper_bound |= attn_mask is not None and not has_values(attn_mask)
        with _as_one(meters, "nothing", nothing, nothing), torch._C._DisableFuncTorch():
            forward = backward = nothing
            for parts, causal in meant(*given, is_causal):
                forward += forward_cost(*parts, causal)
                backward += backward_cost(*parts, causal, wanted) if any(wanted) else nothing
        with _as_one(meters, f"aten.{ATTENTION}", forward, backward):
            # The plain kernel lays its results out head by head; the fused one lays the output out like the query
            # and gradients time by time. Unless both do, copies made later differ, and so do the bills.
            if (query.is_meta or dropout_p > 0) and query.ndim == 4 and not query.is_nested:
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
