"""The table of prices: every aten operator the ledger knows, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from experiments.ledger import (
    attention,
    collectives,
    elementwise,
    free,
    indexing,
    linalg,
    losses,
    matmul,
    pooling,
    quantised,
    reductions,
)
from experiments.ledger.price import MOVED, Call, Cost, Price, Traffic

SECTIONS: dict[str, dict[str, Price]] = {
    "Matrix products and convolutions": matmul.PRICES,
    "Few bits": quantised.PRICES,
    "Attention": attention.PRICES,
    "Element by element": elementwise.PRICES,
    "Along a dimension": reductions.PRICES,
    "Losses": losses.PRICES,
    "Windows, interpolation and sampling": pooling.PRICES,
    "Linear algebra": linalg.PRICES,
    "Reading and writing at positions": indexing.PRICES,
    "Without arithmetic": free.PRICES,
    "Between processes": collectives.PRICES,
}

PRICES: dict[str, Price] = {name: price for section in SECTIONS.values() for name, price in section.items()}

# Primitives that have another name than the aten operator whose price they have.
_PRIMS = {
    "aten.convert_element_type": "aten._to_copy",
    "aten.device_put": "aten._to_copy",
    "aten.iota": "aten.arange",
    "aten.broadcast_in_dim": "aten.as_strided",
    "aten.copy_to": "aten.copy",
}

# Torch's own formulas for these bill the square, and take places for heads: better no price than that one.
_MISCOUNTED = {
    f"aten._{kernel}_attention_{way}" for kernel in ("flash", "efficient") for way in ("forward", "backward")
}

#: What a price can be given for: an operator (``torch.ops.aten.add``), one overload of it, or the name of either.
Operator = torch._ops.OpOverloadPacket | torch._ops.OpOverload | str


def by_name(prices: Mapping[Operator, Price]) -> dict[str, Price]:
    """Prices by the names that :func:`found_in` looks up.

    Raises:
        TypeError: If something is not an operator.
        ValueError: If no operator has that name.
    """
    return {_name(operator): price for operator, price in prices.items()}


def _name(operator: Operator) -> str:
    if isinstance(operator, (torch._ops.OpOverloadPacket, torch._ops.OpOverload)):
        return str(operator)
    if not isinstance(operator, str):
        raise TypeError(
            f"no price can be put on {operator!r}: name an operator, such as torch.ops.aten.add, "
            'torch.ops.aten.add.Tensor or "aten.add"'
        )
    found: Any = torch.ops
    for part in operator.replace("::", ".").split("."):
        found = getattr(found, part, None)
    if not isinstance(found, (torch._ops.OpOverloadPacket, torch._ops.OpOverload)):
        raise ValueError(
            f'torch has no operator {operator!r}: a name is a namespace and an operator, such as "aten.add", '
            "and what defines it must have been imported"
        )
    return str(found)


def found_in(prices: Mapping[str, Price], func: torch._ops.OpOverload) -> Price | None:
    """The price of an overload, else of its operator, else of the operator it is the in-place form of."""
    name = str(func._overloadpacket)
    candidates = (prices.get(known) for known in (str(func), name, name.removesuffix("_")))
    return next((price for price in candidates if price is not None), None)


def price_of(func: torch._ops.OpOverload) -> tuple[str, Callable[[Call], Cost]] | None:
    """The name an operator is billed under and its price, or None if it has none.

    An operator that changes its argument in place has the price of the one that does not, a primitive that of the
    aten operator it is a part of. An operator outside aten
    is priced by the formula registered with ``torch.utils.flop_counter.register_flop_formula``; if that formula
    has an attribute ``bytes_formula`` (same arguments), it gives the bytes: those read, those written and the part
    of both at places that the data decide. An attribute ``billed_as`` names the operator it stands in for on some
    devices, such as "aten.mm".
    """
    packet = func._overloadpacket
    name = str(packet)
    aten = name.replace("prims.", "aten.", 1)
    if (own := PRICES.get(str(func))) is not None:
        return name, own
    for candidate in (name, name.removesuffix("_"), aten, _PRIMS.get(aten, aten)):
        if candidate in PRICES:
            return candidate, PRICES[candidate]
    if packet in flop_registry and name not in _MISCOUNTED:
        formula = flop_registry[packet]
        name = getattr(formula, "billed_as", name)
        return name, _registered(formula, products=name.startswith(("aten.", "mkldnn.")))
    return None


def in_parts(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator as the operators torch makes it of under autograd; NotImplemented if it is not made of any."""
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    # Where torch has written them down in Python as well, those may be others.
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite):
        return func._op_dk(composite, *args, **kwargs)
    return func.decompose(*args, **kwargs)


def _registered(formula: Callable[..., Any], products: bool) -> Callable[[Call], Cost]:
    def cost(call: Call) -> Cost:
        flops = int(formula(*call.args, **call.kwargs, out_val=call.out))
        bytes_formula = getattr(formula, "bytes_formula", None)
        if bytes_formula is None:
            traffic = MOVED.of(call)
        else:
            traffic = Traffic(*map(int, bytes_formula(*call.args, **call.kwargs, out_val=call.out)))
        return Cost.of(flops, flops if products else 0, traffic)

    return cost
