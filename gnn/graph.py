"""What was retrieved, as a graph."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch_geometric.data import HeteroData

from gnn.entry_graph import EntryGraph
from retrieval.neighbors import Neighbors

__all__ = ["Edges", "check_inputs", "neighbor_graph", "real_nodes", "window_sources"]

Edges = Literal["window", "none", "shuffled"]


def real_nodes(
    neighbors: Neighbors,
    window: Int[Tensor, "batch time k w"],
    visible_from: Int[Tensor, "batch time k"] | None = None,
) -> Bool[Tensor, "batch time k w"]:
    """Which window positions become nodes: not of a masked or not yet visible neighbour, and not token 0.

    Token 0 stands outside the passage or marks the beginning of a document; neither says anything.

    Args:
        neighbors: What the search returned.
        window: Tokens around each neighbour.
        visible_from: First time step of the row that may see each neighbour; ``None``: all of them always may.

    Shapes:
        window: ``[batch, time, k, w]``, visible_from: ``[batch, time, k]``, result: as ``window``

    Raises:
        ValueError: If the shapes do not belong together.
    """
    if window.ndim != 4 or window.shape[:3] != neighbors.mask.shape:
        raise ValueError(
            f"window of shape {tuple(window.shape)} does not belong to neighbours of shape "
            f"{tuple(neighbors.mask.shape)}; pass passages.window(neighbors.ids, before, after)"
        )
    mask = neighbors.mask
    if visible_from is not None:
        if visible_from.shape != mask.shape:
            raise ValueError(
                f"visible_from needs one stamp a neighbour, {tuple(mask.shape)}, got {tuple(visible_from.shape)}"
            )
        time = torch.arange(mask.shape[1], device=mask.device).view(1, -1, 1)
        mask = mask & (visible_from <= time)
    return mask.unsqueeze(-1) & (window != 0)


def check_inputs(
    x: Tensor, neighbors: Neighbors, window: Tensor, *, d_model: int, before: int, after: int
) -> None:
    """Refuse what does not belong to a reader.

    Args:
        x: States of tokens.
        neighbors: What the search returned.
        window: Tokens around each neighbour.
        d_model: Width the reader was built for.
        before: Tokens it reads before the retrieved position.
        after: Tokens it reads after it.

    Raises:
        ValueError: If shapes do not belong together.
    """
    if x.shape[-1] != d_model:
        raise ValueError(f"x is {x.shape[-1]} wide, this reader was built with d_model={d_model}")
    if window.shape[-1] != before + 1 + after:
        raise ValueError(
            f"window holds {window.shape[-1]} tokens, this reader reads {before + 1 + after}; "
            f"pass passages.window(neighbors.ids, before={before}, after={after})"
        )
    if neighbors.mask.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"neighbours of {tuple(neighbors.mask.shape[:-1])} places for x of {tuple(x.shape[:-1])}"
        )


def window_sources(
    real: Bool[Tensor, "batch time k w"], edges: Edges, seed: int = 0
) -> Int[Tensor, "batch time k"] | None:
    """From which neighbour's window each window hears: its own, none, or (a control) another one of the same token.

    The rewiring stays among the neighbours of one token. Exchanging edges over the whole batch would leak: what a later
    token retrieved tells what that token is. It is a derangement of the neighbours that have nodes, the same in every
    run and at every position; a token with a single neighbour keeps it.

    Shapes:
        real: ``[batch, time, k, w]``, result: ``[batch, time, k]``, numbers in ``0..k-1``
    """
    if edges == "none":
        return None
    k = real.shape[2]
    itself = torch.arange(k, device=real.device).expand(real.shape[:3])
    if edges == "window":
        return itself
    alive = real.any(-1)
    order = torch.argsort((~alive).to(torch.int8), dim=-1, stable=True)
    following = alive.cumsum(-1)  # where in that order the one after each stands
    n_alive = following[..., -1:]
    shift = (7919 * (seed + 1)) % (n_alive - 1).clamp(min=1)
    return torch.where(alive, order.gather(-1, (following + shift) % n_alive.clamp(min=1)), itself)


def neighbor_graph(
    neighbors: Neighbors,
    window: Int[Tensor, "batch time k w"],
    *,
    before: int = 0,
    visible_from: Int[Tensor, "batch time k"] | None = None,
    edges: Edges = "window",
    seed: int = 0,
    reach: int | None = 0,
    documents: Int[Tensor, "batch time"] | None = None,
    joined: EntryGraph | None = None,
    hops: int = 1,
    exclude: Int[Tensor, "batch time"] | None = None,
) -> HeteroData:
    r"""The retrieved windows of a batch and the tokens that retrieved them, as one heterogeneous graph.

    After `GNN-LM: Language Modeling based on Global Contexts via GNN <https://arxiv.org/abs/2110.08743>`_
    (Meng et al., ICLR 2022), with its direction kept: nothing ever flows from a token to an entry.

    * node type ``token``: one for each place of the batch, number ``row * time + position``; ``row``, ``position``
    * node type ``entry``: one for each real token of each neighbour's window, never shared between
      neighbours; ``token`` (its id), ``offset`` (place in the window, 0 at the retrieved position, 1 at its answer),
      ``visible_from`` (first position of the row that may see it), ``id`` (its own place in the store)
    * ``(entry, window, entry)``: adjacent positions of one window, both directions; ``step`` is where the source stands
      seen from the target, -1 or 1. No self loops: the layers have a root weight.
    * ``(entry, retrieved, token)``: from every node of a neighbour to the token that retrieved it; ``score``, ``rank``,
      ``offset``. The answers are the edges with ``offset == 1``.
    * ``(entry, KIND, entry)``: only with ``joined``, one type for each of its kinds; to the retrieved position of a
      neighbour from that of each entry it is joined to, which comes with a window of its own, and so on for ``hops``.
      Of those nodes ``hop`` says how far away they are.
    * ``(token, before, token)``: from each token to those up to ``reach`` places after it in its row and document;
      none by default, since attention does that already.

    Args:
        neighbors: What the search returned.
        window: Tokens around each neighbour, 0 outside the passage.
        before: Place of the retrieved position in the window.
        visible_from: First time step that may see each neighbour, for stores that hold the running text itself; earlier
            steps do not get its nodes. ``None``: a static store of other documents, stamped 0.
        edges: ``"window"``, ``"none"``, or ``"shuffled"`` (see :func:`window_sources`).
        seed: Chooses the shuffling.
        reach: How far back a token hears its row; ``None``: to its beginning.
        documents: What document each token belongs to; others are not heard.
        joined: Edges between the entries of the store.
        hops: How far these are followed.
        exclude: Label of the stored document that each token must not be told of by them, -1 for none.

    Shapes:
        window: ``[batch, time, k, w]``, visible_from: ``[batch, time, k]``, documents, exclude: ``[batch, time]``

    Raises:
        ValueError: If the shapes do not belong together, the retrieved position is outside the window, or entries are
            both joined and stamped.
    """
    real = real_nodes(neighbors, window, visible_from)
    batch, time, k, w = window.shape
    if not 0 <= before < w:
        raise ValueError(f"before={before} is outside a window of {w} tokens")
    device = window.device
    flat = real.flatten()
    slot = flat.nonzero().squeeze(1)  # a slot is a place of the regular grid; a node is a slot that is real
    node = torch.cumsum(flat, 0) - 1
    place, neighbor = slot % w, slot // w
    token = neighbor // k

    graph = HeteroData()
    number = torch.arange(batch * time, device=device)
    graph["token"].num_nodes = batch * time
    graph["token"].row, graph["token"].position = number // time, number % time
    entry = graph["entry"]
    entry.num_nodes = slot.numel()
    entry.token, entry.offset = window.flatten()[slot], place - before
    entry.id = neighbors.ids.flatten()[neighbor] + entry.offset
    stamps = torch.zeros_like(neighbors.ids) if visible_from is None else visible_from
    entry.visible_from = stamps.flatten()[neighbor]

    sources, targets, steps = [], [], []
    hears = window_sources(real, edges, seed)
    if hears is not None:
        from_window = (hears.flatten() + number.repeat_interleave(k) * k)[neighbor]
        for step in (-1, 1):
            inside = (place + step >= 0) & (place + step < w)
            source = from_window * w + (place + step).clamp(0, w - 1)
            target = (inside & flat[source]).nonzero().squeeze(1)
            sources.append(node[source[target]])
            targets.append(target)
            steps.append(torch.full_like(target, step))
    nothing = [slot.new_empty(0)]
    inside = graph["entry", "window", "entry"]
    inside.edge_index = torch.stack([torch.cat(sources or nothing), torch.cat(targets or nothing)])
    inside.step = torch.cat(steps or nothing)

    retrieved = graph["entry", "retrieved", "token"]
    retrieved.edge_index = torch.stack([torch.arange(slot.numel(), device=device), token])
    retrieved.score = neighbors.scores.flatten()[neighbor]
    retrieved.rank, retrieved.offset = neighbor % k, place - before
    if joined is not None:
        if visible_from is not None:
            raise ValueError(
                "edges between entries of a store that holds the running text lead ahead: use visible_from or joined"
            )
        centre = torch.full((flat.numel() // w,), -1, device=device)
        centre[neighbor[place == before]] = (place == before).nonzero().squeeze(1)
        alive = centre >= 0
        told = (
            torch.full_like(neighbors.ids, -1)
            if exclude is None
            else exclude.unsqueeze(2).expand_as(neighbors.ids)
        )
        _follow(
            graph,
            joined,
            hops,
            before,
            w,
            centre[alive],
            neighbors.ids.flatten()[alive],
            told.flatten()[alive],
        )
    if reach != 0:
        graph["token", "before", "token"].edge_index = _before(batch, time, reach, documents, device)
    return graph


def _follow(
    graph: HeteroData,
    joined: EntryGraph,
    hops: int,
    before: int,
    w: int,
    node: Tensor,
    ids: Tensor,
    exclude: Tensor,
) -> None:
    """Adds what entries are joined to, their windows, and what these are joined to in turn.

    Args:
        graph: What is added to.
        joined: Edges between entries.
        hops: How far they are followed.
        before: Place of an entry in its window.
        w: Length of a window.
        node: Node of each entry to begin with.
        ids: Its place in the store.
        exclude: The document it must not be joined to.
    """
    entry, inside = graph["entry"], graph["entry", "window", "entry"]
    entry.hop = torch.zeros_like(entry.token)
    kinds = torch.arange(len(joined.widths)).repeat_interleave(torch.tensor(list(joined.widths.values())))
    edges: list[list[Tensor]] = [[node.new_empty(2, 0)] for _ in joined.kinds]
    for hop in range(1, hops + 1):
        found, there = joined.joined(ids, exclude)
        window = joined.passages.window(found, before, w - 1 - before)
        there &= window[..., before] != 0
        parent, place = there.nonzero().T
        window, ids, exclude = window[there], found[there], exclude[parent]
        real = window != 0
        number = entry.num_nodes + torch.cumsum(real.flatten(), 0).view_as(real) - 1
        child = number[:, before]
        for kind, of_kind in enumerate(edges):
            chosen = kinds.to(place.device)[place] == kind
            of_kind.append(torch.stack([child[chosen], node[parent][chosen]]))
        beside = real[:, 1:] & real[:, :-1]
        left, right = number[:, :-1][beside], number[:, 1:][beside]
        pairs = torch.stack([torch.cat([left, right]), torch.cat([right, left])])
        inside.edge_index = torch.cat([inside.edge_index, pairs], 1)
        step = torch.full_like(left, 1)
        inside.step = torch.cat([inside.step, -step, step])
        which, offset = real.nonzero().T
        entry.token = torch.cat([entry.token, window[real]])
        entry.offset = torch.cat([entry.offset, offset - before])
        entry.id = torch.cat([entry.id, ids[which] + offset - before])
        entry.visible_from = torch.cat([entry.visible_from, torch.zeros_like(which)])
        entry.hop = torch.cat([entry.hop, torch.full_like(which, hop)])
        entry.num_nodes += len(which)
        node = child
    for kind, of_kind in zip(joined.kinds, edges, strict=True):
        graph["entry", kind, "entry"].edge_index = torch.cat(of_kind, 1)


def _before(
    batch: int, time: int, reach: int | None, documents: Tensor | None, device: torch.device
) -> Int[Tensor, "2 edges"]:
    """From every token to later ones of its row."""
    later, earlier = torch.ones(time, time, dtype=torch.bool, device=device).tril(-1).nonzero().T
    near = later - earlier <= (time if reach is None else reach)
    row = torch.arange(batch, device=device).unsqueeze(1) * time
    edges = torch.stack([(row + earlier[near]).flatten(), (row + later[near]).flatten()])
    if documents is not None:
        label = documents.flatten()
        edges = edges[:, label[edges[0]] == label[edges[1]]]
    return edges
