"""FlexAttention: scores and mask are functions; billed by the pairs that live and what is done to each score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from experiments.ledger.attention import BACKWARD_PER_PAIR, FORWARD_PER_PAIR, read_cost
from experiments.ledger.price import Cost, Traffic, nbytes, stored, tensors

FLEX = "flex_attention"
FLEX_BACKWARD = "flex_attention_backward"

#: Counts the FLOPs of a function of one score.
Count = Callable[[Callable[[], Any]], int]


def flex_cost(operator: str, args: tuple[Any, ...], count: Count) -> Cost:
    """Price of one call of the higher-order operator, with the arguments torch gives it.

    Pairs are those for which the mask function is true; blocks decide what is skipped, never what is right. The
    score function is run on one pair, and costs what it costs there for each pair that lives.

    Args:
        operator: :data:`FLEX` or :data:`FLEX_BACKWARD`.
        args: Its arguments.
        count: Counts the FLOPs of a function.
    """
    if operator == FLEX:
        query, key, value, score_mod, block_mask = args[:5]
        score_buffers, mask_buffers = (
            tuple(args[position]) if len(args) > position else () for position in (7, 8)
        )
        per_pair = FORWARD_PER_PAIR + count(lambda: score_mod(*_one_pair(query), *score_buffers))
        pairs = _live_pairs(query, key, block_mask[-1], mask_buffers)
        return read_cost(pairs, query, key, value, per_pair, stored(tensors([*block_mask, *score_buffers])))
    query, key, value, out, _, grad_out, _, forward, joint, block_mask = args[:10]
    score_buffers, mask_buffers = (
        tuple(args[position]) if len(args) > position else () for position in (12, 13)
    )
    pairs = _live_pairs(query, key, block_mask[-1], mask_buffers)
    # The joint graph computes the score again before it goes back.
    score, *indices = _one_pair(query)
    per_pair = BACKWARD_PER_PAIR
    if joint is not None:
        there = count(lambda: forward(score, *indices, *score_buffers))
        per_pair += max(count(lambda: joint(score, *indices, score, *score_buffers)) - there, 0)
    products = 4 * pairs * (query.shape[-1] + value.shape[-1])
    read = stored(tensors([query, key, value, out, grad_out, *block_mask, *score_buffers]))
    return Cost.of(
        products + pairs * per_pair, products, Traffic(read, sum(map(nbytes, (query, key, value))))
    )


def _one_pair(query: Tensor) -> tuple[Tensor, ...]:
    index = torch.zeros((), dtype=torch.int32, device=query.device)
    return torch.zeros((), dtype=query.dtype, device=query.device), index, index, index, index


def _live_pairs(query: Tensor, key: Tensor, mask_mod: Callable[..., Tensor], buffers: tuple[Any, ...]) -> int:
    from torch.nn.attention.flex_attention import create_mask

    batch, heads, time, source = *query.shape[:3], key.shape[-2]
    if query.is_meta:
        return batch * heads * time * source

    def lives(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return mask_mod(b, h, q, k, *buffers)

    with torch.no_grad():
        return int(create_mask(lives, batch, heads, time, source, device=query.device).sum())
