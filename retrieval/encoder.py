"""A fixed, cheap encoding of the tokens that come before a position."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, UInt8

from retrieval.passages import Passages
from retrieval.runtime import threads
from retrieval.snapshot import SnapshotError, open_snapshot, writing_snapshot
from retrieval.stored import mapped

__all__ = ["ContextEncoder"]

_KIND, _VERSION = "context encoder", 1
# What an encoder is beside its arrays.
_KEPT = ("vocab_size", "depth", "decay", "blend", "rank", "seed", "flops", "bytes", "fingerprint")
_ARRAYS = {"weights": "weights", "counts": "counts", "vectors": "vectors", "codebook": "codebook"}
_ARRAYS |= {"_row": "rows", "_table": "similarities"}

# Dimensions of what one code stands for.
PART = 8

# Codes of a token among the latest three, among the three before, and before those: how many names, and which parts
# of its meaning.
_NAMES = (3, 2, 1)
_MEANINGS: tuple[tuple[tuple[int, int], ...], ...] = (((0, 4), (4, 8)), ((0, 8),), ())


class ContextEncoder:
    r"""Contexts as vectors whose inner product is a decayed, softened suffix match.

    Token :math:`v` has a vector :math:`\phi(v) = [\sqrt{a}\,e_v ; \sqrt{1 - a}\,1_v]`: what usually follows it, and
    which token it is. A context is its last ``depth`` tokens side by side, each scaled by how far back it stands:

    .. math:: k(x, y) = \sum_{j} w_j \left( a\, e_{x_j} \cdot e_{y_j} + (1 - a)\, [x_j = y_j] \right),
              \qquad w_j \propto \gamma^j, \quad \sum_j w_j = 1,

    which is 1 for equal contexts. :math:`e_v` are the leading left singular vectors, scaled to length 1, of the
    positive pointwise mutual information between a token and its successor, counted in the store (`Levy and Goldberg
    <https://papers.nips.cc/paper/5477>`_ ). In a vocabulary of more than :attr:`table_size` tokens the rarest resemble
    nothing. There is nothing to train by gradients and nothing the network could change, so neighbours can be looked
    up beforehand.

    :meth:`kernel` gives :math:`k` exactly, by table. :meth:`codes` gives an index stored contexts as 4-bit codes of
    single tokens, several for each of the latest: the nearest of 15 means of a part of :math:`e_v`, or a name, one of
    15 drawn by lot. :meth:`sketch` gives vectors of queries, whose inner product with what the codes stand for,
    :attr:`codebook`, approximates :math:`k`. Names are nearly orthogonal, so a few tell tokens apart.

    Args:
        passages: Where to count which token follows which.
        depth: Tokens of context, at least 4.
        decay: :math:`\gamma`.
        blend: :math:`a`.
        rank: Dimensions of :math:`e`.
        seed: Of the names and of the decomposition.

    Raises:
        ValueError: If a parameter is out of range.
    """

    # The table of similarities is square: beyond this many tokens, the rarest resemble nothing.
    table_size = 4096

    def __init__(
        self,
        passages: Passages,
        *,
        depth: int = 12,
        decay: float = 0.6,
        blend: float = 0.5,
        rank: int = 24,
        seed: int = 0,
    ) -> None:
        if depth < 4 or not 0 < decay <= 1 or not 0 <= blend <= 1:
            raise ValueError(
                "ContextEncoder needs depth >= 4, 0 < decay <= 1 and 0 <= blend <= 1, got "
                f"depth={depth}, decay={decay}, blend={blend}"
            )
        self.vocab_size = passages.vocab_size
        self.depth, self.decay, self.blend, self.rank, self.seed = depth, decay, blend, rank, seed
        self.flops: dict[str, int] = {}
        self.bytes: dict[str, int] = {}
        weights = decay ** np.arange(depth)
        self.weights = (weights / weights.sum()).astype(np.float32)
        counts = np.bincount(passages.tokens, minlength=self.vocab_size)
        self.counts = counts
        frequent = np.sort(np.argsort(-counts, kind="stable")[: self.table_size])
        self._row = np.full(self.vocab_size + 1, len(frequent), np.int32)  # the last token id is "none"
        self._row[frequent] = np.arange(len(frequent))
        self.vectors = np.zeros((self.vocab_size + 1, rank), np.float32)
        # The fingerprint names the inputs alone, and another number of threads adds up in another order.
        with threads(1):
            self.vectors[frequent] = self._decompose(passages, frequent)
            self._table = self._similarities(frequent)
            self._encode()
        about = f"context-2 {depth} {decay} {blend} {rank} {seed}"
        self.fingerprint = hashlib.sha256(f"{about} {passages.fingerprint}".encode()).hexdigest()

    def _decompose(self, passages: Passages, frequent: np.ndarray) -> np.ndarray:
        size = len(frequent)
        inside = self._row[passages.tokens]
        follows = np.ones(len(passages), bool)
        follows[passages.offsets[1:][np.diff(passages.offsets) > 0] - 1] = False
        follows[:-1] &= (inside[:-1] < size) & (inside[1:] < size)
        first = np.flatnonzero(follows[:-1])
        pairs = np.bincount(inside[first].astype(np.int64) * size + inside[first + 1], minlength=size * size)
        joint = torch.from_numpy(pairs.reshape(size, size)).float()
        row, column = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True) ** 0.75
        information = (joint * column.sum() / (row * column).clamp_min(1e-9)).clamp_min(1).log()
        rank = min(self.rank, size)
        sample = min(rank + 10, size)
        # Randomized subspace iteration (Halko, Martinsson and Tropp), with a generator of its own.
        generator = torch.Generator().manual_seed(self.seed)
        basis = information @ torch.randn(size, sample, generator=generator)
        for _ in range(2):
            basis = information @ (information.T @ torch.linalg.qr(basis).Q)
        basis = torch.linalg.qr(basis).Q
        left, values, _ = torch.linalg.svd(basis.T @ information, full_matrices=False)
        vectors = (basis @ left)[:, :rank] * values[:rank].sqrt()
        vectors = torch.nn.functional.normalize(vectors, dim=1)
        self.flops["tokens"] = 2 * size * size * sample * 6 + 12 * size * sample**2 + 8 * size * size
        self.bytes["tokens"] = 2 * passages.tokens.nbytes + 4 * size * size * 14
        return np.pad(vectors.numpy(), ((0, 0), (0, self.rank - rank)))

    def _similarities(self, frequent: np.ndarray) -> np.ndarray:
        size = len(frequent)
        table = np.zeros((size + 1, size + 1), np.float32)
        inner = self.vectors[frequent]
        table[:size, :size] = self.blend * (inner @ inner.T)
        table[np.arange(size), np.arange(size)] += 1 - self.blend
        self.flops["tokens"] += (2 * self.rank + 1) * size * size
        self.bytes["tokens"] += 4 * size * size
        return table

    def _encode(self) -> None:
        """Tables of what every token at every place gives to :meth:`sketch` and :meth:`codes`."""
        rng = np.random.default_rng(self.seed)
        order = np.argsort(-self.counts, kind="stable")
        none = np.zeros((1, PART), np.float32)
        names = np.concatenate([none, np.eye(PART), -np.eye(PART)[:-1]]).astype(np.float32)
        meanings = {part: self._meaning(*part) for parts in _MEANINGS for part in parts}
        self._sketches: list[np.ndarray] = []
        self._bytes: list[dict[int, np.ndarray]] = []
        books: list[np.ndarray] = []
        for place, weight in enumerate(self.weights):
            near = min(place // 3, 2)
            given = []
            for _ in range(_NAMES[near]):
                code = np.zeros(self.vocab_size + 1, np.uint8)
                # Tokens of like frequency share no name, so that the most frequent ones stay apart.
                lots = rng.permuted(np.tile(np.arange(1, 16), (-(-self.vocab_size // 15), 1)), axis=1)
                code[order] = lots.ravel()[: self.vocab_size]
                given.append((code, names, (1 - self.blend) / _NAMES[near] * names[code]))
            for part in _MEANINGS[near]:
                code, book, vectors = meanings[part]
                given.append((code, book, self.blend * vectors))
            for code, book, _ in given:
                at, half = divmod(len(books), 2)
                if not half:
                    self._bytes.append({})
                self._bytes[at][place] = self._bytes[at].get(place, np.uint8(0)) | code << 4 * half
                books.append(book)
            sketches = weight * np.concatenate([vectors for *_, vectors in given], axis=1)
            self._sketches.append(sketches.astype(np.float32))
            self.flops["tokens"] += 2 * sketches.size
        self.codebook: Float[np.ndarray, "n_codes 16 part"] = np.stack(books)

    def _meaning(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Code of every token's part of :math:`e`, what the codes stand for, the parts: k-means weighted by counts."""
        vectors = np.zeros((self.vocab_size + 1, PART), np.float32)
        part = self.vectors[:, start:stop]
        vectors[:, : part.shape[1]] = part
        frequent = np.argsort(-self.counts, kind="stable")[:15]
        # Code 0 stands for nothing: no token, and tokens that resemble none.
        book = np.zeros((16, PART), np.float32)
        book[1 : 1 + len(frequent)] = vectors[frequent]
        weight = np.append(self.counts, 0).astype(np.float64)
        passes = 15
        for _ in range(passes):
            code = np.argmax(2 * vectors @ book.T - (book**2).sum(1), axis=1)
            total = np.bincount(code, weights=weight, minlength=16)
            for d in range(PART):
                sums = np.bincount(code, weights=weight * vectors[:, d], minlength=16)
                book[1:, d] = np.where(total > 0, sums / np.maximum(total, 1), book[:, d])[1:]
        code = np.argmax(2 * vectors @ book.T - (book**2).sum(1), axis=1).astype(np.uint8)
        self.flops["tokens"] += (passes + 1) * 2 * 16 * vectors.size + passes * 2 * vectors.size
        self.bytes["tokens"] += (passes + 1) * (2 * vectors.nbytes + 4 * 16 * len(vectors))
        return code, book, vectors

    def save(self, path: str | Path) -> None:
        """Write it into a folder, whole or not at all; what is there is replaced.

        Args:
            path: The folder.
        """
        places = [(at, place) for at, tables in enumerate(self._bytes) for place in tables]
        arrays = {name: getattr(self, attribute) for attribute, name in _ARRAYS.items()}
        arrays["sketches"] = np.concatenate(self._sketches, axis=1)
        arrays["codes"] = np.stack([self._bytes[at][place] for at, place in places])
        about = {name: getattr(self, name) for name in _KEPT} | {
            "places": places,
            "widths": [table.shape[1] for table in self._sketches],
        }
        with writing_snapshot(path, _KIND, _VERSION, about) as folder:
            for name, array in arrays.items():
                content = io.BytesIO()  # numpy's own writing to a file may lose its end on a full disk
                np.save(content, array, allow_pickle=False)
                (folder / f"{name}.npy").write_bytes(content.getbuffer())

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> ContextEncoder:
        """Read what :meth:`save` wrote: what it makes is the same to the last bit.

        Args:
            path: The folder.
            verify: Whether to compare checksums; lengths are always compared.

        Raises:
            SnapshotError: If it is missing, damaged, foreign or of a newer format.
        """
        path = Path(path)
        about = open_snapshot(path, _KIND, _VERSION, verify=verify)
        encoder = cls.__new__(cls)
        # Copied: PyTorch, which looks up in some of them, warns of maps that cannot be written.
        arrays = {name: np.array(mapped(path, name)) for name in [*_ARRAYS.values(), "sketches", "codes"]}
        vars(encoder).update({attribute: arrays[name] for attribute, name in _ARRAYS.items()})
        try:
            vars(encoder).update({name: about[name] for name in _KEPT})
            widths, places = about["widths"], about["places"]
        except KeyError as missing:
            raise SnapshotError(f"{path} does not say its {missing}: delete it and build it again") from None
        encoder._sketches = np.split(arrays["sketches"], np.cumsum(widths)[:-1], axis=1)
        encoder._bytes = [{} for _ in range(1 + max(at for at, _ in places))]
        for (at, place), table in zip(places, arrays["codes"], strict=True):
            encoder._bytes[at][place] = table
        return encoder

    @property
    def n_codes(self) -> int:
        """4-bit codes of a stored context."""
        return len(self.codebook)

    @property
    def dimensions(self) -> int:
        """Dimensions of a sketch."""
        return self.n_codes * PART

    def sketch(self, context: Int[np.ndarray, "n depth"]) -> Float[np.ndarray, "n dimensions"]:
        """Vectors of queries, most recent token first and -1 where there is none; looked up."""
        return np.concatenate([table[context[:, j]] for j, table in enumerate(self._sketches)], axis=1)

    def codes(self, context: Int[np.ndarray, "n depth"]) -> UInt8[np.ndarray, "n bytes"]:
        """Codes of stored contexts, two a byte, the first one in its low half; looked up."""
        found = np.zeros((len(context), len(self._bytes)), np.uint8)
        for at, parts in enumerate(self._bytes):
            for place, table in parts.items():
                found[:, at] |= table[context[:, place]]
        return found

    def keys(self, context: Int[np.ndarray, "n depth"]) -> Float[np.ndarray, "n dimensions"]:
        """Stored contexts as vectors, for an index of vectors: what their :meth:`codes` stand for.

        Their inner product with the :meth:`sketch` of a query approximates :math:`k`.
        """
        packed = self.codes(context)
        codes = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1)[:, : self.n_codes]
        return self.codebook[np.arange(self.n_codes), codes].reshape(len(packed), -1)

    def rows(self, tokens: Integer[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Rows of the table of similarities; a negative token, none, has a row of its own."""
        return self._row[tokens]

    def kernel(
        self, queries: Int[np.ndarray, "n depth"], stored: Integer[np.ndarray, "n m depth"]
    ) -> Float[np.ndarray, "n m"]:
        r""":math:`k` of each query and its own ``m`` stored contexts, exactly; two operations a token.

        The sum runs place by place, so a score does not depend on what else is computed with it.

        Args:
            queries: Contexts as :meth:`rows`, most recent token first.
            stored: The contexts to compare with, as :meth:`rows`, most recent token *last*, as they lie in the text.
        """
        flat, width = torch.from_numpy(self._table).view(-1), self._table.shape[1]
        score = np.zeros(stored.shape[:2], np.float32)
        at, similar = np.empty(score.shape, np.int32), np.empty_like(score)
        index, values = torch.from_numpy(at).view(-1), torch.from_numpy(similar).view(-1)
        base = queries.astype(np.int32) * np.int32(width)
        for j in range(self.depth):
            at[...] = stored[:, :, self.depth - 1 - j]
            at += base[:, j, None]
            torch.index_select(flat, 0, index, out=values)  # numpy's take is half as fast
            similar *= self.weights[j]
            score += similar
        return score

    def kernel_flops(self, pairs: int) -> int:
        """Operations of that many comparisons."""
        return 2 * self.depth * pairs
