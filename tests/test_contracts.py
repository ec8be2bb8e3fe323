from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from mann import CausalAttention, Context, Memory, NGramMemory, Readout, SoftmaxReadout, Streaming
from tests.contracts import (
    ALWAYS,
    CONTRACTS,
    NEIGHBORS,
    SOURCE,
    VOCAB,
    Slot,
    assert_memory,
    assert_mixer,
)
from tests.streaming import goes_on

# What constructors may ask for by name: what they need, and sizes small enough to be quick.
ARGUMENTS = {
    "source": SOURCE,
    "k": NEIGHBORS,
    "n_rows": 64,
    "vocab_size": VOCAB,
    "window": 16,
    "chunk": 8,
    "values": partial(NGramMemory, n_rows=64),
}
# Exported modules that fill no slot.
NO_SLOT = {
    "APPNP",
    "DNC",
    "GAT",
    "GCN",
    "GIN",
    "GPS",
    "MLP",
    "NTM",
    "SAGE",
    "SGC",
    "SIGN",
    "Attached",
    "Block",
    "Distillation",
    "EndToEndMemoryNetwork",
    "Exphormer",
    "GATv2",
    "GraphEncoder",
    "GraphModule",
    "HostTable",
    "LanguageModule",
    "LinkModule",
    "MemoryGraphClassifier",
    "NodeEncoder",
    "NodeModule",
    "SGFormer",
    "SparseAccessMemory",
    "Transformer",
    "TunedGNN",
}


def exported_modules() -> dict[str, type[nn.Module]]:
    """Every concrete module that the libraries export, by name."""
    found = {}
    for library in ("mann", "mann.memory", "gnn"):
        home = importlib.import_module(library)
        for name in home.__all__:
            thing = getattr(home, name)
            if inspect.isclass(thing) and issubclass(thing, nn.Module) and not inspect.isabstract(thing):
                found[name] = thing
    return found


def slot_of(cls: type[nn.Module]) -> Slot | None:
    """The slot that a class fills, told from how it is built and called; ``None`` if none."""
    called = list(inspect.signature(cls.forward).parameters)[1:]
    built = list(inspect.signature(cls.__init__).parameters)[1:]
    if issubclass(cls, Memory):
        kind = "memory"
    elif issubclass(cls, Readout):
        kind = "readout"
    elif called[:3] == ["x", "neighbors", "window"]:
        kind = "reader"
    elif called == ["x", "context"] and built[:2] == ["d_model", "n_heads"]:
        kind = "mixer"
    elif called in (["x"], ["x", "context"]) and built[:1] == ["d_model"]:
        kind = "feedforward"
    else:
        return None
    # The model gives the first by place. A reader sets its own number of neighbours apart from the source's, and its
    # default must do.
    asked = [] if kind == "reader" else built[2 if kind in ("mixer", "readout") else 1 :]
    given = {name: value for name, value in ARGUMENTS.items() if name in asked}
    return Slot(kind, partial(cls, **given))


EXPORTED = exported_modules()
CASES = [
    pytest.param(slot, contract, id=f"{name}-{contract.__name__}")
    for name, cls in EXPORTED.items()
    if name not in NO_SLOT and (slot := slot_of(cls)) is not None
    for contract in CONTRACTS[slot.kind]
]


# What they hold of earlier segments has no gradient.
WITHOUT_GRADIENT = {"KNNAttention"}
# Everything but mixers that hear one segment.
GOING_ON = [
    pytest.param(slot, name not in WITHOUT_GRADIENT, id=name)
    for name, cls in EXPORTED.items()
    if name not in NO_SLOT and (slot := slot_of(cls)) is not None
    if slot.kind != "mixer" or issubclass(cls, Streaming)
]


@pytest.mark.parametrize(("slot", "gradients"), GOING_ON)
def test_segments_over_a_state_are_one_text(slot: Slot, gradients: bool):
    goes_on(slot, gradients)


@pytest.mark.parametrize(("slot", "contract"), CASES)
def test_contract(slot: Slot, contract: Callable[[Slot], None]):
    contract(slot)


class Asking(nn.Module):
    def __init__(self, d_model: int, vocab_size: int, k: int = 2) -> None:
        super().__init__()

    def forward(self, x, context):
        return x


