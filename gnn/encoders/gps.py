"""General, powerful, scalable graph transformer: messages along edges and attention to everything, side by side."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch_geometric.nn import GPSConv

from gnn.encoders.base import known
from gnn.encoders.blocks import BlockEncoder
from gnn.encoders.gin import sum_conv

__all__ = ["GPS"]

_NORMS = {"batch": "batch_norm", "none": None}


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float, attention_dropout: float, norm: str) -> None:
        super().__init__()
        self.conv = GPSConv(
            width,
            sum_conv(width),
            heads=heads,
            dropout=dropout,
            norm=_NORMS[norm],
            attn_kwargs={"dropout": attention_dropout},
        )

    def forward(self, x: Tensor, graph: tuple[Tensor, ...], batch: Tensor | None) -> Tensor:
        return self.conv(x, *graph, batch=batch)


class GPS(BlockEncoder):
    r"""Layers of PyG's ``GPSConv``, a sum over neighbours (GIN) as their local part.

    .. math::
        \mathbf{u} = \mathrm{Norm}(\mathbf{h} + \mathrm{GIN}(\mathbf{h}))
        + \mathrm{Norm}(\mathbf{h} + \mathrm{MHA}(\mathbf{h})), \qquad
        \mathbf{h}' = \mathrm{Norm}(\mathbf{u} + \mathrm{MLP}(\mathbf{u}))

    Attention is dense: the square of the nodes of a graph, so this is for batches of graphs, or for small ones. It
    hears everything, and batch norm mixes the batch: nothing here is causal. Where nodes are comes from encodings alone
    (:mod:`gnn.encodings`), joined to the features.

    Args:
        n_features: Features of a node, encodings included.
        n_classes: Outputs of a node.
        hidden: Width of the blocks.
        n_layers: Number of blocks.
        heads: Heads of the attention; must divide ``hidden``.
        dropout: Share of the states that is dropped behind each part.
        attention_dropout: Share of the attention that is dropped.
        norm: ``"batch"`` or ``"none"``.

    Shapes:
        x: ``[nodes, n_features]``, dense or in CSR, adjacency: edges ``[2, edges]`` or
        :func:`~gnn.adjacency.adjacency_matrix`, batch: ``[nodes]``, sorted, result: ``[nodes, n_classes]``

    Reference:
        Rampášek et al., "Recipe for a general, powerful, scalable graph transformer", NeurIPS 2022. arXiv:2205.12454.

    Raises:
        ValueError: If ``heads`` does not divide ``hidden``, or the norm is unknown.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        hidden: int = 64,
        n_layers: int = 3,
        heads: int = 4,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        norm: Literal["batch", "none"] = "batch",
    ) -> None:
        known("norm", norm, _NORMS)
        if heads < 1 or hidden % heads:
            raise ValueError(f"{heads=} does not divide {hidden=}")
        blocks = (_Block(hidden, heads, dropout, attention_dropout, norm) for _ in range(n_layers))
        super().__init__(n_features, n_classes, hidden, blocks)
