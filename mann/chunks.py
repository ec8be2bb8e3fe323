"""Chunks of documents: each document is cut from its own first token on, wherever in a row or segment that is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from mann.context import Context


@dataclass(frozen=True)
class Chunks:
    """Where the positions of a batch stand in chunks; see :func:`document_chunks`.

    Args:
        size: Places of a chunk.
        count: Chunks of a row; rows of fewer end in empty ones.
        time: Positions of a row.
        places: Place of each position among all of its row; ``None``: they are the same.
        positions: Position of each place, ``time`` where there is none; ``None``: they are the same.
        begins: Chunks that begin another document than the row's first; ``None``: none does.
        complete: Chunks whose last place is taken; ``None``: all but perhaps the last.
        filled: How many places the last chunk of each row has taken, 0 if all; ``None``: nobody asked.

    Shapes:
        places: ``[batch, time]``; positions: ``[batch, count * size]``; begins, complete: ``[batch, count]``;
        filled: ``[batch]``
    """

    size: int
    count: int
    time: int
    places: Int[Tensor, "batch time"] | None = None
    positions: Int[Tensor, "batch places"] | None = None
    begins: Bool[Tensor, "batch count"] | None = None
    complete: Bool[Tensor, "batch count"] | None = None
    filled: Int[Tensor, " batch"] | None = None

    @property
    def opens(self) -> Bool[Tensor, "batch time"] | None:
        """True for positions in the first place of a chunk; ``None`` where :attr:`places` is."""
        return None if self.places is None else self.places % self.size == 0

    def split(self, x: Tensor) -> Tensor:
        """The positions in chunks, zeros in places that are not taken.

        Shapes:
            x: ``[batch, time, *]``; result: ``[batch, count, size, *]``
        """
        if self.positions is None:
            lack = self.count * self.size - self.time
            # Without anything to add it would be a copy.
            padded = F.pad(x, (*[0] * 2 * (x.ndim - 2), 0, lack)) if lack else x
            return padded.unflatten(1, (self.count, self.size))
        padded = F.pad(x, (*[0] * 2 * (x.ndim - 2), 0, 1))
        return _take(padded, self.positions).unflatten(1, (self.count, self.size))

    def merge(self, x: Tensor) -> Tensor:
        """What :meth:`split` took apart.

        Shapes:
            x: ``[batch, count, size, *]``; result: ``[batch, time, *]``
        """
        flat = x.flatten(1, 2)
        return flat[:, : self.time] if self.places is None else _take(flat, self.places)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of ``x [batch, n, *]`` by ``index [batch, m]``."""
    offsets = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (index + offsets).flatten()).unflatten(0, index.shape)


def document_chunks(
    context: Context, size: int, filled: Int[Tensor, " batch"] | None = None, lead: int = 0
) -> Chunks:
    """Cut every document of a batch into chunks of its own, so that none holds tokens of two.

    Chunks do not depend on where in the row a document begins, nor on where a segment ends: a document that goes on
    in the next segment fills up the chunk it had begun.

    Args:
        context: Gives the documents.
        size: Positions of a chunk.
        filled: How many places each row's carried document has taken of a chunk begun in an earlier segment;
            ``None``: nothing is carried. A document that begins with the row has filled ``lead``.
        lead: Places that every document leaves empty before its first token.
    """
    time, documents = context.tokens.shape[1], context.documents
    if documents is None and filled is None and not lead:
        return Chunks(size, -(-time // size), time)
    here = torch.arange(time, device=context.tokens.device).expand_as(context.tokens)
    age, change = here, torch.zeros_like(here, dtype=torch.bool)
    if documents is not None:
        change = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
        age = here - (here * change).cummax(1).values
    begun = here.new_full((len(here),), lead) if filled is None else filled
    age = age + (begun[:, None] if documents is None else torch.where(documents == 0, begun[:, None], lead))
    place = age % size
    opens = (place == 0) | change
    opens[:, 0] = True
    number = opens.cumsum(1) - 1
    last = number[:, -1].amax()
    # Shapes without numbers cannot say how often documents change: as if they all began and ended with a row.
    unknown = last.is_meta or isinstance(last, FakeTensor)
    count = -(-time // size) if unknown else int(last) + 1
    places = number * size + place
    positions = torch.full((len(here), count * size), time, device=here.device).scatter_(1, places, here)
    # Added up, because only the first token of a chunk can begin a document.
    begins = torch.zeros(len(here), count, dtype=torch.long, device=here.device)
    begins = begins.scatter_add_(1, number, change.long()) > 0
    complete = positions.unflatten(1, (count, size))[..., -1] < time
    return Chunks(size, count, time, places, positions, begins, complete, (place[:, -1] + 1) % size)