def test_a_slot_is_told_from_how_a_class_is_built_and_called():
    asking = slot_of(Asking)
    assert asking is not None
    assert asking.kind == "feedforward"
    assert isinstance(asking.build, partial)
    assert asking.build.keywords == {"vocab_size": VOCAB, "k": NEIGHBORS}
    mixer, readout = slot_of(CausalAttention), slot_of(SoftmaxReadout)
    assert mixer is not None
    assert readout is not None
    assert (mixer.kind, readout.kind) == ("mixer", "readout")
    assert isinstance(readout.build, partial)
    assert "vocab_size" not in readout.build.keywords


def test_every_export_is_enrolled():
    left_out = [name for name, cls in EXPORTED.items() if name not in NO_SLOT and slot_of(cls) is None]
    assert not left_out, (
        f"{left_out} fill no slot that the contracts know: build and call them as the others, "
        "or list them in NO_SLOT here if they fill none"
    )
    kinds = {slot.kind for cls in EXPORTED.values() if (slot := slot_of(cls)) is not None}
    assert kinds == set(CONTRACTS)


class Echo(Memory):
    """Adds what ``look`` makes of the states; a memory as a user might write it.

    Args:
        d_model: Width.
        look: What it looks at.

    Shapes:
        input and output: ``[batch, time, width]``.

    Reference:
        None.
    """

    def __init__(self, d_model: int, look: Callable[[torch.Tensor, Context], torch.Tensor]) -> None:
        super().__init__()
        self.look = look
        self.out = nn.Linear(d_model, d_model, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x, context):
        return self.out(self.look(x, context))


def itself(x, context):
    return x.tanh()


def later(x, context):
    return torch.cat([x[:, 1:], x[:, :1]], 1)


def earlier(x, context):
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)


def within_documents(x, context):
    return earlier(x, context) * context.same_document(1)[..., None]


def whole_row(x, context):
    return x - x.mean(1, keepdim=True)


def later_tokens(x, context):
    return x * (context.tokens.roll(-1, 1) % 2)[..., None]


@torch.library.custom_op("contracttest::unpriced", mutates_args=())
def _unpriced(x: torch.Tensor) -> torch.Tensor:
    return x.tanh()


_unpriced.register_fake(torch.empty_like)
_unpriced.register_autograd(lambda ctx, grad: grad)


def unpriced(x, context):
    return _unpriced(x)


def test_a_sound_memory_passes():
    assert_memory(partial(Echo, look=itself))


@pytest.mark.parametrize(
    ("look", "broken"),
    [
        (later, {"sees_no_future", "keeps_its_prefix", "keeps_documents_apart"}),
        (earlier, {"keeps_documents_apart"}),
        (whole_row, {"sees_no_future", "keeps_its_prefix", "keeps_documents_apart"}),
        (later_tokens, {"keeps_its_prefix", "keeps_documents_apart"}),
        (unpriced, {"has_a_price"}),
    ],
    ids=lambda value: value.__name__ if inspect.isfunction(value) else "",
)
def test_the_contracts_catch(look, broken):
    slot, caught = Slot("memory", partial(Echo, look=look)), set()
    for contract in ALWAYS:
        try:
            contract(slot)
        except (AssertionError, NotImplementedError, RuntimeError):
            caught.add(contract.__name__)
    assert broken <= caught
    assert caught <= broken | {"trains_every_parameter", "has_a_price"}


def test_what_forgets_a_segment_is_caught():
    with pytest.raises(AssertionError, match="not close"):
        goes_on(Slot("memory", partial(Echo, look=within_documents)))


def test_the_contracts_catch_an_open_gate_and_shared_weights():
    class Open(Echo):
        def __init__(self, d_model):
            super().__init__(d_model, itself)
            nn.init.ones_(self.out.weight)

    with pytest.raises(AssertionError):
        CONTRACTS["memory"][0](Slot("memory", Open))
    shared = nn.Parameter(torch.zeros(4))

    class Shared(Echo):
        def __init__(self, d_model):
            super().__init__(d_model, itself)
            self.weight = shared

    shares_nothing = next(contract for contract in ALWAYS if contract.__name__ == "shares_nothing")
    with pytest.raises(AssertionError):
        shares_nothing(Slot("memory", Shared))


@pytest.mark.parametrize("block", [7, 40, 200])
def test_attention_keeps_the_contracts_in_any_block(block):
    assert_mixer(partial(CausalAttention, block=block))


@pytest.mark.parametrize(
    "settings", [{"orders": (1,)}, {"orders": (3, 2), "n_heads": 1}, {"sparse": False}], ids=str
)
def test_ngram_keeps_the_contracts_in_any_setting(settings):
    assert_memory(partial(NGramMemory, n_rows=32, **settings))
