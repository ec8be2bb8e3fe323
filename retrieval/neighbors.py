"""What a search returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retrieval.work import Work

__all__ = ["Neighbors"]

# What is counted of a search, by name.
_WORK = ("flops", "bytes", "bytes_written", "bytes_random", "intops")


@dataclass(frozen=True)
class Neighbors:
    """The ``k`` nearest stored entries of each query, best first, with the work it took to find them.

    Where fewer than ``k`` entries qualify, the row ends in places whose ``mask`` is ``False``, whose score is 0 and
    whose id is 0: safe to index with, never to be read without the mask. An id of -1 does not exist.

    Args:
        scores: Similarity, larger is nearer, descending along the last axis.
        ids: Position of the stored entry.
        mask: ``True`` where there is a neighbour.
        flops: Floating-point operations of the search.
        bytes: Bytes the search moved.
        bytes_written: The part of them that was written; the rest was read.
        bytes_random: The part of them at addresses which the data decides.
        intops: The part of ``flops`` made on integers.

    Shapes:
        scores, ids, mask: ``[*batch, k]``

    Raises:
        ValueError: If shapes or types differ from the above.
    """

    scores: Float[Tensor, "*batch k"]
    ids: Int[Tensor, "*batch k"]
    mask: Bool[Tensor, "*batch k"]
    flops: int = 0
    bytes: int = 0
    bytes_written: int = 0
    bytes_random: int = 0
    intops: int = 0

    def __post_init__(self) -> None:
        if not (self.scores.shape == self.ids.shape == self.mask.shape and self.scores.ndim >= 1):
            raise ValueError(
                "Neighbors needs scores, ids and mask of one shape [*batch, k], got "
                f"{tuple(self.scores.shape)}, {tuple(self.ids.shape)} and {tuple(self.mask.shape)}"
            )
        if (
            self.scores.dtype != torch.float32
            or self.ids.dtype != torch.int64
            or self.mask.dtype != torch.bool
        ):
            raise ValueError(
                "Neighbors needs float32 scores, int64 ids and a bool mask, got "
                f"{self.scores.dtype}, {self.ids.dtype} and {self.mask.dtype}"
            )

    @classmethod
    def known(cls, scores: Tensor, ids: Tensor, mask: Tensor, work: Work) -> Neighbors:
        """From results whose shapes and types are right as they were made: checking them again is a large part of what
        a small search takes.
        """
        made = object.__new__(cls)
        made.__dict__.update(
            scores=scores,
            ids=ids,
            mask=mask,
            flops=work.flops,
            bytes=work.bytes_read + work.bytes_written,
            bytes_written=work.bytes_written,
            bytes_random=work.bytes_random,
            intops=work.intops,
        )
        return made

    @classmethod
    def of(
        cls,
        scores: Tensor,
        ids: Tensor,
        *,
        flops: int = 0,
        bytes: int = 0,  # noqa: A002 - the unit is the name
        bytes_written: int = 0,
        bytes_random: int = 0,
        intops: int = 0,
    ) -> Neighbors:
        """From raw results in which a missing neighbour has a negative id: mask it, and put the rest first."""
        mask = ids >= 0
        right = scores.shape == ids.shape and scores.dtype == torch.float32 and ids.dtype == torch.int64
        if right and bool(mask.all()):
            work = Work(flops, bytes - bytes_written, bytes_written, bytes_random, intops)
            return cls.known(scores, ids, mask, work)
        if not bool(
            (mask[..., :-1] | ~mask[..., 1:]).all()
        ):  # a hole before a neighbour: close it, keep the order
            order = torch.argsort((~mask).to(torch.int8), dim=-1, stable=True)
            scores, ids, mask = scores.gather(-1, order), ids.gather(-1, order), mask.gather(-1, order)
        return cls(
            scores=torch.where(
                mask, scores.float(), torch.zeros((), dtype=torch.float32, device=scores.device)
            ),
            ids=torch.where(mask, ids, torch.zeros((), dtype=ids.dtype, device=ids.device)).long(),
            mask=mask,
            flops=flops,
            bytes=bytes,
            bytes_written=bytes_written,
            bytes_random=bytes_random,
            intops=intops,
        )

    @classmethod
    def none(cls, *shape: int, device: torch.device | str = "cpu") -> Neighbors:
        """No neighbour at all, in ``shape`` ``[*batch, k]``."""
        return cls(
            scores=torch.zeros(shape, dtype=torch.float32, device=device),
            ids=torch.zeros(shape, dtype=torch.int64, device=device),
            mask=torch.zeros(shape, dtype=torch.bool, device=device),
        )

    @classmethod
    def cat(cls, parts: Sequence[Neighbors]) -> Neighbors:
        """Neighbours of several batches, one after the other along the first axis; their work is added up.

        Args:
            parts: One at least; they agree in every axis but the first.
        """
        return cls(
            scores=torch.cat([part.scores for part in parts]),
            ids=torch.cat([part.ids for part in parts]),
            mask=torch.cat([part.mask for part in parts]),
            **{name: sum(part.work[name] for part in parts) for name in parts[0].work},
        )

    @property
    def k(self) -> int:
        """Neighbours per query."""
        return self.scores.shape[-1]

    @property
    def work(self) -> dict[str, int]:
        """Everything counted of the search, by name."""
        return {name: getattr(self, name) for name in _WORK}

    def view(self, *shape: int) -> Neighbors:
        """The same neighbours in another shape of batch, ``k`` included."""
        return Neighbors(self.scores.view(shape), self.ids.view(shape), self.mask.view(shape), **self.work)

    def to(self, device: torch.device | str) -> Neighbors:
        """The same neighbours on another device."""
        return Neighbors(self.scores.to(device), self.ids.to(device), self.mask.to(device), **self.work)
