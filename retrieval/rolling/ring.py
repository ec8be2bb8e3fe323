"""Rings of past keys and values: the storage under :class:`retrieval.rolling.memory.RollingMemory`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrieval.enrollment import Enrolled
from retrieval.shortlist import rounded

__all__ = ["Ring"]


class Ring(Enrolled):
    """For each row and head the last ``capacity`` keys and values, first in first out.

    An entry is named by its write index: how many entries its row had been given before it, over all its life, 64 bits
    wide. It is kept at ``slot = index % capacity``, with the index beside it; whoever reads compares the two, so what
    is found under a name is what was stored under it or nothing. A reset empties a row and goes on counting: names are
    never used twice.

    Args:
        rows: Independent memories, one for each row of a batch.
        heads: Memories within a row; all heads of a row are written together.
        capacity: Entries kept of each row and head.
        d_key: Dimension of a key.
        d_value: Dimension of a value.
        dtype: How keys and values are kept.
        device: Where they are kept.

    Attributes:
        keys, values: What is stored.
        index: Write index of what is in each slot, -1 where there is nothing.
        norms: Length of each stored key, rounded up.
        written: Write index that each row's next entry will get.
        begin: Write index at each row's last reset.

    Shapes:
        keys: ``[rows, heads, capacity, d_key]``, values: ``[rows, heads, capacity, d_value]``, index:
        ``[rows, capacity]``, norms: ``[rows, heads, capacity]``, written, begin: ``[rows]``
    """

    def __init__(
        self,
        rows: int,
        heads: int,
        capacity: int,
        d_key: int,
        d_value: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.rows, self.heads, self.capacity = rows, heads, capacity
        self.d_key, self.d_value = d_key, d_value
        self.keys = torch.zeros(rows, heads, capacity, d_key, dtype=dtype, device=device)
        self.values = torch.zeros(rows, heads, capacity, d_value, dtype=dtype, device=device)
        self.index = torch.full((rows, capacity), -1, dtype=torch.int64, device=device)
        self.norms = torch.zeros(rows, heads, capacity, dtype=torch.float32, device=device)
        self.written = np.zeros(rows, np.int64)
        self.begin = np.zeros(rows, np.int64)
        self._changes = self._read_after = 0
        self._rounded: tuple[Tensor, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where keys and values are."""
        return self.keys.device

    def to(self, device: torch.device | str) -> None:
        """Move what is stored; the counters stay on the CPU, which decides by them."""
        for name in ("keys", "values", "index", "norms"):
            setattr(self, name, getattr(self, name).to(device))
        self._rounded = None

    def chosen(self, rows: Tensor | None, batch: int | None) -> Tensor:
        """Numbers of the rows a call is about.

        Args:
            rows: Numbers, or a mask over all rows; by default the first ``batch`` rows.
            batch: How many there have to be; by default any number.

        Raises:
            ValueError: If they are too many or too few, or a row is named twice or does not exist.
        """
        if rows is None:
            at = torch.arange(self.rows if batch is None else batch, device="cpu")
            if len(at) <= self.rows:
                return at
        elif rows.dtype == torch.bool:
            if rows.shape != (self.rows,):
                raise ValueError(
                    f"a mask of rows needs shape ({self.rows},), got {tuple(rows.shape)}: "
                    "give one value for each row of the memory"
                )
            at = rows.detach().cpu().nonzero().flatten()
        else:
            if rows.ndim != 1 or rows.is_floating_point():
                raise ValueError(f"rows must be integers [batch], got {rows.dtype} {tuple(rows.shape)}")
            at = rows.detach().cpu().long()
        if batch is not None and len(at) != batch:
            raise ValueError(f"{len(at)} rows are named for a batch of {batch}: name one for each")
        outside = at[(at < 0) | (at >= self.rows)]
        if len(outside):
            raise ValueError(f"row {int(outside[0])} of a memory of {self.rows}: rows count from 0")
        if len(at.unique()) != len(at):
            raise ValueError(f"a row is named twice in {at.tolist()}: name each once")
        return at

    def add(self, keys: Tensor, values: Tensor, at: Tensor) -> None:
        """Write entries into rows, over the oldest ones where a row is full.

        Nothing is written if anything is wrong. Of more entries than ``capacity`` the last are kept, all are counted.

        Args:
            keys, values: What to store.
            at: Numbers of the rows, as :meth:`chosen` gives them.

        Shapes:
            keys: ``[batch, heads, n, d_key]``, values: ``[batch, heads, n, d_value]``, at: ``[batch]``

        Raises:
            ValueError: If a value is not finite; it is named.
        """
        self._refuse_repetition()
        n = keys.shape[2]
        kept = min(n, self.capacity)
        new_keys, new_values = (
            self._stored(x[:, :, n - kept :], name, at, n - kept)
            for x, name in ((keys, "key"), (values, "value"))
        )
        index = torch.from_numpy(self.written[at.numpy()])[:, None] + torch.arange(n - kept, n, device="cpu")
        row, slot = self._area(at, index)
        self._changes += 1
        # Whoever is stopped in the middle leaves slots that say they are empty.
        self.index[row, slot] = -1
        stores, new = [self.keys, self.values, self.norms], [new_keys, new_values, lengths(new_keys)]
        if self._rounded is not None:
            stores, new = [*stores, *self._rounded], [*new, *rounded(new_keys)]
        for store, part in zip(stores, new, strict=True):
            store[row, :, slot] = part if isinstance(slot, slice) else part.transpose(1, 2)
        self.index[row, slot] = index.to(self.device)
        self.written[at.numpy()] += n

    def _area(self, at: Tensor, index: Tensor) -> tuple[Tensor, Tensor] | tuple[slice, slice]:
        """Rows and slots of write indices; slices where they lie in one piece, written in a quarter of the time."""
        if index.numel() and bool((index[:, 0] == index[0, 0]).all()):
            row, low = int(at[0]), int(index[0, 0]) % self.capacity
            rows, slots = slice(row, row + len(at)), slice(low, low + index.shape[1])
            if slots.stop <= self.capacity and torch.equal(at, torch.arange(row, rows.stop, device="cpu")):
                return rows, slots
        return at[:, None].to(self.device), (index % self.capacity).to(self.device)

    def _stored(self, x: Tensor, name: str, at: Tensor, skipped: int) -> Tensor:
        kept = x.detach().to(device=self.device, dtype=self.keys.dtype)
        # A sum of what is not finite is not either, and is one pass where asking for each number is several.
        if bool(kept.sum(dtype=torch.float32).isfinite()) or bool(kept.isfinite().all()):
            return kept
        row, head, position, _ = (int(i) for i in (~kept.isfinite()).nonzero()[0])
        why = (
            f"is too large for {self.keys.dtype}"
            if bool(x[row, head, position].isfinite().all())
            else "is not finite"
        )
        raise ValueError(
            f"{name} at row {int(at[row])}, head {head}, position {position + skipped} {why}; nothing was stored"
        )

    def reset(self, at: Tensor) -> None:
        """Empty rows; what they store from now on gets new names."""
        self._refuse_repetition()
        self._changes += 1
        self.begin[at.numpy()] = self.written[at.numpy()]
        self.index[at.to(self.device)] = -1
        self.norms[at.to(self.device)] = 0

    def reading(self) -> None:
        """Take note that entries are read; refuse to if a backward pass would read others than the forward pass did.

        Raises:
            RuntimeError: If a part of the forward pass is run again within the backward pass, and the memory was
                written to since the last time it was read outside of one.
        """
        if not _in_backward():
            self._read_after = self._changes
        elif self._read_after != self._changes:
            raise RuntimeError(
                "the memory is read again in the backward pass (gradient checkpointing) and was written to since the "
                "forward pass, so gradients would be wrong: search and gather outside of the checkpointed block, or "
                "add and reset after backward()"
            )

    def _refuse_repetition(self) -> None:
        if _in_backward():
            raise RuntimeError(
                "the memory is written to in the backward pass: gradient checkpointing runs a block again, which would "
                "store its entries twice. Add and reset outside of the checkpointed block"
            )

    @property
    def first(self) -> np.ndarray:
        """Write index of the oldest entry of each row."""
        return np.maximum(self.begin, self.written - self.capacity)

    @property
    def live(self) -> np.ndarray:
        """Entries of each row, in each of its heads."""
        return np.minimum(self.written - self.begin, self.capacity)

    def segments(self, row: int) -> list[tuple[int, int]]:
        """Runs of slots ``[low, high)`` that hold the entries of a row: none, one, or two where they go round."""
        live = min(int(self.written[row] - self.begin[row]), self.capacity)
        low = int(self.written[row] - live) % self.capacity
        if live == self.capacity:
            return [(0, live)]
        runs = [(low, min(low + live, self.capacity)), (0, low + live - self.capacity)]
        return [run for run in runs if run[0] < run[1]]

    def slots(self, row: int) -> np.ndarray:
        """Slots of a row's entries, oldest first."""
        return np.arange(self.first[row], self.written[row]) % self.capacity

    def gather(self, ids: Tensor, mask: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values by write index, and which of them are still there; zeros where not.

        Shapes:
            ids, mask: ``[batch, heads, n, k]``, at: ``[batch]``, keys: ``[batch, heads, n, k, d_key]``, values:
            ``[batch, heads, n, k, d_value]``
        """
        ids, mask, row = ids.to(self.device), mask.to(self.device), at.to(self.device)[:, None, None, None]
        # A remainder by a power of two is the last bits, and a tenth of the work.
        power = self.capacity & (self.capacity - 1) == 0
        slot = ids & (self.capacity - 1) if power else ids % self.capacity
        stored = self.index.flatten().index_select(0, (row * self.capacity + slot).flatten())
        mask = mask & (stored.view_as(ids) == ids)
        head = torch.arange(self.heads, device=self.device)[:, None, None]
        place = ((row * self.heads + head) * self.capacity + slot).flatten()
        every = bool(mask.all())
        found = []
        for store in (self.keys, self.values):
            x = store.flatten(0, 2).index_select(0, place)
            if not every:
                x.masked_fill_(~mask.view(-1, 1), 0)
            found.append(x.view(*ids.shape, -1))
        return found[0], found[1], mask

    def begins(self, memories: list[tuple[int, int]]) -> np.ndarray:
        """Where slot 0 of each ``(row, head)`` is among all slots of the ring."""
        return np.array([(row * self.heads + head) * self.capacity for row, head in memories], np.int64)

    def float_keys(self, memories: list[tuple[int, int]]) -> tuple[Tensor, np.ndarray]:
        """Keys as 32-bit floats in one matrix, and where in it slot 0 of each ``(row, head)`` is; no copy if they are.

        Shapes:
            keys: ``[p, d_key]``, begins: ``[len(memories)]``
        """
        if self.keys.dtype == torch.float32:
            return self.keys.view(-1, self.d_key), self.begins(memories)
        keys = torch.stack([self.keys[row, head] for row, head in memories]).float()
        return keys.view(-1, self.d_key), np.arange(len(memories)) * self.capacity

    def rounded_keys(self) -> tuple[Tensor, Tensor]:
        """Keys in bfloat16 and how much each lost; made when they are first asked for, and kept up from then on.

        Shapes:
            keys: ``[rows, heads, capacity, d_key]``, lost: ``[rows, heads, capacity]``
        """
        if self._rounded is None:
            # It is written to later, which no tensor made for inference alone may be.
            with torch.inference_mode(False):
                self._rounded = rounded(self.keys)
        return self._rounded

    def state(self) -> dict[str, Tensor]:
        """Everything stored, copied."""
        counters = {name: torch.from_numpy(getattr(self, name).copy()) for name in ("written", "begin")}
        return {name: getattr(self, name).cpu().clone() for name in ("keys", "values", "index")} | counters

    def load(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave, after :meth:`faults` has found none."""
        self._changes += 1
        for name in ("keys", "values", "index"):
            getattr(self, name).copy_(state[name])
        for name in ("written", "begin"):
            getattr(self, name)[:] = state[name].cpu().numpy()
        self.norms = torch.where(self.index[:, None] >= 0, lengths(self.keys), 0.0)
        self._rounded = None

    def faults(self, state: dict[str, Any]) -> list[str]:
        """What keeps a state from being this ring's, in words."""
        for name in ("keys", "values", "index", "written", "begin"):
            own, given = getattr(self, name), state.get(name)
            own = own if isinstance(own, Tensor) else torch.from_numpy(own)
            if not isinstance(given, Tensor):
                return [f"it has no tensor {name!r}"]
            if given.shape != own.shape or given.dtype != own.dtype:
                return [
                    f"{name} is {given.dtype} {tuple(given.shape)} there and {own.dtype} {tuple(own.shape)} here"
                ]
        written, begin = state["written"].cpu(), state["begin"].cpu()
        slots, end = torch.arange(self.capacity, device="cpu"), written[:, None]
        latest = end - 1 - (end - 1 - slots) % self.capacity
        expected = torch.where(latest >= begin[:, None], latest, -1)
        if bool((begin < 0).any() | (begin > written).any()) or not torch.equal(
            expected, state["index"].cpu()
        ):
            return ["its write indices contradict each other: it is damaged"]
        return [
            f"{name} has values that are not finite: it is damaged"
            for name in ("keys", "values")
            if not bool(state[name].isfinite().all())
        ]


def _in_backward() -> bool:
    """Whether autograd is at work in this thread: then a forward pass is one that checkpointing runs again."""
    return torch._C._current_graph_task_id() != -1


def lengths(keys: Tensor) -> Tensor:
    """Euclidean lengths along the last axis, rounded up."""
    # In 64 bits no square of a 32-bit float is lost; the factor is far above what rounding back can do.
    return (torch.linalg.vector_norm(keys.double(), dim=-1) * (1 + 1e-6)).float()
