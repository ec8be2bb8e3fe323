"""STEM: a gated feedforward layer whose up-projection is a table, read by the token itself."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mann.context import Context
from mann.linear import Linear


class STEM(nn.Module):
    r"""A gated feedforward layer in which one of three matrices is a row per token of the vocabulary.

    .. math:: y_t = W_2 \, (\mathrm{SiLU}(W_1 x_t) \odot U[\text{token}_t])

    Every layer has a table of its own. What a token says is looked up, and what of it is heard depends on the state;
    a third of the matrix FLOPs of :class:`~mann.SwiGLU` is gone. Rows start with the size that :math:`W x` has in it.
    :math:`W_2` starts at zero, so the layer starts as a no-op.

    Reference:
        Sadhukhan et al., "STEM: Scaling Transformers with Embedding Modules", 2026. arXiv:2601.10639.

    Args:
        d_model: Width of the residual stream.
        vocab_size: Number of tokens, the rows of the table.
        hidden: Hidden width; the default is that of :class:`~mann.SwiGLU`.
        sparse: Give the table row-sparse gradients, so that a step costs what it touches.

    Shapes:
        input and output: ``[batch, time, width]``.
    """

    def __init__(self, d_model: int, vocab_size: int, hidden: int | None = None, sparse: bool = True) -> None:
        super().__init__()
        hidden = hidden or max(16, round(8 * d_model / 3 / 16) * 16)
        self.gate = Linear(d_model, hidden)
        self.table = nn.Embedding(vocab_size, hidden, sparse=sparse)
        self.down = Linear(hidden, d_model)
        nn.init.normal_(self.table.weight, std=3**-0.5)
        nn.init.zeros_(self.down.weight)

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        gate = F.silu(self.gate(x))
        return self.down(gate * self.table(context.tokens).to(gate.dtype))
