"""Matrix products and convolutions: two FLOPs a multiply-add, stored entries only where an operand is sparse."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from experiments.ledger.elementwise import numbers
from experiments.ledger.price import Call, Price, Rule, is_sparse, numel, priced


def _product(left: Tensor, right: Tensor) -> int:
    """Multiply-adds of ``left @ right``, with or without a batch dimension, times two."""
    # Of complex numbers, a multiply-add is four real ones.
    return (4 if left.is_complex() else 1) * _real_product(left, right)


def _real_product(left: Tensor, right: Tensor) -> int:
    columns = right.shape[-1] if right.ndim > 1 else 1
    if is_sparse(left) and is_sparse(right):
        return 2 * _meetings(left, right)
    if is_sparse(left):
        return 2 * numel(left) * columns
    rows = prod(left.shape[:-1])
    if is_sparse(right):
        return 2 * numel(right) * rows
    return 2 * rows * left.shape[-1] * columns


def _meetings(left: Tensor, right: Tensor) -> int:
    """Pairs of stored entries, one in a column of ``left``, one in the row of ``right`` of the same number."""
    inner = left.shape[-1]
    if left.is_meta or {left.layout, right.layout} - {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc}:
        return numel(left) * numel(right) // max(inner, 1)
    with torch.no_grad():
        columns, rows = (_entries(left, 1, inner), _entries(right, 0, inner))
        return int((columns * rows).sum())


def _entries(matrix: Tensor, dim: int, length: int) -> Tensor:
    """Stored entries of each row (``dim`` 0) or column (1)."""
    if matrix.layout is torch.sparse_coo:
        return torch.bincount(matrix._indices()[dim], minlength=length)
    by_row = matrix.layout is torch.sparse_csr
    pointers, others = (
        (matrix.crow_indices(), matrix.col_indices())
        if by_row
        else (matrix.ccol_indices(), matrix.row_indices())
    )
    return pointers.diff() if by_row == (dim == 0) else torch.bincount(others, minlength=length)


def _operands(call: Call) -> tuple[Tensor, Tensor]:
    pair = [argument for argument in call.args if isinstance(argument, Tensor)][-2:]
    return pair[0], pair[1]


def _matmul(call: Call) -> int:
    return _product(*_operands(call))


def _grouped(call: Call) -> int:
    """Groups share out the rows, the columns or the inner dimension of one product, or are a batch."""
    left, right = call["self"], call["mat2"]
    groups = left.shape[0] if left.ndim == right.ndim == 3 else 1
    return 2 * groups * left.shape[-2] * left.shape[-1] * right.shape[-1]


def _scaled(factor: Any, out: Tensor) -> int:
    """Operations an element of a multiplication by a factor, none if that is 1."""
    if factor in (None, 1):
        return 0
    return (6 if isinstance(factor, complex) else 2) if out.is_complex() else 1


def _added(call: Call) -> int:
    """Adding the bias, and scaling it or the product where that is asked for; a complex number is two."""
    alpha, beta = call["alpha"], call["beta"]
    return sum(
        numel(out) * ((beta != 0) * (1 + out.is_complex() + _scaled(beta, out)) + _scaled(alpha, out))
        for out in call.written()
    )


def _sampled(call: Call) -> int:
    """A product of which only the positions stored in the first argument are computed."""
    return (8 if call.first().is_complex() else 2) * numel(call.first()) * call.args[1].shape[-1]


def _reduced_backward(call: Call) -> int:
    return 2 * numel(call["self"]) * call["grad_out"].shape[-1] * sum(map(bool, call["output_mask"]))


def _convolution(call: Call) -> int:
    image, weight = call["input"], call["weight"]
    # One weight of shape [out, in / groups, *kernel] (transposed: [in, out / groups, *kernel]) meets each position.
    positions = image.shape[2:] if call["transposed"] else call.out.shape[2:]
    return 2 * image.shape[0] * prod(positions) * weight.numel()


def _convolution_bias(call: Call) -> int:
    return 0 if call["bias"] is None else call.out.numel()


def _convolution_backward(call: Call) -> int:
    grad, image, weight = call["grad_output"], call["input"], call["weight"]
    positions = image.shape[2:] if call["transposed"] else grad.shape[2:]
    once = 2 * image.shape[0] * prod(positions) * weight.numel()
    return once * sum(map(bool, call["output_mask"][:2]))


def _convolution_backward_bias(call: Call) -> int:
    return call["grad_output"].numel() if call["output_mask"][2] else 0


def _outer_product(call: Call) -> int:
    return (8 if call.out.is_complex() else 2) * call.out.numel()


def _pairs(call: Call) -> int:
    return sum(_product(left, right) for left, right in zip(call["self"], call["mat2"], strict=True))


def _linear(call: Call) -> int:
    return _product(call["input"], call["weight"].t())


def _linear_bias(call: Call) -> int:
    return 0 if call["bias"] is None else numbers(call.out)


def _time_first(call: Call) -> int:
    # The weight, of shape [kernel, in, out], meets each step of each sequence.
    return 2 * prod(call.out.shape[:2]) * call["weight"].numel()


def _classified(call: Call) -> int:
    """Scores of all classes; in the same pass the gradients that are asked for, each once as much."""
    wanted = sum(bool(call[name]) for name in ("compute_input_grad", "compute_linear_weight_grad"))
    return (1 + wanted) * _product(call["input"], call["linear_weight"].t())


def _cross_entropy(call: Call) -> int:
    rows, classes = call["input"].shape[0], call["linear_weight"].shape[0]
    gradients = [bool(call[f"compute_{name}_grad"]) for name in ("input", "linear_weight", "linear_bias")]
    forward = rows * classes * (5 + (call["linear_bias"] is not None)) + rows
    return forward + any(gradients) * (4 * rows * classes + rows) + gradients[2] * rows * classes


def _trilinear(call: Call) -> int:
    return 3 * prod(map(max, zip(*(_expanded_sizes(call, operand) for operand in range(3)), strict=True)))


def _expanded_sizes(call: Call, operand: int) -> list[int]:
    sizes = list(call.args[operand].shape)
    for dim in sorted(call.args[3 + operand]):
        sizes.insert(dim, 1)
    return sizes


def _lstm(call: Call) -> int:
    image, inputs, hidden = call["input"], call["weight0"], call["weight1"]
    return 2 * image.shape[0] * image.shape[1] * (inputs.numel() + hidden.numel())


def _lstm_cells(call: Call) -> int:
    # Four gates: two products and their biases are added (3), a nonlinearity (1); then c = f c + i g, h = o tanh(c).
    each = 4 * (2 + 2 * bool(call["has_biases"])) + 5
    return call["input"].shape[0] * call["input"].shape[1] * call["hidden_size"] * each


def _lstm_backward(call: Call) -> int:
    image, inputs, hidden = call["input"], call["weight1"], call["weight2"]
    return 4 * image.shape[0] * image.shape[1] * (inputs.numel() + hidden.numel())


def _lstm_cells_backward(call: Call) -> int:
    time, batch, width = *call["input"].shape[:2], call["hidden_size"]
    biases = 8 * width * bool(call["has_biases"])
    # Five nonlinearities (3 each), six products, sums into the biases; then what the steps have in common is summed.
    cells = time * batch * (21 * width + biases)
    return cells + (time - 1) * (
        call["weight1"].numel() + call["weight2"].numel() + biases + 2 * batch * width
    )


_TWO = Rule("2·m·k·n; 2·nnz·n if sparse, 2·meetings if both are", _matmul)
_PLUS = Rule(
    "2·m·k·n + m·n per bias or scaling; 2·nnz·n if sparse", lambda call: _matmul(call) + _added(call)
)
_REDUCED_BACKWARD = Rule("2·nnz·n per gradient asked for", _reduced_backward)
_CONVOLUTION = Rule("2·batch·positions·numel(weight)", _convolution)
_CONVOLUTION_BACKWARD = Rule("2·batch·positions·numel(weight) per gradient asked for", _convolution_backward)
_LSTM = Rule("2·time·batch·(numel(W_in) + numel(W_hidden))", _lstm)

PRICES: dict[str, Price] = {
    **priced(
        Price(_TWO, because="multiply-add = 2, of complex numbers 8", matmul=_TWO),
        *("mm", "bmm", "mv", "dot", "vdot", "_int_mm", "_sparse_mm", "_sparse_mm_reduce_impl"),
        *("_sparse_sparse_matmul", "hspmm"),
    ),
    **priced(
        Price(Rule("2·m·k·n over all pairs", _pairs), because="multiply-add = 2", matmul=Rule("all", _pairs)),
        "_foreach_mm",
    ),
    **priced(
        Price(
            Rule("2·m·k·n + bias", lambda call: _linear(call) + _linear_bias(call)),
            because="multiply-add = 2; without a place for results it is mm or addmm",
            matmul=Rule("2·m·k·n", _linear),
        ),
        "linear.out",
    ),
    **priced(
        Price(_PLUS, because="multiply-add = 2; bias = 1 an output", matmul=_TWO),
        *("addmm", "baddbmm", "addmv", "addbmm", "_addmm_activation", "_sparse_addmm", "sspaddmm.out"),
    ),
    **priced(
        Price(
            Rule(
                "2·m·k·n over all groups + bias",
                lambda call: _grouped(call) + (call.out.numel() if call["bias"] is not None else 0),
            ),
            because="multiply-add = 2; groups share out one side",
            matmul=Rule("2·m·k·n over all groups", _grouped),
        ),
        *("_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2"),
    ),
    **priced(
        Price(_REDUCED_BACKWARD, because="each gradient costs one forward", matmul=_REDUCED_BACKWARD),
        "_sparse_mm_reduce_impl_backward",
    ),
    **priced(
        Price(Rule("2·nnz·k", _sampled), because="only stored outputs", matmul=Rule("2·nnz·k", _sampled)),
        "sparse_sampled_addmm",
    ),
    **priced(
        Price(Rule("2·outputs", _outer_product), because="rank-one update"),
        "addr",
    ),
    **priced(
        Price(
            Rule(
                "2·batch·positions·numel(weight) + bias",
                lambda call: _convolution(call) + _convolution_bias(call),
            ),
            because="groups are inside numel(weight)",
            matmul=_CONVOLUTION,
        ),
        *("convolution", "_convolution", "convolution_overrideable"),
    ),
    **priced(
        Price(
            Rule("2·batch·steps·numel(weight) + outputs", lambda call: _time_first(call) + call.out.numel()),
            because="a convolution over sequences laid out time first, with bias",
            matmul=Rule("2·batch·steps·numel(weight)", _time_first),
        ),
        "conv_tbc",
    ),
    **priced(
        Price(
            Rule(
                _CONVOLUTION_BACKWARD.text + " + bias",
                lambda call: _convolution_backward(call) + _convolution_backward_bias(call),
            ),
            because="each gradient costs one forward",
            matmul=_CONVOLUTION_BACKWARD,
        ),
        *("convolution_backward", "convolution_backward_overrideable"),
    ),
    **priced(Price(Rule("3·expanded elements", _trilinear), because="two products and a sum"), "_trilinear"),
    **priced(
        Price(
            Rule(
                _LSTM.text + " + (13 + 8·biases)·time·batch·hidden",
                lambda call: _lstm(call) + _lstm_cells(call),
            ),
            because="the four gates of an LSTM, step by step",
            matmul=_LSTM,
        ),
        "mkldnn_rnn_layer",
    ),
    **priced(
        Price(
            Rule(
                "4·time·batch·(numel(W_in) + numel(W_hidden)) + (21 + 8·biases)·time·batch·hidden, + sums over time",
                lambda call: _lstm_backward(call) + _lstm_cells_backward(call),
            ),
            because="gradients of inputs, first state and weights, step by step",
            matmul=Rule("twice the forward", _lstm_backward),
        ),
        "mkldnn_rnn_layer_backward",
    ),
    **{
        f"torch_nn._linear_cross_entropy_batch_chunked{suffix}": Price(
            Rule(
                f"2·n·k·classes{each} + (5 + bias)·n·classes + n{more}",
                lambda call: _classified(call) + _cross_entropy(call),
            ),
            because="a linear layer, its softmax and loss" + also,
            matmul=Rule(f"2·n·k·classes{each}", _classified),
        )
        for suffix, each, more, also in (
            (
                "",
                ", the same for each gradient asked for",
                ", + 4·n·classes + n and the bias's for gradients",
                ", and their gradients",
            ),
            ("_no_reduction", "", "", ""),
        )
    },
}
