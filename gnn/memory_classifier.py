"""Nodes that ask a memory of training nodes, beside what their encoder makes of the graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gnn.encoders.base import Encoder, Hears
from gnn.evaluating import evaluating
from gnn.layers import EntryAttention
from retrieval.index import Index
from retrieval.neighbors import Neighbors
from retrieval.work import Work

__all__ = ["MemoryGraphClassifier"]

_HELD = ("keys", "nodes", "labels")
_FLAT = partial(Index, "Flat")


class MemoryGraphClassifier(nn.Module):
    r"""An encoder of nodes, a linear head, and between them edges from the nearest training nodes, labels included.

    Each node asks a :class:`retrieval.Index` of the training nodes' states, by cosine, and hears the ``k`` nearest
    through :class:`~gnn.layers.EntryAttention`, its null entry among them:

    .. math::
        \mathbf{h}_i = \mathrm{Encoder}(\mathbf{X}, \mathbf{A})_i, \qquad
        \mathcal{N}(i) = \operatorname*{top\text{-}k}_{j \in \mathcal{V}_L \setminus i} \cos(\mathbf{h}_i, \mathbf{m}_j)

        \mathbf{y}_i = \mathbf{W} \big(\mathbf{h}_i + \mathrm{Attend}(\hat{\mathbf{h}}_i,
        \{\hat{\mathbf{m}}_j + \mathbf{E}_{y_j}\}_{j \in \mathcal{N}(i)})\big) + \mathbf{b}

    where :math:`\mathbf{m}_j` is the state of node :math:`j` when the memory was built and hats stand for a root mean
    square of 1. The attention's last map starts at zero, so the network starts as encoder and head alone, and remains
    that as long as nothing is stored.

    What a node may not know. The memory holds nodes of ``train_mask`` and labels of these, so no other label enters. A
    node of ``train_mask`` is never given its own entry, in training or in evaluation, so that its label says nothing
    about its own scores. Nodes are told by their number: where a graph has no ``train_mask``, none of its nodes is
    taken for one that is stored.

    Training nodes stand nearer to those of their class than others do, so the memory would explain what the encoder is
    to learn. In training a share of the nodes hears nothing, as whole branches are left out by `Deep Networks with
    Stochastic Depth <https://arxiv.org/abs/1603.09382>`_ (Huang et al., 2016), and the others hear more by as much.

    What it costs. A search is an operator that a ledger sees. In training only training nodes ask, since only they have
    a loss; the others get what encoder and head say. The memory is built anew every few steps in a pass of the encoder
    of its own, in evaluation, within a training step, where a ledger sees it too; what the index then trains and adds
    is in :attr:`build_work`, for ``ledger.add("build", ...)``: no FLOPs with ``"Flat"``.

    A state dict holds the memory as tensors; the index is made of them when first asked.

    Args:
        encoder: Of nodes, built with ``width`` outputs.
        width: Outputs of the encoder.
        n_classes: Classes.
        k: Neighbours heard.
        n_heads: Heads of the attention.
        dropout: Share of the training nodes that hear nothing in a step.
        every: Training steps from one building of the memory to the next.
        index: Makes the empty index.

    Shapes:
        x: ``[nodes, features]``, y: ``[nodes]``, train_mask: ``[nodes]``, result: ``[nodes, n_classes]``

    References:
        Khandelwal et al., "Generalization through memorization: nearest neighbor language models", ICLR 2020, is the
        memory of training items by learned states, arXiv:1911.00172; Kossen et al., "Self-attention between
        datapoints", NeurIPS 2021, the attention to items whose own labels are hidden, arXiv:2106.02584.

    Raises:
        ValueError: If a size is below 1, ``dropout`` is no share, or training gives no ``y`` or ``train_mask``.
    """

    keys: Tensor
    nodes: Tensor
    labels: Tensor
    steps: Tensor

    def __init__(
        self,
        encoder: Encoder,
        width: int,
        n_classes: int,
        *,
        k: int = 8,
        n_heads: int = 1,
        dropout: float = 0.5,
        every: int = 10,
        index: Callable[[], Index] = _FLAT,
    ) -> None:
        super().__init__()
        for name, value in (("k", k), ("n_heads", n_heads), ("every", every)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"{dropout=} must be at least 0 and below 1")
        self.encoder, self.width, self.index = encoder, width, index
        self.k, self.dropout, self.every = k, dropout, every
        self.head = nn.Linear(width, n_classes)
        self.label = nn.Embedding(n_classes, width)
        self.attend = EntryAttention(width, width, n_heads)
        self.register_buffer("keys", torch.empty(0, width))
        self.register_buffer("nodes", torch.empty(0, dtype=torch.int64))
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.build_work = Work()
        self._index: Index | None = None

    def extra_repr(self) -> str:
        """What the modules inside do not tell."""
        return f"k={self.k}, dropout={self.dropout}, every={self.every}, stored={len(self.keys)}"

    @property
    def also(self) -> tuple[str, ...]:
        """Further attributes of a graph that :meth:`forward` takes by name."""
        return (*self.encoder.also, "y", "train_mask")

    @property
    def hears(self) -> Hears:
        """What becomes of the graph before operators get it."""
        return self.encoder.hears

    @property
    def convs(self) -> nn.Module:
        """The encoder's layers, where it has some, the first of which a :class:`~gnn.NodeModule` may penalise."""
        return cast("nn.Module", self.encoder.convs)

    def matrix(
        self, edge_index: Int[Tensor, "2 edges"], n_nodes: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The sparse matrix to be given in place of these edges; see :meth:`Encoder.matrix`."""
        return self.encoder.matrix(edge_index, n_nodes, dtype)

    def work_signature(self) -> str:
        """Whether the next training step builds the memory, for who bills it by a step watched before."""
        return f"builds: {self._due()}, stored: {len(self.keys)}"

    def forward(
        self,
        x: Float[Tensor, "nodes features"],
        adjacency: Tensor,
        batch: Tensor | None = None,
        *,
        y: Int[Tensor, " nodes"] | None = None,
        train_mask: Bool[Tensor, " nodes"] | None = None,
        **also: Tensor,
    ) -> Float[Tensor, "nodes classes"]:
        """Scores of each node for each class; ``y`` is looked at in training only, at the nodes of ``train_mask``."""
        if self.training:
            if y is None or train_mask is None:
                raise ValueError(
                    "a memory of training nodes is built from y and train_mask: train it with NodeModule on a graph "
                    "that has both, or give them by name"
                )
            if self._due():
                self.rebuild(x, adjacency, batch, y=y, train_mask=train_mask, **also)
            self.steps += 1
        states = self.encoder(x, adjacency, batch, **also)
        if not len(self.keys):
            return self.head(states)
        if not self.training or train_mask is None:
            stored = torch.zeros_like(states[:, 0], dtype=torch.bool) if train_mask is None else train_mask
            asking = torch.arange(len(states), device=states.device)
            return self.head(states + self._heard(states, asking, stored))
        asking = train_mask.nonzero().squeeze(1)
        heard = self._heard(states[asking], asking, train_mask[asking])
        kept = F.dropout(torch.ones_like(heard[:, :1]), self.dropout, self.training)
        return self.head(states.index_add(0, asking, kept * heard))

    @torch.no_grad()
    def rebuild(
        self,
        x: Float[Tensor, "nodes features"],
        adjacency: Tensor,
        batch: Tensor | None = None,
        *,
        y: Int[Tensor, " nodes"],
        train_mask: Bool[Tensor, " nodes"],
        **also: Tensor,
    ) -> None:
        """Stores the training nodes as the encoder sees them, in evaluation, and forgets what was stored."""
        with evaluating(self.encoder):
            states = self.encoder(x, adjacency, batch, **also)
        self.nodes = train_mask.nonzero().squeeze(1)
        self.keys, self.labels = F.normalize(states[self.nodes], dim=-1), y[self.nodes]
        self._index = None

    def search(
        self,
        states: Float[Tensor, "asking width"],
        asking: Int[Tensor, " asking"],
        stored: Bool[Tensor, " asking"],
    ) -> Neighbors:
        """The nearest entries of each node.

        Args:
            states: Of the nodes that ask.
            asking: Their numbers.
            stored: Which of them are training nodes, to be given no entry of their own.

        Shapes:
            states: ``[asking, width]``, asking, stored: ``[asking]``, result: ``[asking, k]``, ids of entries
        """
        if self._index is None:
            self._index = self.index().add(self.keys)
            self.build_work = sum(self._index.work.values(), self.build_work)
        found = self._index.search(F.normalize(states.detach(), dim=-1), self.k + 1)
        own = (self.nodes[found.ids] == asking.unsqueeze(1)) & stored.unsqueeze(1)
        ids = torch.where(found.mask & ~own, found.ids, -1)
        kept = Neighbors.of(found.scores, ids, **found.work)
        return Neighbors(
            kept.scores[:, : self.k], kept.ids[:, : self.k], kept.mask[:, : self.k], **found.work
        )

    def _heard(self, states: Tensor, asking: Tensor, stored: Tensor) -> Tensor:
        found, scale = self.search(states, asking, stored), self.width**0.5
        entry = scale * self.keys[found.ids] + self.label(self.labels[found.ids])
        token = scale * F.normalize(states, dim=-1)
        return self.attend.dense(entry, token, found.scores.to(states.dtype), found.mask)

    def _due(self) -> bool:
        return int(self.steps) % self.every == 0

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # What is stored has a size of its own, whatever was here before.
        for name in _HELD:
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor):
                setattr(self, name, getattr(self, name).new_empty(given.shape))
        self._index = None
        super()._load_from_state_dict(state_dict, prefix, *rest)
