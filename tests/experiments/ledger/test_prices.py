"""The table against torch's own list of operators."""

import pytest
import torch
import torch.nn.modules.linear_cross_entropy
from torch import Tensor
from torch.distributed.fsdp._fully_shard import _fsdp_collectives

from experiments.ledger import Ledger
from experiments.ledger.prices import PRICES, SECTIONS, price_of

assert _fsdp_collectives  # defines its operators
COMPOSITE = "CompositeImplicitAutograd"
# Composite operators that are priced whole. Each has the price of its parts, which test_one_bill and OpInfo agree on.
WHOLE = """
    _convolution _embedding_bag_sparse_backward _fused_rms_norm _pad_packed_sequence
    _sparse_compressed_tensor_unsafe _sparse_coo_tensor_unsafe _sparse_log_softmax _sparse_mm _sparse_softmax
    _sparse_sum _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d _validate_sparse_coo_tensor_args alpha_dropout argsort
    dropout empty feature_alpha_dropout feature_dropout linalg_pinv max max_pool1d min mish_backward rand randn
    repeat_interleave scaled_dot_product_attention set silu_backward special_i0 square std std_mean sym_numel
    sym_size sym_storage_offset sym_stride upsample_bicubic2d upsample_bilinear2d upsample_linear1d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d var var_mean where
"""


def named(name: str) -> torch._ops.OpOverload:
    namespace, rest = name.split("::")
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")


def overloads() -> list[torch._ops.OpOverload]:
    names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::"))
    known = [name for name in names if hasattr(torch.ops.aten, name[6:].partition(".")[0])]
    return [named(name) for name in known if not name.startswith("aten::_test")]


def composite(overload: torch._ops.OpOverload) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), COMPOSITE)


def packet(overload: torch._ops.OpOverload) -> str:
    return str(overload._overloadpacket).removeprefix("aten.")


UNPRICED = [
    overload
    for overload in overloads()
    if price_of(overload) is None and not overload.is_view and not composite(overload)
]


def test_every_name_is_an_operator_and_is_priced_once():
    assert sum(map(len, SECTIONS.values())) == len(PRICES)
    for name in PRICES:
        namespace, operator, *overload = name.split(".")
        home = getattr(torch.ops, namespace)
        found = getattr(home, operator, None) or getattr(home, f"{operator}_", None)
        assert found is not None, f"{name} does not exist in torch"
        assert not overload or hasattr(found, overload[0]), f"{name} does not exist in torch"


def test_every_price_is_explained():
    assert not [name for name, price in PRICES.items() if not price.because]


def test_no_form_with_a_place_for_results_is_unpriced_where_the_plain_form_is_not():
    """A composite operator is billed by its parts, but writes its results in one piece."""
    unpriced = {packet(overload) for overload in UNPRICED}
    plain = {packet(overload) for overload in overloads() if price_of(overload) or composite(overload)}
    assert unpriced & plain == set()


def test_no_twin_of_a_priced_operator_is_unpriced():
    """In place, functional, of lists, copying, helping: the same operator by another name."""
    priced = {name.split(".")[1].strip("_") for name in PRICES}
    views = {packet(overload) for overload in overloads() if overload.is_view}

    def plain(name: str) -> str:
        for ending in ("_functional", "_helper", "_out"):
            name = name.removesuffix(ending)
        return name.removeprefix("_foreach").strip("_")

    twins = {
        name
        for name in map(packet, UNPRICED)
        if plain(name) in priced or name.removesuffix("_copy") in views or plain(name) in views
    }
    assert twins == set()


def test_composite_operators_have_the_price_of_their_parts():
    """Without autograd torch shows them whole: a price of their own would make another bill."""
    whole = {
        packet(overload).removesuffix("_")
        for overload in overloads()
        if composite(overload) and price_of(overload)
    }
    assert whole - set(WHOLE.split()) == set()


def rows(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*size, dtype=dtype)


SAME = {
    "msort": lambda: rows(5, 150).msort(),
    "max of two": lambda: torch.max(rows(5, 5), rows(1, 5)),
    "min of two": lambda: torch.min(rows(1, 5), rows(5, 1)),
    "nanmean": lambda: rows(3, 4).nanmean(),
    "isclose": lambda: torch.isclose(rows(3, 4), rows(4)),
    "istft": lambda: torch.istft(rows(5, 9, dtype=torch.cfloat), 8, window=torch.ones(8)),
    "ihfft2": lambda: torch.fft.ihfft2(rows(6, 10)),
    "conj_physical, real": lambda: torch.conj_physical(rows(3)),
    "conj_physical, complex": lambda: torch.conj_physical(rows(3, dtype=torch.cfloat)),
}


@pytest.mark.parametrize("name", SAME)
def test_one_bill_in_inference_and_in_training(name):
    bills = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with Ledger() as ledger, mode():
            SAME[name]()
        bills.append(ledger.flops)
    assert len(set(bills)) == 1, bills


def test_allclose_costs_what_isclose_does():
    with Ledger() as each:
        torch.isclose(rows(3, 4), rows(4))
    with Ledger() as together:
        torch.allclose(rows(3, 4), rows(4))
    assert each.flops == together.flops == 4 * 12 + 3 * 4
