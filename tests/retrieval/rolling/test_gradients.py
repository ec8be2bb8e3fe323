"""Gradients through a memory: they reach queries, end at what is stored, and survive what is written meanwhile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retrieval.rolling import RollingMemory
from tests.retrieval.rolling.test_memory import CAPACITY, HEADS, ROWS, D, entries, memory


class Attention(nn.Module):
    """Attention over neighbours, as the docstring of the memory has it."""

    def __init__(self, real: RollingMemory) -> None:
        super().__init__()
        self.memory = real
        self.project = nn.Linear(D, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.project(x)
        past = self.memory.gather(self.memory.search(queries, 3))
        scores = torch.einsum("bhtd,bhtkd->bhtk", queries, past.keys)
        weights = scores.masked_fill(~past.mask, -torch.inf).softmax(-1).nan_to_num()
        return torch.einsum("bhtk,bhtkd->bhtd", weights, past.values)


def test_gradients_reach_queries_and_end_at_what_is_stored():
    real = memory()
    keys, values = (x.requires_grad_() for x in entries(0, 6, whole=False))
    real.add(keys, values)
    module = Attention(real)
    module(entries(1, 4, whole=False)[0]).square().sum().backward()
    assert module.project.weight.grad is not None
    assert module.project.weight.grad.abs().sum() > 0
    assert keys.grad is None
    assert not real.gather(torch.zeros(ROWS, HEADS, 1, 1, dtype=torch.int64)).keys.requires_grad
    assert not list(module.buffers())
    assert list(module.state_dict()) == ["project.weight"]


def test_retrieving_everything_is_attention():
    real = memory()
    keys, values = entries(0, CAPACITY, whole=False)
    real.add(keys, values)
    queries = entries(1, 5, whole=False)[0]
    past = real.gather(real.search(queries, CAPACITY + 2))
    scores = torch.einsum("bhtd,bhtkd->bhtk", queries, past.keys).masked_fill(~past.mask, -torch.inf)
    read = torch.einsum("bhtk,bhtkd->bhtd", scores.softmax(-1), past.values)
    truth = nn.functional.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    assert torch.allclose(read, truth, atol=1e-5)


def step(add: str, checkpointed: bool, reentrant: bool) -> list[Tensor]:
    """Gradients of a block that reads, with entries added inside it, behind it, or after the backward pass."""
    real = memory("dense")
    real.add(*entries(0, 4, whole=False))
    x = entries(1, 5, whole=False)[0].requires_grad_()
    weight = torch.eye(D, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        queries = x @ weight
        past = real.gather(real.search(queries, 3))
        if add == "inside":
            real.add(queries, queries[..., :2])
        return torch.einsum("bhtd,bhtkd,bhtkv->bhtv", queries, past.keys, past.values)

    out = checkpoint(block, x, use_reentrant=reentrant) if checkpointed else block(x)
    if add == "behind":
        real.add(x, x[..., :2])
    out.sum().backward()
    if add == "after":
        real.add(x, x[..., :2])
    assert real.written.tolist() == [4 + 5] * ROWS
    assert x.grad is not None
    assert weight.grad is not None
    return [x.grad, weight.grad]


@pytest.mark.parametrize("capacity", [6, 64])
def test_one_backward_pass_through_searches_with_an_add_between(capacity):
    """What the first search found is overwritten before its gradient is taken, and it is the same."""
    x = entries(2, 6, whole=False)[0]
    grads = []
    for copied in (False, True):
        real = memory("dense", capacity=capacity)
        real.add(*entries(0, 6, whole=False))
        weight = torch.eye(D, requires_grad=True)
        losses = []
        for part in x.split(3, dim=-2):
            queries = part @ weight
            past = real.gather(real.search(queries, 3))
            keys = past.keys.clone() if copied else past.keys
            losses.append(
                (torch.einsum("bhtd,bhtkd->bhtk", queries, keys).softmax(-1) * past.values[..., 0]).sum()
            )
            real.add(queries, queries[..., :2])
        torch.stack(losses).sum().backward()
        assert weight.grad is not None
        grads.append(weight.grad)
    assert torch.equal(*grads)
    assert grads[0].abs().max() > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_right_or_refused(reentrant):
    assert all(map(torch.equal, step("after", True, reentrant), step("after", False, reentrant)))
    for add in ("inside", "behind"):
        step(add, False, reentrant)
        with pytest.raises(RuntimeError, match="search and gather outside of the checkpointed block"):
            step(add, True, reentrant)


@pytest.mark.parametrize("change", ["add", "reset"])
def test_a_block_that_writes_is_not_run_again(change):
    real = memory("dense")
    x = entries(1, 2, whole=False)[0].requires_grad_()

    def block(x: Tensor) -> Tensor:
        real.add(x, x[..., :2]) if change == "add" else real.reset()
        return x.exp().sin()

    with pytest.raises(RuntimeError, match="written to in the backward pass"):
        checkpoint(block, x, use_reentrant=False).sum().backward()
    assert real.written.tolist() == [2 if change == "add" else 0] * ROWS
