"""Inverted lists over rings of keys: centroids that stay as they are for a while, and the list of each slot."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrieval.building import train_work
from retrieval.flat import margin
from retrieval.rolling.ring import Ring
from retrieval.rolling.search import Found, Memory, exact, joined, settled
from retrieval.rounding import LONGEST
from retrieval.runtime import blas_threshold, faiss
from retrieval.work import Visits, Work, counted_search, search_work

__all__ = ["RingLists"]

# k-means: rounds, and keys looked at for each centroid.
_ROUNDS, _SAMPLE = 5, 32
# Keys for each centroid that a row needs before it is given lists; until then its search is exact.
_FEWEST = 8


class RingLists:
    """An inverted file (IVF) for each row and head of a ring.

    Each key is in the list of its nearest centroid, and a search looks into the ``nprobe`` lists nearest to the query.
    Centroids are found by k-means over what a row holds, and stay until as many entries have been written as there
    were, at most ``retrain``: so they follow a memory that fills, and an encoder that learns. Which list a slot is in
    is kept beside the ring; FAISS's own lists, in which entries go by write index, are made from that when they are
    needed, and what the ring has overwritten is taken out of them.

    Args:
        ring: What is searched.
        nlist: Lists of each row and head.
        nprobe: Lists that a search looks into.
        retrain: Most entries written to a row between two trainings.

    Attributes:
        centroids: ``[rows, heads, nlist, d_key]``.
        lists: List of each slot, ``[rows, heads, capacity]``; -1 where there is none.
        due: Write index at which each row is trained next.
        trained: Whether a row has centroids.
        work: What ``"train"`` and ``"add"`` have cost.
    """

    def __init__(self, ring: Ring, nlist: int, nprobe: int, retrain: int) -> None:
        self.ring, self.nlist, self.nprobe, self.retrain = ring, nlist, nprobe, retrain
        self.centroids = torch.zeros(
            ring.rows, ring.heads, nlist, ring.d_key, dtype=torch.float32, device="cpu"
        )
        self.lists = torch.full((ring.rows, ring.heads, ring.capacity), -1, dtype=torch.int32, device="cpu")
        self.due = torch.full(
            (ring.rows,), min(ring.capacity, _FEWEST * nlist), dtype=torch.int64, device="cpu"
        )
        self.trained = torch.zeros(ring.rows, dtype=torch.bool, device="cpu")
        self.work: dict[str, Work] = {}
        self._indexes: dict[Memory, Any] = {}

    def added(self, at: Tensor, n: int) -> None:
        """Take in the last ``n`` entries of rows, or train anew if it is time."""
        for row in at.tolist():
            if float(self.ring.norms[row].max()) > LONGEST:
                # No clusters can be made of these: all entries of the row are compared.
                self.reset(torch.tensor([row]))
            elif self.ring.written[row] >= self.due[row]:
                self._train(row)
            elif self.trained[row]:
                slots = self.ring.slots(row)[-n:] if n else np.empty(0, np.int64)
                for head in range(self.ring.heads):
                    self._assign((row, head), slots)

    def _train(self, row: int) -> None:
        live = int(self.ring.live[row])
        slots = self.ring.slots(row)
        for head in range(self.ring.heads):
            keys = self._keys((row, head), slots)
            index = self._empty()
            index.cp.niter, index.cp.max_points_per_centroid = _ROUNDS, _SAMPLE
            index.cp.min_points_per_centroid = 1
            with counted_search() as visits, blas_threshold(4 * self.ring.d_key):
                index.train(keys)
            self._bill("train", train_work(index, live, visits))
            self.centroids[row, head] = torch.from_numpy(index.quantizer.reconstruct_n(0, self.nlist))
            self.lists[row, head] = -1
            self._indexes[row, head] = index
            self._assign((row, head), slots)
        self.trained[row] = True
        self.due[row] = int(self.ring.written[row]) + min(self.retrain, live)

    def _assign(self, memory: Memory, slots: np.ndarray) -> None:
        if not len(slots):
            return
        # What was in these slots is gone: lists that are made now must not have it.
        self.lists[memory][torch.from_numpy(slots)] = -1
        index, keys = self._index(memory), self._keys(memory, slots)
        with blas_threshold(4 * self.ring.d_key):
            lists = index.quantizer.assign(keys, 1).ravel()
        self.lists[memory][torch.from_numpy(slots)] = torch.from_numpy(lists).int()
        self._fill(index, memory, slots, keys, lists)
        index.remove_ids(faiss.IDSelectorRange(0, int(self.ring.first[memory[0]])))
        moved = Work(0, 0, 4 * self.ring.d_key + 8, 4 * self.ring.d_key + 8)
        self._bill("add", search_work(index.quantizer, len(slots), 1, Visits()) + moved * len(slots))

    def _fill(
        self, index: Any, memory: Memory, slots: np.ndarray, keys: np.ndarray, lists: np.ndarray
    ) -> None:
        ids = np.ascontiguousarray(self.ring.index[memory[0]].numpy()[slots])
        lists = np.ascontiguousarray(lists, np.int64)
        index.add_core(len(ids), *(faiss.swig_ptr(x) for x in (keys, ids, lists)))

    def _keys(self, memory: Memory, slots: np.ndarray) -> np.ndarray:
        return self.ring.keys[memory][torch.from_numpy(slots)].float().contiguous().numpy()

    def _empty(self) -> Any:
        flat = faiss.IndexFlatIP(self.ring.d_key)
        return faiss.IndexIVFFlat(flat, self.ring.d_key, self.nlist, faiss.METRIC_INNER_PRODUCT)

    def _index(self, memory: Memory) -> Any:
        """FAISS's lists, made from ours where there are none."""
        if memory not in self._indexes:
            index = self._empty()
            index.quantizer.add(self.centroids[memory].numpy())
            index.is_trained = True
            slots = self.ring.slots(memory[0])
            lists = self.lists[memory].numpy()[slots]
            # Entries that are being added have no list yet.
            slots, lists = slots[lists >= 0], lists[lists >= 0]
            if len(slots):
                self._fill(index, memory, slots, self._keys(memory, slots), lists)
            self._indexes[memory] = index
        return self._indexes[memory]

    def reset(self, at: Tensor) -> None:
        """Forget rows that the ring has emptied."""
        self.trained[at] = False
        self.lists[at] = -1
        self.due[at] = torch.from_numpy(self.ring.written[at.numpy()]) + min(
            self.ring.capacity, _FEWEST * self.nlist
        )
        for row in at.tolist():
            for head in range(self.ring.heads):
                self._indexes.pop((row, head), None)

    def search(self, queries: np.ndarray, memories: list[Memory], k: int) -> Found:
        """The ``k`` best in the lists nearest to each query; of a row without lists, of all entries.

        Shapes:
            queries: ``[m, q, d]``
        """
        return joined(
            [
                self._search(x, memory, k)
                if self.trained[memory[0]]
                else exact(self.ring, x[None], [memory], k)
                for x, memory in zip(queries, memories, strict=True)
            ],
            k,
        )

    def _search(self, x: np.ndarray, memory: Memory, k: int) -> Found:
        index, ring = self._index(memory), self.ring
        index.nprobe = min(self.nprobe, self.nlist)
        live = int(ring.live[memory[0]])
        length = min(k + margin(k, live), live)
        # Centroids are compared one by one: in a product of matrices the choice would depend on the batch.
        with counted_search() as visits, blas_threshold(2**31 - 1):
            distances, lists = index.quantizer.search(x, index.nprobe)
            scores, ids = index.search_preassigned(x, length, lists, distances)
        slots = np.where(ids < 0, -1, ids % ring.capacity)
        limit = np.where((ids < 0).any(1) | (length == live), -np.inf, scores[:, -1])
        keys, begins = ring.float_keys([memory])

        def unvisited(_: Memory, at: Any) -> np.ndarray:
            visited = np.zeros((len(x), self.nlist + 1), bool)
            np.put_along_axis(visited, lists, True, 1)
            visited[:, -1] = False
            return ~visited[at][:, self.lists[memory].numpy()]

        work = search_work(index, len(x), length, visits)
        return settled(ring, x, memory, keys, begins, slots, limit, k, work, unvisited)

    def state(self) -> dict[str, Tensor]:
        """Everything by which a search after loading finds the same, copied."""
        return {name: getattr(self, name).clone() for name in ("centroids", "lists", "due", "trained")}

    def faults(self, state: dict[str, Any]) -> list[str]:
        """What keeps a state from being these lists', in words."""
        for name, own in self.state().items():
            given = state.get(name)
            if not isinstance(given, Tensor):
                return [f"it has no tensor {name!r}"]
            if given.shape != own.shape or given.dtype != own.dtype:
                return [
                    f"{name} is {given.dtype} {tuple(given.shape)} there and {own.dtype} {tuple(own.shape)} here"
                ]
        lists = state["lists"]
        if bool((lists < -1).any() | (lists >= self.nlist).any()):
            return ["its lists have numbers that do not exist: it is damaged"]
        return []

    def load(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        for name in ("centroids", "lists", "due", "trained"):
            getattr(self, name).copy_(state[name])
        self._indexes.clear()

    def _bill(self, kind: str, work: Work) -> None:
        self.work[kind] = self.work.get(kind, Work()) + work
