"""What whatever fills a slot of the transformer must do.

``assert_memory(partial(MyMemory, rows=8))`` and its like run every contract of their slot on your own class. What
``mann``, ``mann.memory`` or ``gnn`` exports is enrolled by ``tests/test_contracts.py``.
"""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.ledger import Ledger
from mann import ExternalMemory, Memory, Readout, Transformer
from mann.optim import ROLES, RoleOptimizer
from retrieval import Passages, SuffixSource

VOCAB, WIDTH, HEADS, LAYERS, TIME, NEIGHBORS = 29, 16, 2, 2, 80, 4
# Where a slot's memory is added: before the last block, so that mixing comes after it too.
LAYER = 1


def small_source(seed: int = 0) -> SuffixSource:
    """A store of three documents."""
    tokens = np.random.default_rng(seed).integers(1, VOCAB, 300)
    tokens[[0, 90, 200]] = 0
    return SuffixSource(
        Passages(tokens.astype(np.uint16), np.array([0, 90, 200, 300]), vocab_size=VOCAB), max_order=4
    )


SOURCE = small_source()


@dataclass(frozen=True)
class Slot:
    """One implementation in its slot of a small transformer."""

    kind: str
    build: Callable[..., nn.Module]

    def model(self, seed: int = 0, **slots: Any) -> Transformer:
        """As it starts; ``slots`` are those of the rest."""
        if self.kind == "memory":
            settings: dict[str, Any] = {"memory": {LAYER: self.build}}
        elif self.kind == "reader":
            settings = {
                "memory": {LAYER: partial(ExternalMemory, source=SOURCE, k=NEIGHBORS, reader=self.build)}
            }
        else:
            settings = {self.kind: self.build}
        torch.manual_seed(seed)
        return Transformer(VOCAB, WIDTH, LAYERS, HEADS, **(slots | settings)).train()

    def trained(self, seed: int = 0, **slots: Any) -> Transformer:
        """As it might be after some training: every gate open, every parameter somewhere else."""
        return opened(self.model(seed, **slots), seed)

    def names(self) -> tuple[str, ...]:
        """Where it is in the model."""
        return {
            "memory": (f"memory.{LAYER}",),
            "reader": (f"memory.{LAYER}.reader",),
            "readout": ("readout",),
        }.get(self.kind) or tuple(f"blocks.{layer}.{self.kind}" for layer in range(LAYERS))

    def module(self, model: Transformer) -> nn.Module:
        """The implementation itself."""
        return model.get_submodule(self.names()[0])


