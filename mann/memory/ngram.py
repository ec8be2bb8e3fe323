"""Hashed n-gram memory: a table looked up by the last few tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.context import Context
from mann.memory.base import Memory
from mann.shift import tokens_before

# Odd 62-bit multipliers from this seed: part of the hash, so changing it makes every saved table meaningless.
HASH_SEED = 20_240_117
MARKER = 0


class NGramMemory(Memory):
    r"""Embeddings of the last :math:`n` tokens, found by hashing.

    Every order :math:`n` has ``n_heads`` hash functions; each picks one row of ``d_row`` numbers:

    .. math::
        h_0 = m_0 (x_t + 1), \qquad h_k = m_0 \big(h_{k-1} \oplus m_k (x_{t-k} + 1)\big), \qquad
        i_{n,j} = h_{n-1} \gg s, \qquad u_t = W \, \big\Vert_{n,j} \; E_{n,j}[i_{n,j}]

    modulo :math:`2^{63}`, with odd multipliers :math:`m` for every :math:`(n, j)`, :math:`s` leaving
    :math:`\log_2` ``n_rows`` bits, and concatenation :math:`\Vert`. Tokens of an earlier document count as the
    document marker. The projection starts at zero, so the memory starts as a no-op. ``orders=(1,)`` is the unigram
    control (a value embedding). A :class:`~mann.State` carries the last tokens to the next segment.

    References:
        Huang et al., "Over-Tokenized Transformer", 2025. arXiv:2501.16975;
        Cheng et al., "Conditional Memory via Scalable Lookup" (Engram), 2026. arXiv:2601.07372.

    Args:
        d_model: Width of the residual stream.
        orders: Lengths of the n-grams.
        n_heads: Hash functions per order.
        n_rows: Rows per order and head; a power of two.
        d_row: Numbers per row.
        sparse: Give the table row-sparse gradients, so that a step costs what it touches.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If ``n_rows`` is no power of two or ``orders`` is empty.
    """

    multipliers: Tensor
    offsets: Tensor

    def __init__(
        self,
        d_model: int,
        orders: Sequence[int] = (2, 3),
        n_heads: int = 2,
        n_rows: int = 2**16,
        d_row: int = 16,
        sparse: bool = True,
    ) -> None:
        super().__init__()
        if n_rows < 2 or n_rows & (n_rows - 1):
            raise ValueError(
                f"n_rows must be a power of two, got {n_rows}: try {2 ** max(1, n_rows.bit_length())}"
            )
        if not orders or min(orders) < 1:
            raise ValueError(f"orders must hold positive n-gram lengths, got {tuple(orders)}: try (2, 3)")
        self.orders = tuple(orders)
        self.n_heads = n_heads
        self.n_rows = n_rows
        slots = len(self.orders) * n_heads
        generator = torch.Generator().manual_seed(HASH_SEED)
        multipliers = torch.randint(0, 2**62, (slots, max(self.orders)), generator=generator) | 1
        self.register_buffer("multipliers", multipliers)
        self.register_buffer("offsets", torch.arange(slots) * n_rows)
        self.table = nn.Embedding(slots * n_rows, d_row, sparse=sparse)
        nn.init.normal_(self.table.weight, std=0.02)
        self.projection = nn.Linear(slots * d_row, d_model, bias=False)
        nn.init.zeros_(self.projection.weight)

    def rows(self, context: Context) -> Int[Tensor, "batch time slots"]:
        """The table rows that each position reads, one per order and hash head."""
        history = torch.stack(tokens_before(context, max(self.orders) - 1, MARKER), dim=-1)
        shift = 63 - (self.n_rows.bit_length() - 1)
        rows = []
        for index, order in enumerate(self.orders):
            heads = slice(index * self.n_heads, (index + 1) * self.n_heads)
            # +1 so that token 0 still stirs the hash; the product wraps around modulo 2**64, which is wanted.
            terms = (history[..., None, :order] + 1) * self.multipliers[heads, :order]
            mixed = terms[..., 0]
            for k in range(1, order):
                mixed = (mixed ^ terms[..., k]) * self.multipliers[heads, 0]
            rows.append((mixed & (2**63 - 1)) >> shift)
        return torch.cat(rows, dim=-1) + self.offsets

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        read = self.table(self.rows(context)).flatten(2)
        return self.projection(read.to(x.dtype))
