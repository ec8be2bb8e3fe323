"""How well a store still answers: recall, entries nobody can reach, and keys that their encoder has left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrieval.datastore import Datastore
from retrieval.exact import Metric
from retrieval.index import Index
from retrieval.neighbors import Neighbors
from retrieval.rounding import lengths, rounding

__all__ = ["Audit", "audit", "check_answerable", "recall"]


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        queries: How many were asked.
        k: Neighbours of each.
        recall: Share of the true ``k`` nearest that the store gave, by score.
        unreachable: Share of the sampled entries that a query equal to their key should find and does not, nor one as
            near: an exhaustive search has it, or one as near, among its first ``k``.
        unused: Share of all entries that none of the queries was given. It falls as more are asked; what counts is its
            rise from one audit to the next.
        drift: Mean angle in degrees between a sampled key and what the encoder makes of that entry now; ``None`` if no
            encoder was given.
        stale: Share of the sampled entries that a query equal to their key finds, and one equal to their *new* key does
            not.
    """

    queries: int
    k: int
    recall: float
    unreachable: float
    unused: float
    drift: float | None = None
    stale: float | None = None

    def __str__(self) -> str:
        rows = [
            f"recall@{self.k:<5} {self.recall:8.2%}   of the true {self.k} nearest, over {self.queries:,} queries",
            f"unreachable  {self.unreachable:8.2%}   of entries should find themselves and do not",
            f"unused       {self.unused:8.2%}   of entries were given to no query",
        ]
        if self.drift is not None and self.stale is not None:
            rows += [
                f"drift        {self.drift:7.2f}°   between stored keys and what the encoder makes of them now",
                f"stale        {self.stale:8.2%}   of entries find themselves by their old keys only",
            ]
        return "\n".join(rows)


def audit(
    store: Index | Datastore,
    queries: Float[Tensor, "m d"] | None = None,
    *,
    k: int = 32,
    keys: Float[Tensor, "n d"] | None = None,
    encode: Callable[[Int[Tensor, " s"]], Float[Tensor, "s d"]] | None = None,
    sample: int = 1000,
    seed: int = 0,
) -> Audit:
    """Ask a store what it should know, and compare with an exhaustive search.

    Args:
        store: An index or a datastore.
        queries: What to ask; by default the sampled keys themselves.
        k: Neighbours of each.
        keys: What was added to an index, in that order; a datastore has its own.
        encode: Makes the keys of entries anew, given their ids, with the encoder as it is now.
        sample: How many entries to look at.
        seed: Of their choice.

    Shapes:
        queries: ``[m, d]``, keys: ``[n, d]``

    Raises:
        ValueError: If the store is empty, an index comes without its keys, there are no queries or some that are not
            finite, or ``k`` or ``sample`` is smaller than 1.
    """
    if k < 1 or sample < 1:
        raise ValueError(f"an audit needs k >= 1 and sample >= 1, got k={k} and sample={sample}")
    if not len(store):
        raise ValueError("there is nothing to audit: the store is empty")
    if queries is not None:
        check_answerable(queries)
    metric: Metric
    exhaustive: Callable[[Tensor, int], Neighbors]
    if isinstance(store, Datastore):
        every, metric = store.ids(), store.metric
        rng = np.random.default_rng(seed)
        ids = every[torch.from_numpy(np.sort(rng.permutation(len(every))[:sample]))]
        exhaustive = store.exhaustive
        look_up: Callable[[Tensor], Tensor] = store.keys
    else:
        if keys is None or len(keys) != len(store):
            raise ValueError(
                f"an index does not keep its vectors: give audit(..., keys=...) all {len(store):,} of them"
            )
        every, metric = torch.arange(len(store), device="cpu"), store.metric
        rng = np.random.default_rng(seed)
        ids = torch.from_numpy(np.sort(rng.permutation(len(store))[:sample]))
        exhaustive, look_up = Index("Flat", metric).add(keys).search, keys.__getitem__
    stored = look_up(ids).float()
    asked = stored if queries is None else queries
    found = store.search(asked, k)
    share = recall(found, exhaustive(asked, k), asked, look_up, metric)
    given = len(found.ids[found.mask].unique())
    there = _met(store.search(stored, k), stored, stored, look_up, metric)
    wanted = _met(exhaustive(stored, k), stored, stored, look_up, metric)
    drift = stale = None
    if encode is not None:
        now = encode(ids).float()
        again = _met(store.search(now, k), now, stored, look_up, metric)
        angle = torch.nn.functional.cosine_similarity(now, stored).clamp(-1, 1).acos()
        drift, stale = float(angle.rad2deg().mean()), float((there & ~again).float().mean())
    return Audit(
        queries=len(asked),
        k=k,
        recall=share,
        unreachable=float((wanted & ~there).float().mean()),
        unused=1 - given / len(every),
        drift=drift,
        stale=stale,
    )


