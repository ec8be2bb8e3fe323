"""Graph attention whose ranking of neighbours depends on who asks."""

from __future__ import annotations

from typing import ClassVar

from torch import nn
from torch_geometric.nn import GATv2Conv

from gnn.encoders.gat import GAT

__all__ = ["GATv2"]


class GATv2(GAT):
    r"""As :class:`GAT` in everything but the score, where the nonlinearity comes before the product with the vector.

    .. math::
        e_{ij} = \mathbf{a}^\top \mathrm{LeakyReLU}(\mathbf{W}_t \mathbf{h}_i + \mathbf{W}_s \mathbf{h}_j)

    A query can therefore prefer other neighbours than the next query does; with GAT all rank them alike. Twice the
    linear maps, and the score costs a width an edge and not a number.

    Args:
        n_features: Features of a node.
        n_classes: Outputs of a node.
        hidden: Size of a head in the layers between.
        heads: Heads of these, side by side.
        out_heads: Heads of the last layer, averaged.
        n_layers: Number of layers.
        dropout: Share of the inputs of each layer that is dropped.
        attention_dropout: Share of the attention that is dropped; ``None``: as ``dropout``.

    Shapes:
        as :class:`GAT`

    Reference:
        Brody et al., "How attentive are graph attention networks?", ICLR 2022. arXiv:2105.14491.
    """

    conv: ClassVar[type[nn.Module]] = GATv2Conv
