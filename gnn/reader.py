"""GraphReader: message passing over what was retrieved."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gnn.graph import Edges, check_inputs, neighbor_graph, real_nodes, window_sources
from gnn.layers import EntryAttention, WindowConv
from retrieval.neighbors import Neighbors
from retrieval.rows import sum_rows

__all__ = ["GraphReader"]


class GraphReader(nn.Module):
    r"""Reads retrieved windows as a graph and tells each token what its neighbours went on to say.

    After `GNN-LM: Language Modeling based on Global Contexts via GNN <https://arxiv.org/abs/2110.08743>`_ (Meng et al.,
    ICLR 2022), made cheap. A node of :func:`~gnn.neighbor_graph` starts as the embedding of its token; ``n_layers``
    rounds of :class:`~gnn.layers.WindowConv` pass along the window, in which what stands before and what stands after
    are different relations, so places need no embedding; the answer nodes (the token after the retrieved position) are
    heard by the token that retrieved them through :class:`~gnn.layers.EntryAttention`. Nothing flows from token to
    entry, every norm is per node, and a token hears only its own neighbours: if these are causal, so is the update.

    The update is zero at the start, and what a bad neighbour offers can be refused in favour of a learned null entry.
    States of tokens come normalised, as every reader gets them from ``mann.ExternalMemory``.

    ``fused=False`` runs this definition on lists of edges. ``fused=True`` computes the same numbers from the same
    parameters: the first round's weights act on the embedding table (its rows are far fewer than the nodes) and nodes
    gather from there; no node is computed that no answer hears; every token having ``k`` places for neighbours,
    attention is dense products.

    Args:
        d_model: Width of the residual stream.
        vocab_size: Number of distinct tokens in the windows.
        before: Tokens of each window before the retrieved position. One round reaches that position and the token
            after the answer, two rounds one more on each side: ``before`` above ``n_layers - 1`` is never heard.
        after: Tokens after it; the first one is the answer.
        n_layers: Rounds inside the window. From the second on, weights act on nodes, which costs several times more.
        n_heads: Attention heads of a token.
        width: Size of a node's state; half of ``d_model`` by default.
        edges: ``"window"``, or a control: ``"none"`` (attention over a set) or ``"shuffled"``
            (each window hears another neighbour's; see :func:`~gnn.graph.window_sources`).
        null_sink: Whether attention has a null entry.
        seed: Chooses the shuffling.
        fused: Whether to exploit the regular structure.

    Shapes:
        x: ``[batch, time, d_model]``, neighbors: ``[batch, time, k]``, window:
        ``[batch, time, k, before + 1 + after]``, result: as ``x``

    Raises:
        ValueError: If the window cannot hold the answer, or shapes do not belong together.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        *,
        before: int = 0,
        after: int = 2,
        n_layers: int = 1,
        n_heads: int = 4,
        width: int | None = None,
        edges: Edges = "window",
        null_sink: bool = True,
        seed: int = 0,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if before < 0 or after < 1:
            raise ValueError(
                f"the answer stands one after the retrieved position: {before=}, {after=}; use after >= 1"
            )
        if n_layers < 1 or edges not in ("window", "none", "shuffled"):
            raise ValueError(
                f"{n_layers=}, {edges=}: use n_layers >= 1 and edges 'window', 'none' or 'shuffled'"
            )
        width = width or max(1, d_model // 2)
        self.d_model, self.vocab_size = d_model, vocab_size
        self.before, self.after = before, after
        self.edges: Edges = edges
        self.seed, self.fused = seed, fused
        self.token = nn.Embedding(vocab_size, width)
        self.rounds = nn.ModuleList(WindowConv(width) for _ in range(n_layers))
        self.attend = EntryAttention(d_model, width, n_heads, null_sink=null_sink)

    def extra_repr(self) -> str:
        """What the modules inside do not tell."""
        return f"before={self.before}, after={self.after}, edges={self.edges!r}, fused={self.fused}"

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        neighbors: Neighbors,
        window: Int[Tensor, "batch time k w"],
        visible_from: Int[Tensor, "batch time k"] | None = None,
    ) -> Float[Tensor, "batch time width"]:
        """The update to add to ``x``; ``visible_from`` as in :func:`~gnn.neighbor_graph`."""
        check_inputs(x, neighbors, window, d_model=self.d_model, before=self.before, after=self.after)
        read = self._grid if self.fused else self._edge_list
        return read(x.flatten(0, 1), neighbors, window, visible_from).view(x.shape)

    def _edge_list(
        self, x: Tensor, neighbors: Neighbors, window: Tensor, visible_from: Tensor | None
    ) -> Tensor:
        graph = neighbor_graph(
            neighbors, window, before=self.before, visible_from=visible_from, edges=self.edges, seed=self.seed
        )
        entry = graph["entry"]
        state = self.token(entry.token)
        joined, retrieved = graph["entry", "window", "entry"], graph["entry", "retrieved", "token"]
        for layer in self.rounds:
            state = layer(state, joined.edge_index, joined.step)
        answer = retrieved.offset == 1
        return self.attend((state, x), retrieved.edge_index[:, answer], retrieved.score[answer])

    def _grid(self, x: Tensor, neighbors: Neighbors, window: Tensor, visible_from: Tensor | None) -> Tensor:
        real = real_nodes(neighbors, window, visible_from)
        hears = window_sources(real, self.edges, self.seed)
        k, answer = window.shape[2], self.before + 1
        if self.edges == "shuffled" and hears is not None:
            first = k * torch.arange(x.shape[0], device=x.device)
            hears = (hears.flatten(0, 1) + first.unsqueeze(1)).flatten()
        real = real.flatten(0, 2).t().contiguous()
        states = self._first_round(window.flatten(0, 2).t(), real, hears)
        for number in range(2, len(self.rounds) + 1):
            states = self._later_round(number, states, real, hears)
        return self.attend.dense(
            states[answer].view(-1, k, self.token.embedding_dim),
            x,
            neighbors.scores.flatten(0, 1),
            real[answer].reshape(-1, k),
        )

    def _first_round(self, window: Tensor, real: Tensor, hears: Tensor | None) -> dict[int, Tensor]:
        """The first round as sums of rows of tables, one below the other, whose row 0 says nothing."""
        if window.numel() >= self.vocab_size:
            embedding, row = self.token.weight, torch.where(real, window, 0)
        else:  # fewer nodes than tokens, as when decoding: each node is its own row
            embedding = self.token(F.pad(window.flatten(), (1, 0)))
            row = torch.where(
                real, torch.arange(1, window.numel() + 1, device=window.device).view_as(window), 0
            )
        live = (torch.arange(len(embedding), device=row.device) > 0).unsqueeze(1)
        relations = (0,) if self.edges == "none" else (0, 1, 2)
        said = torch.cat(cast(WindowConv, self.rounds[0]).say(embedding * live, *relations))
        heard = row[:, hears] if self.edges == "shuffled" else row
        states = {}
        for place in self._needed_after(1):
            sources = [heard[source] + relation * len(embedding) for relation, source in self._sources(place)]
            states[place] = sum_rows(said, torch.stack([row[place], *sources], dim=1))
        return states

    def _later_round(
        self, number: int, states: dict[int, Tensor], real: Tensor, hears: Tensor | None
    ) -> dict[int, Tensor]:
        """A round whose sources are nodes, computed only at places that an answer still hears."""
        layer = cast(WindowConv, self.rounds[number - 1])
        result = {}
        for place in self._needed_after(number):
            (state,) = layer.say(states[place], 0)
            for relation, source in self._sources(place):
                (said,) = layer.say(states[source] * real[source].unsqueeze(1), relation)
                state = state + (said[hears] if self.edges == "shuffled" else said)
            result[place] = state
        return result

    def _needed_after(self, number: int) -> range:
        """Places whose state an answer still depends on after that many rounds."""
        reach = 0 if self.edges == "none" else len(self.rounds) - number
        answer = self.before + 1
        return range(max(0, answer - reach), min(answer + self.after, answer + reach + 1))

    def _sources(self, place: int) -> list[tuple[int, int]]:
        """Relation and place of everything a place of the window hears."""
        if self.edges == "none":
            return []
        return [(r, p) for r, p in ((1, place - 1), (2, place + 1)) if 0 <= p <= self.before + self.after]
