"""HeteroReader: GNN-LM's graph network as a reader, with what does not depend on the query computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gnn.graph import neighbor_graph, real_nodes
from gnn.layers.hetero_attention import INTER, INTRA, HeteroAttention
from retrieval.neighbors import Neighbors

__all__ = ["HeteroReader"]


class _Said(NamedTuple):
    """What the retrieved positions of entries say to tokens in one layer.

    Shapes:
        key, value: ``[entries, heads, d_head]``
    """

    key: Tensor
    value: Tensor


class HeteroReader(nn.Module):
    r"""Reads retrieved windows with the heterogeneous graph attention of GNN-LM.

    The graph is :func:`~gnn.neighbor_graph`: windows of entries, whose positions hear the ones beside them, and tokens,
    which hear the retrieved position of each of their neighbours, and their own past as far as ``reach``. ``n_layers``
    rounds of :class:`~gnn.layers.HeteroAttention` pass over it; what tokens have become is the update, zero at the
    start. An answer stands one after the retrieved position, so it is heard in the second round: use two or more.

    Nothing flows from tokens to entries, and windows are not joined, so what an entry says is a function of its window
    alone. ``amortised=True`` therefore computes it once for each *distinct* entry of a batch, and at places only that a
    retrieved position still hears; once training is over, :meth:`remember` computes it for a whole store, and reading
    is one row a layer for each neighbour. ``amortised=False`` runs the definition on lists of edges, with nodes of its
    own for every neighbour of every token, as the published code does. Both give the same numbers from the same
    parameters.

    Reference:
        Meng et al., "GNN-LM: Language modeling based on global contexts via GNN", ICLR 2022. arXiv:2110.08743.

    Args:
        d_model: Width of the residual stream.
        vocab_size: Number of distinct tokens in the windows.
        before: Tokens of each window before the retrieved position.
        after: Tokens after it; the first one is the answer.
        n_layers: Rounds.
        width: Size of a node's state; half of ``d_model`` by default.
        reach: How far back tokens hear each other; 0: only themselves, as attention does that already;
            ``None``: to the beginning of the row, as in the paper.
        layer: ``layer(width, entries=...)``, one round; choose its softmax, score and heads with ``functools.partial``.
        amortised: Whether to compute each distinct entry once.

    Shapes:
        x: ``[batch, time, d_model]``, neighbors: ``[batch, time, k]``, window:
        ``[batch, time, k, before + 1 + after]``, result: as ``x``

    Raises:
        ValueError: If the window cannot hold the answer, or shapes do not belong together.
    """

    remembered: Tensor | None

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        *,
        before: int = 1,
        after: int = 1,
        n_layers: int = 2,
        width: int | None = None,
        reach: int | None = 0,
        layer: Callable[..., HeteroAttention] = HeteroAttention,
        amortised: bool = True,
    ) -> None:
        super().__init__()
        if before < 0 or after < 1 or n_layers < 2 or (reach is not None and reach < 0):
            raise ValueError(
                f"{before=}, {after=}, {n_layers=}, {reach=}: the answer stands one after the retrieved position and "
                "is heard in the second round; use after >= 1, n_layers >= 2, and reach >= 0 or None"
            )
        width = width or max(4, d_model // 8 * 4)
        self.d_model, self.vocab_size, self.width = d_model, vocab_size, width
        self.before, self.after, self.reach, self.amortised = before, after, reach, amortised
        self.token = nn.Embedding(vocab_size, width)
        self.place = nn.Parameter(0.1 * torch.randn(before + 1 + after, width))
        self.enter = nn.Linear(d_model, width, bias=False)
        self.layers = nn.ModuleList(layer(width, entries=number < n_layers - 1) for number in range(n_layers))
        self.leave = nn.Linear(width, d_model, bias=False)
        nn.init.zeros_(self.leave.weight)
        self.register_buffer("remembered", None, persistent=False)

    def extra_repr(self) -> str:
        """What the modules inside do not tell."""
        return f"before={self.before}, after={self.after}, reach={self.reach}, amortised={self.amortised}"

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        neighbors: Neighbors,
        window: Int[Tensor, "batch time k w"],
        visible_from: Int[Tensor, "batch time k"] | None = None,
        documents: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time width"]:
        """The update to add to ``x``.

        Args:
            x: States of the tokens.
            neighbors: What the search returned.
            window: Tokens around each neighbour.
            visible_from: As in :func:`~gnn.neighbor_graph`.
            documents: Which document each token belongs to, if ``reach`` is not 0.
        """
        w = self.before + 1 + self.after
        if x.shape[-1] != self.d_model:
            raise ValueError(f"x is {x.shape[-1]} wide, this reader was built with d_model={self.d_model}")
        if window.shape[-1] != w:
            raise ValueError(
                f"window holds {window.shape[-1]} tokens, this reader reads {w}; "
                f"pass passages.window(neighbors.ids, before={self.before}, after={self.after})"
            )
        if neighbors.mask.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                f"neighbours of {tuple(neighbors.mask.shape[:-1])} places for x of {tuple(x.shape[:-1])}"
            )
        read = self._by_entry if self.amortised else self._by_edge
        return self.leave(read(self.enter(x), neighbors, window, visible_from, documents))

    @torch.no_grad()
    def remember(self, windows: Int[Tensor, "entries w"], chunk: int = 4096) -> None:
        """Computes what every entry of a store says, once and for all, until :meth:`forget`.

        From then on entries are not computed again and the weights that made them get no gradient. One entry takes
        ``2 * n_layers * width`` numbers.

        Args:
            windows: Tokens around each entry, in the order of its ids.
            chunk: Entries computed at once.
        """
        said = [
            torch.stack([torch.stack(layer) for layer in self._tower(part)], 1)
            for part in windows.split(chunk)
        ]
        # Layers first, entries of all chunks in one dimension.
        self.remembered = torch.cat([part.transpose(0, 1) for part in said], 2)

    def forget(self) -> None:
        """Computes entries anew from now on."""
        self.remembered = None

    def _by_edge(
        self,
        h: Tensor,
        neighbors: Neighbors,
        window: Tensor,
        visible_from: Tensor | None,
        documents: Tensor | None,
    ) -> Tensor:
        graph = neighbor_graph(
            neighbors,
            window,
            before=self.before,
            visible_from=visible_from,
            reach=self.reach,
            documents=documents,
        )
        entry, retrieved = graph["entry"], graph["entry", "retrieved", "token"]
        centre = retrieved.edge_index[:, retrieved.offset == 0]
        before = centre.new_empty(2, 0) if self.reach == 0 else graph["token", "before", "token"].edge_index
        states = {
            "token": h.flatten(0, 1),
            "entry": self.token(entry.token) + self.place[entry.offset + self.before],
        }
        for layer in self.layers:
            heard = layer(states, graph["entry", "window", "entry"].edge_index, centre, before)
            states = states | heard
        return states["token"].view_as(h)

    def _by_entry(
        self,
        h: Tensor,
        neighbors: Neighbors,
        window: Tensor,
        visible_from: Tensor | None,
        documents: Tensor | None,
    ) -> Tensor:
        alive = real_nodes(neighbors, window, visible_from)[..., self.before]
        if self.remembered is None:
            ids, where = torch.where(neighbors.mask, neighbors.ids, -1).flatten().unique(return_inverse=True)
            first = torch.empty_like(ids).scatter_(0, where, torch.arange(len(where), device=ids.device))
            said = self._tower(window.flatten(0, 2)[first])
        else:
            where = neighbors.ids.flatten()
            said = [_Said(*of_layer) for of_layer in self.remembered]
        hears = self._past(h, documents)
        for module, (key, value) in zip(self.layers, said, strict=True):
            layer, shape = cast(HeteroAttention, module), (*alive.shape, *key.shape[1:])
            heard = _listen(layer, h, key[where].view(shape), value[where].view(shape), alive, hears)
            h = layer.update("token", h, heard)
        return h

    def _past(self, h: Tensor, documents: Tensor | None) -> Bool[Tensor, "#batch time time"] | None:
        """Which tokens each token hears, ``None`` if itself alone."""
        if self.reach == 0:
            return None
        time = torch.arange(h.shape[1], device=h.device)
        back = time.unsqueeze(1) - time
        hears = (back >= 0) & (back <= (h.shape[1] if self.reach is None else self.reach))
        if documents is None:
            return hears.unsqueeze(0)
        return hears & (documents.unsqueeze(2) == documents.unsqueeze(1))

    def _tower(self, window: Int[Tensor, "entries w"]) -> list[_Said]:
        """What the retrieved position of each entry says in each layer."""
        w, last = window.shape[1], len(self.layers) - 1

        def places(reach: int) -> range:
            return range(max(0, self.before - reach), min(w, self.before + reach + 1))

        near, real = places(last), window != 0
        h = self.token(window[:, near.start : near.stop]) + self.place[near.start : near.stop]
        said = []
        for number, module in enumerate(self.layers):
            layer = cast(HeteroAttention, module)
            said.append(_Said(*layer.say("entry", INTER, h[:, self.before - near.start])))
            if number < last:
                after = places(last - number - 1)
                h = _beside(layer, h, real[:, near.start : near.stop], near, after)
                near = after
        return said


def _beside(layer: HeteroAttention, h: Tensor, real: Tensor, near: range, after: range) -> Tensor:
    """A round inside windows, from the places that are near to those that are still needed after it."""
    mine = slice(after.start - near.start, after.stop - near.start)
    key, value = layer.say("entry", INTRA, h)
    score = layer.scores(INTRA, layer.ask("entry", h[:, mine]), key)
    source, target = (torch.tensor(list(part), device=h.device) for part in (near, after))
    step = (target.unsqueeze(1) - source).abs()
    # A place outside the text has no node; that it hears itself only keeps its softmax a number.
    hears = (step == 0) | ((step == 1) & real.unsqueeze(1))
    weight = score.masked_fill(~hears.unsqueeze(1), -torch.inf).softmax(-1)
    heard = (weight @ value.transpose(1, 2)).transpose(1, 2)
    return layer.update("entry", h[:, mine], heard)


def _listen(
    layer: HeteroAttention, h: Tensor, key: Tensor, value: Tensor, alive: Tensor, hears: Tensor | None
) -> Float[Tensor, "batch time heads d_head"]:
    """What tokens hear of their neighbours and of their own past."""
    query = layer.ask("token", h)
    own_key, own_value = layer.say("token", INTRA, h)
    score = layer.score(INTER, query.unsqueeze(2), key).transpose(2, 3)
    score = score.masked_fill(~alive.unsqueeze(2), -torch.inf)
    if hears is None:
        own = layer.score(INTRA, query, own_key).unsqueeze(-1)
    else:
        own = layer.scores(INTRA, query, own_key).masked_fill(~hears.unsqueeze(1), -torch.inf).transpose(1, 2)
    read = partial(_read, value=value, own_value=own_value, alone=hears is None)
    k = score.shape[-1]
    if layer.softmax == "joint":
        refused = layer.refuse(query)
        parts = [score, own] if refused is None else [score, own, refused.unsqueeze(-1)]
        weight = torch.cat(parts, -1).softmax(-1)
        return read(weight[..., :k], weight[..., k : k + own.shape[-1]])
    # Where no neighbour is left, that kind of edge says nothing.
    some = alive.any(-1)[..., None, None]
    weight = score.masked_fill(~some, 0).softmax(-1) * some
    return read(weight, own.softmax(-1)) / 2


def _read(weight: Tensor, own: Tensor, *, value: Tensor, own_value: Tensor, alone: bool) -> Tensor:
    """Sums of values: weights ``[batch, time, heads, k or time]``, values ``[batch, time, k, heads, d_head]``."""
    heard = (weight.unsqueeze(-2) @ value.transpose(2, 3)).squeeze(-2)
    if alone:
        return heard + own * own_value
    return heard + (own.transpose(1, 2) @ own_value.transpose(1, 2)).transpose(1, 2)
