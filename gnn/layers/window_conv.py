"""One round of messages inside a retrieved window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from gnn.layers.norm import inverse_rms

__all__ = ["WindowConv"]


class WindowConv(MessagePassing):
    r"""Messages between adjacent positions of a window, one weight for each direction.

    The relational convolution of `Modeling Relational Data with Graph Convolutional Networks
    <https://arxiv.org/abs/1703.06103>`_ (Schlichtkrull et al., 2018) with three relations: a node itself (0), the node
    that stands before it (1) and the node that stands after it (2). Weights belong to the relation, as in
    `Heterogeneous Graph Transformer <https://arxiv.org/abs/2003.01332>`_ (Hu et al., 2020):

    .. math::
        \mathbf{h}'_i = \hat{\mathbf{h}}_i + \sum_{r=0}^{2} \sum_{j \in \mathcal{N}_r(i)}
        \mathbf{W}_r\, \mathrm{SiLU}(\hat{\mathbf{h}}_j), \qquad
        \hat{\mathbf{h}} = \mathbf{h} / \mathrm{RMS}(\mathbf{h})

    All that is not linear comes before the sum. Where states are rows of a table of token embeddings, a round is
    therefore a sum of rows of tables transformed once (:meth:`say`), whatever the number of nodes.

    Args:
        width: Size of a node's state.

    Shapes:
        x: ``[nodes, width]``, edge_index: ``[2, edges]``, step: ``[edges]`` (-1: the source stands before the target,
        1: after it), result: ``[nodes, width]``
    """

    def __init__(self, width: int) -> None:
        super().__init__(aggr="sum", node_dim=0)
        self.width = width
        self.weight = nn.Parameter(torch.empty(3, width, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws each relation's weight as a linear layer's."""
        super().reset_parameters()
        bound = self.width**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def say(self, x: Tensor, *relations: int) -> list[Tensor]:
        """What nodes say to each of the relations asked for; to themselves (0), their own state included."""
        x = x * inverse_rms(x)
        active = F.silu(x)
        weight = torch.cat([self.weight[relation] for relation in relations])
        said = F.linear(active, weight).to(x.dtype).chunk(len(relations), dim=-1)
        return [x + part if relation == 0 else part for relation, part in zip(relations, said, strict=True)]

    def forward(self, x: Tensor, edge_index: Tensor, step: Tensor) -> Tensor:
        """Runs the round over a list of edges."""
        itself, from_before, from_after = self.say(x, 0, 1, 2)
        before, after = edge_index[:, step < 0], edge_index[:, step > 0]
        return itself + self.propagate(before, x=from_before) + self.propagate(after, x=from_after)

    def message(self, x_j: Tensor) -> Tensor:
        """What a source says, already multiplied by the weight of its relation."""
        return x_j
