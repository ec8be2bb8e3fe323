"""What processes of a distributed run exchange: each is billed its own part."""

from __future__ import annotations

from experiments.ledger.elementwise import elementwise
from experiments.ledger.price import Price

_REDUCED = elementwise(1, "each process adds its tensors to what the others sent")
_SENT = Price(because="copied between processes")


def _named(price: Price, *names: str) -> dict[str, Price]:
    return {f"c10d.{name}": price for name in names}


PRICES: dict[str, Price] = {
    **_named(
        _REDUCED,
        "allreduce",
        "allreduce_coalesced",
        "reduce",
        "reduce_scatter",
        "_reduce_scatter_base",
        "reduce_scatter_tensor_coalesced",
    ),
    **_named(
        _SENT,
        "broadcast",
        "allgather",
        "_allgather_base",
        "allgather_coalesced",
        "allgather_into_tensor_coalesced",
        "gather",
        "scatter",
        "alltoall",
        "alltoall_base",
        "send",
        "recv",
        "recv_any_source",
        "barrier",
        "monitored_barrier",
    ),
}