def opened(model: nn.Module, seed: int = 0) -> Any:
    """The same module with every parameter moved away from its start."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def batch(seed: int = 0, time: int = TIME) -> dict[str, Tensor]:
    """Tokens that quote the store, targets (some ignored) and documents; the last label is one that returns.

    ``exclude`` says that nothing of the store is hidden.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, VOCAB, (2, time))
    tokens[0, 3:40] = SOURCE.passages.tokens[100:137]
    tokens[1, time - 20 :] = SOURCE.passages.tokens[20:40]
    targets = rng.integers(0, VOCAB, (2, time))
    targets[:, ::7] = -100
    labels = np.zeros((2, time), np.int64)
    labels[0, 21:], labels[0, 65:], labels[1, time // 2 :] = 4, 0, 1
    found = {"tokens": tokens, "targets": targets, "documents": labels, "exclude": np.full_like(labels, -1)}
    return {name: torch.from_numpy(array) for name, array in found.items()}


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Run in ``"fp32"`` or under ``"bf16"`` autocast."""
    with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16"):
        yield


def leaf_of(model: Transformer) -> list[Tensor]:
    """Makes the embedded tokens of the next forward pass a leaf, and returns where it will be found."""
    found: list[Tensor] = []

    def cut(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        handle.remove()
        found.append(output.detach().requires_grad_())
        return found[0]

    handle = model.embedding.register_forward_hook(cut)
    return found


def random_like(x: Tensor) -> Tensor:
    """Weights that make of a tensor a number in which nothing cancels."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(7), dtype=x.dtype)


def starts_as_nothing(slot: Slot) -> None:
    """With its gate closed, the model is the dense one bit for bit, and the gate can open."""
    model, data = slot.model(), batch()
    torch.manual_seed(0)
    dense = Transformer(VOCAB, WIDTH, LAYERS, HEADS)
    for one, other in zip(dense.parameters(), model.parameters(), strict=False):
        assert torch.equal(one, other), "building the memory changed the initial backbone"
    # The head too starts at zero, and would hide everything.
    for net in (model, dense):
        nn.init.normal_(net.readout.head.weight, generator=torch.Generator().manual_seed(3))
    log_p = model(data["tokens"], data["documents"])
    assert torch.equal(log_p, dense(data["tokens"], data["documents"]))
    model.loss(**data).sum().backward()
    assert any(p.grad is not None and grad_of(p).any() for p in slot.module(model).parameters())


def starts_at_zero(slot: Slot) -> None:
    """A block begins as the identity."""
    model, outputs = slot.model(), []
    for name in slot.names():
        model.get_submodule(name).register_forward_hook(lambda *call: outputs.append(call[-1]))
    model(batch()["tokens"])
    assert len(outputs) == LAYERS
    assert not any(output.any() for output in outputs)


def keeps_the_shape(slot: Slot) -> None:
    """Updates are shaped like their input, distributions ``[batch, time, vocab]``, losses ``[batch, time]``."""
    for time in (1, 2, TIME):
        model, data, shapes = slot.trained(), batch(time=TIME), []
        data = {name: tensor[:, :time] for name, tensor in data.items()}
        slot.module(model).register_forward_hook(lambda *call, to=shapes: to.append((call[1][0], call[-1])))
        log_p = model(data["tokens"], data["documents"])
        ((x, update),) = shapes
        assert update.shape == (log_p.shape if slot.kind == "readout" else x.shape)
        assert log_p.shape == (2, time, VOCAB)
        assert model.loss(**data).shape == (2, time)


def sees_no_future(slot: Slot) -> None:
    """In train mode, the gradient of output[t] with respect to input[> t] is zero, exactly."""
    data = batch()
    for kind in ("fp32", "bf16"):
        model = slot.trained()
        leaf = leaf_of(model)
        with precision(kind):
            log_p = model(data["tokens"])
        weight = random_like(log_p)
        for t in (0, 1, 30, 63, 64, TIME - 2):
            (grad,) = torch.autograd.grad((log_p * weight)[:, t].sum(), leaf[0], retain_graph=True)
            assert grad[:, t].any(), f"position {t} does not hear itself ({kind})"
            assert not grad[:, t + 1 :].any(), f"position {t} hears a later one ({kind})"


def keeps_its_prefix(slot: Slot) -> None:
    """Later tokens, changed or added, change nothing that came before."""
    model, data = slot.trained(), batch()
    for half in (TIME // 2, 65):
        tokens = data["tokens"].clone()
        tokens[:, half:] = (tokens[:, half:] + 5) % VOCAB
        before, after = model(data["tokens"]), model(tokens)
        assert torch.equal(before[:, :half], after[:, :half])
        assert not torch.equal(before[:, half:], after[:, half:])
        torch.testing.assert_close(model(tokens[:, :half]), after[:, :half], rtol=1e-4, atol=1e-4)


def keeps_documents_apart(slot: Slot) -> None:
    """What stands in one document changes nothing in another one of the same row, from its first position on."""
    model, data = slot.trained(), batch()
    tokens, documents = data["tokens"], data["documents"]
    start = model(tokens, documents)
    leaf = leaf_of(model)
    log_p = model(tokens, documents)
    weight = random_like(log_p)
    # Runs of one label; the third of row 0 has the label of the first, and is another document.
    for row, span in ((0, slice(0, 21)), (0, slice(21, 65)), (0, slice(65, TIME)), (1, slice(0, TIME // 2))):
        changed = tokens.clone()
        changed[row, span] = (changed[row, span] + 5) % VOCAB
        same = (model(changed, documents) == start).all(-1)
        assert not same[row, span].all()
        same[row, span] = True
        assert same.all(), (
            f"row {row}, tokens {span.start}..{span.stop} are heard at {(~same).nonzero().tolist()}"
        )
        (grad,) = torch.autograd.grad((log_p * weight)[row, span].sum(), leaf[0], retain_graph=True)
        assert grad[row, span].any()
        grad[row, span] = 0
        assert not grad.any()


def sums_to_one(slot: Slot) -> None:
    """The output is a distribution."""
    for model in (slot.model(), slot.trained()):
        for kind, tolerance in (("fp32", 1e-5), ("bf16", 1e-2)):
            with precision(kind):
                log_p = model(batch()["tokens"], batch()["documents"])
            total = log_p.double().logsumexp(-1)
            torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=tolerance)


def loses_what_it_says(slot: Slot) -> None:
    """The loss is minus the log-probability of the target, 0 where there is none; and so are its gradients."""
    model, data = slot.trained(), batch()
    scored = data["targets"] >= 0
    picked = model(data["tokens"], data["documents"]).gather(-1, data["targets"].clamp(min=0)[..., None])
    expected = -picked.squeeze(-1) * scored
    loss = model.loss(**data)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert not loss[~scored].any()
    x = list(model.blocks.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(loss.mean(), x), torch.autograd.grad(expected.mean(), x), rtol=1e-3, atol=1e-4
    )


def trains_every_parameter(slot: Slot) -> None:
    """No parameter is left without a gradient, and none becomes infinite."""
    for kind in ("fp32", "bf16"):
        model = slot.trained()
        with precision(kind):
            model.loss(**batch()).mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, f"{name} has no gradient"
            assert grad_of(parameter).isfinite().all(), f"{name} has a gradient that is not finite"
            assert grad_of(parameter).any(), f"{name} has no gradient but zero"


def grad_of(parameter: nn.Parameter) -> Tensor:
    """Its gradient as a dense tensor."""
    assert parameter.grad is not None
    return parameter.grad.to_dense()


def saves_and_loads(slot: Slot) -> None:
    """A saved state makes another instance the same, and holds nothing but tensors and plain values."""
    one, other, data = slot.trained(1), slot.trained(2), batch()
    tokens, documents = data["tokens"], data["documents"]
    assert not torch.equal(one(tokens, documents), other(tokens, documents))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(one(tokens, documents), other(tokens, documents))


def shares_nothing(slot: Slot) -> None:
    """Two instances have no memory in common, and using one leaves the other as it was."""
    one, other, data = slot.trained(), slot.trained(), batch()
    kept = {name: value.clone() for name, value in other.state_dict().items() if isinstance(value, Tensor)}
    places = [{t.data_ptr() for t in [*m.parameters(), *m.buffers()] if t.numel()} for m in (one, other)]
    assert not places[0] & places[1]
    before = other(data["tokens"])
    one.loss(**data).mean().backward()
    RoleOptimizer(one, dict.fromkeys(ROLES, 0.1)).step()
    assert not torch.equal(one(data["tokens"]), before)
    assert torch.equal(other(data["tokens"]), before)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in kept.items())
    assert all(parameter.grad is None for parameter in other.parameters())


def has_a_price(slot: Slot) -> None:
    """A training step is billed without an operator that has no price; the forward is the same in train and eval."""
    model, data = slot.trained(), batch()
    optimizer = RoleOptimizer(model, dict.fromkeys(ROLES, 0.01))
    with Ledger(model) as ledger:
        model.loss(**data).mean().backward()
        optimizer.step()
    assert {"forward", "backward", "optimizer"} <= set(ledger.by_phase)
    assert sum(ledger.by_phase.values()) == sum(ledger.by_operator.values()) == ledger.flops
    for name in slot.names():
        assert ledger.by_module.get(name, 0) > 0, f"{name} is not on the bill"
        assert ledger.bytes_by_module[name] > 0
    with Ledger(model) as training:
        model.loss(**data)
    with Ledger(model.eval()) as evaluation, torch.no_grad():
        model.loss(**data)
    assert evaluation.by_module == training.by_module


def is_documented(slot: Slot) -> None:
    """The docstring says what it is, in what shapes, and whose idea it was."""
    text = inspect.getdoc(slot.build.func if isinstance(slot.build, partial) else slot.build) or ""
    assert "Shapes:" in text
    assert "Args:" in text
    assert slot.kind == "readout" or re.search(r"References?:|arxiv\.org", text), (
        "name the paper under Reference:"
    )


ALWAYS = (
    keeps_the_shape,
    sees_no_future,
    keeps_its_prefix,
    keeps_documents_apart,
    sums_to_one,
    loses_what_it_says,
    trains_every_parameter,
    saves_and_loads,
    shares_nothing,
    has_a_price,
    is_documented,
)
CONTRACTS: dict[str, tuple[Callable[[Slot], None], ...]] = {
    "memory": (starts_as_nothing, *ALWAYS),
    "reader": (starts_as_nothing, *ALWAYS),
    "mixer": (starts_at_zero, *ALWAYS),
    "feedforward": (starts_at_zero, *ALWAYS),
    "readout": ALWAYS,
}


def _assert(kind: str, build: Callable[..., nn.Module]) -> None:
    for contract in CONTRACTS[kind]:
        contract(Slot(kind, build))


def assert_memory(build: Callable[[int], Memory]) -> None:
    """Every contract of the memory slot; ``build(d_model)``."""
    _assert("memory", build)


def assert_reader(build: Callable[..., nn.Module]) -> None:
    """Every contract of a reader; ``build(d_model, vocab_size=...)``."""
    _assert("reader", build)


def assert_mixer(build: Callable[[int, int], nn.Module]) -> None:
    """Every contract of the mixer slot; ``build(d_model, n_heads)``."""
    _assert("mixer", build)


def assert_feedforward(build: Callable[[int], nn.Module]) -> None:
    """Every contract of the feedforward slot; ``build(d_model)``."""
    _assert("feedforward", build)


def assert_readout(build: Callable[[int, int], Readout]) -> None:
    """Every contract of the readout slot; ``build(d_model, vocab_size)``."""
    _assert("readout", build)
