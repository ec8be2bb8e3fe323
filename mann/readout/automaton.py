"""A store of states that follows its own text between searches (RetoMaton)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from retrieval import Datastore, Neighbors
from retrieval.datastore.exclusion import EVERYTHING, NO_DOCUMENT, Exclusion
from retrieval.datastore.ranking import Ranking, exact_scores, pair_work
from retrieval.search import Searchable, check_queries, run_search
from retrieval.work import Work

__all__ = ["Automaton"]

# A value, a document and a position of an entry.
_STAMP_BYTES = 4 + 8 + 8


class Automaton(Searchable):
    r"""Searches a store only where the neighbours before do not lead on.

    The entry after one that was found, of the same document, stands for what came next there. Where the text goes on as
    an entry foresaw, its successor is a *pointer*: likely near again, and known without a search,

    .. math:: P_t = \{ i + 1 : i \in N_{t-1}, \; y_i = x_t \}, \qquad
        N_t = \begin{cases} P_t & |P_t| \ge m \\ \mathrm{search}(h_t) & \text{otherwise} \end{cases}

    Pointers are scored like neighbours, by the stored key. Rows of a batch begin without pointers, and so do documents.
    Whether a position is searched for depends on the ones before it, so time is walked through step by step; in each
    step, all rows that need a search share one. With ``pointers`` larger than ``k`` every position is searched.

    Works for stores whose entries lie in the order of the text, as :func:`mann.knn_store.build_datastore`
    writes them if batches come in that order: the successor of an entry has the next id, the next position and the
    same document; others are not followed.

    Reference:
        Alon et al., "Neuro-symbolic language modeling with automaton-augmented retrieval" (RetoMaton), 2022.
        arXiv:2201.12431. Its clusters of states are left out.

    Args:
        datastore: What is searched; values are token ids.
        pointers: The least number :math:`m` of pointers that go without a search.

    Attributes:
        asked: Positions asked for so far.
        searched: How many of them were searched for.

    Raises:
        ValueError: If ``pointers`` is smaller than 1.
    """

    def __init__(self, datastore: Datastore, pointers: int = 1) -> None:
        if pointers < 1:
            raise ValueError(
                f"pointers must be 1 or more, got {pointers}: without any there is nobody to follow"
            )
        self.datastore = datastore
        self.pointers = pointers
        self.asked = self.searched = 0

    @property
    def saved(self) -> float:
        """Share of positions that needed no search."""
        return 1 - self.searched / self.asked if self.asked else 0.0

    def values(self, ids: Int[Tensor, "*batch"] | Neighbors) -> Shaped[Tensor, "*batch ..."]:
        """See :meth:`retrieval.Datastore.values`."""
        return self.datastore.values(ids)

    def search(
        self,
        queries: Float[Tensor, "batch time d"],
        k: int,
        *,
        tokens: Int[Tensor, "batch time"],
        documents: Int[Tensor, "batch time"] | None = None,
        exclude: Int[Tensor, "batch time"] | None = None,
        visible_at: Int[Tensor, "batch time"] | None = None,
        own: Int[Tensor, "batch time"] | None = None,
    ) -> Neighbors:
        """Up to ``k`` entries at every position: pointers, or what a search finds.

        Args:
            queries: The states.
            k: Neighbours per position.
            tokens: The text that the states have read: position ``t`` has read ``tokens[:, : t + 1]``.
            documents: Labels in the batch; pointers end where the label changes.
            exclude, visible_at, own: What a position must not be given, see :meth:`retrieval.Datastore.search`.

        Shapes:
            queries: ``[batch, time, d]``, the others ``[batch, time]``, result: ``[batch, time, k]``

        Raises:
            ValueError: If shapes differ, or ``k < 1``.
        """
        check_queries(queries, k)
        inputs = [queries, tokens]
        for name, given, default in (
            ("documents", documents, 0),
            ("exclude", exclude, NO_DOCUMENT),
            ("visible_at", visible_at, EVERYTHING),
            ("own", own, NO_DOCUMENT),
        ):
            inputs.append(torch.full_like(tokens, default) if given is None else given.long())
            if queries.ndim != 3 or not queries.shape[:-1] == tokens.shape == inputs[-1].shape:
                raise ValueError(
                    f"queries {tuple(queries.shape)}, tokens {tuple(tokens.shape)} and {name} "
                    f"{tuple(inputs[-1].shape)} must be [batch, time, d] and [batch, time]"
                )
        return run_search(self, inputs, k)

    def neighbors(self, inputs: Sequence[Tensor], k: int) -> Neighbors:
        """The search behind the operator; call :meth:`search`."""
        queries, tokens, labels, *rules = inputs
        whole, work = Neighbors.none(*tokens.shape, k), Work()
        for t in range(tokens.shape[1]):
            here, best = queries[:, t], Ranking(len(tokens), k)
            of_rows = [rule[:, t].contiguous() for rule in rules]
            if t:
                before = (
                    whole.ids[:, t - 1],
                    whole.mask[:, t - 1] & (labels[:, t] == labels[:, t - 1])[:, None],
                )
                work += self._follow(*before, here, tokens[:, t], Exclusion.of(*of_rows), best)
            found = best.neighbors([len(tokens)], Work())
            lost = found.mask.sum(1) < self.pointers
            whole.scores[:, t], whole.ids[:, t], whole.mask[:, t] = found.scores, found.ids, found.mask
            self.asked += len(tokens)
            self.searched += int(lost.sum())
            if lost.any():
                found = self.datastore.neighbors([here[lost], *(rule[lost] for rule in of_rows)], k)
                whole.scores[lost, t], whole.ids[lost, t] = found.scores, found.ids
                whole.mask[lost, t] = found.mask
                read = found.bytes - found.bytes_written
                work += Work(found.flops, read, found.bytes_written, found.bytes_random, found.intops)
        return Neighbors(whole.scores, whole.ids, whole.mask, **work.counts)

    def _follow(
        self,
        before: Int[Tensor, "batch k"],
        mask: Bool[Tensor, "batch k"],
        queries: Float[Tensor, "batch d"],
        tokens: Int[Tensor, " batch"],
        rules: Exclusion,
        best: Ranking,
    ) -> Work:
        """Put the successors of those that foresaw a token among the best, where they may be given."""
        store = self.datastore
        rows, columns = mask.nonzero(as_tuple=True)
        ids = before[rows, columns]
        right = self.values(ids) == tokens[rows]
        work = Work(0, 4 * len(ids), 0, 4 * len(ids))
        rows, ids = rows[right], ids[right]
        there = self._stored(ids + 1)
        rows, ids = rows[there], ids[there]
        if not len(ids):
            return work
        documents, positions = store.documents(ids + 1), store.positions(ids + 1)
        follows = (documents == store.documents(ids)) & (positions == store.positions(ids) + 1)
        hidden = rules.of_rows(rows.numpy()).hidden(documents.numpy()[:, None], positions.numpy()[:, None])
        if hidden is not None:
            follows &= ~torch.from_numpy(hidden[:, 0])
        work += Work(0, 2 * _STAMP_BYTES * len(ids), 0, 2 * _STAMP_BYTES * len(ids))
        rows, ids = rows[follows].numpy(), ids[follows] + 1
        if len(ids):
            keys = store.keys(ids)
            asked = np.ascontiguousarray(queries.float().numpy())
            places, stored = np.arange(len(ids)), keys.float().numpy()
            best.add(rows, exact_scores(asked, rows, stored, places, store.metric), ids.numpy())
            work += pair_work(len(ids), keys.shape[1], keys.element_size(), store.metric)
        return work

    def _stored(self, ids: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Which entries exist. They all do, but for the successor of the last one and for what was deleted."""
        try:
            self.datastore.positions(ids)
        except KeyError:
            return torch.isin(ids, self.datastore.ids())
        return torch.ones_like(ids, dtype=torch.bool)
