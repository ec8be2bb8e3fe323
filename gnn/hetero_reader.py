"""HeteroReader: GNN-LM's graph network as a reader, with what does not depend on the query computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from gnn.entry_graph import EntryGraph
from gnn.entry_tower import balls_around, hear_beside, place_in
from gnn.graph import check_inputs, neighbor_graph, real_nodes
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

    With ``joined``, the retrieved position of an entry also hears those of the entries it is joined to
    (:class:`~gnn.EntryGraph`), a hop further in each round but the last.

    Nothing flows from tokens to entries, so what an entry says is a function of its window and of those it is joined
    to. ``amortised=True`` therefore computes it once for each *distinct* entry of a batch, and at places only that a
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
        layer: ``layer(width, entries=..., further=...)``, one round; choose its softmax, score and heads with
            ``functools.partial``.
        joined: Edges between the entries of the store that neighbours come from.
        features: States that nodes begin with, one a token of the store, as GNN-LM has it: those of a trained model,
            each of which has read the token; by default rows of a table of tokens, which is trained.
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
        joined: EntryGraph | None = None,
        features: Float[Tensor, "entries d_feature"] | None = None,
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
        # No buffer: a store is not part of a checkpoint, and stays where it is.
        self.features = features
        if features is None:
            self.token = nn.Embedding(vocab_size, width)
        else:
            self.begin = nn.Linear(features.shape[1], width, bias=False)
        self.place = nn.Parameter(0.1 * torch.randn(before + 1 + after, width))
        self.enter = nn.Linear(d_model, width, bias=False)
        self.joined = joined
        further = 0 if joined is None else len(joined.kinds)
        self.layers = nn.ModuleList(
            layer(width, entries=number < n_layers - 1, further=further) for number in range(n_layers)
        )
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
        exclude: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time width"]:
        """The update to add to ``x``.

        Args:
            x: States of the tokens.
            neighbors: What the search returned.
            window: Tokens around each neighbour.
            visible_from: As in :func:`~gnn.neighbor_graph`.
            documents: Which document each token belongs to, if ``reach`` is not 0.
            exclude: Label of the stored document that each token must not be told of along the edges between entries,
                -1 for none: in training, of its own.
        """
        check_inputs(x, neighbors, window, d_model=self.d_model, before=self.before, after=self.after)
        if self.joined is not None and visible_from is not None:
            raise ValueError(
                "edges between entries of a store that holds the running text lead ahead: use visible_from or joined"
            )
        alive = real_nodes(neighbors, window, visible_from)[..., self.before]
        if self.amortised:
            ids, said = self._entries(neighbors, window, exclude)
            return self.leave(self._by_entry(self.enter(x), ids, said, alive, documents))
        graph = neighbor_graph(
            neighbors,
            window,
            before=self.before,
            visible_from=visible_from,
            reach=self.reach,
            documents=documents,
            joined=self.joined,
            hops=len(self.layers) - 1,
            exclude=exclude,
        )
        return self.leave(self._by_edge(self.enter(x), graph))

    @torch.no_grad()
    def remember(self, windows: Int[Tensor, "entries w"], chunk: int = 4096) -> None:
        """Computes what every entry of a store says, once and for all, until :meth:`forget`.

        From then on entries are not computed again and the weights that made them get no gradient. One entry takes
        ``2 * n_layers * width`` numbers.

        Args:
            windows: Tokens around each entry, in the order of its ids.
            chunk: Entries computed at once.
        """
        ids = torch.arange(len(windows), device=windows.device)
        parts = zip(ids.split(chunk), windows.split(chunk), strict=True)
        said = [
            torch.stack([torch.stack(layer) for layer in self._tower(some, None, part)])
            for some, part in parts
        ]
        self.remembered = torch.cat(said, 2)

    def forget(self) -> None:
        """Computes entries anew from now on."""
        self.remembered = None

    def _by_edge(self, h: Tensor, graph: HeteroData) -> Tensor:
        entry, retrieved = graph["entry"], graph["entry", "retrieved", "token"]
        centre = retrieved.edge_index[:, retrieved.offset == 0]
        before = centre.new_empty(2, 0) if self.reach == 0 else graph["token", "before", "token"].edge_index
        kinds = () if self.joined is None else self.joined.kinds
        joined = [graph["entry", kind, "entry"].edge_index for kind in kinds]
        states = {
            "token": h.flatten(0, 1),
            "entry": self._begin(entry.token, entry.id) + self.place[entry.offset + self.before],
        }
        for layer in self.layers:
            heard = layer(states, graph["entry", "window", "entry"].edge_index, centre, before, joined)
            states = states | heard
        return states["token"].view_as(h)

    def _entries(
        self, neighbors: Neighbors, window: Tensor, exclude: Tensor | None
    ) -> tuple[Int[Tensor, "batch time k"], list[_Said]]:
        """What every distinct entry says in each layer, and which of them each neighbour is."""
        if self.remembered is not None:
            if self.joined is not None and exclude is not None and bool((exclude >= 0).any()):
                raise ValueError(
                    "a remembered store has heard all its documents and can exclude none: forget() it"
                )
            return neighbors.ids, [_Said(*of_layer) for of_layer in self.remembered]
        kinds = 1
        key = torch.where(neighbors.mask, neighbors.ids, -1)
        if self.joined is not None and exclude is not None:
            kinds = int(self.joined.labels.max()) + 2
            key = torch.where(neighbors.mask, key * kinds + exclude.unsqueeze(2) + 1, -1)
        key, where = key.flatten().unique(return_inverse=True)
        first = torch.empty_like(key).scatter_(0, where, torch.arange(len(where), device=key.device))
        ids, told = key.div(kinds, rounding_mode="floor").clamp(min=0), key % kinds - 1
        return where.view_as(neighbors.ids), self._tower(
            ids, told if kinds > 1 else None, window.flatten(0, 2)[first]
        )

    def _by_entry(
        self, h: Tensor, ids: Tensor, said: list[_Said], alive: Tensor, documents: Tensor | None
    ) -> Tensor:
        hears = self._past(h, documents)
        for module, (key, value) in zip(self.layers, said, strict=True):
            layer = cast(HeteroAttention, module)
            heard = _listen(layer, h, key[ids], value[ids], alive, hears)
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

    def _tower(self, ids: Tensor, exclude: Tensor | None, window: Int[Tensor, "entries w"]) -> list[_Said]:
        """What the retrieved position of each entry says in each layer."""
        rounds, widths = (
            len(self.layers) - 1,
            () if self.joined is None else tuple(self.joined.widths.values()),
        )
        balls = [] if self.joined is None else balls_around(self.joined, ids, exclude, rounds)
        if self.joined is not None:
            window = self.joined.passages.window(balls[-1].ids, self.before, self.after)
        near, real = self._places(rounds), window != 0
        # Beyond the edge of a passage another begins, or the store ends: no node is there.
        at = (
            (balls[-1].ids if balls else ids)[:, None]
            + torch.arange(near.start, near.stop, device=ids.device)
            - self.before
        )
        h = self._begin(window[:, near.start : near.stop], at) + self.place[near.start : near.stop]
        said = []
        for left, module in zip(range(rounds, -1, -1), self.layers, strict=True):
            layer, centre = cast(HeteroAttention, module), h[:, self.before - near.start]
            said.append(_Said(*layer.say("entry", INTER, centre[place_in(balls, left)] if balls else centre)))
            if left:
                after, ball = self._places(left - 1), balls[left - 1] if balls else None
                h = hear_beside(
                    layer, h, real[:, near.start : near.stop], near, after, self.before, ball, widths
                )
                near, real = after, real if ball is None else real[ball.own]
        return said

    def _begin(self, tokens: Tensor, ids: Tensor) -> Float[Tensor, "... width"]:
        """What nodes know before they have heard anything."""
        if self.features is None:
            return self.token(tokens)
        found = self.features[ids.clamp(0, len(self.features) - 1).to(self.features.device)]
        return self.begin(found.to(ids.device, self.begin.weight.dtype))

    def _places(self, reach: int) -> range:
        """Places of a window that are so near to the retrieved one."""
        return range(max(0, self.before - reach), min(self.before + 1 + self.after, self.before + reach + 1))


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
