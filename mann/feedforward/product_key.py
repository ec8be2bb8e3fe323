"""Product-key memory: a feedforward layer whose hidden units are rows of a large table, of which a token reads few."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.linear import Linear
from mann.norm import rms_norm
from mann.topk import top_ids
from retrieval.rows import sum_rows

Weights = Float[Tensor, "batch time heads k"]
Rows = Int[Tensor, "batch time heads k"]


class ProductKeyMemory(nn.Module):
    r"""A table of :math:`n^2` rows, read where two sets of :math:`n` keys match the two halves of a query.

    Row :math:`(i, j)` has the key :math:`[a_i ; b_j]`, so the best of all :math:`n^2` are among the pairs of the best
    of each half, and are found exactly by comparing with :math:`2 n` keys. With :math:`q` a query of a head,
    normalised, and :math:`S` its :math:`k` best rows,

    .. math::
        s_{ij} = q_1 \cdot a_i + q_2 \cdot b_j, \qquad
        m = \sum_{\text{heads}} \sum_{(i,j) \in S} \operatorname{softmax}_S(s)_{ij} \, V_{ij}, \qquad
        y = W_2 \, (m \odot \operatorname{SiLU}(W_1 x))

    The gate is that of Memory+; without it :math:`y = W_2 m`. :math:`W_2` starts at zero, so the layer starts as a
    no-op. The original normalises queries over the batch, which uses more rows but lets a token hear later ones while
    it trains; here each query is normalised by itself, :math:`q / \operatorname{rms}(q)`.

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
        sparse: Give the table row-sparse gradients, so that a step costs what it touches.
        table: Another layer's table, to be shared; by default one of its own.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If there are fewer than ``k`` keys, ``d_query`` is odd, or a given table has other rows.
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
    ) -> None:
        super().__init__()
        d_query = max(16, d_model // 4 * 2) if d_query is None else d_query
        d_value = d_model if d_value is None else d_value
        if not 1 <= k <= n_keys:
            raise ValueError(f"k={k} rows of {n_keys} keys a half: give 1 <= k <= n_keys")
        if d_query < 2 or d_query % 2:
            raise ValueError(f"d_query={d_query} has no two halves: give an even number")
        if table is not None and tuple(table.weight.shape) != (n_keys**2, d_value):
            raise ValueError(
                f"the table has {tuple(table.weight.shape)} numbers, {n_keys} keys a half and rows of {d_value} need "
                f"{(n_keys**2, d_value)}"
            )
        self.n_keys, self.k, self.n_heads = n_keys, k, n_heads
        self.query = Linear(d_model, n_heads * d_query)
        half = d_query // 2
        self.keys = nn.Parameter(torch.empty(n_heads, 2, n_keys, half).uniform_(-(half**-0.5), half**-0.5))
        self.keys.role = "embedding"  # type: ignore[attr-defined]
        self.table = nn.Embedding(n_keys**2, d_value, sparse=sparse) if table is None else table
        if table is None:
            nn.init.normal_(self.table.weight, std=d_value**-0.5)
        self.gate = Linear(d_model, d_value) if gated else None
        self.out = Linear(d_value, d_model)
        nn.init.zeros_(self.out.weight)
        # Of pair (i, j) of sorted halves (i + 1)(j + 1) pairs are as good: only these can be among the k best.
        ranks = torch.arange(1, k + 1)
        pairs = (ranks[:, None] * ranks <= k).nonzero()
        self.register_buffer("first", pairs[:, 0], persistent=False)
        self.register_buffer("second", pairs[:, 1], persistent=False)

    first: Tensor
    second: Tensor

    def look_up(self, x: Float[Tensor, "batch time width"]) -> tuple[Weights, Rows]:
        """The rows that each head of each token reads, best first, and their weights, which sum to one.

        Shapes:
            x: ``[batch, time, width]``; results: ``[batch, time, heads, k]``
        """
        halves = self.query(x).unflatten(-1, (self.n_heads, 2, -1)).flatten(0, 1)
        query = rms_norm(halves.flatten(-2)).view_as(halves)
        scores = torch.einsum("nhsd,hskd->nhsk", query.to(self.keys.dtype), self.keys)
        at = top_ids(scores, self.k)
        best = scores.gather(-1, at)
        sums = best[..., 0, self.first] + best[..., 1, self.second]
        chosen = top_ids(sums, self.k)
        top = sums.gather(-1, chosen)
        left, right = self.first[chosen], self.second[chosen]
        rows = at[..., 0, :].gather(-1, left) * self.n_keys + at[..., 1, :].gather(-1, right)
        shape = (*x.shape[:2], self.n_heads, self.k)
        return top.softmax(-1).view(shape), rows.view(shape)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        weights, rows = self.look_up(x)
        read = sum_rows(self.table.weight, rows.flatten(2), weights.flatten(2), sparse=self.table.sparse)
        read = read.to(x.dtype)
        return self.out(read if self.gate is None else read * F.silu(self.gate(x)))
