"""Sliding-window attention: each position hears the last few only."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mann.banded import attend, window_masks
from mann.context import Context
from mann.projection import QueriesKeysValues, fold


class SlidingWindowAttention(QueriesKeysValues):
    r"""Softmax attention over the last ``window`` positions of the same document.

    .. math::
        y_t = W_o \sum_{t - w < s \le t} \mathrm{softmax}_s\big(\langle q'_t, k'_s \rangle\big)\, v_s

    with queries and keys as in :class:`~mann.CausalAttention` (shifted, normalised, rotated). The cost is linear in the
    length of a row: each block of queries multiplies with ``window + block - 1`` keys at most. Layers above each other
    reach further: :math:`n` of them hear :math:`n (w - 1)` positions back.

    Reference:
        Beltagy et al., "Longformer: the long-document transformer", 2020. arXiv:2004.05150.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of heads; must divide ``d_model`` into an even head width.
        window: Positions that a query sees, its own the last of them.
        block: Queries per block.
        base: Base of the rotary frequencies.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If ``n_heads`` does not divide ``d_model`` into an even head width, or ``window < 1``.
    """

    def __init__(
        self, d_model: int, n_heads: int, window: int = 256, block: int = 64, base: float = 10_000.0
    ) -> None:
        super().__init__(d_model, n_heads, base)
        if window < 1:
            raise ValueError(
                f"a window of {window} positions does not hold the query's own: give window >= 1"
            )
        self.window = window
        self.block = block

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        q, k, v = (fold(part) for part in self.heads(x, context))
        masks = window_masks(context, self.block, self.window, q.dtype)
        return self.merge(attend(q, k, v, masks, self.block, self.window)[0])
