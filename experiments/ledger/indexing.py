"""Reading and writing at positions: gathers cost bytes, accumulating costs one FLOP an element."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from experiments.ledger.price import Call, Price, Rule, Traffic, nbytes, numel, priced, stored, tensors


def _index_bytes(call: Call) -> int:
    named = (call[name] for name in ("index", "indices", "offsets", "lengths", "mask"))
    return sum(stored(tensors(given)) for given in named)


def _gathered(call: Call) -> Traffic:
    """Each row read once for each time it is asked for, and written to the output."""
    rows = sum(numel(out) * out.element_size() for out in call.written())
    return Traffic(rows + _index_bytes(call), rows, rows)


def _values(call: Call) -> Any:
    for name in ("src", "source", "values", "value"):
        if isinstance(call[name], Tensor):
            return call[name]
    return None


def _payload(call: Call) -> int:
    """Elements put in: the index of a scatter says how many, otherwise the source, broadcast, does."""
    values, index, target = _values(call), call["index"], call.first()
    if call["indices"] is not None:
        return max(values.numel(), _spots(target, call["indices"]))
    if values is not None and not call.func._schema.name.startswith("aten::scatter"):
        return values.numel()
    if call["dim"] is not None and index.ndim < target.ndim:
        return index.numel() * target.numel() // max(target.shape[call["dim"]], 1)
    return index.numel()


def _spots(target: Tensor, indices: Sequence[Tensor | None]) -> int:
    """Elements of ``target[indices]``; those a boolean mask picks are known by the values alone, so they count 0."""
    given = [index for index in indices if index is not None]
    if any(index.dtype in (torch.bool, torch.uint8) for index in given):
        return 0
    untouched = [
        size
        for position, size in enumerate(target.shape)
        if position >= len(indices) or indices[position] is None
    ]
    return prod(torch.broadcast_shapes(*(index.shape for index in given))) * prod(untouched)


def _in_place(call: Call) -> bool:
    return call.func._schema.name.endswith("_")


def _scattered(reads: int) -> Rule[Traffic]:
    """Bytes of a scatter: the source, the index, and the rows touched; the whole target if it is copied first."""

    def count(call: Call) -> Traffic:
        target: Tensor = call.first()
        payload = _payload(call)
        source = _values(call)
        given = 0 if source is None else min(nbytes(source), payload * source.element_size())
        copied = 0 if _in_place(call) else nbytes(target)
        touched = payload * target.element_size()
        read = given + _index_bytes(call) + copied + reads * touched
        return Traffic(read, copied + touched, (reads + 1) * touched)

    word = "rows touched read and written" if reads else "rows touched written"
    return Rule(f"source + index + {word}, + a copy of the target unless in place", count)


def _combined(call: Call) -> int:
    """One operation an element put in, and a multiplication where a factor is given."""
    return _payload(call) * (1 + (call["alpha"] not in (None, 1)))


def _accumulated(call: Call) -> int:
    return _payload(call) if call["accumulate"] or call["reduce"] else 0


def _bag_read(call: Call) -> int:
    """Rows are summed (1) and, if weighted, multiplied first (1); a mean divides each bag."""
    read = call["indices"].numel() * call["weight"].shape[-1]
    divided = call.out[0].numel() if call["mode"] == 1 else 0
    return read * (1 + (call["per_sample_weights"] is not None)) + divided


def _bag_bytes(call: Call) -> Traffic:
    weight, out = call["weight"], call.out[0]
    rows = call["indices"].numel() * weight.shape[-1] * weight.element_size()
    return Traffic(rows + stored(tensors(call["per_sample_weights"])) + _index_bytes(call), nbytes(out), rows)


def _bag_backward(call: Call) -> int:
    width = call["grad"].shape[-1]
    reads = call["indices"].numel() * width
    # The gradient of a bag is copied to its rows; a sparse result holds those rows, a dense one sums them.
    summed = 0 if call["sparse"] else 1
    return reads * (summed + (call["per_sample_weights"] is not None or call["mode"] == 1))


def _row_bytes(call: Call) -> Traffic:
    grad = call["grad"] if call["grad"] is not None else call["grad_output"]
    rows = call["indices"].numel() * grad.shape[-1] * grad.element_size()
    return Traffic(2 * rows + nbytes(call["indices"]), stored(call.written()), rows)


def _dotted_bytes(call: Call) -> Traffic:
    rows = call["indices"].numel() * call["grad"].shape[-1] * call["grad"].element_size()
    return Traffic(2 * rows + _index_bytes(call), stored(call.written()), rows)


def _weights_backward(call: Call) -> int:
    return 2 * call["indices"].numel() * call["grad"].shape[-1]


def _renormalised(call: Call) -> int:
    return 3 * call["indices"].numel() * call.first().shape[-1]


def _renormalised_bytes(call: Call) -> Traffic:
    rows = call["indices"].numel() * call.first().shape[-1] * call.first().element_size()
    return Traffic(rows + _index_bytes(call), rows, 2 * rows)


_GATHERED = Rule("index + the rows read + outputs", _gathered)
_ROWS = Rule("gradients of the rows read, index, output", _row_bytes)
_SOURCE = Rule("elements put in, twice with a factor", _combined)

PRICES: dict[str, Price] = {
    **priced(
        Price(bytes=_GATHERED, because="a copy of the rows asked for"),
        *("embedding", "gather", "index", "index_select", "take", "masked_select", "_unsafe_index"),
        *("_unsafe_masked_index", "sparse_mask", "_sparse_mask_projection"),
    ),
    **priced(
        Price(bytes=_scattered(0), because="a copy into the rows named"),
        *("index_copy", "index_fill", "masked_scatter"),
    ),
    **priced(
        Price(
            Rule("elements put in, if accumulated", _accumulated), _scattered(1), "one addition an element"
        ),
        *("index_put", "_index_put_impl", "_unsafe_index_put", "scatter", "put"),
    ),
    **priced(
        Price(_SOURCE, _scattered(1), "one operation an element put in"),
        *("index_add", "index_reduce", "scatter_add", "scatter_reduce"),
        "_unsafe_masked_index_put_accumulate",
    ),
    **priced(
        Price(Rule("inputs", lambda call: call["data"].numel()), because="one operation an element"),
        "segment_reduce",
    ),
    **priced(
        Price(
            Rule("inputs", lambda call: call["data"].numel()),
            because="each element takes its segment's gradient",
        ),
        "_segment_reduce_backward",
    ),
    **priced(
        Price(
            Rule("rows read·width", lambda call: call["indices"].numel() * call.first().shape[-1]),
            _ROWS,
            "sum",
        ),
        "embedding_dense_backward",
    ),
    **priced(
        Price(
            Rule("rows read·width·(1 + weighted), + outputs if averaged", _bag_read),
            Rule("the rows read, weights, index, outputs", _bag_bytes),
            "the weighted sum it is, however it is spelled",
        ),
        *("_embedding_bag", "_embedding_bag_forward_only"),
    ),
    **priced(
        Price(
            Rule("rows read·width·(dense + weighted or averaged)", _bag_backward),
            _ROWS,
            "sum into the rows read",
        ),
        *("_embedding_bag_backward", "_embedding_bag_dense_backward", "_embedding_bag_sparse_backward"),
    ),
    **priced(
        Price(
            Rule("2·rows read·width", _weights_backward),
            Rule("gradients, rows, index, output", _dotted_bytes),
            "one dot product a row",
        ),
        "_embedding_bag_per_sample_weights_backward",
    ),
    **priced(
        Price(
            Rule("3·rows read·width", _renormalised),
            Rule("the rows read, index; rows written", _renormalised_bytes),
            "norm (power, sum), scale",
        ),
        "embedding_renorm",
    ),
}
