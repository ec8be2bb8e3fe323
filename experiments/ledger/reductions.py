"""Operators that look along a dimension: sums, norms, softmax, losses, scans, selection and sorting."""

from __future__ import annotations

from math import ceil, log2, prod

from experiments.ledger.elementwise import per_input
from experiments.ledger.price import Call, Price, Rule, numel, priced, tensors, total


def _rounds(length: int) -> int:
    """Comparisons to place one element among ``length`` others: ⌈log₂ n⌉, at least one."""
    return max(1, ceil(log2(max(length, 1))))


def _sorting(call: Call) -> int:
    values = call.first()
    dim = call["dim"]
    length = values.shape[dim] if isinstance(dim, int) and values.ndim else values.numel()
    return values.numel() * _rounds(length)


def _searching(call: Call) -> int:
    boundaries = call["sorted_sequence"] if call["sorted_sequence"] is not None else call["boundaries"]
    return call.out.numel() * _rounds(boundaries.shape[-1] + 1)


def _extreme(call: Call) -> int:
    """Comparisons of numbers; the range of ids and the truth of masks are bookkeeping."""
    return sum(numel(tensor) for tensor in tensors(call.first()) if tensor.is_floating_point())


def _norm(call: Call) -> int:
    """Power and sum an element; the maximum norm and the 0- and 1-norms take one operation fewer."""
    order = call["ord"] if call["ord"] is not None else call["p"]
    each = 1 if order in (0, 1, float("inf"), float("-inf")) else 2
    return each * total(tensors(call.first())) + (total(call.written()) if each == 2 else 0)


def _layer_norm(call: Call) -> int:
    return call.first().numel() * (6 + sum(call[name] is not None for name in ("weight", "bias")))


def _layer_norm_backward(call: Call) -> int:
    to_input, to_weight, to_bias = call["output_mask"]
    return call.first().numel() * (10 * to_input + 2 * to_weight + to_bias)


def _rms_norm(call: Call) -> int:
    x = call.first()
    rows = x.numel() // max(prod(call["normalized_shape"]), 1)
    return x.numel() * (3 + (call["weight"] is not None)) + 2 * rows


def _rms_norm_backward(call: Call) -> int:
    to_input, to_weight = call["output_mask"]
    return call.first().numel() * (7 * to_input + 2 * to_weight)


def _batch_norm_backward(call: Call) -> int:
    to_input, to_weight, to_bias = call["output_mask"] or (True, True, True)
    return call["input"].numel() * (10 * to_input + 2 * to_weight + to_bias)


def _normalised(call: Call) -> int:
    return call["input"].numel() * (2 + sum(call[name] is not None for name in ("weight", "bias")))


def _gradient_sums(call: Call) -> int:
    return call["input"].numel() * (5 * call["input_g"] + 2 * call["weight_g"] + call["bias_g"])


def _pairwise(call: Call) -> int:
    left, right = call["x1"], call["x2"]
    return 3 * prod(left.shape[:-1]) * right.shape[-2] * left.shape[-1]


def _self_distances(call: Call) -> int:
    points = call["self"]
    return 3 * points.shape[0] * (points.shape[0] - 1) // 2 * points.shape[1]


def _distance(call: Call) -> int:
    return 3 * max(call.first().numel(), call["other"].numel()) + call.out.numel()


def _fourier(call: Call) -> int:
    """Five operations a butterfly step; half of them if one side is real."""
    whole = call.first() if numel(call.first()) >= numel(call.out) else call.out
    steps = sum(ceil(log2(max(whole.shape[dim], 1))) for dim in call["dim"])
    return 5 * whole.numel() * steps // (1 if call.first().is_complex() and call.out.is_complex() else 2)


