"""Neighbours by approximate search over vectors of the preceding context."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int

from retrieval.cells import Cells
from retrieval.encoder import ContextEncoder
from retrieval.neighbors import Neighbors
from retrieval.passages import Passages
from retrieval.runtime import faiss
from retrieval.source import Source, stored_context
from retrieval.work import Work, counted_search, search_work

__all__ = ["ContextSource"]


class ContextSource(Source):
    r"""FAISS over a fixed encoding of the context, its shortlist scored exactly.

    Three steps, each cheaper per entry than the next is exact: :class:`retrieval.cells.Cells` chooses the lists to look
    into, with about ``scan`` entries in all; FAISS scans their 4-bit product-quantized sketches by table look-up
    (`Andre, Kermarrec and Le Scouarnec <https://arxiv.org/abs/1812.09162>`_ ) and keeps a ``shortlist``; and
    :meth:`ContextEncoder.kernel <retrieval.encoder.ContextEncoder.kernel>` gives those their score, the order of the result
    being (score descending, id ascending). The result for one query does not depend on the rest of the batch.

    Entries of the excluded document are dropped from the shortlist before it is scored. A query left with too few looks
    into all lists that share a cluster of its last token, and in the end at the whole store.

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
        scan: int = 4096,
        shortlist: int = 128,
    ) -> None:
        begin = time.perf_counter()
        self.passages = passages
        self.encoder = ContextEncoder(passages) if encoder is None else encoder
        if self.encoder.vocab_size != passages.vocab_size:
            raise ValueError(
                f"an encoder of {self.encoder.vocab_size} tokens cannot read passages of {passages.vocab_size}"
            )
        self.depth = self.encoder.depth
        self.scan, self.shortlist = scan, shortlist
        self._entries = passages.entries().astype(np.int32 if len(passages) < 2**31 else np.int64)
        self._padded = np.concatenate([np.zeros(self.depth - 1, passages.tokens.dtype), passages.tokens])
        age = np.arange(len(passages), dtype=np.int64)
        age -= np.repeat(passages.offsets[:-1], np.diff(passages.offsets))
        self._age = np.minimum(age, self.depth - 1).astype(np.uint8)
        self.build_flops = dict(self.encoder.flops)
        self.build_bytes = dict(self.encoder.bytes)
        n = len(self._entries)
        self.clusters = tuple(clusters) if clusters is not None else _clusters(n)
        self._index = None
        if n >= self.small:
            self._build(n)
        self.build_seconds = time.perf_counter() - begin
        about = f"context-source-1 {self.clusters} {scan} {shortlist} {self.encoder.fingerprint} {passages.fingerprint}"
        self.fingerprint = hashlib.sha256(about.encode()).hexdigest()

    def _build(self, n: int) -> None:
        encoder = self.encoder
        self._cells = Cells(encoder, self.clusters)
        cell = np.empty(n, np.int32)
        step = 1 << 18
        for i in range(0, n, step):
            cell[i : i + step] = self._cells.of(self._context(self._entries[i : i + step].astype(np.int64), 3))
        sizes = np.bincount(cell, minlength=self._cells.n)
        order = np.sort((cell.astype(np.int64) << 32) | np.arange(n)) & (2**32 - 1)
        del cell
        index = self._train(n)
        tables, tail = self._code_tables(index.pq)
        ends = np.cumsum(sizes)
        pending: list[np.ndarray] = []
        lists = index.invlists
        filled = 0
        occupied = np.flatnonzero(sizes)
        done = 0
        for i in range(0, n, step):
            places = self._entries[order[i : i + step]].astype(np.int64)
            context = self._context(places, self.depth)
            parts = [table[context[:, j]] for j, table in enumerate(tables)]
            codes = np.concatenate([*parts, tail.compute_codes(encoder.tail_sketch(context))], axis=1)
            codes = np.concatenate([*pending, codes]) if pending else codes
            ids = self._entries[order[filled : filled + len(codes)]].astype(np.int64)
            start = 0
            while done < len(occupied) and ends[occupied[done]] <= filled + len(codes):
                number = int(occupied[done])
                stop = int(ends[number]) - filled
                lists.add_entries(
                    number, stop - start, faiss.swig_ptr(ids[start:stop]), faiss.swig_ptr(codes[start:stop])
                )
                start, done = stop, done + 1
            pending, filled = [codes[start:]], filled + start
        index.ntotal = n
        self._sizes = sizes
        self._index = faiss.IndexIVFPQFastScan(index, 32)
        encode = Work(encoder.sketch_flops(n), n * encoder.depth * 4 * encoder.width)
        quantize = Work(3 * tail.ksub * encoder.width * n, 2 * n * index.code_size + 24 * n)
        self.build_flops |= {"cells": self._cells.flops, "encode": encode.flops, "add": quantize.flops}
        self.build_bytes |= {"cells": 4 * self._cells.flops, "encode": encode.bytes, "add": quantize.bytes}

    def _train(self, n: int) -> faiss.IndexIVFPQ:
        d = self.encoder.dimensions
        self._coarse = faiss.IndexFlatIP(d)  # a place holder: lists are chosen by Cells
        index = faiss.IndexIVFPQ(self._coarse, d, self._cells.n, d // 2, 4, faiss.METRIC_INNER_PRODUCT)
        index.by_residual = False
        index.pq.cp.seed = 1234 + self.encoder.seed
        sample = self._entries[np.linspace(0, n - 1, min(n, 256 * index.pq.ksub)).astype(np.int64)]
        index.pq.train(self.encoder.sketch(self._context(sample.astype(np.int64), self.depth)))
        index.is_trained = True
        work = Work(3 * d, 4 * d) * (index.pq.cp.niter * len(sample) * index.pq.ksub)
        self.build_flops["train"] = work.flops
        self.build_bytes["train"] = work.bytes
        return index

    def _code_tables(self, pq: faiss.ProductQuantizer) -> tuple[list[np.ndarray], faiss.ProductQuantizer]:
        """Codes of every token at the last three places, which are looked up, and the quantizer of the tail."""
        width = self.encoder.width
        tables = []
        for place in range(3):
            vectors = np.zeros((self.encoder.vocab_size + 1, 4 * width), np.float32)
            vectors[:, place * width : (place + 1) * width] = self.encoder.token_sketch(place)
            codes = pq.compute_codes(vectors)
            tables.append(np.ascontiguousarray(codes[:, place * width // 4 : (place + 1) * width // 4]))
        tail = faiss.ProductQuantizer(width, width // 2, 4)
        centers = faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub)
        faiss.copy_array_to_vector(np.ascontiguousarray(centers[-tail.M :]).ravel(), tail.centroids)
        self.build_flops["train"] += 3 * (3 * pq.ksub * pq.d) * (self.encoder.vocab_size + 1)
        return tables, tail

    def _context(self, positions: np.ndarray, depth: int) -> np.ndarray:
        """The last tokens at stored positions, most recent first, -1 outside the passage."""
        if len(positions) < 1024:
            return stored_context(self.passages, positions, depth)
        found = np.empty((len(positions), depth), np.int32)
        age = self._age[positions]
        for j in range(depth):
            column = self._padded[positions + (self.depth - 1 - j)].astype(np.int32)
            found[:, j] = np.where(age >= j, column, -1)
        return found

    def find(self, context: Int[np.ndarray, "n depth"], k: int, exclude: Int[np.ndarray, " n"]) -> Neighbors:
        """See :meth:`Source.search`."""
        n = len(context)
        scores, ids = np.zeros((n, k), np.float32), np.full((n, k), -1, np.int64)
        rows, work = np.arange(n), Work()
        if self._index is not None:
            kept = max(self.shortlist, 2 * k)
            for wide in (False, True):
                step = 2048 if not wide else 64
                for i in range(0, len(rows), step):
                    at = rows[i : i + step]
                    scores[at], ids[at], cost = self._approximate(context[at], k, exclude[at], kept, wide)
                    work += cost
                rows = rows[ids[rows, -1] < 0]
                kept *= 4
        for row in rows:
            scores[row], ids[row], cost = self._exact(context[row], k, int(exclude[row]))
            work += cost
        return Neighbors.of(torch.from_numpy(scores), torch.from_numpy(ids), flops=work.flops, bytes=work.bytes)

    def _approximate(
        self, context: np.ndarray, k: int, exclude: np.ndarray, kept: int, wide: bool
    ) -> tuple[np.ndarray, np.ndarray, Work]:
        encoder, index, n = self.encoder, self._index, len(context)
        cells = self._cells.alike(context) if wide else self._cells.nearest(context)
        scan = 8 * self.scan if wide else self.scan
        sizes = self._sizes[cells]
        before = np.cumsum(sizes, axis=1) - sizes
        visit = (before < scan) & (sizes > 0)
        width = max(1, int(visit.sum(1).max()))
        first = np.argsort(~visit, axis=1, kind="stable")[:, :width]
        lists = np.where(np.take_along_axis(visit, first, 1), np.take_along_axis(cells, first, 1), -1)
        with counted_search() as visits:
            index.nprobe = width
            _, ids = index.search_preassigned(
                encoder.sketch(context), kept, np.ascontiguousarray(lists), np.zeros(lists.shape, np.float32)
            )
        work = search_work(index, n, kept, visits, coarse=False)
        scores = self._score(context, ids, exclude)
        best = np.lexsort((ids, -scores))[:, :k]
        scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
        work += Work(
            encoder.sketch_flops(n) + n * self._cells.nearest_flops + encoder.kernel_flops(n * kept),
            4 * n * encoder.depth * encoder.width + 8 * cells.size + 8 * encoder.depth * n * kept,
        )
        return scores, np.where(scores > -np.inf, ids, -1), work

    def _score(self, context: np.ndarray, ids: np.ndarray, exclude: np.ndarray) -> np.ndarray:
        safe = np.maximum(ids, 0)
        age = self._age[safe]
        tokens = [
            np.where(age >= j, self._padded[safe + (self.depth - 1 - j)].astype(np.int32), -1)
            for j in range(self.depth)
        ]
        scores = self.encoder.kernel(context, tokens)
        scores[(ids < 0) | (self.passages.labels[safe] == exclude[:, None])] = -np.inf
        return scores

    def _exact(self, context: np.ndarray, k: int, exclude: int) -> tuple[np.ndarray, np.ndarray, Work]:
        scores, ids = np.zeros(0, np.float32), np.zeros(0, np.int64)
        for i in range(0, len(self._entries), 1 << 16):
            block = self._entries[i : i + (1 << 16)].astype(np.int64)
            found = self._score(context[None], block[None], np.array([exclude]))[0]
            allowed = found > -np.inf
            scores, ids = np.concatenate([scores, found[allowed]]), np.concatenate([ids, block[allowed]])
            best = np.lexsort((ids, -scores))[:k]
            scores, ids = scores[best], ids[best]
        missing = k - len(ids)
        n = len(self._entries)
        return (
            np.pad(scores, (0, missing)),
            np.pad(ids, (0, missing), constant_values=-1),
            Work(self.encoder.kernel_flops(n), n * self.depth * 8),
        )


def _clusters(n: int) -> tuple[int, int, int]:
    """Clusters at the last three places for a store of ``n`` entries: about one cell for a hundred of them."""
    if n < 200_000:
        return 128, 8, 1
    if n < 4_000_000:
        return 256, 32, 4
    return 512, 64, 8
