r"""The same search over ranks: every rank holds a shard, and asks all of them.

What happens in a search, in collectives of the group:

1. every rank says what it was given (``k``, dimension, number of queries, length of its shard); if anything does not
   fit, all ranks raise, none waits;
2. the queries of all go to all;
3. each rank searches its shard for all queries at once, and says whether that went well and what it took;
4. each rank gets the scores and ids found for its own queries, at most ``min(k, length)`` from each shard;
5. and merges them in the one order (score descending, id ascending).

A shard's own ``k`` best are all that can be among the ``k`` best of all shards, so nothing is lost. The order is total,
so the result depends on nothing but what is stored.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from retrieval.distributed.group import Ranks, agreed
from retrieval.neighbors import Neighbors

__all__ = ["Shard", "ShardedSearch"]

_LOCAL_BITS = 48
# Ranks make their searches in the same order, so that the numbers they give them agree.
_made = itertools.count()


@runtime_checkable
class Shard(Protocol):
    """What one rank holds: anything that is searched like a :class:`retrieval.Index`."""

    def __len__(self) -> int:
        """How many entries there are."""
        ...

    def search(self, queries: Tensor, k: int) -> Neighbors:
        """The ``k`` best entries of each query, by (score descending, id ascending)."""
        ...


class ShardedSearch:
    r"""A search over the shards of all ranks, which answers as one process would that holds all of them.

    .. code-block:: python

        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
        store = ShardedSearch(Index("IVF4096,Flat").train(sample).add(keys[rank::ranks]))
        found = store.search(queries, k=16)  # each rank its own queries, as many as it likes, also none

    *Equality.* Scores and ids are equal bit for bit to those of one process with the shards one behind the other, if
    a shard scores a pair of query and key alike wherever the key is stored (:class:`retrieval.Index` does), and if
    structures that are trained were trained alike: on one sample, the same on every rank. Then an entry is looked at
    here exactly if it is looked at there. A graph (HNSW) is another graph when it is in parts.

    *Ids.* With ``ids="position"`` an id is the entry's position in the shards one behind the other, in the order of
    ranks: :math:`\sum_{s<r} \lvert shard_s \rvert + local`. A shard that has become longer or shorter would shift
    those of the ranks behind it, so from then on a search is refused on every rank, until :meth:`renumber`. With
    ``ids="rank"`` an id is ``rank << 48 | local``: shards may grow at any time and ids already given out stay valid.
    Both are in the same order.

    *Collective.* Construction, :meth:`search` and :meth:`renumber` are calls that all ranks of the group make, in the
    same order, from one thread each. A rank whose data have come to an end brings ``[0, d]`` queries for as long as
    others go on. If ranks disagree, or a shard fails on one, all ranks raise, and may go on with the next call. If a
    rank dies the others raise at once, and if it hangs when the group's timeout is over (30 minutes by default, see
    :class:`retrieval.distributed.group.Ranks`); the group is then of no more use.

    *Work.* A result's ``flops`` and bytes are this rank's part of the searches of all shards, plus the merge. A shard
    is searched once for all ranks together; each has the part of the work that it has of the queries, as integers
    that add up. The merge has no operations, since comparisons are none; per query it reads 12 bytes for each of the
    :math:`\sum_s \min(k, \lvert shard_s \rvert)` candidates and writes 13 for each of ``k`` places. What goes over
    the network is in :attr:`bytes_sent` instead.

    *Ledger.* The searches of shards are the priced operators, not this one: whatever compiles or checkpoints a model
    may drop or repeat an operator, and a collective that one rank leaves out keeps the others waiting. So a ledger on
    a rank sees what that rank has done: the search of its own shard for the queries of all, under "search", the
    exchange (``c10d``) and the merge (``sort``) as torch operators. Added up over ranks, FLOPs of searches are the
    same either way. Under ``torch.compile`` this call runs as it is.

    *Memory.* For each query of all ranks ``4 d`` bytes and 13 for each of its ``k`` places; ask in batches.

    Args:
        shard: What this rank holds, an empty shard included. Its ids are less than its length, or with ``ids="rank"``
            less than ``2**48``.
        group: The ranks; by default all. Tensors of the CPU go through it.
        ids: ``"position"`` or ``"rank"``.

    Attributes:
        lengths: Entries of each shard, as of construction, :meth:`renumber` or, with ``ids="rank"``, the last search.
        bytes_sent: Bytes this rank has sent to others in searches so far, without what the transport adds:
            ``4096 (w - 1)`` of notes, ``4 n d (w - 1)`` of queries, and 12 for each place of what others asked.

    Raises:
        ValueError: If ``ids`` is something else, the metrics of the shards differ, or ranks do not make the same call.
        RankError: If another rank failed, died or did not come in time.
    """

    def __init__(
        self,
        shard: Shard,
        *,
        group: dist.ProcessGroup | None = None,
        ids: Literal["position", "rank"] = "position",
    ) -> None:
        self.shard = shard
        self.ids = ids
        self.bytes_sent = 0
        self.lengths: list[int] = []
        self._ranks = Ranks(group)
        self._store = next(_made)
        self._stores: list[int] = []
        # Compiled in pieces it would be no faster, after half a minute. As a decorator this costs a second on import.
        self._uncompiled = cast(Callable[[Tensor, int], Neighbors], torch.compiler.disable(self._search))
        self._connect("ShardedSearch")

    def __len__(self) -> int:
        """Entries of all shards."""
        return sum(self.lengths)

    def renumber(self) -> None:
        """Take note of the lengths of all shards; ids of positions given out before are no longer valid.

        Raises:
            RankError: If another rank failed, died or did not come in time.
            ValueError: If ranks do not make the same call.
        """
        self._connect("renumber")

    def search(self, queries: Float[Tensor, "*batch d"], k: int) -> Neighbors:
        """The ``k`` nearest entries of all shards for each of this rank's queries, by (score descending, id ascending).

        Args:
            queries: This rank's queries; their number and batch shape are its own affair.
            k: Neighbours per query, the same on every rank.

        Shapes:
            queries: ``[*batch, d]``, result: ``[*batch, k]``

        Raises:
            ValueError: If ``k < 1``, ranks disagree on ``k`` or the dimension, or a shard has another length than
                ids were given out for.
            RankError: If another rank failed, died or did not come in time.
            Exception: Whatever this rank's shard raised.
        """
        return self._uncompiled(queries, k)

    @torch.no_grad()
    def _search(self, queries: Tensor, k: int) -> Neighbors:
        rank, size = self._ranks.rank, self._ranks.size
        asked = self._ranks.together("search", lambda: self._request(queries, k))
        self._check(asked)
        counts = [note["queries"] for note in asked]
        widths = [min(k, length) for length in self.lengths]
        mine = queries.detach().reshape(-1, queries.shape[-1]).float().cpu()
        n = len(mine)
        everyone = self._ranks.swap(mine.repeat(size, 1), [n] * size, counts)
        answers: list[Neighbors] = []

        def local() -> dict[str, int]:
            answers.append(self._answers(everyone, widths[rank]))
            return answers[0].work

        bills = self._ranks.together("search, shard", local)
        raw = torch.where(answers[0].mask, answers[0].ids, -1)
        sends, receives = [count * widths[rank] for count in counts], [n * width for width in widths]
        scores, ids = (
            [part.view(n, width) for part, width in zip(parts.split(receives), widths, strict=True)]
            for parts in (
                self._ranks.swap(answers[0].scores.flatten(), sends, receives),
                self._ranks.swap(raw.flatten(), sends, receives),
            )
        )
        self.bytes_sent += (size - 1) * (2 * Ranks.note_bytes + 4 * mine.numel())
        self.bytes_sent += 12 * (sum(sends) - sends[rank])
        work = {name: sum(_share(bill[name], counts, rank) for bill in bills) for name in answers[0].work}
        written = 13 * n * k
        work["bytes"] += 12 * n * sum(widths) + written
        work["bytes_written"] += written
        best, found = _merged(scores, [self._wide(part, s) for s, part in enumerate(ids)], k)
        shape = (*queries.shape[:-1], k)
        return Neighbors.of(best.view(shape), found.view(shape), **work).to(queries.device)

    def locate(self, ids: Int[Tensor, "*shape"]) -> tuple[Int[Tensor, "*shape"], Int[Tensor, "*shape"]]:
        """Which rank holds each entry, and its id there.

        Args:
            ids: Ids of entries that were found, by whichever rule this search gives them out.

        Shapes:
            ids and both results: ``[*shape]``

        Raises:
            IndexError: If there is no such entry.
        """
        first = torch.tensor([self._first(rank) for rank in range(len(self.lengths))], device=ids.device)
        # Empty shards begin where the next one does: of equal beginnings the last one's holds the entry.
        ranks = torch.searchsorted(first, ids, right=True) - 1
        local = ids - first[ranks.clamp(min=0)]
        lengths = torch.tensor(self.lengths, device=ids.device)[ranks.clamp(min=0)]
        if bool(((ranks < 0) | ((local >= lengths) & (self.ids == "position"))).any()):
            raise IndexError(f"ids {int(ids.min())}..{int(ids.max())} among {len(self)} entries")
        return ranks, local

    def _connect(self, call: str) -> None:
        def tell() -> dict[str, Any]:
            if self.ids not in ("position", "rank"):
                raise ValueError(f"ids must be 'position' or 'rank', got {self.ids!r}")
            metric = getattr(self.shard, "metric", None)
            return {"ids": self.ids, "metric": metric, "store": self._store, "length": len(self.shard)}

        notes = self._ranks.together(call, tell)
        agreed(notes, "ids", "metric")
        self._stores = [note["store"] for note in notes]
        self.lengths = [note["length"] for note in notes]

    def _request(self, queries: Tensor, k: int) -> dict[str, int]:
        if k < 1:
            raise ValueError(f"search needs k >= 1, got {k}")
        if not queries.is_floating_point() or queries.ndim < 1 or not queries.shape[-1]:
            raise ValueError(
                f"search needs floating-point queries [*batch, d], got {queries.dtype} {tuple(queries.shape)}"
            )
        d = queries.shape[-1]
        return {
            "k": k,
            "dimension": d,
            "queries": queries.numel() // d,
            "store": self._store,
            "length": len(self.shard),
        }

    def _check(self, asked: Sequence[Mapping[str, Any]]) -> None:
        agreed(asked, "k", "dimension")
        if [note["store"] for note in asked] != self._stores:
            raise ValueError("ranks ask different stores: every rank must search them in the same order")
        lengths = [note["length"] for note in asked]
        if self.ids == "rank":
            self.lengths = lengths
        for rank, (now, before) in enumerate(zip(lengths, self.lengths, strict=True)):
            if now != before:
                raise ValueError(
                    f"rank {rank} stores {now} entries, and had {before} when ids were given out: those of the ranks "
                    "behind it would shift. Call renumber() on every rank, or use ids='rank'"
                )

    def _answers(self, queries: Tensor, k: int) -> Neighbors:
        """This rank's shard, asked by all."""
        if not k or not len(queries):
            return Neighbors.none(len(queries), k)
        found = self.shard.search(queries, k).to("cpu")
        if found.ids.shape != (len(queries), k):
            raise ValueError(
                f"the shard answered {len(queries)} queries for {k} neighbours by {tuple(found.ids.shape)}"
            )
        end = self.lengths[self._ranks.rank] if self.ids == "position" else 1 << _LOCAL_BITS
        if int(found.ids.max()) >= end:
            raise ValueError(
                f"the shard found an entry {int(found.ids.max())}, ids end at {end}: "
                "a shard whose ids are no positions needs ids='rank'"
            )
        return found

    def _first(self, rank: int) -> int:
        """Id of a rank's first entry."""
        return rank << _LOCAL_BITS if self.ids == "rank" else sum(self.lengths[:rank])

    def _wide(self, local: Tensor, rank: int) -> Tensor:
        return torch.where(local < 0, local, local + self._first(rank))


def _merged(scores: Sequence[Tensor], ids: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best of what the shards found, which is in order in each, their ids rising from shard to shard."""
    all_scores, all_ids = torch.cat(list(scores), 1), torch.cat(list(ids), 1)
    # No number comes after all numbers, minus infinity included; equal ones stay in the order of their ids.
    far = torch.where(all_ids < 0, torch.nan, -all_scores)
    order = far.sort(dim=1, stable=True).indices[:, :k]
    short = k - order.shape[1]
    best = torch.nn.functional.pad(all_scores.gather(1, order), (0, short))
    return best, torch.nn.functional.pad(all_ids.gather(1, order), (0, short), value=-1)


def _share(total: int, counts: Sequence[int], rank: int) -> int:
    """The part of a total that a rank has of all queries; over all ranks they add up to it."""
    before, n = sum(counts[:rank]), sum(counts)
    return total * (before + counts[rank]) // n - total * before // n if n else 0
