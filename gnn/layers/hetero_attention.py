"""Attention over a graph of two kinds of nodes, the tokens of a text and the entries that were retrieved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_geometric.utils import softmax

__all__ = ["HeteroAttention", "Score", "Softmax"]

Score = Literal["hgt", "gat", "gatv2", "mean"]
Softmax = Literal["joint", "per type"]
# Kinds of edges; weights belong to the name, as GNN-LM has it: within a text or a window, and from an entry to a token.
# Further ones lead from entry to entry.
INTRA, INTER, FURTHER = 0, 1, 2
# Not named: queries and keys come in shapes that broadcast.
Heads = Float[Tensor, "... heads d_head"]


class HeteroAttention(nn.Module):
    r"""One layer of the heterogeneous graph attention of GNN-LM.

    With matrices of the kind of a node for queries, keys, values and outputs, and matrices and a prior :math:`\mu` of
    the kind of an edge for each head:

    .. math::
        s_{j \to i} = \mu_r \frac{\langle \mathbf{q}_i, \mathbf{W}^{att}_r \mathbf{k}_j \rangle}{\sqrt{d}}, \qquad
        \mathbf{m}_i = \sum_j \mathrm{softmax}_j(s_{j \to i})\, \mathbf{W}^{msg}_r \mathbf{v}_j, \qquad
        \mathbf{h}'_i = \mathrm{LayerNorm}(\mathbf{h}_i + \mathbf{A}\, \mathbf{m}_i)

    ``softmax="per type"`` is the paper's: a softmax over each kind of edge by itself, and the mean over kinds, so that
    bad neighbours weigh half whatever they say. ``"joint"``, the default, has one softmax over all that a node hears;
    and a token has a learned null entry in it, which says nothing, so that neighbours can be refused. Every node hears
    itself along with its own kind. Norms are of each node, so no node learns of another by them.

    Other scores are there to compare with: ``"gat"`` and ``"gatv2"``,
    :math:`\mathbf{a}_r^\top \mathrm{LeakyReLU}(\mathbf{q}_i + \mathbf{k}_j)` with the nonlinearity after or before the
    product, and ``"mean"``, which weighs all alike.

    References:
        Meng et al., "GNN-LM: Language modeling based on global contexts via GNN", ICLR 2022. arXiv:2110.08743;
        Hu et al., "Heterogeneous graph transformer", 2020. arXiv:2003.01332;
        Brody et al., "How attentive are graph attention networks?", 2022. arXiv:2105.14491.

    Args:
        width: Size of a node's state.
        n_heads: Heads; must divide ``width``.
        softmax: ``"joint"`` or ``"per type"``.
        score: ``"hgt"``, ``"gat"``, ``"gatv2"`` or ``"mean"``.
        dropout: Share of what a node has heard that is dropped.
        entries: Whether entries hear too; in a last layer nobody asks what they have heard.
        further: Kinds of edges between entries beside those inside a window.

    Shapes:
        states: ``[nodes, width]`` of each kind

    Raises:
        ValueError: If ``n_heads`` does not divide ``width``, or an option is unknown.
    """

    def __init__(
        self,
        width: int,
        n_heads: int = 4,
        *,
        softmax: Softmax = "joint",
        score: Score = "hgt",
        dropout: float = 0.0,
        entries: bool = True,
        further: int = 0,
    ) -> None:
        super().__init__()
        if n_heads < 1 or width % n_heads:
            raise ValueError(f"{n_heads=} does not divide {width=}")
        for name, given, known in (("softmax", softmax, Softmax), ("score", score, Score)):
            if given not in get_args(known):
                raise ValueError(f"{name}={given!r}: use one of {', '.join(map(repr, get_args(known)))}")
        self.width, self.n_heads, self.d_head = width, n_heads, width // n_heads
        self.softmax, self.scoring, self.dropout = softmax, score, dropout

        kinds = ("token", "entry")
        hearing = kinds if entries else ("token",)

        def matrices(kinds: tuple[str, ...]) -> nn.ModuleDict:
            return nn.ModuleDict({kind: nn.Linear(width, width, bias=False) for kind in kinds})

        asks = score != "mean"
        self.query, self.out = matrices(hearing if asks else ()), matrices(hearing)
        self.key, self.value = matrices(kinds if asks else ()), matrices(kinds)
        self.norm = nn.ModuleDict({kind: nn.LayerNorm(width) for kind in hearing})
        relations = FURTHER + (further if entries else 0)
        self.message = nn.Parameter(torch.empty(relations, n_heads, self.d_head, self.d_head))
        self.attend = nn.Parameter(torch.empty_like(self.message)) if asks else None
        self.prior = nn.Parameter(torch.ones(relations, n_heads)) if score == "hgt" else None
        ends = {"gat": 2, "gatv2": 1}.get(score)
        self.direction = nn.Parameter(torch.empty(relations, ends, n_heads, self.d_head)) if ends else None
        self.null = nn.Parameter(torch.zeros(n_heads, self.d_head)) if softmax == "joint" and asks else None
        for weight in (self.attend, self.message, self.direction):
            if weight is not None:
                nn.init.uniform_(weight, -(self.d_head**-0.5), self.d_head**-0.5)

    def ask(self, kind: str, h: Float[Tensor, "... width"]) -> Heads:
        """Queries of nodes."""
        if self.scoring == "mean":
            return h.new_zeros(*h.shape[:-1], self.n_heads, self.d_head)
        return self.query[kind](h).unflatten(-1, (self.n_heads, self.d_head))

    def say(self, kind: str, relation: int, h: Float[Tensor, "... width"]) -> tuple[Heads, Heads]:
        """Keys and values of nodes, as they are heard along one kind of edge."""
        value = self.value[kind](h).unflatten(-1, (self.n_heads, self.d_head))
        value = _each_head(value, self.message[relation])
        if self.attend is None:
            return torch.zeros_like(value), value
        key = self.key[kind](h).unflatten(-1, (self.n_heads, self.d_head))
        return _each_head(key, self.attend[relation]), value

    def score(self, relation: int, query: Heads, key: Heads) -> Float[Tensor, "... heads"]:
        """Scores of pairs, broadcast against each other."""
        if self.prior is not None:
            return self.prior[relation] * (query * key).sum(-1) * self.d_head**-0.5
        if self.direction is None:
            return (query[..., 0] + key[..., 0]) * 0
        if self.scoring == "gatv2":
            return (F.leaky_relu(query + key, 0.2) * self.direction[relation, 0]).sum(-1)
        of_query, of_key = self.direction[relation]
        return F.leaky_relu((query * of_query).sum(-1) + (key * of_key).sum(-1), 0.2)

    def scores(self, relation: int, query: Heads, key: Heads) -> Float[Tensor, "... heads queries keys"]:
        """Scores of every query with every key.

        Shapes:
            query: ``[..., queries, heads, d_head]``, key: ``[..., keys, heads, d_head]``
        """
        if self.prior is not None:
            product = query.transpose(-3, -2) @ key.movedim(-3, -1)
            return self.prior[relation][:, None, None] * product * self.d_head**-0.5
        return self.score(relation, query.unsqueeze(-3), key.unsqueeze(-4)).movedim(-1, -3)

    def refuse(self, query: Heads) -> Float[Tensor, "... heads"] | None:
        """Scores of the null entry, ``None`` without one."""
        return None if self.null is None else (query * self.null).sum(-1) * self.d_head**-0.5

    def update(self, kind: str, h: Float[Tensor, "... width"], heard: Heads) -> Float[Tensor, "... width"]:
        """Next states of nodes from what they have heard."""
        said = F.dropout(self.out[kind](heard.flatten(-2)), self.dropout, self.training)
        return self.norm[kind](h + said)

    def forward(
        self,
        states: dict[str, Tensor],
        window: Int[Tensor, "2 windows"],
        retrieved: Int[Tensor, "2 found"],
        before: Int[Tensor, "2 pasts"],
        joined: Sequence[Tensor] = (),
    ) -> dict[str, Tensor]:
        """The layer on lists of edges, source over target.

        Args:
            states: Of ``"token"`` and ``"entry"``.
            window: From entry to entry.
            retrieved: From entry to token.
            before: From token to token.
            joined: From entry to entry, of each further kind.
        """
        further = [("entry", FURTHER + i, edges) for i, edges in enumerate(joined)]
        parts = {
            "token": [("token", INTRA, before), ("entry", INTER, retrieved)],
            "entry": [("entry", INTRA, window), *further],
        }
        return {kind: self._hear(kind, states, parts[kind]) for kind in self.norm}

    def _hear(
        self, kind: str, states: dict[str, Tensor], parts: list[tuple[str, int, Tensor]]
    ) -> Float[Tensor, "nodes width"]:
        h = states[kind]
        query, n = self.ask(kind, h), len(h)
        found = []
        for source, relation, edges in parts:
            if relation == INTRA:
                edges = torch.cat([edges, torch.arange(n, device=h.device).expand(2, n)], 1)
            key, value = self.say(source, relation, states[source])
            found.append((self.score(relation, query[edges[1]], key[edges[0]]), value[edges[0]], edges[1]))
        if self.softmax == "joint":
            score, said, target = (torch.cat(part) for part in zip(*found, strict=True))
            if kind == "token" and (refused := self.refuse(query)) is not None:
                score, said = torch.cat([score, refused]), torch.cat([said, torch.zeros_like(query)])
                target = torch.cat([target, torch.arange(n, device=h.device)])
            found = [(score, said, target)]
        heard = torch.zeros_like(query)
        for score, said, target in found:
            weight = softmax(score, target, num_nodes=n)
            heard = heard.index_add(0, target, weight.unsqueeze(-1) * said)
        return self.update(kind, h, heard / len(found))


def _each_head(x: Heads, weight: Float[Tensor, "heads d_head d_out"]) -> Heads:
    """A matrix of its own for each head."""
    return torch.einsum("...hd,hde->...he", x, weight)
