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

__all__ = ["Audit", "audit", "pair_scores", "recall"]

# Scores as near as this, relative to their size, are one score: a product of matrices rounds by less.
_NEAR = 1e-4


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        queries: How many were asked.
        k: Neighbours of each.
        recall: Share of the true ``k`` nearest that the store gave, by score.
        unreachable: Share of the sampled entries that a query equal to their key does not find: dead keys.
        unused: Share of all entries that none of the queries was given. It falls as more are asked; what counts is its
            rise from one audit to the next.
        drift: Mean angle in degrees between a sampled key and what the encoder makes of that entry now; ``None`` if no
            encoder was given.
        stale: Share of the sampled entries that a query equal to their *new* key does not find.
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
            f"unreachable  {self.unreachable:8.2%}   of entries do not find themselves",
            f"unused       {self.unused:8.2%}   of entries were given to no query",
        ]
        if self.drift is not None and self.stale is not None:
            rows += [
                f"drift        {self.drift:7.2f}°   between stored keys and what the encoder makes of them now",
                f"stale        {self.stale:8.2%}   of entries do not find themselves by their new keys",
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
        ValueError: If the store is empty, or an index comes without its keys.
    """
    if not len(store):
        raise ValueError("there is nothing to audit: the store is empty")
    metric: Metric
    if isinstance(store, Datastore):
        every, metric = store.ids(), store.metric
        rng = np.random.default_rng(seed)
        ids = every[torch.from_numpy(np.sort(rng.permutation(len(every))[:sample]))]
        stored = store.keys(ids).float()
        asked = stored if queries is None else queries
        truth = store.exhaustive(asked, k)
        look_up: Callable[[Tensor], Tensor] = store.keys
    else:
        if keys is None or len(keys) != len(store):
            raise ValueError(
                f"an index does not keep its vectors: give audit(..., keys=...) all {len(store):,} of them"
            )
        every, metric = torch.arange(len(store)), store.metric
        rng = np.random.default_rng(seed)
        ids = torch.from_numpy(np.sort(rng.permutation(len(store))[:sample]))
        stored = keys[ids].float()
        asked = stored if queries is None else queries
        truth = Index("Flat", metric).add(keys).search(asked, k)
        look_up = keys.__getitem__
    found = store.search(asked, k)
    scores = pair_scores(asked, look_up(found.ids.where(found.mask, every[0])), metric)
    given = len(found.ids[found.mask].unique())
    drift = stale = None
    if encode is not None:
        now = encode(ids).float()
        angle = torch.nn.functional.cosine_similarity(now, stored).clamp(-1, 1).acos()
        drift, stale = float(angle.rad2deg().mean()), _lost(store, now, ids, k)
    return Audit(
        queries=len(asked),
        k=k,
        recall=recall(found, truth, scores),
        unreachable=_lost(store, stored, ids, k),
        unused=1 - given / len(every),
        drift=drift,
        stale=stale,
    )


def recall(found: Neighbors, truth: Neighbors, scores: Float[Tensor, "n k"]) -> float:
    """Share of the true nearest that were found; one as near as the last of them counts as well as it.

    Args:
        found: What is judged.
        truth: Of an exhaustive search with the same ``k``.
        scores: Exact scores of what was found: an index of codes has its own.

    Shapes:
        found, truth: ``[n, k]``, scores: ``[n, k]``
    """
    wanted = truth.mask.sum(1)
    if not int(wanted.sum()):
        return 1.0
    last = truth.scores.gather(1, (wanted - 1).clamp(min=0)[:, None])
    hits = (found.mask & (scores >= last - _NEAR * last.abs())).sum(1)
    return float(torch.minimum(hits, wanted).sum() / wanted.sum())


def pair_scores(
    queries: Float[Tensor, "n d"], keys: Float[Tensor, "n k d"], metric: Metric
) -> Float[Tensor, "n k"]:
    """Exact score of each query with keys of its own."""
    queries, keys = queries.float()[:, None], keys.float()
    return (queries * keys).sum(-1) if metric == "ip" else -(queries - keys).square().sum(-1)


def _lost(store: Index | Datastore, keys: Tensor, ids: Tensor, k: int) -> float:
    found = store.search(keys, k)
    there = ((found.ids == ids[:, None]) & found.mask).any(1)
    return 1 - float(there.float().mean())