PRICES: dict[str, Price] = {
    **priced(
        per_input(1, "one operation for each element seen"),
        *(
            "sum",
            "mean",
            "prod",
            "nansum",
            "count_nonzero",
            "trace",
            "cumsum",
            "cumprod",
            "bincount",
            "histc",
        ),
        *("_coalesce", "_sparse_sum", "_sparse_csr_sum", "_sparse_csr_prod", "histogram"),
        *("_histogramdd_bin_edges", "_histogramdd_from_bin_cts", "_histogramdd_from_bin_tensors"),
    ),
    **priced(
        Price(
            Rule("inputs; 0 if they are integers", _extreme),
            because="one comparison an element; ids are checked",
        ),
        *("max", "min", "amax", "amin", "aminmax", "argmax", "argmin", "any", "all", "cummax", "cummin"),
        *("_foreach_max", "_cummax_helper", "_cummin_helper", "_aminmax"),
    ),
    **priced(per_input(4, "mean; difference, square, sum"), "var", "std", "var_mean", "std_mean"),
    **priced(per_input(4, "max, subtract, exp, sum"), "logsumexp", "logcumsumexp", "_logcumsumexp"),
    **priced(
        per_input(5, "max, subtract, exp, sum, divide"),
        *("_softmax", "_safe_softmax", "_log_softmax", "_sparse_softmax", "_sparse_log_softmax"),
        *("softmax.int_out", "log_softmax.int_out"),
    ),
    **priced(
        per_input(4, "y (g - Σ g y), or g - e^y Σ g"),
        *("_softmax_backward_data", "_log_softmax_backward_data", "_masked_softmax_backward"),
        *("_sparse_softmax_backward_data", "_sparse_log_softmax_backward_data"),
    ),
    **priced(per_input(5, "max, subtract, exp, sum, divide"), "_masked_softmax"),
    **priced(
        Price(
            Rule("2·inputs + outputs; inputs if the order is 0, 1 or ∞", _norm), because="power, sum, root"
        ),
        *("linalg_vector_norm", "_foreach_norm", "norm", "native_norm"),
    ),
    **priced(per_input(2, "power, sum"), "linalg__powsum", "_foreach_powsum"),
    **priced(
        Price(
            Rule("(6 + weight + bias)·inputs", _layer_norm),
            because="mean 1, variance 3, normalise 2, affine 2",
        ),
        *("native_layer_norm", "native_group_norm", "native_batch_norm", "_native_batch_norm_legit"),
        *("_batch_norm_with_update", "_batch_norm_no_update", "cudnn_batch_norm", "miopen_batch_norm"),
        *("_batch_norm_with_update_functional", "_native_batch_norm_legit_functional"),
        "_native_batch_norm_legit_no_training",
    ),
    **priced(
        Price(
            Rule("(10·to input + 2·to weight + to bias)·inputs", _layer_norm_backward),
            because="normalised input again 2, two means 4, combine 4",
        ),
        *("native_layer_norm_backward", "native_group_norm_backward"),
    ),
    **priced(
        Price(
            Rule("(10·to input + 2·to weight + to bias)·inputs", _batch_norm_backward),
            because="as layer norm",
        ),
        *("native_batch_norm_backward", "batch_norm_backward", "cudnn_batch_norm_backward"),
        "miopen_batch_norm_backward",
    ),
    **priced(per_input(4, "mean 1, variance 3"), "batch_norm_stats", "batch_norm_update_stats"),
    **priced(
        Price(Rule("(2 + weight + bias)·inputs", _normalised), because="normalise 2, affine 2"),
        "batch_norm_elemt",
    ),
    **priced(
        Price(
            Rule("6·means", lambda call: 6 * call["mean"].numel()),
            because="means and variances of the processes: weighed 2, variance 4",
        ),
        *("batch_norm_gather_stats", "batch_norm_gather_stats_with_counts"),
    ),
    **priced(
        Price(
            Rule("(5·to input + 2·to weight + to bias)·inputs", _gradient_sums),
            because="with what follows as batch norm in one process",
        ),
        "batch_norm_backward_reduce",
    ),
    **priced(
        Price(Rule("5·inputs", lambda call: 5 * call["input"].numel()), because="two means combined"),
        "batch_norm_backward_elemt",
    ),
    **priced(
        Price(
            Rule("(3 + weight)·inputs + 2·rows", _rms_norm),
            because="square, mean, scale, gain; ε and root a row",
        ),
        "_fused_rms_norm",
    ),
    **priced(
        Price(Rule("(7·to input + 2·to weight)·inputs", _rms_norm_backward), because="as its parts"),
        "_fused_rms_norm_backward",
    ),
    **priced(
        Price(Rule("3·left·right·width", _pairwise), because="difference, power, sum"),
        *("_cdist_forward", "_cdist_backward", "_euclidean_dist"),
    ),
    **priced(
        Price(Rule("3·pairs·width", _self_distances), because="difference, power, sum; each pair once"),
        *("_pdist_forward", "_pdist_backward"),
    ),
    **priced(Price(Rule("3·inputs + outputs", _distance), because="difference, power, sum; root"), "dist"),
    **priced(per_input(3, "power, sum, scale"), "renorm", "_weight_norm_interface"),
    **priced(per_input(6, "scale, dot product along the norm, combine"), "_weight_norm_interface_backward"),
    **priced(
        per_input(1, "a selection sees each element once"),
        *("topk", "kthvalue", "median", "nanmedian", "mode", "multinomial"),
    ),
    **priced(
        Price(Rule("inputs·⌈log₂ length⌉", _sorting), because="comparisons of a merge sort"),
        *("sort", "argsort", "unique_dim", "_unique", "_unique2"),
    ),
    **priced(
        Price(
            Rule("5·n·⌈log₂ length⌉, half of it if one side is real", _fourier),
            because="fast Fourier transform",
        ),
        *("_fft_c2c", "_fft_r2c", "_fft_c2r"),
    ),
    **priced(
        per_input(1, "each element is compared with the one before"),
        *("unique_consecutive", "unique_dim_consecutive"),
    ),
    **priced(
        Price(Rule("queries·⌈log₂(boundaries + 1)⌉", _searching), because="comparisons of a binary search"),
        *("searchsorted", "bucketize"),
    ),
}
