"""Neighbours by approximate search over vectors of the preceding context."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from retrieval.cells import Cells
from retrieval.encoder import ContextEncoder
from retrieval.neighbors import Neighbors
from retrieval.ordering import ID, NOTHING, unpacked, words
from retrieval.passages import Passages
from retrieval.runtime import faiss
from retrieval.source import Source
from retrieval.work import Work, counted_search, search_work

__all__ = ["ContextSource"]


# Queries in one call: what it needs to score their shortlists stays in cache.
_ROWS = 1024


class ContextSource(Source):
    r"""FAISS over a fixed encoding of the context, its shortlist scored exactly.

    Three steps, each cheaper per entry than the next is exact: :class:`retrieval.cells.Cells` chooses the lists to look
    into, with about ``scan`` entries in all (a cell of more is split); FAISS scans their 4-bit codes, a product
    quantizer's, by table look-up (`Andre, Kermarrec and Le Scouarnec <https://arxiv.org/abs/1812.09162>`_ ) and keeps a
    ``shortlist``; and :meth:`retrieval.ContextEncoder.kernel` gives those their score. The result comes in the order
    (score descending, id ascending), and does not depend on the rest of the batch.

    Entries of the excluded document are dropped from the shortlist. A query left with fewer than ``k`` is asked again
    with FAISS leaving them out: in the same lists, in all lists that share a cluster of its last token, and in
    the end in the whole store, exactly.

    Args:
        passages: What to store.
        encoder: How contexts become vectors; by default one counted in these passages.
        clusters: Clusters of tokens at the last three places; by default by size of the store.
        scan: Entries whose codes a query scans, about.
        shortlist: Entries a query scores exactly.
    """

    # Below this many entries every one is scored exactly.
    small = 4096

    def __init__(
        self,
        passages: Passages,
        encoder: ContextEncoder | None = None,
        *,
        clusters: Sequence[int] | None = None,
        scan: int = 2048,
        shortlist: int = 64,
    ) -> None:
        begin = time.perf_counter()
        self.passages = passages
        self.encoder = ContextEncoder(passages) if encoder is None else encoder
        if self.encoder.vocab_size != passages.vocab_size:
            raise ValueError(
                f"an encoder of {self.encoder.vocab_size} tokens cannot read passages of {passages.vocab_size}"
            )
        if len(passages) >= 2**31:
            raise ValueError(
                "ContextSource holds fewer than 2^31 tokens; split the passages over several sources"
            )
        self.depth = self.encoder.depth
        self.scan, self.shortlist = scan, shortlist
        self._entries = passages.entries().astype(np.int32)
        self._none = int(self.encoder.rows(np.array([-1]))[0])
        self._rows = np.zeros(len(passages) + self.depth - 1, np.uint16)
        self._rows[self.depth - 1 :] = self.encoder.rows(passages.tokens)
        age = np.arange(len(passages), dtype=np.int64)
        age -= np.repeat(passages.offsets[:-1], np.diff(passages.offsets))
        self._age = np.minimum(age, self.depth - 1).astype(np.uint8)
        self.build_flops = dict(self.encoder.flops)
        self.build_bytes = dict(self.encoder.bytes)
        n = len(self._entries)
        self.clusters = tuple(clusters) if clusters is not None else _clusters(n)
        self._index: Any = None
        if n >= self.small:
            self._build(n)
        self.build_seconds = time.perf_counter() - begin
        about = f"context-source-3 {self.clusters} {scan} {shortlist} {self.encoder.fingerprint} {passages.fingerprint}"
        self.fingerprint = hashlib.sha256(about.encode()).hexdigest()

    def _build(self, n: int) -> None:
        encoder = self.encoder
        self._cells = Cells(encoder, self.clusters)
        cell, fourth = np.empty(n, np.int32), np.empty(n, np.uint8)
        # In the order of the text, where contexts lie side by side; moved to their lists as whole rows afterwards.
        rows = np.empty((n, (encoder.n_codes + 1) // 2), np.uint8)
        step = 1 << 16
        for i in range(0, n, step):
            context = self._context(self._entries[i : i + step].astype(np.int64), self.depth)
            cell[i : i + step] = self._cells.of(context)
            fourth[i : i + step] = self._cells.fourth(context)
            rows[i : i + step] = encoder.codes(context)
        row = rows.view(f"V{rows.shape[1]}").reshape(n)
        number = self._cells.split(cell, fourth, self.scan)
        sizes = self._cells.sizes
        order = np.sort((number << 32) | np.arange(n)) & ID
        del cell, fourth, number
        index = self._empty()
        ends = np.cumsum(sizes)
        pending: list[np.ndarray] = []
        lists = index.invlists
        filled = 0
        occupied = np.flatnonzero(sizes)
        done = 0
        for i in range(0, n, step):
            codes = row[order[i : i + step]].view(np.uint8).reshape(-1, rows.shape[1])
            codes = np.concatenate([*pending, codes]) if pending else codes
            ids = self._entries[order[filled : filled + len(codes)]].astype(np.int64)
            start = 0
            while done < len(occupied) and ends[occupied[done]] <= filled + len(codes):
                at = int(occupied[done])
                stop = int(ends[at]) - filled
                lists.add_entries(
                    at, stop - start, faiss.swig_ptr(ids[start:stop]), faiss.swig_ptr(codes[start:stop])
                )
                start, done = stop, done + 1
            pending, filled = [codes[start:]], filled + start
        index.ntotal = n
        self._index = faiss.IndexIVFPQFastScan(index, 32)
        # One query after the other: all at once, as FAISS would, the shared lists are too few to pay for sorting them.
        self._index.implem = 11
        # Codes are written, moved to their lists, and interleaved there.
        moved = n * (4 * self.depth + 8 * index.code_size + 24)
        self.build_flops |= {"cells": self._cells.flops, "add": 0}  # codes are looked up
        self.build_bytes |= {"cells": 4 * self._cells.flops, "add": moved}

    def _empty(self) -> Any:
        """An index without entries whose quantizer stands for what the encoder's codes stand for."""
        d = self.encoder.dimensions
        self._coarse = faiss.IndexFlatIP(d)  # a place holder: lists are chosen by Cells
        index = faiss.IndexIVFPQ(
            self._coarse, d, len(self._cells.sizes), self.encoder.n_codes, 4, faiss.METRIC_INNER_PRODUCT
        )
        index.by_residual = False
        faiss.copy_array_to_vector(self.encoder.codebook.ravel(), index.pq.centroids)
        index.is_trained = True
        return index

    def _context(self, positions: np.ndarray, depth: int) -> np.ndarray:
        """The last tokens at stored positions, most recent first, -1 outside the passage."""
        tokens, age = self.passages.tokens, self._age[positions]
        found = np.empty((depth, len(positions)), np.int32)
        for j in range(depth):
            found[j] = np.where(age >= j, tokens[np.maximum(positions - j, 0)].astype(np.int32), -1)
        return found.T

    def find(self, context: Int[np.ndarray, "n depth"], k: int, exclude: Int[np.ndarray, " n"]) -> Neighbors:
        """See :meth:`Source.search`."""
        n = len(context)
        best = np.full((n, k), NOTHING)
        rows, work = np.arange(n), Work()
        if self._index is not None:
            kept = max(self.shortlist, 2 * k)
            # Queries side by side that look into the same lists.
            order = np.lexsort((context[:, 3], self._last_three(context)))
            for i in range(0, n, _ROWS):
                at = order[i : i + _ROWS]
                best[at], cost = self._approximate(
                    context[at], k, exclude[at], self._cells.nearest, self.scan, kept
                )
                work += cost
            # Few are left: those whose shortlist the excluded document had filled. FAISS leaves it out for them.
            for choose, scan in (
                (self._cells.nearest, 4 * self.scan),
                (self._cells.alike, len(self._entries)),
            ):
                rows = np.flatnonzero(best[:, -1] == NOTHING)
                for document in np.unique(exclude[rows]):
                    selector = self._others(int(document))
                    of_document = rows[exclude[rows] == document]
                    for i in range(0, len(of_document), _ROWS // 16):
                        at = of_document[i : i + _ROWS // 16]
                        best[at], cost = self._approximate(
                            context[at], k, exclude[at], choose, scan, kept, selector
                        )
                        work += cost
            rows = np.flatnonzero(best[:, -1] == NOTHING)
        for row in rows:
            best[row], cost = self._exact(context[row], k, int(exclude[row]))
            work += cost
        scores, ids = unpacked(best)
        return Neighbors.of(torch.from_numpy(scores), torch.from_numpy(ids), **work.counts)

    def _others(self, document: int) -> Any:
        """What FAISS may return to a query that must not see a document."""
        own = self.passages.positions(document)
        if not len(own):
            return None
        if len(own) == own[-1] + 1 - own[0]:
            inner = faiss.IDSelectorRange(int(own[0]), int(own[-1]) + 1)
        else:
            inner = faiss.IDSelectorBatch(own)
        return faiss.IDSelectorNot(inner)

    def _last_three(self, context: np.ndarray) -> np.ndarray:
        """One number for the last three tokens, which decide where a query looks."""
        base = self.passages.vocab_size + 1
        return (context[:, 0] * base + context[:, 1]) * base + context[:, 2]

    def _approximate(
        self,
        context: np.ndarray,
        k: int,
        exclude: np.ndarray,
        choose: Callable[[np.ndarray], np.ndarray],
        scan: int,
        kept: int,
        selector: Any = None,
    ) -> tuple[np.ndarray, Work]:
        """The best of what stands in the first cells that ``choose`` gives, about ``scan`` entries."""
        encoder, index, n = self.encoder, self._index, len(context)
        _, first, which = np.unique(self._last_three(context), return_index=True, return_inverse=True)
        cells = choose(context[first])
        lists = self._cells.lists(self._cells.occupied(cells, scan)[which], context, scan)
        parameters = faiss.SearchParametersIVF(nprobe=lists.shape[1])
        if selector is not None:
            parameters.sel = selector
        ids, found = np.empty((n, kept), np.int64), np.empty((n, kept), np.float32)
        sketch = encoder.sketch(context)
        far = np.zeros(lists.shape, np.float32)
        with counted_search() as visits:
            index.search_preassigned_c(
                n,
                faiss.swig_ptr(sketch),
                kept,
                *(faiss.swig_ptr(array) for array in (lists, far, found, ids)),
                False,
                parameters,
            )
        work = search_work(index, n, kept, visits, coarse=False)
        work += Work(
            len(first) * self._cells.nearest_flops + encoder.kernel_flops(n * kept),
            4 * n * encoder.dimensions + 8 * cells.size + 8 * encoder.depth * n * kept,
            4 * n * encoder.dimensions,
            # What is scored lies wherever in the text its code was found.
            8 * encoder.depth * n * kept,
        )
        return self._score(context, ids, exclude, k), work

    def _score(self, context: np.ndarray, ids: np.ndarray, exclude: np.ndarray, k: int) -> np.ndarray:
        """The ``k`` best of each query's candidates, as sortable words; those that do not count at the end."""
        safe = np.maximum(ids, 0)
        # The rows before every position as one item, which numpy copies ten times as fast as its parts.
        windows = np.ndarray((len(self.passages),), f"V{2 * self.depth}", self._rows, strides=(2,))
        stored = windows[safe.ravel()].view(np.uint16).reshape(*safe.shape, self.depth)
        age = self._age[safe]
        row, column = np.nonzero(age < self.depth - 1)
        early = stored[row, column]
        early[np.arange(self.depth) < self.depth - 1 - age[row, column, None]] = self._none
        stored[row, column] = early
        scores = self.encoder.kernel(self.encoder.rows(context), stored)
        found = words(scores, ids)
        found[ids < 0] = NOTHING
        if exclude.max() >= 0:
            found[self.passages.labels[safe] == exclude[:, None]] = NOTHING
        if found.shape[1] > 4 * k:
            found = np.partition(found, k - 1, axis=1)[:, :k]
        found.sort(axis=1)
        return found[:, :k]

    def _exact(self, context: np.ndarray, k: int, exclude: int) -> tuple[np.ndarray, Work]:
        best = np.zeros((1, 0), np.int64)
        for i in range(0, len(self._entries), 1 << 16):
            block = self._entries[None, i : i + (1 << 16)].astype(np.int64)
            found = self._score(context[None], block, np.array([exclude]), k)
            best = np.sort(np.concatenate([best, found], axis=1), axis=1)[:, :k]
        n = len(self._entries)
        best = np.pad(best[0], (0, k - best.shape[1]), constant_values=NOTHING)
        return best, Work(self.encoder.kernel_flops(n), n * self.depth * 8)


def _clusters(n: int) -> tuple[int, int, int]:
    """Clusters at the last three places for a store of ``n`` entries, as measured on source code."""
    if n < 1_000_000:
        return 128, 8, 1
    if n < 10_000_000:
        return 256, 32, 4
    return 512, 128, 8
