"""Attention kernels: billed by the query-key pairs that live, whichever kernel computes them."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from experiments.ledger.price import Call, Cost, Price, Rule, Traffic, nbytes, priced, stored, tensors

# Beside the products, each pair is scaled (1) and normalised by a softmax (5); backward undoes both (1 + 4).
FORWARD_PER_PAIR = 6
BACKWARD_PER_PAIR = 5


def live_pairs(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> int:
    r"""Query-key pairs over all rows and heads that a mask leaves alive.

    .. math:: \text{causal: } \sum_{i<T} \min(i + 1, S), \qquad \text{mask: its True (or finite) entries}

    A mask without values (on the meta device) lets every pair live.

    Args:
        query: ``[..., time, d_key]``.
        key: ``[..., source, d_key]``.
        value: ``[..., source, d_value]``.
        mask: Boolean (True = may attend) or added to the scores.
        causal: Whether the upper triangle, aligned at the top left, is left out.
    """
    rows, time, source = _rows(query, key, value, mask), query.shape[-2], key.shape[-2]
    if causal:
        short = min(time, source)
        return rows * (short * (short + 1) // 2 + (time - short) * source)
    if mask is None or not has_values(mask):
        return rows * time * source
    with torch.no_grad():
        alive = mask if mask.dtype is torch.bool else mask > torch.finfo(mask.dtype).min
        return int(alive.sum()) * (rows * time * source // max(mask.numel(), 1))


def _rows(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> int:
    """Rows and heads that are attended for, one key head for several query heads or one mask for several rows."""
    lead = list(query.shape[:-2])
    for shape in (part.shape[:-2] for part in (key, value, mask) if part is not None):
        grouped = bool(lead and shape) and 1 < shape[-1] < lead[-1]
        lead = list(torch.broadcast_shapes(lead, (*shape[:-1], 1) if grouped else shape))
    return prod(lead)


def has_values(mask: Tensor) -> bool:
    """Whether a mask says which pairs live: on the meta device, and of a fake tensor, only its shape is known."""
    return not mask.is_meta and "Fake" not in type(mask).__name__


def forward_cost(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Cost:
    """Price of one attention read; the mask is added only if it holds numbers."""
    adds = mask is not None and mask.dtype is not torch.bool
    pairs = live_pairs(query, key, value, mask, causal)
    return read_cost(pairs, query, key, value, FORWARD_PER_PAIR + adds, stored(tensors(mask)))


def read_cost(
    pairs: int, query: Tensor, key: Tensor, value: Tensor, per_pair: int, bytes_of_mask: int
) -> Cost:
    """Price of scoring ``pairs`` pairs, of ``per_pair`` operations on each score, and of the weighted sum."""
    products = 2 * pairs * (query.shape[-1] + value.shape[-1])
    out = _rows(query, key, value) * query.shape[-2] * value.shape[-1] * value.element_size()
    traffic = Traffic(stored([query, key, value]) + bytes_of_mask, out)
    return Cost.of(products + pairs * per_pair, products, traffic)


def backward_cost(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    wanted: tuple[bool, bool, bool, bool] = (True, True, True, False),
) -> Cost:
    """Price of the gradients ``wanted`` of (query, key, value, mask), without recomputing the scores."""
    pairs = live_pairs(query, key, value, mask, causal)
    d_key, d_value = query.shape[-1], value.shape[-1]
    for_query, for_key, for_value, for_mask = wanted
    scores = for_query or for_key or for_mask
    width = d_value * (for_value + scores) + d_key * (for_query + for_key)
    products = 2 * pairs * width
    out = _rows(query, key, value) * query.shape[-2] * d_value * value.element_size()
    sides = ((query, for_query), (key, for_key), (value, for_value), (mask, for_mask))
    read = 2 * out + stored(tensor for tensor, _ in sides if tensor is not None)
    traffic = Traffic(read, sum(nbytes(tensor) for tensor, grad in sides if tensor is not None and grad))
    elementwise = pairs * (BACKWARD_PER_PAIR * scores + for_mask)
    return Cost.of(products + elementwise, products, traffic)


def _tensors(call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool]:
    mask = call["attn_mask"] if call["attn_mask"] is not None else call["attn_bias"]
    return call["query"], call["key"], call["value"], mask, bool(call["is_causal"])


def _forward(call: Call) -> Cost:
    return forward_cost(*_tensors(call))


def _backward(call: Call) -> Cost:
    return backward_cost(*_tensors(call))


def _traffic(cost: Cost) -> Traffic:
    return Traffic(cost.bytes_read, cost.bytes_written, cost.bytes_random)


_FORWARD = Price(
    Rule("pairs·(2·d_key + 2·d_value + 6), + pairs for an added mask", lambda call: _forward(call).flops),
    Rule("query, key, value, mask + output", lambda call: _traffic(_forward(call))),
    "pairs that live: causal = half, mask = its live entries",
    Rule("pairs·(2·d_key + 2·d_value)", lambda call: _forward(call).matmul_flops),
)
_BACKWARD = Price(
    Rule("pairs·(4·d_key + 4·d_value + 5)", lambda call: _backward(call).flops),
    Rule("query, key, value, output and gradients", lambda call: _traffic(_backward(call))),
    "four products; scores a kernel recomputes are not billed again",
    Rule("pairs·(4·d_key + 4·d_value)", lambda call: _backward(call).matmul_flops),
)

_KERNELS = (
    *("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention"),
    "fused_attention_overrideable",
)

PRICES: dict[str, Price] = {
    **priced(
        _FORWARD,
        "scaled_dot_product_attention",
        *(f"_scaled_dot_product_{kernel}" for kernel in _KERNELS),
    ),
    **priced(_BACKWARD, *(f"_scaled_dot_product_{kernel}_backward" for kernel in _KERNELS)),
}
