import pytest
import torch
import torch.nn.functional as F

from mann import ReluSquared, SwiGLU
from tests.contracts import opened
from tests.mann.inputs import assert_same, randn


def test_relu_squared_is_its_formula():
    layer = opened(ReluSquared(6, expansion=3).double())
    assert_same(
        lambda x, up, down: layer(x),
        lambda x, up, down: (torch.where(x @ up.T > 0, x @ up.T, 0.0) ** 2) @ down.T,
        randn(2, 5, 6),
        layer.up.weight,
        layer.down.weight,
    )


def test_swiglu_is_its_formula():
    layer = opened(SwiGLU(6, hidden=4).double())
    assert_same(
        lambda x, up, down: layer(x),
        lambda x, up, down: (F.silu(x @ up[:4].T) * (x @ up[4:].T)) @ down.T,
        randn(2, 5, 6),
        layer.up.weight,
        layer.down.weight,
    )


@pytest.mark.parametrize("width", [48, 96, 192])
def test_both_cost_the_same(width):
    sizes = [sum(p.numel() for p in build(width).parameters()) for build in (ReluSquared, SwiGLU)]
    assert sizes[0] == sizes[1]
