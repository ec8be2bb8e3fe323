"""What entries hear of each other, computed once for each distinct entry."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gnn.entry_graph import EntryGraph
from gnn.layers.hetero_attention import FURTHER, INTRA, HeteroAttention

__all__ = ["Ball", "balls_around", "hear_beside", "place_in"]


class Ball(NamedTuple):
    """Entries up to some hops away from those to begin with, and where they stand in the ball one hop larger.

    Shapes:
        ids and own: ``[entries]``; joined and there: ``[entries, places]``, the last three of places in the larger ball
    """

    ids: Tensor
    own: Tensor
    joined: Tensor
    there: Tensor


def balls_around(
    graph: EntryGraph, ids: Int[Tensor, " entries"], exclude: Int[Tensor, " entries"] | None, hops: int
) -> list[Ball]:
    """Balls of 0 to ``hops`` hops around entries; of the last only the entries are known.

    Args:
        graph: Edges between entries.
        ids: Entries to begin with.
        exclude: The document of which each must not be told, -1 for none. Entries that differ in it are different, and
            those they lead to inherit it.
        hops: How far to go.
    """
    kinds = 1 if exclude is None else int(graph.labels.max()) + 2
    balls = []
    for _ in range(hops):
        found, there = graph.joined(ids, exclude)
        key, child = ids, found
        if exclude is not None:
            key, child = ids * kinds + exclude + 1, found * kinds + exclude.unsqueeze(1) + 1
        every = torch.cat([key, child[there]]).unique()
        joined = torch.searchsorted(every, child).clamp_(max=len(every) - 1)
        balls.append(Ball(ids, torch.searchsorted(every, key), joined, there))
        ids, exclude = every // kinds, None if exclude is None else every % kinds - 1
    nowhere = ids.new_empty(0)
    return [*balls, Ball(ids, nowhere, nowhere, nowhere)]


def place_in(balls: list[Ball], hops: int) -> Int[Tensor, " entries"]:
    """Where the entries to begin with stand in the ball of so many hops."""
    place = torch.arange(len(balls[0].ids), device=balls[0].ids.device)
    for ball in balls[:hops]:
        place = ball.own[place]
    return place


def hear_beside(
    layer: HeteroAttention,
    h: Float[Tensor, "entries near width"],
    real: Bool[Tensor, "entries near"],
    near: range,
    after: range,
    before: int,
    ball: Ball | None = None,
    widths: tuple[int, ...] = (),
) -> Tensor:
    """A round inside windows and between entries.

    Args:
        layer: What they hear with.
        h: States at the places that are near to the retrieved one, of the larger ball.
        real: Which of them are tokens.
        near: These places.
        after: Those that are still needed after this round.
        before: Place of the retrieved position.
        ball: The entries that are still needed after it; ``None``: all, which hear no others.
        widths: Places of each kind of edge between entries.

    Shapes:
        result: ``[entries of the ball, after, width]``
    """
    own = h if ball is None else h[ball.own]
    exists = real if ball is None else real[ball.own]
    mine = slice(after.start - near.start, after.stop - near.start)
    query = layer.ask("entry", own[:, mine])
    key, value = layer.say("entry", INTRA, own)
    source, target = (torch.tensor(list(part), device=h.device) for part in (near, after))
    step = (target.unsqueeze(1) - source).abs()
    # A place outside the text has no node; that it hears itself only keeps its softmax a number.
    hears = (step == 0) | ((step == 1) & exists.unsqueeze(1))
    score = layer.scores(INTRA, query, key).masked_fill(~hears.unsqueeze(1), -torch.inf)
    if ball is None:
        heard = (score.softmax(-1) @ value.transpose(1, 2)).transpose(1, 2)
        return layer.update("entry", own[:, mine], heard)
    centre = before - after.start
    further, said = _further(
        layer, query[:, centre], h[:, before - near.start], real[:, before - near.start], ball, widths
    )
    if layer.softmax == "joint":
        rest = score.new_full((*score.shape[:-1], further.shape[-1]), -torch.inf)
        rest[:, :, centre] = further
        weight, of_further = (
            torch.cat([score, rest], -1).softmax(-1).split([len(near), further.shape[-1]], -1)
        )
        of_further = of_further[:, :, centre]
    else:
        weight = score.softmax(-1) / (1 + len(widths))
        parts = [_softmax_of_some(part) for part in further.split(widths, -1)]
        of_further = torch.cat(parts, -1) / (1 + len(widths))
    heard = (weight @ value.transpose(1, 2)).transpose(1, 2).contiguous()
    heard[:, centre] += (of_further.unsqueeze(2) @ said.transpose(1, 2)).squeeze(2)
    return layer.update("entry", own[:, mine], heard)


def _further(
    layer: HeteroAttention, query: Tensor, h: Tensor, real: Tensor, ball: Ball, widths: tuple[int, ...]
) -> tuple[Float[Tensor, "entries heads places"], Float[Tensor, "entries places heads d_head"]]:
    """Scores and values of the entries that those of a ball are joined to."""
    scores, values, begin = [], [], 0
    for kind, width in enumerate(widths):
        key, value = layer.say("entry", FURTHER + kind, h)
        at = ball.joined[:, begin : begin + width]
        scores.append(layer.score(FURTHER + kind, query.unsqueeze(1), key[at]))
        values.append(value[at])
        begin += width
    there = (ball.there & real[ball.joined]).unsqueeze(2)
    return torch.cat(scores, 1).masked_fill(~there, -torch.inf).transpose(1, 2), torch.cat(values, 1)


def _softmax_of_some(score: Tensor) -> Tensor:
    """A softmax that is nothing where there is nothing to hear."""
    some = (score > -torch.inf).any(-1, keepdim=True)
    return score.masked_fill(~some, 0).softmax(-1) * some
