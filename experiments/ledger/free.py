"""What costs no FLOPs, and what costs nothing at all, each by a written rule."""

from __future__ import annotations

from experiments.ledger.price import (
    MOVED,
    NOTHING,
    UNMOVED,
    WRITTEN,
    Call,
    Price,
    Rule,
    Traffic,
    priced,
    stored,
    tensors,
)


def _copied(call: Call) -> Traffic:
    """What is read and what is written: a target that is overwritten is not read."""
    return Traffic(stored(tensors(call["src"])), stored(call.written()))


_SOURCE_AND_TARGET = Rule("source + target", _copied)


def _free(because: str, *names: str) -> dict[str, Price]:
    return priced(Price(NOTHING, UNMOVED, because), *names)


# Views that have a form which copies.
_VIEWS = """
    alias as_strided ccol_indices col_indices _conj crow_indices detach diagonal expand _fw_primal _indices indices
    lift_fresh _make_dual narrow _neg_view _nested_get_values _nested_view_from_buffer _nested_view_from_jagged permute
    _reshape _reshape_alias row_indices select slice _sparse_broadcast_to split split_with_sizes squeeze t transpose
    unbind unfold unsqueeze _values values view view_as_complex view_as_real
"""

COPIED = Price(NOTHING, MOVED, "values are moved, not computed")
FILLED = Price(NOTHING, WRITTEN, "memory is written")
COMPARED = Price(NOTHING, MOVED, "a comparison, selection or cast yields no new number")
VIEWED = Price(NOTHING, UNMOVED, "a view of the same memory, as its schema says")

PRICES: dict[str, Price] = {
    **{
        name: Price(NOTHING, UNMOVED, "a label for the profiler, a question about a tensor")
        for name in ("profiler._record_function_enter_new", "profiler._record_function_exit", "prim.device")
    },
    **_free(
        "memory is reserved, not written",
        *(
            "empty",
            "empty_like",
            "empty_strided",
            "empty_permuted",
            "new_empty",
            "new_empty_strided",
            "resize",
        ),
        *("_resize_output", "resize_as", "set", "sparse_coo_tensor.size", "sparse_coo_tensor.size_out"),
        *("_empty_affine_quantized", "_empty_per_channel_affine_quantized", "empty_quantized"),
        *("sparse_resize", "resize_as_sparse", "_sparse_compressed_tensor_with_dims"),
    ),
    **_free(
        "bookkeeping about a tensor",
        *("_local_scalar_dense", "is_same_size", "is_coalesced", "_coalesced", "_nnz", "_dimI", "_dimV"),
        *("sym_size", "sym_numel", "sym_stride", "sym_storage_offset", "is_pinned", "_fused_sdp_choice"),
        *("q_scale", "q_zero_point", "qscheme", "q_per_channel_axis", "q_per_channel_scales"),
        *("q_per_channel_zero_points", "is_set_to", "record_stream", "_functional_assert_scalar"),
        *("sym_constrain_range", "sym_constrain_range_for_size", "_functional_sym_constrain_range"),
        "_functional_sym_constrain_range_for_size",
        "_use_cudnn_ctc_loss",
        "_use_miopen_ctc_loss",
        *("_assert_async", "_functional_assert_async", "_assert_scalar", "_assert_tensor_metadata"),
        *(
            "_validate_sparse_coo_tensor_args",
            "_validate_compressed_sparse_indices",
            "sparse_dim",
            "dense_dim",
        ),
        *(
            "_sparse_coo_tensor_with_dims_and_tensors",
            "_sparse_coo_tensor_unsafe",
            "_sparse_coo_tensor_with_dims",
        ),
        *(
            "_sparse_compressed_tensor_unsafe",
            "sparse_compressed_tensor",
            "sparse_resize_and_clear",
            "_amp_update_scale",
            "_linalg_check_errors",
            "_has_same_storage_numel",
        ),
    ),
    **_free(
        "a view under another name",
        *(
            "transpose",
            "t",
            "squeeze",
            "unsqueeze",
            "as_strided",
            "_reshape_alias",
            "_unsafe_view",
            "unsafe_split",
        ),
        *("unsafe_split_with_sizes", "lift", "lift_fresh", "detach"),
    ),
    **_free(
        "dropout is noise on top of the model: the bill is the same with it and without",
        *("native_dropout", "native_dropout_backward", "dropout", "feature_dropout", "alpha_dropout"),
        *("feature_alpha_dropout", "_fused_dropout", "_masked_scale"),
    ),
    **priced(
        Price(NOTHING, WRITTEN, "random numbers are written, not computed"),
        *(
            "rand",
            "rand_like",
            "randn",
            "randn_like",
            "randint",
            "randint_like",
            "randperm",
            "normal",
            "uniform",
        ),
        *("bernoulli", "exponential", "random", "log_normal", "cauchy", "geometric", "normal_functional"),
        *("poisson", "binomial", "_standard_gamma", "_sample_dirichlet"),
        *("_philox_normal", "_philox_uniform", "_philox_key_fold_in", "_philox_key_split"),
    ),
    **priced(
        FILLED,
        *(
            "zeros",
            "zeros_like",
            "ones",
            "ones_like",
            "full",
            "full_like",
            "new_zeros",
            "new_ones",
            "new_full",
        ),
        *(
            "fill",
            "zero",
            "scalar_tensor",
            "arange",
            "eye",
            "linspace",
            "logspace",
            "tril_indices",
            "triu_indices",
        ),
        *("_efficientzerotensor", "_foreach_zero", "_new_zeros_with_same_feature_meta", "range", "from_file"),
    ),
    **priced(
        COPIED,
        *(
            "clone",
            "_to_copy",
            "cat",
            "stack",
            "repeat",
            "repeat_interleave",
            "roll",
            "flip",
            "constant_pad_nd",
        ),
        *(
            "tril",
            "triu",
            "select_backward",
            "slice_backward",
            "diag_embed",
            "diagonal_backward",
            "_pin_memory",
        ),
        *("unfold_backward", "_to_dense", "_to_sparse", "_to_sparse_csr", "_to_sparse_csc"),
        *("_to_sparse_bsr", "_to_sparse_bsc", "_sparse_sum_backward"),
        *(
            "slice_scatter",
            "select_scatter",
            "nonzero",
            "complex",
        ),
        *(
            "nonzero_static",
            "block_diag",
            "_conj_physical",
            "diagonal_scatter",
            "rot90",
        ),
        *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "lu_unpack", "masked_scatter_backward"),
        *("_pack_padded_sequence", "_pad_packed_sequence"),
        *("_convert_indices_from_coo_to_csr", "_convert_indices_from_csr_to_coo"),
        *("_chunk_cat", "_stack", "_foreach_clone", "_lazy_clone", "as_strided_scatter"),
        *("conj_physical.out", "conj_physical_"),
        *(f"{view}_copy" for view in _VIEWS.split()),
    ),
    **priced(
        Price(NOTHING, _SOURCE_AND_TARGET, "values are moved, not computed"),
        "copy",
        "_foreach_copy",
        "copy_sparse_to_sparse",
    ),
    **priced(
        COMPARED,
        *(
            "eq",
            "ne",
            "lt",
            "le",
            "gt",
            "ge",
            "logical_and",
            "logical_or",
            "logical_xor",
            "logical_not",
            "where",
        ),
        *("isnan", "isinf", "isneginf", "isposinf", "signbit", "masked_fill", "isin", "equal", "nan_to_num"),
        *("_is_all_true", "_is_any_true"),
    ),
}
