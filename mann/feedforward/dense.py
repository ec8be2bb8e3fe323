"""The feedforward slot: what each position computes alone."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mann.linear import Linear


class ReluSquared(nn.Module):
    r"""Two linear maps around a squared ReLU.

    .. math:: y = W_2 \, \max(0, W_1 x)^2

    Reference:
        So et al., "Primer", 2021. arXiv:2109.08668.

    Args:
        d_model: Width of the residual stream.
        expansion: Hidden width over ``d_model``.

    Shapes:
        input and output: ``[batch, time, width]``.
    """

    def __init__(self, d_model: int, expansion: int = 4) -> None:
        super().__init__()
        self.up = Linear(d_model, expansion * d_model)
        self.down = Linear(expansion * d_model, d_model)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        return self.down(F.relu(self.up(x)).square())


class SwiGLU(nn.Module):
    r"""A gated feedforward layer of about the cost of :class:`ReluSquared`.

    .. math:: y = W_2 \, (\mathrm{SiLU}(W_1 x) \odot W_3 x)

    Reference:
        Shazeer, "GLU variants improve transformer", 2020. arXiv:2002.05202.

    Args:
        d_model: Width of the residual stream.
        hidden: Hidden width; the default matches the matrix FLOPs of a fourfold expansion, rounded to 16.

    Shapes:
        input and output: ``[batch, time, width]``.
    """

    def __init__(self, d_model: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or max(16, round(8 * d_model / 3 / 16) * 16)
        self.up = Linear(d_model, 2 * hidden)
        self.down = Linear(hidden, d_model)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)
