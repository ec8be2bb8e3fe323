"""Neighbours by the words they share with the query, rare ones counting more."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from retrieval.neighbors import Neighbors
from retrieval.ordering import ID, NOTHING, unpacked, words
from retrieval.passages import Passages
from retrieval.snapshot import SnapshotError, open_snapshot, writing_snapshot
from retrieval.source import Source
from retrieval.stored import mapped, stored_passages, write_passages
from retrieval.work import Work

__all__ = ["BM25Source"]

_KIND, _VERSION = "bm25 source", 1
# What the manifest keeps of a source, by the names of its attributes.
_KEPT = ("depth", "length", "k1", "b", "build_flops", "build_bytes", "build_seconds", "fingerprint")


class BM25Source(Source):
    r"""Pieces of text that share tokens with the query, and in each the entry that continues it best.

    `The probabilistic relevance framework: BM25 and beyond <https://doi.org/10.1561/1500000019>`_ by Robertson and
    Zaragoza (2009), in the variant of Lucene, through `BM25S <https://arxiv.org/abs/2407.03618>`_, which works out the
    scores of all pairs of token and piece beforehand. Retrieval of pieces by BM25 for a language model:
    `Surface-based retrieval <https://arxiv.org/abs/2305.16243>`_ by Doostmohammadi and others. Of :math:`N` pieces,
    piece :math:`p` of :math:`\ell_p` tokens, in which token :math:`w` occurs :math:`f_{w,p}` times, has the score

    .. math::
        s(p) = \sum_{w \in \text{query}} \ln\left(1 + \frac{N - n_w + 1/2}{n_w + 1/2}\right)
               \frac{f_{w,p}}{f_{w,p} + k_1 (1 - b + b\,\ell_p / \bar\ell)}

    where :math:`n_w` pieces contain :math:`w`. The query is the set of the last ``depth`` tokens. A piece that shares
    none of them is no neighbour; of equal scores the earlier piece comes first.

    A piece is ``length`` consecutive entries of a passage, the last one fewer; its text is their tokens and the last
    one's answer. It answers with one entry: the one whose context agrees with the query's for the longest stretch, the
    first of these, which is the piece's first entry where no context ends like the query. So ``k`` neighbours are of
    ``k`` different pieces. Pieces of the excluded document take no part in a search, so no others are missed for it.

    Work of a search: one addition for each posting (a token of the query in a piece). *Bytes*: 8 for a posting, and 4
    read and 4 written, at random, where it is added up; 4 written and 4 read for each piece; 4 written, at random, for
    each excluded piece; and to choose the entry each token that is compared, of which those before an entry that
    matches so far are at random.

    Of 5 million random tokens of a Zipf distribution, 79,000 pieces, one core makes an index in 4 s, with 30 bytes of
    memory for each token meanwhile and 8 afterwards, and answers a query of 27 different tokens in 2.6 ms.

    Args:
        passages: What to store.
        depth: Tokens a query is made of at most.
        length: Entries of a piece; ``None`` makes each passage one piece.
        k1: How soon further occurrences of a token count no more.
        b: How much long pieces are held back, from 0 to 1.

    Raises:
        ValueError: If ``depth`` or ``length`` is below 1, ``k1`` is negative, or ``b`` is outside 0 to 1.
    """

    def __init__(
        self,
        passages: Passages,
        *,
        depth: int = 64,
        length: int | None = 64,
        k1: float = 1.2,
        b: float = 0.75,
    ) -> None:
        if depth < 1 or (length is not None and length < 1):
            raise ValueError(f"depth and length must be at least 1, got {depth} and {length}")
        if not (0 <= k1 < float("inf") and 0 <= b <= 1):
            raise ValueError(f"k1 must be finite and not negative and b in 0..1, got {k1} and {b}")
        begin = time.perf_counter()
        self.passages = passages
        self.depth, self.length, self.k1, self.b = depth, length, k1, b
        self._cut()
        self._model = self._scores(None)
        postings, pieces = len(self._model.scores["data"]), len(self._begin)
        # Of a posting its part of the score; of a piece what its length does to it; of a token its rarity.
        self.build_flops = {"bm25": 3 * postings + 5 * pieces + 6 * passages.vocab_size}
        sort = 2 * 20 * postings * max(1, postings.bit_length())
        self.build_bytes = {"bm25": 2 * passages.tokens.nbytes + sort}
        self.build_seconds = time.perf_counter() - begin
        about = f"bm25-1 {depth} {length} {k1} {b} {passages.fingerprint}"
        self.fingerprint = hashlib.sha256(about.encode()).hexdigest()

    def _cut(self) -> None:
        """Where the entries of each piece begin and end, in which passage, and which pieces each document has."""
        offsets = self.passages.offsets
        entries = np.maximum(np.diff(offsets) - 1, 0)
        length = max(1, int(entries.max(initial=0))) if self.length is None else self.length
        count = -(-entries // length)
        passage = np.repeat(np.arange(len(count)), count)
        number = np.arange(len(passage)) - np.repeat(np.cumsum(count) - count, count)
        self._start = offsets[passage]
        self._begin = self._start + number * length
        self._end = np.minimum(self._begin + length, offsets[passage + 1] - 1)
        label = self.passages.documents[passage]
        self._by_document = np.argsort(label, kind="stable")
        self._documents = label[self._by_document]

    def _scores(self, arrays: dict[str, np.ndarray] | None) -> Any:
        """The library's index, made of the pieces or of arrays it had made of them before."""
        # Whoever has JAX or numba pays for importing them with it: only who asks for BM25 shall.
        import bm25s

        model = bm25s.BM25(method="lucene", k1=self.k1, b=self.b, backend="numpy")
        model.nonoccurrence_array = None
        n, vocab_size = len(self._begin), self.passages.vocab_size
        if arrays is not None:
            model.scores = {**arrays, "num_docs": n}
        elif n:
            texts = _Texts(self.passages.tokens, self._begin, self._end)
            model.scores = model.build_index_from_ids(range(vocab_size), texts, show_progress=False)  # type: ignore[arg-type]
        else:
            nothing = np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(vocab_size + 1, np.int64)
            model.scores = {**dict(zip(("data", "indices", "indptr"), nothing, strict=True)), "num_docs": 0}
        return model

    def save(self, path: str | Path) -> None:
        """Write the index and its passages to a folder, whole or not at all; what is there is replaced.

        Args:
            path: Where to.
        """
        about: dict[str, Any] = {name: getattr(self, name) for name in _KEPT}
        with writing_snapshot(path, _KIND, _VERSION, about) as folder:
            about["passages"] = write_passages(folder, self.passages)
            for name in ("data", "indices", "indptr"):
                np.save(folder / f"{name}.npy", self._model.scores[name], allow_pickle=False)

    @classmethod
    def open(cls, path: str | Path, passages: Passages | None = None, *, verify: bool = True) -> BM25Source:
        """Open what :meth:`save` wrote, memory-mapped.

        Args:
            path: Where it is.
            passages: What it was built from, to share them with others; by default the copy in the folder.
            verify: Whether to compare checksums, which reads every file once; lengths are always compared.

        Raises:
            SnapshotError: If it is missing, damaged, foreign, of a newer format, or of other passages.
        """
        path = Path(path)
        about = open_snapshot(path, _KIND, _VERSION, verify=verify)
        source = cls.__new__(cls)
        try:
            vars(source).update({name: about[name] for name in _KEPT})
            source.passages = stored_passages(path, about["passages"], passages)
        except KeyError as missing:
            raise SnapshotError(f"{path} does not say its {missing}: delete it and build it again") from None
        source._cut()
        source._model = source._scores({name: mapped(path, name) for name in ("data", "indices", "indptr")})
        return source

    def find(self, context: Int[np.ndarray, "n depth"], k: int, exclude: Int[np.ndarray, " n"]) -> Neighbors:
        """See :meth:`Source.search`."""
        best, work = np.full((len(context), k), NOTHING), Work()
        ids = np.full((len(context), k), -1, np.int64)
        for row, (recent, document) in enumerate(zip(context, exclude, strict=True)):
            found, cost = self._rank(recent, k, int(document))
            best[row, : len(found)] = found
            ids[row, : len(found)], looked = self._continuations(recent, found & ID)
            work += cost + looked
        scores, _ = unpacked(best)
        return Neighbors.of(torch.from_numpy(scores), torch.from_numpy(ids), **work.counts)

    def _rank(self, context: np.ndarray, k: int, exclude: int) -> tuple[np.ndarray, Work]:
        """The ``k`` best pieces for a query, as sorted words (score, piece)."""
        terms = np.unique(context)
        terms = terms[terms >= 0]
        scores = self._model.get_scores_from_ids(terms)
        own = self._by_document[slice(*np.searchsorted(self._documents, [exclude, exclude + 1]))]
        scores[own] = 0
        shared = np.flatnonzero(scores)
        found = words(scores[shared], shared)
        if len(found) > k:
            found = np.partition(found, k - 1)[:k]
        found.sort()
        indptr = self._model.scores["indptr"]
        postings, n = int((indptr[terms + 1] - indptr[terms]).sum()), len(scores)
        written = 4 * (postings + n + len(own))
        return found, Work(
            postings,
            bytes_read=12 * postings + 4 * n,
            bytes_written=written,
            bytes_random=8 * postings + 4 * len(own),
        )

    def _continuations(self, context: np.ndarray, pieces: np.ndarray) -> tuple[np.ndarray, Work]:
        """The entry of each piece whose context agrees longest with the query's, the first of several."""
        tokens, begin, start = self.passages.tokens, self._begin[pieces], self._start[pieces]
        count = self._end[pieces] - begin
        which = np.repeat(np.arange(len(pieces)), count)
        place = np.arange(len(which)) + np.repeat(begin - (np.cumsum(count) - count), count)
        best = begin.copy()
        scanned, scattered = len(place), 0
        for age in range(int((context >= 0).sum())):
            same = tokens[np.maximum(place - age, 0)] == context[age]
            same &= place - age >= start[which]
            which, place = which[same], place[same]
            if not len(place):
                break
            # Backwards, so that of several the first is what stays.
            best[which[::-1]] = place[::-1]
            scattered += len(place)
        size = tokens.itemsize
        return best, Work(bytes_read=size * (scanned + scattered), bytes_random=size * scattered)


class _Texts:
    """The tokens of every piece as a list, one at a time: the library reads them more than once."""

    def __init__(self, tokens: np.ndarray, begin: np.ndarray, end: np.ndarray) -> None:
        self._tokens, self._begin, self._end = tokens, begin, end

    def __len__(self) -> int:
        return len(self._begin)

    def __iter__(self) -> Iterator[list[int]]:
        for begin, end in zip(self._begin.tolist(), self._end.tolist(), strict=True):
            yield self._tokens[begin : end + 1].tolist()