def check_answerable(queries: Float[Tensor, "m d"]) -> None:
    """Refuse queries that no store could answer: nothing would be measured, and look perfect.

    Raises:
        ValueError: If there are none, or one has a value that is not finite.
    """
    if not len(queries):
        raise ValueError("there are no queries to ask: give some, or leave them out to ask for stored keys")
    strange = ~queries.isfinite().all(1)
    if bool(strange.any()):
        raise ValueError(f"query {int(strange.nonzero()[0])} has a value that is not finite: leave it out")


def recall(
    found: Neighbors,
    truth: Neighbors,
    queries: Float[Tensor, "n d"],
    look_up: Callable[[Int[Tensor, " s"]], Float[Tensor, "s d"]],
    metric: Metric,
) -> float:
    """Share of the true nearest that were found; one as near as the last of them counts as well as it.

    Args:
        found: What is judged. Its scores do not count: an index of codes has its own.
        truth: Of an exhaustive search with the same ``k``; it found something for each query.
        queries: What was asked.
        look_up: Keys of entries by their ids.
        metric: ``"ip"`` or ``"l2"``.

    Shapes:
        found, truth: ``[n, k]``, queries: ``[n, d]``
    """
    wanted = truth.mask.sum(1)
    scores, _ = _exact_scores(truth, queries, look_up, metric)
    last = scores.where(truth.mask, torch.inf).amin(1, keepdim=True)
    scores, near = _exact_scores(found, queries, look_up, metric)
    hits = (found.mask & (scores >= last - near)).sum(1)
    return float(torch.minimum(hits, wanted).sum() / wanted.sum())


def _met(
    found: Neighbors, queries: Tensor, keys: Tensor, look_up: Callable[[Tensor], Tensor], metric: Metric
) -> Tensor:
    """Whether each query was given an entry that is as near to it as a key of its own."""
    scores, near = _exact_scores(found, queries, look_up, metric)
    own = _pair_scores(queries, keys[:, None], metric)
    return (found.mask & ((scores - own).abs() <= near)).any(1)


def _exact_scores(
    found: Neighbors, queries: Tensor, look_up: Callable[[Tensor], Tensor], metric: Metric
) -> tuple[Tensor, Tensor]:
    """Scores of what was found, in double precision, and by how much a search in single precision may be off."""
    queries = queries.detach().cpu().float()
    keys = torch.zeros(*found.ids.shape, queries.shape[1], dtype=torch.float32, device="cpu")
    # Where there is no neighbour the id may be no entry's.
    keys[found.mask] = look_up(found.ids[found.mask]).detach().cpu().float()
    asked, far = lengths(queries.numpy()), lengths(keys.numpy())
    near = rounding(np.broadcast_to(asked[:, None], far.shape), far, queries.shape[1], metric)
    return _pair_scores(queries, keys, metric), torch.from_numpy(near)


def _pair_scores(queries: Tensor, keys: Tensor, metric: Metric) -> Tensor:
    queries, keys = queries.detach().cpu().double()[:, None], keys.detach().cpu().double()
    return (queries * keys).sum(-1) if metric == "ip" else -(queries - keys).square().sum(-1)
