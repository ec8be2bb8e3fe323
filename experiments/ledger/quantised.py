"""Numbers of few bits: into them, out of them, and products of them."""

from __future__ import annotations

from torch import Tensor

from experiments.ledger.elementwise import per_input
from experiments.ledger.free import COPIED
from experiments.ledger.price import Call, Price, Rule, Traffic, priced, stored, tensors, total

# To quantise an element: scale, round, shift, clamp; to find the range first: its least and its greatest.
_QUANTISED, _RANGED = 4, 2
# And back: shift, scale.
_BACK = 2


def _products(call: Call) -> int:
    """Every output is a row of the first argument times a column, however the columns are packed."""
    return 2 * total(call.written()) * call.first().shape[-1]


def _columns(call: Call) -> int:
    return total(call.written()) // max(call.first().shape[:-1].numel(), 1)


def _dequantised(call: Call) -> int:
    """A product with weights that are shifted and scaled first, group by group."""
    return _products(call) + _BACK * call.first().shape[-1] * _columns(call)


def _unpacked(call: Call) -> list[Tensor]:
    """The weight of a packed linear layer, and its bias if it has one."""
    return list(tensors(call["W_prepack"].unpack()))


def _packed(each_input: int, each_output: int, because: str, element_size: int = 1) -> Price:
    """Price of a linear layer whose weights are packed, with so many operations more an input and an output."""

    def count(call: Call) -> int:
        biased = len(_unpacked(call)) > 1
        return (
            _products(call)
            + each_input * total([call.first()])
            + (each_output + biased) * total(call.written())
        )

    def moved(call: Call) -> Traffic:
        # Half floats come out of the package as whole ones.
        weight, *bias = _unpacked(call)
        read = stored(call.read()) + weight.numel() * element_size + stored(bias)
        return Traffic(read, stored(call.written()))

    inputs = f"{each_input}·inputs + " if each_input else ""
    outputs = f"({each_output} + bias)·outputs" if each_output else "bias·outputs"
    return Price(
        Rule(f"2·m·k·n + {inputs}{outputs}", count),
        Rule("inputs + weights + outputs", moved),
        because,
        Rule("2·m·k·n", _products),
    )


def _named(price: Price, *names: str) -> dict[str, Price]:
    return {f"quantized.{name}": price for name in names}


_PRODUCTS = Rule("2·m·k·n", _products)

PRICES: dict[str, Price] = {
    **priced(
        per_input(_QUANTISED, "scale, round, shift, clamp"), "quantize_per_tensor", "quantize_per_channel"
    ),
    **priced(
        per_input(_QUANTISED + _RANGED, "range 2; scale, round, shift, clamp"), "quantize_per_tensor_dynamic"
    ),
    **priced(per_input(_BACK, "shift back, scale"), "dequantize"),
    **priced(COPIED, "int_repr", "_make_per_tensor_quantized_tensor", "_make_per_channel_quantized_tensor"),
    **priced(
        Price(
            Rule(
                "2·m·k·n + bias",
                lambda call: _products(call) + total(call.written()) * (call["bias"] is not None),
            ),
            because="multiply-add = 2; scales belong to the number format",
            matmul=_PRODUCTS,
        ),
        "_scaled_mm_v2",
    ),
    **priced(
        Price(
            Rule("2·m·k·n + outputs", lambda call: _products(call) + total(call.written())),
            because="a scale for each column",
            matmul=_PRODUCTS,
        ),
        "_weight_int8pack_mm",
    ),
    **priced(
        Price(Rule("2·m·k·n + 2·k·n", _dequantised), because="weights shifted and scaled", matmul=_PRODUCTS),
        *("_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu", "_weight_int4pack_mm_with_scales_and_zeros"),
    ),
    **_named(
        _packed(_QUANTISED + _RANGED, _BACK, "inputs quantised, products of integers, outputs brought back"),
        "linear_dynamic",
    ),
    **_named(
        _packed(_QUANTISED + _RANGED, _BACK + 1, "the same, and the greater of 0 and each output"),
        "linear_relu_dynamic",
    ),
    **_named(_packed(0, _QUANTISED, "products of integers, outputs quantised again"), "linear"),
    **_named(_packed(0, _QUANTISED + 1, "the same, and the greater of 0 and each output"), "linear_relu"),
    **_named(_packed(0, 0, "products with half floats", 2), "linear_dynamic_fp16"),
    **_named(_packed(0, 1, "the same, and the greater of 0 and each output", 2), "linear_relu_dynamic_fp16"),
}
