"""Hashed bigrams: one table of vectors as wide as the network, added before many layers, more or less at each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.context import Context
from mann.memory.base import Memory
from mann.shift import tokens_before

# Odd numbers of 62 bits: part of the hash, so changing one makes every saved table meaningless.
MULTIPLIERS = (0x2545F4914F6CDD1D, 0x1B873593CC9E2D51)
# Of a product the upper bits depend on all of a factor; these are those that are used.
SHIFT = 24
MARKER = 0


class BigramMemory(Memory):
    r"""A row of a table for the last two tokens, times a number of the layer.

    .. math::
        i_t = \big(m_0 (x_t + 1) \oplus m_1 (x_{t-1} + 1) \gg 24\big) \bmod n, \qquad u_t = \lambda_\ell \, E[i_t]

    modulo :math:`2^{63}`, the token before a document being the marker. The table itself starts at zero, so the memory
    starts as a no-op; there is neither projection nor gate, and all layers share the table (:meth:`at_layers`), which
    tells it from :class:`~mann.NGramMemory` of order 2. Known as "engram-lite" or bigram hash. A :class:`~mann.State`
    carries the last token to the next segment.

    References:
        Huang et al., "Over-Tokenized Transformer", 2025. arXiv:2501.16975;
        Cheng et al., "Conditional Memory via Scalable Lookup" (Engram), 2026. arXiv:2601.07372.

    Args:
        d_model: Width of the residual stream.
        n_rows: Rows of the table.
        share: What :math:`\lambda` starts at.
        sparse: Give the table row-sparse gradients, so that a step costs what it touches.
        table: Another layer's table, to be shared; by default one of its own.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If there are no rows, or a given table has others.
    """

    def __init__(
        self,
        d_model: int,
        n_rows: int = 2**16,
        share: float = 0.1,
        sparse: bool = True,
        table: nn.Embedding | None = None,
    ) -> None:
        super().__init__()
        if n_rows < 1:
            raise ValueError(f"n_rows={n_rows}: a table has at least one row")
        if table is not None and tuple(table.weight.shape) != (n_rows, d_model):
            raise ValueError(
                f"the table has {tuple(table.weight.shape)} numbers, {n_rows} rows of {d_model} need "
                f"{(n_rows, d_model)}"
            )
        self.n_rows = n_rows
        self.share = nn.Parameter(torch.full((1,), share))
        self.table = nn.Embedding(n_rows, d_model, sparse=sparse) if table is None else table
        if table is None:
            nn.init.zeros_(self.table.weight)

    @classmethod
    def at_layers(cls, layers: Sequence[int], **settings: Any) -> dict[int, Callable[[int], BigramMemory]]:
        """One memory for each of these layers, for ``Transformer(memory=...)``, all with one table.

        Each model that is built from them has a table of its own.

        Args:
            layers: Layers before which the memory is added.
            settings: As the constructor takes them.
        """
        shared: list[nn.Embedding] = []
        ordered = sorted(layers)
        return {layer: partial(_build, cls, shared, layer == ordered[0], settings) for layer in ordered}

    def rows(self, context: Context) -> Int[Tensor, "batch time"]:
        """The table row that each position reads."""
        tokens, before = tokens_before(context, 1, MARKER)
        mixed = (tokens + 1) * MULTIPLIERS[0] ^ (before + 1) * MULTIPLIERS[1]
        return ((mixed & (2**63 - 1)) >> SHIFT) % self.n_rows

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        return self.share.to(x.dtype) * self.table(self.rows(context)).to(x.dtype)


def _build(
    cls: type[BigramMemory], shared: list[nn.Embedding], first: bool, settings: dict[str, Any], d_model: int
) -> BigramMemory:
    # A model builds its memories in the order of its layers: with the first one begins another model.
    built = cls(d_model, **settings, table=None if first else shared[0])
    shared[:] = [built.table]
    return built
