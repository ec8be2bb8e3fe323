"""Classic operators with the parts of deep networks that they were published without."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

from gnn.encoders.base import Hears, known
from gnn.encoders.blocks import BlockEncoder, ConvBlock, Norm
from gnn.encoders.gin import sum_conv

__all__ = ["TunedGNN"]

_CONVS: dict[str, tuple[Hears, Callable[[int], nn.Module]]] = {
    "gcn": ("normalized", lambda width: GCNConv(width, width, normalize=False)),
    "sage": ("edges", lambda width: SAGEConv(width, width)),
    "gat": ("loops", lambda width: GATConv(width, width, add_self_loops=False)),
    "gin": ("edges", partial(sum_conv, norm="none")),
}


class TunedGNN(BlockEncoder):
    r"""GCN, GraphSAGE, GAT or GIN in blocks of norm, activation, dropout, residual and, if asked for, feed-forward.

    Well-tuned classic operators tie with graph transformers or beat them (the references), so a comparison without this
    one compares with too little. The block is :class:`~gnn.encoders.blocks.ConvBlock`: the residual is what came in, as
    in GNN+; edges have no features.

    Args:
        n_features: Features of a node.
        n_classes: Outputs of a node.
        conv: ``"gcn"``, ``"sage"``, ``"gat"`` (one head) or ``"gin"``, PyG's operators.
        hidden: Width of the blocks.
        n_layers: Number of blocks.
        dropout: Share of the features, and of the states behind each activation, that is dropped.
        norm: ``"batch"``, ``"layer"`` or ``"none"``.
        residual: Whether a block adds to what came in.
        feedforward: Whether a block ends with two linear maps (GNN+).

    Shapes:
        x: ``[nodes, n_features]``, dense or in CSR, adjacency: edges ``[2, edges]`` or the operator's matrix,
        result: ``[nodes, n_classes]``

    References:
        Luo et al., "Classic GNNs are strong baselines: reassessing GNNs for node classification", NeurIPS 2024.
        arXiv:2406.08993;
        Luo et al., "Can classic GNNs be strong baselines for graph-level tasks?", ICML 2025. arXiv:2502.09263.

    Raises:
        ValueError: If an operator or norm is unknown.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        conv: Literal["gcn", "sage", "gat", "gin"] = "gcn",
        hidden: int = 128,
        n_layers: int = 3,
        dropout: float = 0.5,
        norm: Norm = "layer",
        residual: bool = True,
        feedforward: bool = False,
    ) -> None:
        known("conv", conv, _CONVS)
        hears, build = _CONVS[conv]
        blocks = (
            ConvBlock(
                build(hidden),
                hidden,
                norm=norm,
                dropout=dropout,
                residual=residual,
                feedforward=feedforward,
            )
            for _ in range(n_layers)
        )
        super().__init__(n_features, n_classes, hidden, blocks, dropout)
        self.hears = hears
