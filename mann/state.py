"""What streaming slots remember from one segment of text to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from retrieval import RollingMemory

__all__ = ["State", "Streaming"]

_VERSION = 1


class Streaming:
    """Marks a slot that keeps something in a :class:`State`; a :class:`~mann.Transformer` gives each its own key."""

    state_key: str = ""


class State:
    r"""What streaming slots left behind at the end of the last segment, for each row of a batch.

    Row ``b`` of every segment goes on where row ``b`` of the one before ended; where the first document of a row is
    another than the last one before, the row is reset. A slot reads what it left (or its start), and writes what the
    next segment shall find::

        state = State()
        for segment in segments:
            loss = model.loss(segment["tokens"], segment["targets"], segment["documents"], state=state).mean()
            loss.backward()
            state.detach()  # truncated backpropagation through time

    Tensors have the rows of the batch in front. They may carry gradients, until :meth:`detach`. A
    :class:`retrieval.RollingMemory` is kept as it is: what it stores has no gradient.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, dict[str, Tensor]] = {}
        # What slots wrote in this segment, for the next: who reads again (checkpointed activations) finds the old.
        self._written: dict[str, dict[str, Tensor]] = {}
        self._memories: dict[str, RollingMemory] = {}
        self._loaded: dict[str, Mapping[str, Any]] = {}
        # Rows that were reset since their slot wrote, and since a memory was loaded that nobody has asked for yet.
        self._fresh: dict[str, Tensor] = {}
        self._emptied: dict[str, Tensor] = {}
        self._document: Tensor | None = None
        self._rows: int | None = None

    @property
    def rows(self) -> int | None:
        """Rows of the batch; ``None`` before the first segment."""
        return self._rows

    def begin(self, rows: int, documents: Int[Tensor, "batch time"] | None = None) -> None:
        """Take note of the next segment: rows that begin with another document are reset.

        Args:
            rows: Rows of its batch.
            documents: Document labels as the caller has them; ``None``: every row goes on with its document.

        Raises:
            ValueError: If the segment has another number of rows than the last.
        """
        if self._rows not in (None, rows):
            raise ValueError(
                f"a batch of {rows} rows for a state of {self._rows}: give as many rows as before, or a new State()"
            )
        self._rows = rows
        self._end()
        if documents is None:
            return
        if self._document is not None:
            before = self._document.to(documents.device)
            self.reset(documents[:, 0] != before)
        self._document = documents[:, -1].clone()

    def read(self, slot: Streaming, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a slot has left; in rows that were reset, and at first, its start.

        Args:
            slot: Whose it is.
            start: Each tensor asked for as it is at the beginning of a document, rows in front (expanded is enough).

        Raises:
            ValueError: If it left no such names, or other shapes.
        """
        held = self._tensors.get(slot.state_key)
        if held is None:
            return dict(start)
        held = {name: value for name, value in held.items() if name in start}
        shapes = [{name: tuple(value.shape) for name, value in values.items()} for values in (held, start)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"slot {slot.state_key!r} left {shapes[0]} and now asks for {shapes[1]}: is this the state of another "
                "model? Begin with a new State()"
            )
        # A checkpoint comes back on the CPU, wherever the network computes.
        held = {name: value.to(start[name].device) for name, value in held.items()}
        fresh = self._fresh.get(slot.state_key)
        if fresh is None:
            return held
        where = {
            name: fresh.to(value.device).view(-1, *[1] * (value.ndim - 1)) for name, value in held.items()
        }
        return {name: torch.where(where[name], start[name], value) for name, value in held.items()}

    def write(self, slot: Streaming, **values: Tensor) -> None:
        """Leave tensors, rows in front, for the next segment."""
        self._written[slot.state_key] = values

    def _end(self) -> None:
        """The segment is over: what was written in it is what the next one reads."""
        for key, values in self._written.items():
            self._tensors[key] = values
            self._fresh.pop(key, None)
        self._written = {}

    def memory(self, slot: Streaming, make: Callable[[], RollingMemory]) -> RollingMemory:
        """The rolling memory of a slot.

        Args:
            slot: Whose it is.
            make: Makes an empty one, with as many rows as the batch; called once.

        Raises:
            ValueError: If a state was loaded that is of a memory of other sizes.
        """
        key = slot.state_key
        if key not in self._memories:
            memory = make()
            if key in self._loaded:
                memory.load_state_dict(self._loaded.pop(key))
                if (emptied := self._emptied.pop(key, None)) is not None:
                    memory.reset(emptied.cpu())
            self._memories[key] = memory
        return self._memories[key]

    def reset(self, rows: Bool[Tensor, " batch"] | None = None) -> None:
        """Forget rows whose document has ended; the others stay.

        Args:
            rows: ``True`` for each row to forget; by default all.

        Raises:
            ValueError: If it is no mask of all rows.
        """
        if self._rows is None:
            return
        self._end()
        rows = torch.ones(self._rows, dtype=torch.bool) if rows is None else rows
        if rows.dtype != torch.bool or tuple(rows.shape) != (self._rows,):
            raise ValueError(
                f"reset needs a mask of {self._rows} rows, got {rows.dtype} of shape {tuple(rows.shape)}"
            )
        for known, noted in ((self._tensors, self._fresh), (self._loaded, self._emptied)):
            noted.update({key: noted[key].to(rows.device) | rows if key in noted else rows for key in known})
        for memory in self._memories.values():
            memory.reset(rows.cpu())

    def detach(self) -> None:
        """End the gradient here: the next segment does not reach back into this one."""
        self._end()
        for values in self._tensors.values():
            values.update({name: value.detach() for name, value in values.items()})

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and names by which :meth:`load_state_dict` goes on exactly here; copies."""
        self._end()
        memories = {key: memory.state_dict() for key, memory in self._memories.items()}
        return {
            "version": _VERSION,
            "rows": self._rows,
            "document": None if self._document is None else self._document.clone(),
            "tensors": {
                key: {name: value.detach().clone() for name, value in values.items()}
                for key, values in self._tensors.items()
            },
            "fresh": {key: mask.clone() for key, mask in self._fresh.items()},
            "emptied": {key: mask.clone() for key, mask in self._emptied.items()},
            "memories": {**{key: dict(value) for key, value in self._loaded.items()}, **memories},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; what is held is forgotten.

        Raises:
            ValueError: If it is no such thing, or of a newer format.
        """
        if state.get("version") != _VERSION:
            raise ValueError(f"this is no State of format {_VERSION}, but of {state.get('version')}")
        self.__init__()
        self._rows, self._document = state["rows"], state["document"]
        self._tensors = {key: dict(values) for key, values in state["tensors"].items()}
        self._fresh, self._emptied = dict(state["fresh"]), dict(state["emptied"])
        self._loaded = dict(state["memories"])
