"""Product-key memory: a feedforward layer whose hidden units are rows of a large table, of which a token reads few."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mann.linear import Linear
from mann.product_keys import ProductKeys, QueryNorm, Rows, Scores
from mann.table_optim import about_to_read
from retrieval.rows import sum_rows


class ProductKeyMemory(nn.Module):
    r"""A table of :math:`n^2` rows, read where two sets of :math:`n` keys match the two halves of a query.

    :class:`~mann.product_keys.ProductKeys` finds the best :math:`k` of all rows exactly. With :math:`s` their scores
    and :math:`S` the rows of a head,

    .. math::
        m = \sum_{\text{heads}} \sum_{i \in S} \operatorname{softmax}_S(s)_i \, V_i, \qquad
        y = W_2 \, (m \odot \operatorname{SiLU}(W_1 x))

    The gate is that of Memory+; without it :math:`y = W_2 m`, and the original has no :math:`W_2` either:
    ``gated=False, projected=False``. The layer starts as a no-op: :math:`W_2` starts at zero, or the table where there
    is none.

    References:
        Lample et al., "Large Memory Layers with Product Keys", 2019. arXiv:1907.05242;
        Berges et al., "Memory Layers at Scale" (Memory+), 2024. arXiv:2412.09764.

    Args:
        d_model: Width of the residual stream.
        n_keys: Keys of each half, :math:`n`; the table has its square of rows.
        k: Rows read by each head.
        n_heads: Queries of a token, each with keys of its own; they share the table.
        d_query: Width of a query, both halves; by default half the width, 16 at least.
        d_value: Width of a row; by default ``d_model``.
        gated: Whether what is read is gated by the input.
        projected: Whether what is read goes through :math:`W_2`.
        norm: What normalises queries, as :class:`~mann.product_keys.ProductKeys` takes it. ``"batch"`` lets a token
            hear later ones while it trains.
        sparse: Give the table row-sparse gradients, so that a step costs what it touches.
        table: Another layer's table, to be shared; by default one of its own.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If there are fewer than ``k`` keys, ``d_query`` is odd, a given table has other rows, or rows that
            are not projected have another width than the stream.
    """

    def __init__(
        self,
        d_model: int,
        n_keys: int = 128,
        k: int = 32,
        n_heads: int = 4,
        d_query: int | None = None,
        d_value: int | None = None,
        gated: bool = True,
        sparse: bool = True,
        table: nn.Embedding | None = None,
        projected: bool = True,
        norm: QueryNorm = "rms",
    ) -> None:
        super().__init__()
        d_value = d_model if d_value is None else d_value
        if not projected and d_value != d_model:
            raise ValueError(
                f"rows of {d_value} numbers do not fit a stream of {d_model}: give projected=True, or no d_value"
            )
        if table is not None and tuple(table.weight.shape) != (n_keys**2, d_value):
            raise ValueError(
                f"the table has {tuple(table.weight.shape)} numbers, {n_keys} keys a half and rows of {d_value} need "
                f"{(n_keys**2, d_value)}"
            )
        self.keys = ProductKeys(d_model, n_keys, k, n_heads, d_query, norm)
        self.table = nn.Embedding(n_keys**2, d_value, sparse=sparse) if table is None else table
        if table is None:
            nn.init.normal_(self.table.weight, std=d_value**-0.5 if projected else 0.0)
        self.gate = Linear(d_model, d_value) if gated else None
        self.out = Linear(d_value, d_model) if projected else None
        if self.out is not None:
            nn.init.zeros_(self.out.weight)

    def look_up(self, x: Float[Tensor, "batch time width"]) -> tuple[Scores, Rows]:
        """The rows that each head of each token reads, best first, and their weights, which sum to one.

        Shapes:
            x: ``[batch, time, width]``; results: ``[batch, time, heads, k]``
        """
        scores, rows = self.keys(x)
        return scores.softmax(-1), rows

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        weights, rows = self.look_up(x)
        about_to_read(self.table, rows)
        read = sum_rows(self.table.weight, rows.flatten(2), weights.flatten(2), sparse=self.table.sparse)
        read = read.to(x.dtype)
        if self.gate is not None:
            read = read * F.silu(self.gate(x))
        return read if self.out is None else self.out(read)
