"""What processes of a distributed run exchange: each is billed its own part."""

from __future__ import annotations

from torch import Tensor

from experiments.ledger.price import NOTHING, UNMOVED, Call, Price, Rule, Traffic, stored, tensors, total

# Where results are put; the schemas do not say so themselves.
_PLACES = ("output_tensor", "output_tensors", "output_lists", "outputs", "output")


def _received(call: Call) -> list[Tensor]:
    """What a process has afterwards: in the places given for it, returned, or in place of what it sent."""
    places = list(tensors([call[name] for name in _PLACES]))
    return places or call.written() or list(tensors(call["tensors"]))


def _sent(call: Call) -> list[Tensor]:
    return [
        tensor
        for argument in call.func._schema.arguments
        if argument.name not in _PLACES and not argument.kwarg_only
        for tensor in tensors(call[argument.name])
    ]


def _put_in(call: Call) -> Traffic:
    """The pieces are read and written; of the place they are put in, the rest is filled by what others send."""
    moved = stored(tensors(call["all_gather_inputs"]))
    return Traffic(moved, moved)


def _copied(call: Call) -> Traffic:
    return Traffic(stored(tensors(call["data"])), stored(call.written()))


_EXCHANGED = Rule("sent + received", lambda call: Traffic(stored(_sent(call)), stored(_received(call))))
_REDUCED = Price(
    Rule("received", lambda call: total(_received(call))),
    _EXCHANGED,
    "each process adds its tensors to what the others sent",
)
_SENT = Price(NOTHING, _EXCHANGED, "copied between processes")
_WAITED = Price(NOTHING, UNMOVED, "what is waited for has its price already")
_COPIED = Price(because="values are moved, not computed")
_PUT_IN = Price(NOTHING, Rule("inputs twice", _put_in), "values are moved, not computed")
_PUT_OVER = Price(NOTHING, Rule("source + target", _copied), "values are moved, not computed")


def _named(namespace: str, price: Price, *names: str) -> dict[str, Price]:
    return {f"{namespace}.{name}": price for name in names}


PRICES: dict[str, Price] = {
    **_named(
        "c10d",
        _REDUCED,
        "allreduce",
        "allreduce_coalesced",
        "reduce",
        "reduce_scatter",
        "_reduce_scatter_base",
        "reduce_scatter_tensor_coalesced",
    ),
    **_named(
        "c10d",
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
    **_named(
        "_c10d_functional",
        _REDUCED,
        *("all_reduce", "all_reduce_coalesced", "reduce_scatter_tensor", "reduce_scatter_tensor_coalesced"),
        "reduce_scatter_tensor_out",
    ),
    **_named(
        "_c10d_functional",
        _SENT,
        *("all_gather_into_tensor", "all_gather_into_tensor_coalesced", "all_gather_into_tensor_out"),
        *("broadcast", "all_to_all_single", "isend", "irecv", "batch_p2p_ops"),
    ),
    **_named("_c10d_functional", _WAITED, "wait_tensor", "_wrap_tensor_autograd"),
    **_named("_c10d_functional_autograd", _REDUCED, "reduce_scatter_tensor"),
    **_named("_c10d_functional_autograd", _SENT, "all_gather_into_tensor", "all_to_all_single"),
    **_named("_dtensor", _SENT, "shard_dim_alltoall"),
    **_named("fsdp", _COPIED, "chunk_cat", "split_with_sizes_copy"),
    **_named("fsdp", _PUT_IN, "all_gather_copy_in"),
    **_named("fsdp", _PUT_OVER, "copy"),
}
