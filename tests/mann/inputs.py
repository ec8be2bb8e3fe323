"""Inputs of all shapes, and one way to compare gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mann import Context


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random numbers that want a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


def labels(batch: int, time: int, seed: int = 0) -> Tensor:
    """Document labels that change now and then; a label may return."""
    generator = torch.Generator().manual_seed(seed)
    change = torch.rand(batch, time, generator=generator) < 0.2
    return change.cumsum(1) % 3


def runs(documents: Tensor | None, batch: int, time: int) -> Tensor:
    """The number of changes of label before each position, counted one by one."""
    result = torch.zeros(batch, time, dtype=torch.int64)
    if documents is not None:
        for t in range(1, time):
            result[:, t] = result[:, t - 1] + (documents[:, t] != documents[:, t - 1])
    return result


def context(batch: int, time: int, documents: Tensor | None = None) -> Context:
    """A context whose tokens do not matter."""
    return Context(torch.zeros(batch, time, dtype=torch.int64), documents)


def outputs_and_gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]], leaves: Sequence[Tensor]
) -> list[Tensor]:
    """What a function returns, and the gradients of a weighted sum of it."""
    found = function(*leaves)
    outputs = found if isinstance(found, tuple) else (found,)
    total = sum(
        (output * randn(*output.shape, seed=9 + i).detach().to(output.dtype)).sum()
        for i, output in enumerate(outputs)
    )
    assert isinstance(total, Tensor)
    return [*(output.detach() for output in outputs), *torch.autograd.grad(total, leaves)]


def assert_same(
    fast: Callable[..., Tensor | tuple[Tensor, ...]],
    naive: Callable[..., Tensor | tuple[Tensor, ...]],
    *leaves: Tensor,
    tolerance: float = 1e-10,
) -> None:
    """Outputs and gradients of two functions agree, and are not all zero."""
    one, other = outputs_and_gradients(fast, leaves), outputs_and_gradients(naive, leaves)
    assert any(tensor.any() for tensor in other)
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
