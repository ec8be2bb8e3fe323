"""Counting a step must neither miss what compiled code does nor leave that code slower than it was."""

import lightning
import pytest
import torch
from torch import nn

from experiments.ledger import Ledger, LedgerCallback
from tests.experiments.ledger.test_callback import D, Model, loader, trainer


class Backend:
    """Compiles to the graph as it is; keeps what it was given."""

    def __init__(self):
        self.graphs = self.calls = 0

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*given):
            self.calls += 1
            return graph.forward(*given)

        return run


class Layers(nn.Module):
    """Torch compiles no module of its own by itself."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(D, D)

    def forward(self, x):
        return torch.nn.functional.gelu(self.linear(x))


@pytest.fixture
def backend():
    torch.compiler.reset()
    yield Backend()
    torch.compiler.reset()


def test_compiled_code_is_counted_uncompiled_and_not_compiled_again(backend):
    model = Layers()
    x = torch.randn(2, D)
    with Ledger(model) as plain:
        model(x).sum().backward()
    model.compile(backend=backend)
    for _ in range(2):
        model(x).sum().backward()
    graphs, calls = backend.graphs, backend.calls
    model.zero_grad()
    with Ledger(model) as compiled:
        model(x).sum().backward()
    assert backend.calls == calls
    assert compiled.to_dict() == plain.to_dict()
    model(x).sum().backward()
    assert (backend.graphs, backend.calls) == (graphs, calls + 1)


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_modules_in_a_run(tmp_path, backend, whole):
    class Network(Model):
        def __init__(self):
            super().__init__()
            self.layer = Layers()

    plain, counted = LedgerCallback(), LedgerCallback()
    trainer(plain, tmp_path).fit(Network(), loader(20))
    module: lightning.LightningModule = Network()
    if whole:
        module = torch.compile(module, backend=backend)  # type: ignore[assignment]
    else:
        module.layer.compile(backend=backend)
    trainer(counted, tmp_path).fit(module, loader(20))
    assert counted.total().to_dict() == plain.total().to_dict()
    # Two of the ten steps were watched; the others ran what was compiled.
    assert backend.calls == 8 * backend.graphs > 0
